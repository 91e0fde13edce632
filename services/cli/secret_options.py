"""Secrets on the command line: named there, read from a file, the environment or the terminal, never given there.

An argument can be read by everybody on the machine in the list of processes, and stays in the shell's history.
"""

import base64
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from services.cli.show import Answer
from services.core.transport_secrets import SIGNING_SECRET
from services.core.webhooks import SECRET_PREFIX
from services.platform.errors import UserError
from services.platform.secrets import MAX_SECRET_BYTES

GENERATED_BYTES = 32
# Texts in which the last line end belongs to them.
_PEM = ("private_key", "client_key")

SecretOption = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="NAME=SOURCE",
        help=(
            "A secret: password, token, client_key, private_key, header:NAME or signing_secret. SOURCE is file:PATH, "
            "env:VARIABLE, prompt, or for a signing_secret generate. Give it again for more."
        ),
        show_default=False,
    ),
]
DropSecretOption = Annotated[
    list[str] | None,
    typer.Option("--drop-secret", metavar="NAME", help="Forget a secret, by its name.", show_default=False),
]


class GivenSecrets(NamedTuple):
    """What the options say: new values and removals by name, and what was generated, to be shown once."""

    changes: dict[str, str | None]
    generated: str | None

    def shown_once(self) -> dict[str, str]:
        """Return what was generated, for JSON: nobody can ask for it again."""
        return {} if self.generated is None else {"generated_signing_secret": self.generated}

    def say_once(self, answer: Answer) -> None:
        """Tell what was generated, if anything: nobody can ask for it again."""
        if self.generated is not None:
            answer.say(f"The signing secret, shown this once: {self.generated}")


def given_secrets(secrets: Sequence[str] | None, dropped: Sequence[str] | None = None) -> GivenSecrets:
    """Read the secrets from where the options say. Raises UserError, which repeats none."""
    changes: dict[str, str | None] = dict.fromkeys(dropped or ())
    generated = None
    for option in secrets or ():
        name, equals, source = option.partition("=")
        if not equals or source.partition(":")[0] not in {"file", "env", "prompt", "generate"}:
            raise UserError(
                f"--secret {name}=… needs a source: file:PATH, env:VARIABLE, prompt or generate (a secret itself is "
                "never given as an argument: everybody on this machine could read it)"
            )
        if name in changes:
            raise UserError(f"the secret {name} is given twice")
        changes[name] = read_secret(name, source)
        if source == "generate":
            generated = changes[name]
    return GivenSecrets(changes, generated)


def read_secret(name: str, source: str) -> str:
    """Return the secret that a source holds; a line end behind it does not count. Raises UserError."""
    kind, _colon, where = source.partition(":")
    if kind == "generate":
        if name != SIGNING_SECRET:
            raise UserError(f"only a {SIGNING_SECRET} can be generated")
        return SECRET_PREFIX + base64.b64encode(os.urandom(GENERATED_BYTES)).decode()
    if kind == "env":
        text = os.environ.get(where)
        if text is None:
            raise UserError(f"the variable {where!r} with the secret {name} is not set")
    elif kind == "file":
        text = _content(name, Path(where))
    else:
        text = _asked(name)
    return text if name in _PEM else text.removesuffix("\n").removesuffix("\r")


def _content(name: str, file: Path) -> str:
    try:
        if file.stat().st_size > MAX_SECRET_BYTES:
            raise UserError(f"the file {file} is too large for the secret {name}")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"the file {file} with the secret {name} is not text") from None
    except OSError as error:
        raise UserError(f"the file {file} with the secret {name} cannot be read: {error.strerror}") from None


def _asked(name: str) -> str:
    if not sys.stdin.isatty():
        raise UserError(f"the secret {name} cannot be asked for without a terminal; use file:PATH or env:VARIABLE")
    return getpass.getpass(f"{name}: ")
