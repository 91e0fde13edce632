"""The groups of commands, each loaded when it is asked for: nobody waits for the imports of the others."""

import functools
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class Group(NamedTuple):
    """A group's help, and where its commands are registered: `module`, or `module:name` of a Typer in it."""

    help: str
    modules: tuple[str, ...]


GROUPS = {
    "meters": Group("Meters: register them from a file, list them.", ("meter_commands",)),
    "devices": Group("Devices: loggers and bridges, changed, ended, removed.", ("device_commands",)),
    "jobs": Group(
        "Export jobs: what is sent, how often, and where to.",
        ("job_commands", "job_connection", "request_commands:jobs"),
    ),
    "readings": Group(
        "Readings: publish those of a file, and show what was known when.", ("reading_commands", "reading_as_of")
    ),
    "runs": Group(
        "Runs: what was sent when, and what the receiver answered.", ("run_commands", "request_commands:runs")
    ),
    "measurements": Group("Measurements: closed windows, over the HTTP API.", ("measurement_commands",)),
    "exports": Group("Exports that you ask for: any range, as a file to download.", ("export_commands",)),
    "ingest": Group("Ingest: how far it is, and what it leaves to an operator.", ("ingest_commands",)),
    "rejected": Group("Refused readings: what was wrong with them, and publishing them again.", ("rejected_commands",)),
    "windows": Group(
        "Closed windows: where closing stands, and what a window is made of.",
        (
            "windows",
            "window_commands",
            "window_completeness",
            "window_show",
            "window_event_commands",
            "window_verify_commands",
        ),
    ),
    "late": Group("Late readings: what closed windows missed, and what to send after.", ("late_commands",)),
    "dropbox": Group("The hosted SFTP folder: accounts, keys, and what was fetched.", ("dropbox_commands",)),
    "receiver": Group("For receivers: is what arrived whole, sound and unchanged?", ("receiver_commands",)),
    "notifications": Group("Whom to tell when a job fails, stops or recovers.", ("notification_commands",)),
    "secrets": Group("The keys that seal the secrets of jobs in the database.", ("secret_commands",)),
    "api-clients": Group("Machines that may use the HTTP API.", ("access_commands:clients",)),
    "users": Group("People who may use the HTTP API.", ("access_commands:users",)),
    "db": Group("The database's tables.", ("setup_commands:database_app",)),
    "topics": Group("The topics on Kafka.", ("setup_commands:topics_app",)),
}


class Groups(TyperGroup):
    """A group whose commands are those of GROUPS; to list them none is loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return [*GROUPS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what the help says of a group; to call it, `resolve_command` loads it."""
        if cmd_name in GROUPS:
            return TyperGroup(name=cmd_name, help=GROUPS[cmd_name].help)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is called, loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in GROUPS else command, rest


@functools.cache
def load(name: str) -> Any:
    """Import a group's modules and return the command that holds theirs."""
    apps: list[typer.Typer] = []
    for place in GROUPS[name].modules:
        module, _colon, attribute = place.partition(":")
        app = getattr(import_module(f"services.cli.{module}"), attribute or "app")
        if app not in apps:
            apps.append(app)
    whole, *others = apps
    for other in others:
        whole.registered_commands += other.registered_commands
    group = typer.main.get_group(whole)
    group.name = name
    return group
