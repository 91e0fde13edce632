"""`meterpost windows`: the group that its commands, each in a module of its own, register with."""

import typer

app = typer.Typer(no_args_is_help=True, help="Closed windows: where closing stands, and what a window is made of.")
