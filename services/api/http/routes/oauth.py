"""Tokens for machines: OAuth 2.0 client credentials (RFC 6749, section 4.4), and the keys that verify them."""

import base64
import binascii
import hmac
from typing import Annotated, Any
from urllib.parse import unquote_plus

import msgspec

from services.api.access import fingerprint, parse_scopes, scope_text
from services.api.access_store import client_secret, find_client
from services.api.http.call import Call
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import OAUTH_ERRORS
from services.platform.errors import UserError


class TokenRequest(msgspec.Struct, frozen=True):
    """What a client sends; its id and secret by HTTP Basic, or here."""

    grant_type: Annotated[str, msgspec.Meta(description="client_credentials")] = ""
    client_id: str | None = None
    client_secret: str | None = None
    scope: Annotated[str, msgspec.Meta(description="Scopes, separated by spaces. Default: all it has.")] | None = None


class Token(msgspec.Struct, frozen=True):
    """A token, for `Authorization: Bearer …`."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str


class OAuthError(msgspec.Struct, frozen=True):
    """What went wrong, as RFC 6749 wants it said."""

    error: str
    error_description: str


class Jwks(msgspec.Struct, frozen=True):
    """Public keys (RFC 7517)."""

    keys: list[dict[str, Any]]


class _Refused(Exception):  # noqa: N818 - ends the exchange
    def __init__(self, error: str, why: str) -> None:
        super().__init__(why)
        self.error = error


async def give_token(call: Call) -> Answer:
    """Exchange a client's secret for a token."""
    try:
        token = await _token(call)
    except _Refused as refused:
        status, headers = OAUTH_ERRORS[refused.error]
        return Answer(OAuthError(refused.error, str(refused)), status, {**(headers or {}), "Cache-Control": "no-store"})
    return Answer(token, headers={"Cache-Control": "no-store"})


async def _token(call: Call) -> Token:
    asked = call.body(TokenRequest)
    if asked.grant_type != "client_credentials":
        kind = "unsupported_grant_type" if asked.grant_type else "invalid_request"
        raise _Refused(kind, "send grant_type=client_credentials")
    client_id, secret = _credentials(call, asked)
    kept = await client_secret(call.connection, client_id)
    client = await find_client(call.connection, client_id)
    if not hmac.compare_digest(kept or b"\0" * 32, fingerprint(secret)) or client is None:
        raise _Refused("invalid_client", "there is no client of this id with this secret, or it has been revoked")
    scopes = client.grant.scopes
    if asked.scope:
        try:
            wanted = parse_scopes(asked.scope)
        except UserError as error:
            raise _Refused("invalid_scope", str(error)) from None
        if wanted - scopes:
            raise _Refused("invalid_scope", f"the client does not have {scope_text(wanted - scopes)}")
        scopes = wanted
    text = scope_text(scopes)
    token, expires_at = call.means.keys.issue(client_id, client.organization_id, text, call.now)
    return Token(token, "Bearer", int((expires_at - call.now).total_seconds()), text)


def _credentials(call: Call, asked: TokenRequest) -> tuple[str, str]:
    scheme, _space, encoded = call.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise _Refused("invalid_request", "the Authorization header is not HTTP Basic")
        if asked.client_secret is not None:
            raise _Refused("invalid_request", "send the secret once: by HTTP Basic, or in the form")
        return unquote_plus(client_id).replace("\0", ""), unquote_plus(secret)
    if asked.client_id is None or asked.client_secret is None:
        raise _Refused("invalid_request", "send client_id and client_secret, by HTTP Basic or in the form")
    return asked.client_id.replace("\0", ""), asked.client_secret


async def show_keys(call: Call) -> Answer:
    """Show the keys that tokens are signed with."""
    return Answer(Jwks(**call.means.keys.jwks()), headers={"Cache-Control": "public, max-age=300"})


ENDPOINTS = (
    Endpoint(
        *("POST", "/oauth/token", "give_token", "Exchange a client's secret for a token"),
        *(give_token, None, Token),
        body=TokenRequest,
        body_form="form",
        has_secret=True,
        is_guessable=True,
    ),
    Endpoint(
        *("GET", "/.well-known/jwks.json", "show_keys", "The public keys that tokens are verified with"),
        *(show_keys, None, Jwks),
        holds_connection=False,
    ),
)
