"""Who makes a request: a client's signed token, or the session of a person who logged in."""

from collections.abc import Mapping
from datetime import datetime

from services.api.access import SESSION_PREFIX, Caller, Scope, fingerprint
from services.api.access_store import find_client, session_user
from services.api.http.call import Means
from services.api.http.endpoint import Endpoint
from services.api.http.problems import Problem
from services.api.signing_keys import Claims, TokenError
from services.platform.postgres import Connection

_CHALLENGE = 'Bearer realm="meterpost"'


def bearer(headers: Mapping[str, str]) -> str:
    """Return the token of a request. Raises Problem where there is none."""
    scheme, _space, token = headers.get("Authorization", "").partition(" ")
    if not token.strip():
        raise Problem(
            "unauthorized",
            "send a token as `Authorization: Bearer TOKEN`; POST /oauth/token gives one to a client",
            headers={"WWW-Authenticate": _CHALLENGE},
        )
    if scheme.lower() != "bearer":
        raise Problem(
            "unauthorized",
            "the Authorization header must begin with Bearer; only POST /oauth/token takes a client's secret",
            headers={"WWW-Authenticate": _CHALLENGE},
        )
    return token.strip()


async def read_claims(means: Means, token: str, now: datetime) -> Claims | None:
    """Return what a signed token says; None for a session's, which only the database knows. Raises Problem."""
    if token.startswith(SESSION_PREFIX):
        return None
    if not means.keys.knows(token):
        await means.keys.refresh(means.pool, now)  # another process may have made a new key
    try:
        return means.keys.verify(token, now)
    except TokenError as error:
        raise _refused(str(error)) from None


async def find_caller(connection: Connection, token: str, claims: Claims | None, now: datetime) -> Caller:
    """Return the caller as the database knows them now. Raises Problem where they are gone."""
    if claims is None:
        user = await session_user(connection, fingerprint(token), now)
        if user is None:
            raise _refused("the session has ended; log in again")
        return Caller(f"user:{user.user_id}", user.name, user.grant, user.grant.scopes)
    client = await find_client(connection, claims.subject)
    if client is None or client.organization_id != claims.organization_id:
        raise _refused("the client has been revoked")
    wanted = frozenset(claims.scope.split())
    scopes = frozenset(scope for scope in client.grant.scopes if scope in wanted)
    return Caller(f"client:{client.client_id}", client.name, client.grant, scopes)


def check_rights(caller: Caller, endpoint: Endpoint) -> None:
    """Raise Problem where the caller may not use the route."""
    if endpoint.any_caller:
        return
    needed: Scope | None = endpoint.scope
    if needed not in caller.scopes:
        has = " ".join(sorted(caller.scopes)) or "none"
        raise Problem(
            "insufficient_scope",
            f"this needs the scope {needed}; the token has: {has}",
            headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'},
        )
    if endpoint.is_whole_organization and caller.grant.site_ids is not None:
        raise Problem(
            "organization_wide_only", "this concerns the whole organization, and the caller's rights only some sites"
        )


def _refused(why: str) -> Problem:
    return Problem(
        "invalid_token",
        f"the token is refused: {why}",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
    )
