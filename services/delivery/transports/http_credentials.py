"""Who we are to an HTTPS receiver: the headers of authentication, headers of the customer's, signatures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.core.webhooks import (
    SIGNATURE_HEADER,
    basic_credentials,
    check_basic,
    check_header,
    check_token,
    signature,
    signing_key,
)
from services.platform.errors import UserError
from services.platform.secrets import without_secrets


@dataclass(frozen=True, slots=True)
class Credentials:
    """Headers that every request carries, and the keys that sign it, the newest first."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    signing_keys: Sequence[bytes] = field(default=(), repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)
    """What must never be shown, should the receiver repeat it to us."""

    def signed(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers of one request."""
        if not self.signing_keys:
            return dict(self.headers)
        return {**self.headers, SIGNATURE_HEADER: signature(self.signing_keys, message_id, timestamp, body)}

    def blotted(self, said: str) -> str:
        """Return the receiver's words without our secrets."""
        return without_secrets(said, self.secrets)


def credentials(settings: Mapping[str, Any]) -> Credentials:
    """Return the credentials in a job's opened settings. Raises UserError, which repeats no secret."""
    try:
        headers, secrets = _authentication(settings)
        for name, value in settings.get("headers", {}).items():
            check_header(name, value)
            headers[name] = value
            secrets.append(value)
        signing = settings.get("signing_secrets", ())
        keys = [signing_key(secret) for secret in signing]
    except (ValueError, TypeError) as error:
        raise UserError(f"transport settings: {error}") from None
    return Credentials(headers, keys, [*secrets, *signing])


def _authentication(settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    kind = settings.get("auth", "none")
    kinds: Mapping[Any, Callable[[Mapping[str, Any]], tuple[dict[str, str], list[str]]]] = {
        "none": lambda _settings: ({}, []),
        "basic": _basic,
        "bearer": _bearer,
    }
    if kind not in kinds:
        raise ValueError('"auth" must be none, basic or bearer')
    return kinds[kind](settings)


def _basic(settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    username, password = settings.get("username"), settings.get("password")
    if not isinstance(username, str) or not isinstance(password, str):
        raise TypeError('"username" and the secret "password" are needed for basic authentication')
    check_basic(username, password)
    encoded = basic_credentials(username, password)
    return {"Authorization": f"Basic {encoded}"}, [password, encoded]


def _bearer(settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    token = settings.get("token")
    if not isinstance(token, str):
        raise TypeError('the secret "token" is needed for bearer authentication')
    check_token(token)
    return {"Authorization": f"Bearer {token}"}, [token]
