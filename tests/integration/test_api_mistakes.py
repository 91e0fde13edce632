"""The mistakes that users make most often: each gets an answer that says what is wrong and how it is mended."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.support.api import Api, running_api
from tests.support.seed import seed_catalog

RANGE = "from=2026-11-20T10:00:00Z&until=2026-11-20T14:00:00Z"
JOB: dict[str, Any] = {
    "name": "Hourly",
    "frequency": "hour",
    "resolution_minutes": 60,
    "destination": {"transport": "https", "url": "https://example.org/in"},
}
METER = {"name": "M", "meter_type": "Water", "site_id": 1, "unit": "m3", "units_per_pulse": "0.01"}


class Mistake(NamedTuple):
    """A request that is wrong, and what its answer must have."""

    request: str
    status: int
    code: str
    field: str | None
    words: str
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})
    data: bytes | None = None
    token: str = "good"


MISTAKES = {
    "no token": Mistake("GET /v1/jobs", 401, "unauthorized", None, "POST /oauth/token", token="none"),
    "the secret instead of a token": Mistake("GET /v1/jobs", 401, "unauthorized", None, "Bearer", token="basic"),
    "a token of yesterday or of nobody": Mistake("GET /v1/jobs", 401, "invalid_token", None, "token", token="rubbish"),
    "a right that the client does not have": Mistake(
        "POST /v1/sites", 403, "insufficient_scope", None, "admin", {"name": "X", "time_zone": "UTC"}, token="viewer"
    ),
    "an id of another organization, or a typing error": Mistake("GET /v1/meters/777", 404, "not_found", None, "777"),
    "a path without its version": Mistake("GET /jobs", 404, "not_found", None, "/v1/"),
    "a verb that is not offered": Mistake("PUT /v1/jobs/1", 405, "method_not_allowed", None, "PATCH"),
    "an edit without If-Match": Mistake(
        "PATCH /v1/meters/1", 428, "precondition_required", None, "ETag", {"name": "X"}
    ),
    "an edit of what was changed meanwhile": Mistake(
        "PATCH /v1/meters/1", 412, "precondition_failed", None, "get it again", {"name": "X"}, {"If-Match": '"old"'}
    ),
    "a field that does not exist": Mistake(
        "POST /v1/jobs", 422, "unknown_field", "resolution", "resolution_minutes", {**JOB, "resolution": 60}
    ),
    "a field that is missing": Mistake(
        "POST /v1/jobs",
        422,
        "missing_field",
        "frequency",
        "frequency",
        {name: value for name, value in JOB.items() if name != "frequency"},
    ),
    "a number as text": Mistake(
        "POST /v1/jobs", 422, "invalid_value", "resolution_minutes", "int", {**JOB, "resolution_minutes": "60"}
    ),
    "a pair of frequency and resolution that is not offered": Mistake(
        "POST /v1/jobs",
        422,
        "invalid_value",
        "resolution_minutes",
        "15, 60",
        {**JOB, "frequency": "day", "resolution_minutes": 5},
    ),
    "http:// instead of https://": Mistake(
        "POST /v1/jobs",
        409,
        "conflict",
        None,
        "https://",
        {**JOB, "destination": {"transport": "https", "url": "http://example.org/in"}},
    ),
    "bearer without its token": Mistake(
        "POST /v1/jobs",
        409,
        "conflict",
        None,
        "token is needed",
        {**JOB, "destination": {**JOB["destination"], "auth": "bearer"}},
    ),
    "a time without a zone": Mistake(
        "GET /v1/measurements?from=2026-11-20T10:00:00&until=2026-11-20T14:00:00Z&resolution=60",
        *(422, "invalid_value", "from", "timezone"),
    ),
    "a range that ends before it begins": Mistake(
        "GET /v1/measurements?until=2026-11-20T10:00:00Z&from=2026-11-20T14:00:00Z&resolution=60",
        *(422, "invalid_value", "until", "later than from"),
    ),
    "a range that is too long": Mistake(
        "GET /v1/measurements?from=2026-01-01T00:00:00Z&until=2026-11-20T14:00:00Z&resolution=1",
        *(422, "invalid_value", "until", "31 days at most"),
    ),
    "a resolution that windows do not have": Mistake(
        f"GET /v1/measurements?{RANGE}&resolution=30", 422, "invalid_value", "resolution", "30"
    ),
    "pages by number": Mistake("GET /v1/jobs?page=2", 422, "unknown_field", "page", "cursor"),
    "a page that is too large": Mistake("GET /v1/jobs?limit=100000", 422, "invalid_value", "limit", "1000"),
    "a cursor of another question": Mistake("GET /v1/jobs?cursor=abc", 400, "bad_cursor", "cursor", "without it"),
    "JSON that is broken": Mistake("POST /v1/jobs", 400, "malformed_body", None, "not JSON", data=b'{"name": "x",}'),
    "a form instead of JSON": Mistake(
        "POST /v1/jobs",
        415,
        "unsupported_media_type",
        "Content-Type",
        "application/json",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        data=b"name=x",
    ),
    "a number with an exponent or a comma": Mistake(
        "POST /v1/meters", 422, "invalid_value", "units_per_pulse", "^[0-9]", {**METER, "units_per_pulse": "0,01"}
    ),
    "a site that does not exist": Mistake(
        "POST /v1/meters", 422, "invalid_value", "site_id", "77", {**METER, "site_id": 77}
    ),
    "a time zone that does not exist": Mistake(
        "POST /v1/sites", 422, "invalid_value", "time_zone", "Europe/", {"name": "X", "time_zone": "CEST"}
    ),
}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def test_every_likely_mistake_is_told_with_its_remedy(api: Api, subtests: pytest.Subtests) -> None:
    assert len(MISTAKES) >= 20
    tokens = {
        "good": await api.token(1, "admin", may_export=True),
        "viewer": await api.token(1, "viewer"),
        "rubbish": "eyJhbGciOiJFUzI1NiJ9.e30.c2lnbmF0dXJl",
    }
    for name, one in MISTAKES.items():
        with subtests.test(name):
            method, _space, path = one.request.partition(" ")
            headers = dict(one.headers)
            if one.token == "basic":
                headers["Authorization"] = "Basic bXA6c2VjcmV0"
            if one.data is not None:
                headers.setdefault("Content-Type", "application/json")
            got = await api.call(
                method, path, token=tokens.get(one.token), body=one.body, headers=headers, data=one.data
            )
            told = got.json
            assert (got.status, told["code"], told.get("field")) == (one.status, one.code, one.field), told
            assert one.words in told["detail"], told
            assert "Traceback" not in got.content.decode()
