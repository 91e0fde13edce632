"""The command line of every service: --help names its settings, --check-config checks them; it takes nothing else."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from typing import NoReturn

from pydantic_settings import BaseSettings

from services.platform.settings import described

CHECK_CONFIG = "--check-config"


def service_parser(about: str, kind: type[BaseSettings]) -> ArgumentParser:
    """Return what reads the command line of a service with these settings, of which `about` tells a sentence.

    It ends the process for --help (exit code 0) and for what it does not know (2), before any setting is read; else
    `check_config` tells whether the settings are only to be checked.
    """
    parser = _Parser(
        prog=_program(),
        description=about,
        epilog=settings_text(kind),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(CHECK_CONFIG, action="store_true", help="check the settings, say what is wrong, and end")
    return parser


def settings_text(kind: type[BaseSettings]) -> str:
    """Return every setting with what holds without it and what it means. What is set at present is not looked at."""
    lines = ["Settings, from the environment (and what holds without them):", ""]
    lines += [f"  {variable} ({default})\n      {meaning}" for variable, default, meaning in described(kind)]
    return "\n".join(lines)


class _Parser(ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End, also where nobody reads the help to its end: Python would complain of that when it flushes."""
        with suppress(AttributeError):
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        super().exit(status, message)


def _program() -> str:
    """Return how the process was called."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv[0] if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
