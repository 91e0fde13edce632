"""The keys that sign tokens, shared by all processes through the database, and the tokens themselves.

ES256, because every library of the field verifies it. The private half is sealed by the key ring and bound to its id.
A new key is made when the newest is older than `rotate_after` or is not sealed with the ring's first key, so rotating
the ring needs no other step. A key that was replaced is published as long as tokens live that it signed.
"""

import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from joserfc.jws import extract_compact

from services.platform.postgres import Connection, Pool, transaction
from services.platform.secrets import Vault, sealed_with

ALGORITHM = "ES256"
TYPE = "at+jwt"
_LOCK = 0x6D70_6B65_7973
# Another process may have loaded the keys a moment before this one replaced the newest.
_OVERLAP = timedelta(minutes=5)


class TokenError(Exception):
    """The token is not one of ours, or not any more; the message says which."""


class Claims(NamedTuple):
    """What a token says."""

    subject: str
    organization_id: int | None
    scope: str
    expires_at: datetime


class SigningKeys:
    """What signs and verifies, as loaded last."""

    def __init__(self, vault: Vault, issuer: str, lifetime: timedelta, rotate_after: timedelta) -> None:
        self._vault = vault
        self._issuer = issuer
        self._lifetime = lifetime
        self._rotate_after = rotate_after
        self._public: dict[str, ECKey] = {}
        self._newest: ECKey | None = None

    async def refresh(self, pool: Pool, now: datetime) -> None:
        """Load the keys, making and forgetting some where it is time. Raises Unavailable; UserError without a ring.

        Raises KeyMissing where the newest is sealed with a key of the ring that is not known here.
        """
        async with transaction(pool) as connection:
            rows = await self._rows(connection)
            if not rows or self._is_due(rows[0], now):
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                rows = await self._rows(connection)
                if not rows or self._is_due(rows[0], now):
                    await self._add(connection, now)
                    rows = await self._rows(connection)
                await self._forget(connection, rows, now)
        self._public = {row["key_id"]: ECKey.import_key(json.loads(row["public_jwk"])) for row in rows}
        newest = rows[0]
        if self._newest is None or self._newest.kid != newest["key_id"]:
            opened = self._vault.open(newest["private_sealed"], _place(newest["key_id"]))
            self._newest = ECKey.import_key(json.loads(opened))

    def jwks(self) -> dict[str, Any]:
        """Return the public keys, for whoever verifies tokens elsewhere."""
        return {"keys": [key.as_dict(private=False) for key in self._public.values()]}

    def knows(self, token: str) -> bool:
        """Tell whether the key that a token names is loaded; if not, `refresh` may bring it."""
        try:
            return _key_id(token) in self._public
        except TokenError:
            return True  # no refresh makes it better

    def issue(self, subject: str, organization_id: int | None, scope: str, now: datetime) -> tuple[str, datetime]:
        """Return a token and when it expires."""
        if self._newest is None:
            raise RuntimeError("the keys are loaded before anything is signed")
        expires_at = now.replace(microsecond=0) + self._lifetime
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": subject,
            "org": organization_id,
            "scope": scope,
            "iat": int(now.timestamp()),
            "exp": int(expires_at.timestamp()),
            "jti": secrets.token_urlsafe(12),
        }
        header = {"alg": ALGORITHM, "kid": self._newest.kid, "typ": TYPE}
        return jwt.encode(header, claims, self._newest, algorithms=[ALGORITHM]), expires_at

    def verify(self, token: str, now: datetime) -> Claims:
        """Return what a token of ours says. Raises TokenError."""
        key = self._public.get(_key_id(token))
        if key is None:
            raise TokenError("it was signed with a key that is not known here")
        try:
            decoded = jwt.decode(token, key, algorithms=[ALGORITHM])
        except (JoseError, ValueError):
            raise TokenError("its signature is wrong") from None
        claims: Mapping[str, Any] = decoded.claims
        if decoded.header.get("typ") != TYPE or claims.get("iss") != self._issuer or claims.get("aud") != self._issuer:
            raise TokenError("it was made for something else")
        expires, subject, organization_id = claims.get("exp"), claims.get("sub"), claims.get("org")
        if not isinstance(expires, int) or not isinstance(subject, str):
            raise TokenError("it lacks what it must say")
        expires_at = datetime.fromtimestamp(expires, now.tzinfo)
        if expires_at <= now:
            raise TokenError("it has expired")
        return Claims(subject, organization_id, str(claims.get("scope", "")), expires_at)

    def _is_due(self, newest: Mapping[str, Any], now: datetime) -> bool:
        sealed = newest["private_sealed"]
        # A ring key that is not known here is newer than this process's ring: not ours to replace.
        is_outdated = not self._vault.is_newest(sealed) and sealed_with(sealed) in self._vault.key_ids
        return now - newest["created_at"] >= self._rotate_after or is_outdated

    async def _rows(self, connection: Connection) -> list[Mapping[str, Any]]:
        rows = await connection.fetch(
            "SELECT key_id, public_jwk, private_sealed, created_at FROM signing_key ORDER BY created_at DESC, key_id"
        )
        return [dict(row) for row in rows]

    async def _add(self, connection: Connection, now: datetime) -> None:
        key_id = secrets.token_urlsafe(9)
        key = ECKey.generate_key("P-256", {"kid": key_id, "use": "sig", "alg": ALGORITHM}, private=True)
        sealed = self._vault.seal(json.dumps(key.as_dict(private=True)), _place(key_id))
        await connection.execute(
            "INSERT INTO signing_key (key_id, public_jwk, private_sealed, created_at) VALUES ($1, $2::jsonb, $3, $4)",
            *(key_id, json.dumps(key.as_dict(private=False)), sealed, now),
        )
        await connection.execute("UPDATE signing_key SET private_sealed = NULL WHERE key_id <> $1", key_id)

    async def _forget(self, connection: Connection, rows: list[Mapping[str, Any]], now: datetime) -> None:
        """Remove keys whose successor is older than any token may be."""
        successor = rows[0]["created_at"]
        for row in rows[1:]:
            if now - successor > self._lifetime + _OVERLAP:
                await connection.execute("DELETE FROM signing_key WHERE key_id = $1", row["key_id"])
            successor = row["created_at"]


def _place(key_id: str) -> tuple[str, str]:
    return ("signing_key", key_id)


def _key_id(token: str) -> str:
    try:
        found = extract_compact(token.encode()).headers().get("kid")
    except (JoseError, ValueError):
        raise TokenError("it is not a token of this service") from None
    return str(found)
