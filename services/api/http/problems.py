"""What went wrong, as RFC 9457 problems: a stable code for programs, a sentence for people."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """What all problems of a code have in common."""

    status: int
    title: str


CODES: Mapping[str, Kind] = {
    "malformed_body": Kind(400, "The body is not what its Content-Type says"),
    "bad_cursor": Kind(400, "The cursor does not belong to this question"),
    "unauthorized": Kind(401, "A token is needed"),
    "invalid_token": Kind(401, "The token is not good, or not any more"),
    "insufficient_scope": Kind(403, "The token does not allow this"),
    "organization_wide_only": Kind(403, "This needs rights on the whole organization"),
    "not_found": Kind(404, "There is no such thing"),
    "method_not_allowed": Kind(405, "The method is not offered here"),
    "not_acceptable": Kind(406, "There is no such form of the answer"),
    "body_too_slow": Kind(408, "The body did not arrive in time"),
    "bad_link": Kind(403, "The link opens nothing"),
    "link_expired": Kind(403, "The link is no longer good"),
    "conflict": Kind(409, "This contradicts what is there"),
    "too_many_exports": Kind(409, "The caller has enough unfinished exports"),
    "gone": Kind(410, "It is no longer there"),
    "precondition_failed": Kind(412, "It was changed meanwhile"),
    "body_too_large": Kind(413, "The body is too long"),
    "unsupported_media_type": Kind(415, "The body has another form than expected"),
    "range_not_satisfiable": Kind(416, "The file has no such bytes"),
    "unknown_field": Kind(422, "There is no such field"),
    "missing_field": Kind(422, "A field is missing"),
    "invalid_value": Kind(422, "A value is wrong"),
    "import_refused": Kind(422, "Lines of the file are wrong; nothing was written"),
    "idempotency_key_reused": Kind(422, "The Idempotency-Key belongs to another request"),
    "precondition_required": Kind(428, "An edit needs If-Match"),
    "too_many_requests": Kind(429, "Too many requests"),
    "internal_error": Kind(500, "A mistake of ours"),
    "unavailable": Kind(503, "The service cannot answer for now"),
}


class LineProblem(msgspec.Struct, frozen=True):
    """What is wrong in one line of a file; lines count from 1."""

    line: int
    detail: str


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem as it is sent."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    field: str | None = None
    lines: list[LineProblem] | None = None


class Problem(Exception):  # noqa: N818 - what the standard calls it
    """Ends a request with this answer."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        lines: Sequence[LineProblem] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.lines = lines
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """The status of the answer."""
        return CODES[self.code].status

    def body(self, request_id: str) -> bytes:
        """Return the answer's body."""
        kind = CODES[self.code]
        return msgspec.json.encode(
            ProblemBody(
                type=f"urn:meterpost:problem:{self.code}",
                title=kind.title,
                status=kind.status,
                code=self.code,
                detail=self.detail,
                request_id=request_id,
                field=self.field,
                lines=None if self.lines is None else list(self.lines),
            )
        )


def not_found(what: str) -> Problem:
    """Return what is said of a thing that is not there, or that is another organization's."""
    return Problem("not_found", f"there is no {what}")


def invalid(field: str, detail: str) -> Problem:
    """Return what is said of a value that is wrong."""
    return Problem("invalid_value", detail, field=field)


OAUTH_ERRORS: Mapping[str, tuple[int, Any]] = {
    "invalid_request": (400, None),
    "invalid_client": (401, {"WWW-Authenticate": 'Basic realm="meterpost"'}),
    "unsupported_grant_type": (400, None),
    "invalid_scope": (400, None),
}
