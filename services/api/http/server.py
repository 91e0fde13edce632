"""The aiohttp application: routes, and what surrounds every request: its id, its log line, its headers, its errors."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from aiohttp import web

from services.api.http.call import Means
from services.api.http.endpoint import Endpoint
from services.api.http.pipeline import Pipeline, refused
from services.api.http.problems import MEDIA_TYPE, Problem
from services.api.http.routes.every import ENDPOINTS
from services.platform.errors import OperatorNeeded, Unavailable, UserError
from services.platform.metrics import API_REQUESTS, API_SECONDS

RETRY_SECONDS = 5
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = {
    "Server": "meterpost",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
}
_ENDPOINT = web.RequestKey("endpoint", Endpoint)
_REQUEST = web.RequestKey("request_id", str)
log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_application(means: Means, endpoints: Sequence[Endpoint] = ENDPOINTS) -> web.Application:
    """Return the application that serves the endpoints."""
    longest = 1024 * max(means.settings.body_kilobytes, means.settings.import_kilobytes)
    application = web.Application(middlewares=[_surround], client_max_size=longest)
    pipeline = Pipeline(means)
    for endpoint in endpoints:
        # A method that is not offered is 405, OPTIONS too: no CORS. HEAD is offered for files.
        application.router.add_route(endpoint.method, _pattern(endpoint.path), _handler(pipeline, endpoint))
    return application


def _handler(pipeline: Pipeline, endpoint: Endpoint) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        request[_ENDPOINT] = endpoint
        return await pipeline.answer(endpoint, request, request[_REQUEST])

    return handle


def _pattern(path: str) -> str:
    """Let `{…_id}` of the contract match what ids look like; a device's id is any text without a slash."""
    return re.sub(r"\{(\w+)\}", lambda found: _NAMED.get(found[1], f"{{{found[1]}:[0-9]+}}"), path)


_NAMED = {"device_id": "{device_id}", "client_id": "{client_id}", "run_id": "{run_id}", "user_name": "{user_name}"}


@web.middleware
async def _surround(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request an id, a log line and an answer, whatever happens in it."""
    told = request.headers.get("X-Request-Id", "")
    request_id = told if _REQUEST_ID.fullmatch(told) else secrets.token_hex(8)
    request[_REQUEST] = request_id
    began = time.monotonic()
    try:
        response = await handler(request)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        problem = _problem_of(error, request)
        if problem.status >= 500 and not isinstance(error, Unavailable):
            log.exception("api_failed", request_id=request_id, path=request.path, exc_info=error)
        response = web.Response(
            body=problem.body(request_id), status=problem.status, headers=problem.headers, content_type=MEDIA_TYPE
        )
    _finish(request, response, request_id, time.monotonic() - began)
    return response


def _finish(request: web.Request, response: web.StreamResponse, request_id: str, seconds: float) -> None:
    endpoint: Endpoint | None = request.get(_ENDPOINT)
    name = endpoint.name if endpoint else "none"
    response.headers["X-Request-Id"] = request_id
    for header, value in _SECURITY_HEADERS.items():
        response.headers.setdefault(header, value)
    response.headers["Server"] = _SECURITY_HEADERS["Server"]
    if "Cache-Control" not in response.headers:
        secret = endpoint is None or endpoint.has_secret or not endpoint.has_etag
        response.headers["Cache-Control"] = "no-store" if secret else "private, no-cache"
    API_REQUESTS.labels(name, str(response.status)).inc()
    API_SECONDS.labels(name).observe(seconds)
    # Never the query: it is the caller's, and long. Never a header.
    log.info(
        "api_request",
        request_id=request_id,
        operation=name,
        method=request.method,
        path=request.path,
        status=response.status,
        ms=round(seconds * 1000, 1),
    )


def _problem_of(error: Exception, request: web.Request) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, Unavailable):
        log.warning("api_unavailable", error=str(error))
        return Problem(
            "unavailable",
            f"the database does not answer; try again in {RETRY_SECONDS} s",
            headers={"Retry-After": str(RETRY_SECONDS)},
        )
    if isinstance(error, OperatorNeeded):
        return Problem("internal_error", "the platform's operator must act first; give them the request id")
    if isinstance(error, UserError):
        return refused(error)
    return _of_aiohttp(error, request)


def _of_aiohttp(error: Exception, request: web.Request) -> Problem:
    if isinstance(error, web.HTTPNotFound):
        return Problem(
            "not_found",
            f"there is nothing at {request.path[:200]}; the routes begin with /v1/, and /docs describes them",
        )
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            "method_not_allowed",
            f"{request.method} is not offered here; offered: {allowed}",
            headers={"Allow": allowed},
        )
    return Problem("internal_error", "this should not happen; give the platform's operator the request id")
