"""What happens to every request: body, token, rate, rights, decoding, one transaction, answer.

The body is read before a connection is taken, so a slow caller holds none. Everything that a request reads and
writes, its audit entry and the answer kept for its Idempotency-Key, is one transaction.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from datetime import timedelta

import msgspec
from aiohttp import web

from services.api import idempotency_store
from services.api.http.authentication import bearer, check_rights, find_caller, read_claims
from services.api.http.call import Call, Means, encode, etag
from services.api.http.decoding import decode_form, decode_json, decode_query
from services.api.http.endpoint import Answer, Endpoint, Streamed
from services.api.http.problems import Problem
from services.api.http.rate_limit import RateLimit
from services.platform.errors import UserError
from services.platform.postgres import transaction

_FORMS = {"json": "application/json", "csv": "text/csv", "form": "application/x-www-form-urlencoded"}
_LONGEST_KEY = 200


class Pipeline:
    """Answers the requests of one process."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._rates = RateLimit(means.settings.rate_per_second, means.settings.rate_burst)
        per_minute = means.settings.login_per_minute
        self._logins = RateLimit(per_minute / 60, per_minute)

    async def answer(self, endpoint: Endpoint, request: web.Request, request_id: str) -> web.Response:
        """Return the answer. Raises Problem, UserError (what the caller asked for is wrong), Unavailable."""
        now = self._means.clock.now()
        call = Call(self._means, endpoint, request.match_info, request_id, request.remote or "", now, request.headers)
        claims = None
        if endpoint.scope is not None or endpoint.any_caller:
            call.token = bearer(request.headers)
            claims = await read_claims(self._means, call.token, now)
            # Before the database is asked for anything; a session is as good a name as its person.
            self._limit(claims.subject if claims else hashlib.sha256(call.token.encode()).hexdigest())
        call.raw = await self._read_body(endpoint, request)
        pairs = list(request.query.items())
        call.pairs, call.url_path = pairs, request.path
        if not endpoint.holds_connection and endpoint.scope is None:
            self._decode(call, request, pairs)
            return self._respond(call, await endpoint.handler(call))
        async with transaction(self._means.pool) as connection:
            call.found_connection = connection
            if call.token:
                call.found_caller = await find_caller(connection, call.token, claims, now)
                check_rights(call.caller, endpoint)
            self._decode(call, request, pairs)
            if endpoint.holds_connection:
                return await self._handle(call)
        call.found_connection = None
        return self._respond(call, await endpoint.handler(call))

    async def _handle(self, call: Call) -> web.Response:
        """Run the handler within the transaction, or repeat the answer that was given to this request before."""
        endpoint, key = call.endpoint, call.headers.get("Idempotency-Key")
        if endpoint.has_etag and endpoint.changes and not endpoint.is_create and "If-Match" not in call.headers:
            raise Problem("precondition_required", "send the ETag that GET gave as If-Match, so that no edit is lost")
        if not endpoint.is_create or key is None:
            return self._respond(call, await endpoint.handler(call))
        if not 1 <= len(key) <= _LONGEST_KEY:
            raise Problem("invalid_value", f"an Idempotency-Key has 1 to {_LONGEST_KEY} characters")
        digest = _request_hash(call)
        expires_at = call.now + timedelta(hours=self._means.settings.idempotency_hours)
        actor = call.caller.actor
        kept = await idempotency_store.reserve(call.connection, actor, key, digest, call.now, expires_at)
        if kept is not None:
            return self._repeat(call, key, kept, digest)
        response = self._respond(call, await endpoint.handler(call))
        body = response.body if isinstance(response.body, bytes) else b""
        if endpoint.has_secret:
            body = self._means.vault.seal(body.decode(), ("idempotent_answer", actor, key)).encode()
        headers = {name: response.headers[name] for name in ("Location", "ETag") if name in response.headers}
        await idempotency_store.keep(
            call.connection, actor, key, response.status, headers, body, sealed=endpoint.has_secret
        )
        return response

    def _repeat(self, call: Call, key: str, kept: idempotency_store.Kept, digest: bytes) -> web.Response:
        if not hmac.compare_digest(kept.request_sha256, digest):
            raise Problem(
                "idempotency_key_reused",
                "another request was answered under this Idempotency-Key; choose a new key for a new request",
            )
        body = kept.body
        if kept.is_sealed:
            body = self._means.vault.open(body.decode(), ("idempotent_answer", call.caller.actor, key)).encode()
        headers = {**kept.headers, "Idempotent-Replay": "true"}
        return web.Response(body=body, status=kept.status, headers=headers, content_type="application/json")

    def _decode(self, call: Call, request: web.Request, pairs: list[tuple[str, str]]) -> None:
        endpoint = call.endpoint
        if endpoint.query is not None:
            call.query_struct = decode_query(pairs, endpoint.query)
        elif pairs:
            raise Problem("unknown_field", f"{pairs[0][0]!r}: this takes no parameters", field=pairs[0][0])
        if endpoint.body_form is None:
            if call.raw:
                raise Problem("malformed_body", "this takes no body")
            return
        expected = _FORMS[endpoint.body_form]
        if request.content_type != expected:
            raise Problem(
                "unsupported_media_type", f"the body is {request.content_type}; send {expected}", field="Content-Type"
            )
        if endpoint.body is None:
            return
        if endpoint.body_form == "json":
            call.body_struct = decode_json(call.raw, endpoint.body)
        else:
            call.body_struct = decode_query(list(decode_form(call.raw).items()), endpoint.body)
        if endpoint.is_guessable:
            self._slow_guessing(call)

    def _respond(self, call: Call, answer: Answer) -> web.Response:
        headers = dict(answer.headers)
        if isinstance(answer.body, Streamed):
            headers |= {"Content-Length": str(answer.body.length), "Content-Type": answer.media_type}
            return web.Response(body=answer.body.pieces, status=answer.status, headers=headers)
        body = encode(answer.body) if isinstance(answer.body, msgspec.Struct) else answer.body
        if call.endpoint.has_etag and body is not None:
            headers["ETag"] = etag(body)
            if not call.endpoint.changes and _matches(call.headers, headers["ETag"]):
                return web.Response(status=304, headers=headers)
        if body is None:
            return web.Response(status=answer.status, headers=headers)
        media_type, _semicolon, _rest = answer.media_type.partition(";")
        charset = "utf-8" if media_type.startswith("text/") else None
        return web.Response(body=body, status=answer.status, headers=headers, content_type=media_type, charset=charset)

    async def _read_body(self, endpoint: Endpoint, request: web.Request) -> bytes:
        settings = self._means.settings
        longest = 1024 * (settings.import_kilobytes if endpoint.body_form == "csv" else settings.body_kilobytes)
        too_large = Problem(
            "body_too_large", f"the body is longer than {longest:,} bytes", headers={"Connection": "close"}
        )
        if (request.content_length or 0) > longest:
            raise too_large
        chunks, length = [], 0
        try:
            async with asyncio.timeout(settings.body_seconds):
                async for chunk in request.content.iter_any():
                    length += len(chunk)
                    if length > longest:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            raise Problem(
                "body_too_slow",
                f"the body did not arrive within {settings.body_seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        return b"".join(chunks)

    def _slow_guessing(self, call: Call) -> None:
        """Let an address try so many secrets a minute for one name."""
        body = call.body_struct
        name = getattr(body, "email", None) or getattr(body, "client_id", None) or call.headers.get("Authorization", "")
        wait = self._logins.wait_seconds(hashlib.sha256(f"{call.peer} {name}".encode()).hexdigest())
        if wait:
            raise Problem(
                "too_many_requests",
                f"too many attempts; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )

    def _limit(self, name: str) -> None:
        wait = self._rates.wait_seconds(name)
        if wait:
            raise Problem(
                "too_many_requests",
                f"this caller may make {self._means.settings.rate_per_second:g} requests a second; "
                f"try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )


def refused(error: UserError) -> Problem:
    """Return how a rule of the catalog that a request breaks is told."""
    return Problem("conflict", str(error))


def _request_hash(call: Call) -> bytes:
    digest = hashlib.sha256(f"{call.endpoint.method} {call.endpoint.path} {dict(call.path)}\n".encode())
    digest.update(repr(call.query_struct).encode())
    digest.update(b"\n" + call.raw)
    return digest.digest()


def _matches(headers: Mapping[str, str], tag: str) -> bool:
    wanted = {one.strip().removeprefix("W/") for one in headers.get("If-None-Match", "").split(",")}
    return tag in wanted
