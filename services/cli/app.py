"""The `meterpost` command put together; its help begins with examples."""

import gc
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.api_session import FILE_VARIABLE, ID_VARIABLE, SECRET_VARIABLE, URL_VARIABLE, api_place
from services.cli.completion import completion
from services.cli.groups import Groups

EXAMPLES = """\
Examples
  Readings of your own, from a NEM12 file, on a demo (`make run FLEET=0`):
    meterpost meters import --from-nem12 day.zip
    meterpost jobs create --name Hourly --frequency hour --resolution 60 \\
        --all-sites --start 2020-01-01T00:00:00Z
    meterpost readings publish day.zip --format nem12
    meterpost runs list
    meterpost runs show job8-20200101T000000Z

  The same for programs:
    meterpost runs list --state frozen --json

  For whoever receives:
    meterpost receiver check .local/received

  Servers of your own:
    meterpost db migrate --database postgresql://user@db.example.org/meterpost
    meterpost topics declare --kafka kafka.example.org:9092
"""

HELP = """\
Meterpost posts the closed intervals of pulse meters to the customers' own servers.

Exit codes: 0 done; 2 the input or an option is wrong; 1 a server cannot be reached, or something else failed;
6 `windows verify` or `receiver check` found a difference.
Times are UTC and end with Z. Results go to standard output, notes and errors to standard error.
"""


class _ExamplesFirst(Groups):
    """A group whose help begins with examples, because most people come for these."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, then what the options and commands are."""
        from rich.text import Text  # noqa: PLC0415 - only help needs it

        from services.cli.terminal import console  # noqa: PLC0415 - as above

        examples = Text("\n" + EXAMPLES)
        examples.highlight_regex(r"(?m)^Examples$", "bold")
        examples.highlight_regex(r"(?m)^ {4,}.*$", "cyan")
        console().print(examples, soft_wrap=True)
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="meterpost",
    cls=_ExamplesFirst,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


app.command("completion")(completion)


@app.callback()
def root(
    context: typer.Context,
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help=f"Use the HTTP API there. Or: {URL_VARIABLE}", show_default=False),
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            metavar="FILE",
            help=f"Who asks the API, as JSON. Or: {FILE_VARIABLE}, or {ID_VARIABLE} and {SECRET_VARIABLE}",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Stand for the command as a whole; its help is HELP. Called when the command's own modules are loaded."""
    gc.freeze()
    gc.enable()
    context.obj = api_place(url, credentials)
