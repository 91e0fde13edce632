"""Who may do what: scopes, and the caller of a request. Pure."""

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from services.platform.errors import UserError

Scope = Literal["viewer", "admin", "exporter", "operator"]
Role = Literal["viewer", "admin", "operator"]
SCOPES: tuple[Scope, ...] = ("viewer", "admin", "exporter", "operator")
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 200
SESSION_PREFIX = "mps_"
SECRET_PREFIX = "mpc_"  # noqa: S105 - how a secret begins, so that scanners find one that leaked


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client or a person may do. Without an organization: the platform's operator, who sees no tenant's data."""

    organization_id: int | None
    role: Role
    may_export: bool = False
    site_ids: Sequence[int] | None = None
    """None: every site of the organization."""

    @property
    def scopes(self) -> frozenset[Scope]:
        """The scopes that the grant amounts to."""
        if self.role == "operator":
            return frozenset({"operator"})
        granted: set[Scope] = {"viewer"}
        if self.role == "admin":
            granted.add("admin")
        if self.may_export:
            granted.add("exporter")
        return frozenset(granted)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, as the database knows them now, held to the scopes of their token."""

    actor: str
    """client:ID, user:ID or command:user@host."""
    name: str
    grant: Grant
    scopes: frozenset[Scope]

    @property
    def organization_id(self) -> int:
        """The organization. Only callers that have one reach what asks for it."""
        if self.grant.organization_id is None:
            raise RuntimeError("an operator reached what belongs to an organization")
        return self.grant.organization_id

    @property
    def site_ids(self) -> list[int] | None:
        """The sites the caller is held to; None: all."""
        return None if self.grant.site_ids is None else list(self.grant.site_ids)

    def sees_site(self, site_id: int) -> bool:
        """Tell whether a site of the organization is within the caller's scope."""
        return self.grant.site_ids is None or site_id in self.grant.site_ids


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes that a space-separated text names. Raises UserError naming one that does not exist."""
    known = {scope: scope for scope in SCOPES}
    unknown = [word for word in text.split() if word not in known]
    if unknown:
        raise UserError(f"there is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}")
    return frozenset(known[word] for word in text.split())  # type: ignore[index] # checked above


def scope_text(scopes: Iterable[str]) -> str:
    """Return scopes as one text in their fixed order."""
    return " ".join(scope for scope in SCOPES if scope in set(scopes))


def new_secret(prefix: str) -> str:
    """Return 256 random bits as a text that says what it is."""
    return prefix + secrets.token_urlsafe(32)


def fingerprint(secret: str) -> bytes:
    """Return what is kept of a secret of many random bits."""
    return sha256(secret.encode()).digest()


def check_email(email: str) -> str:
    """Return the address. Raises UserError where it cannot be one."""
    if not EMAIL.fullmatch(email):
        raise UserError(f"{email!r} is not an e-mail address")
    return email


def check_password(password: str) -> None:
    """Raise UserError where a password is too short or too long; anything else is the person's choice."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UserError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
