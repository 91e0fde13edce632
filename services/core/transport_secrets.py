"""Which settings of a job's transport are secret, and how they stand beside the public ones.

A job's transport settings hold the public ones by their names and, under `sealed`, the secret ones by theirs. Some
secrets come in numbers: `header:NAME` is the value of a header of the customer's, `signing_secret:N` one of several
keys during a rotation.
"""

import re
from collections.abc import Mapping
from typing import Any

SEALED = "sealed"
SINGLE = ("password", "token", "private_key", "client_key")
HEADER = "header:"
SIGNING_SECRET = "signing_secret"  # noqa: S105 - a setting's name
MAX_SIGNING_SECRETS = 5

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_NUMBERED = re.compile(rf"{SIGNING_SECRET}:[1-9][0-9]{{0,5}}")


def check_name(name: str) -> None:
    """Raise ValueError, with a sentence, where no secret setting is called so."""
    if name in SINGLE or _NUMBERED.fullmatch(name):
        return
    if name.startswith(HEADER) and _HEADER_NAME.fullmatch(name.removeprefix(HEADER)):
        return
    known = ", ".join((*SINGLE, f"{HEADER}NAME", f"{SIGNING_SECRET}:NUMBER"))
    raise ValueError(f"no secret setting is called {name!r}; there are: {known}")


def job_place(organization_id: int, job_id: int, name: str) -> tuple[str | int, ...]:
    """Return the place to which a job's secret setting is bound."""
    return ("export_job", organization_id, job_id, name)


def notification_place(organization_id: int, name: str) -> tuple[str | int, ...]:
    """Return the place to which a secret of an organization's notification settings is bound."""
    return ("notification_settings", organization_id, name)


def next_signing_secret(sealed: Mapping[str, str]) -> str:
    """Return the name of one more signing secret, the newest."""
    return f"{SIGNING_SECRET}:{max([0, *map(_number, signing_secrets(sealed))]) + 1}"


def signing_secrets(names: Mapping[str, Any]) -> list[str]:
    """Return the names of the signing secrets, the newest first."""
    return sorted((name for name in names if _NUMBERED.fullmatch(name)), key=_number, reverse=True)


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that everybody may see, and for each secret one only that it is set."""
    shown = {name: value for name, value in settings.items() if name != SEALED}
    if settings.get(SEALED):
        shown["secrets"] = dict.fromkeys(sorted(settings[SEALED]), "set")
    return shown


def opened_settings(settings: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings as a transport takes them, secrets in the clear.

    The values of headers are gathered under `headers`, signing secrets under `signing_secrets`, the newest first.
    """
    opened = {name: value for name, value in settings.items() if name != SEALED}
    opened |= {name: secrets[name] for name in SINGLE if name in secrets}
    headers = {name.removeprefix(HEADER): value for name, value in secrets.items() if name.startswith(HEADER)}
    if headers:
        opened["headers"] = headers
    if numbered := signing_secrets(secrets):
        opened["signing_secrets"] = [secrets[name] for name in numbered]
    return opened


def _number(name: str) -> int:
    return int(name.rpartition(":")[2])
