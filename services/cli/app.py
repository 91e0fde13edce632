"""The `meterpost` command put together; its help begins with examples."""

from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from services.cli import (
    access_commands,
    ingest_commands,
    job_connection,
    late_commands,
    meter_commands,
    notification_commands,
    reading_commands,
    rejected_commands,
    request_commands,
    run_commands,
    secret_commands,
    setup_commands,
    window_commands,
    window_completeness,
    window_event_commands,
    window_show,
    window_verify_commands,
    windows,
)
from services.cli.show import console

EXAMPLES = """\
Examples
  Readings of your own, from a NEM12 file, on a demo (`make run FLEET=0`):
    meterpost meters import --from-nem12 day.zip
    meterpost jobs create --name Hourly --frequency hour --resolution 60 \\
        --all-sites --start 2020-01-01T00:00:00Z
    meterpost readings publish day.zip --format nem12
    meterpost runs list
    meterpost runs show job1-20200101T000000Z

  The same for programs:
    meterpost runs list --state frozen --json

  Servers of your own:
    meterpost db migrate --database postgresql://user@db.example.org/meterpost
    meterpost topics declare --kafka kafka.example.org:9092
"""

_REGISTER_BY_IMPORT = (
    window_commands,
    window_completeness,
    window_event_commands,
    window_show,
    window_verify_commands,
)
"""Modules whose commands stand in a group of several modules."""

HELP = """\
Meterpost posts the closed intervals of pulse meters to the customers' own servers.

Exit codes: 0 done; 2 the input or an option is wrong; 1 a server cannot be reached, or something else failed;
6 `windows verify` found a difference.
Times are UTC and end with Z. Results go to standard output, notes and errors to standard error.
"""


class _ExamplesFirst(TyperGroup):
    """A group whose help begins with examples, because most people come for these."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, then what the options and commands are."""
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
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
job_connection.app.registered_commands += request_commands.jobs.registered_commands
run_commands.app.registered_commands += request_commands.runs.registered_commands
app.add_typer(meter_commands.app, name="meters")
app.add_typer(job_connection.app, name="jobs")  # of which job_commands is the other half
app.add_typer(reading_commands.app, name="readings")
app.add_typer(run_commands.app, name="runs")
app.add_typer(ingest_commands.app, name="ingest")
app.add_typer(rejected_commands.app, name="rejected")
app.add_typer(windows.app, name="windows")
app.add_typer(late_commands.app, name="late")
app.add_typer(notification_commands.app, name="notifications")
app.add_typer(secret_commands.app, name="secrets")
app.add_typer(access_commands.clients, name="api-clients")
app.add_typer(access_commands.users, name="users")
app.add_typer(setup_commands.database_app, name="db")
app.add_typer(setup_commands.topics_app, name="topics")


@app.callback()
def root() -> None:
    """Stand for the command as a whole; its help is HELP."""
