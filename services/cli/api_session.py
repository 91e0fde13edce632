"""The HTTP API as the command uses it: where it is, who we are, and answers as values or as errors for people."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from services.cli.input_file import read_text
from services.platform.errors import Unavailable, UserError

if TYPE_CHECKING:
    import aiohttp

URL_VARIABLE = "METERPOST_API_URL"
FILE_VARIABLE = "METERPOST_API_CREDENTIALS_FILE"
ID_VARIABLE = "METERPOST_API_CLIENT_ID"
SECRET_VARIABLE = "METERPOST_API_CLIENT_SECRET"  # noqa: S105 - a variable's name
PAGE = 1_000
_SECONDS = 60
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class ApiPlace:
    """Where the API is, and the file that says who we are."""

    url: str
    credentials_file: Path | None
    is_option: bool
    """Whether --url named it, and not the environment."""


def api_place(url: str | None, credentials_file: Path | None) -> ApiPlace | None:
    """Return the API that an option or the environment names; None: neither does. Raises UserError."""
    found = url or os.environ.get(URL_VARIABLE)
    if not found:
        if credentials_file is not None:
            raise UserError("--credentials says who asks the HTTP API; say by --url where it is")
        return None
    parts = urlsplit(found)
    told_by = "--url" if url else URL_VARIABLE
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"{told_by} must be the address of the HTTP API, such as https://api.example.org")
    if parts.username or parts.password:
        raise UserError(f"{told_by} must hold no user name or password: give a file by --credentials")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise UserError(f"{told_by}: the secret would go to {parts.hostname} in the clear; use https://")
    told = os.environ.get(FILE_VARIABLE)
    file = credentials_file or (Path(told) if told else None)
    return ApiPlace(found.rstrip("/"), file, url is not None)


@dataclass(slots=True)
class Api:
    """An open connection with a token; one that has run out is replaced."""

    http: "aiohttp.ClientSession"
    place: ApiPlace
    token: str

    async def get(self, path: str, **query: Any) -> Any:
        """Return what GET gives; what is None in the query is left out. Raises UserError, Unavailable."""
        given = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        return (await self._ask("GET", f"{path}?{urlencode(given)}" if given else path))[0]

    async def get_tagged(self, path: str) -> tuple[Any, str]:
        """Return a thing and its ETag. Raises as above."""
        found, headers = await self._ask("GET", path)
        return found, headers.get("ETag", "")

    async def send(self, method: str, path: str, body: Any = None, *, etag: str | None = None) -> Any:
        """Change something; return the answer. Raises as above."""
        headers = {} if etag is None else {"If-Match": etag}
        return (await self._ask(method, path, body, headers))[0]

    async def pages(self, path: str, name: str, limit: int | None = None, **query: Any) -> list[Any]:
        """Return the entries of all pages, at most `limit`. Raises as above."""
        found: list[Any] = []
        cursor = None
        while limit is None or len(found) < limit:
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            page = await self.get(path, limit=wanted, cursor=cursor, **query)
            found += page[name]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return found

    async def text(self, path: str, **query: Any) -> tuple[bytes, str | None]:
        """Return a page of a file, and the path of the next one. Raises as above."""
        given = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        body, headers = await self._raw("GET", f"{path}?{urlencode(given)}" if given else path, None, {})
        link = headers.get("Link", "")
        return body, link[1 : link.index(">")] if link else None

    async def _ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, Mapping[str, str]]:
        content, answered = await self._raw(method, path, body, headers or {})
        return (json.loads(content) if content else None), answered

    async def _raw(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[bytes, Mapping[str, str]]:
        sent = dict(headers)
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body, default=str).encode(), "application/json"
        status, content, answered = await self._once(method, path, data, sent)
        if status == 401:
            # A token is good for a quarter of an hour, and a command may take longer.
            self.token = await _new_token(self.http, self.place)
            status, content, answered = await self._once(method, path, data, sent)
        if status >= 400:
            raise refused(status, content, self.place)
        return content, answered

    async def _once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        with _translated(self.place):
            async with self.http.request(method, self.place.url + path, headers=sent, data=data) as response:
                return response.status, await response.read(), response.headers


@asynccontextmanager
async def connected(place: ApiPlace) -> AsyncIterator[Api]:
    """Lend the API with a token. Raises UserError, Unavailable."""
    import aiohttp  # noqa: PLC0415 - most commands need no HTTP, and it costs a fifth of a second

    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=True) as http:
        yield Api(http, place, await _new_token(http, place))


async def _new_token(http: "aiohttp.ClientSession", place: ApiPlace) -> str:
    import aiohttp  # noqa: PLC0415 - as above

    client_id, secret = _credentials(place)
    headers = {"Authorization": aiohttp.encode_basic_auth(client_id, secret)}
    form = {"grant_type": "client_credentials"}
    with _translated(place):
        async with http.post(f"{place.url}/oauth/token", data=form, headers=headers) as response:
            content = await response.read()
            if response.status == 401:
                raise UserError(f"{place.url} does not know the client {client_id}, or not by this secret")
            if response.status >= 400:
                raise refused(response.status, content, place)
            try:
                return str(json.loads(content)["access_token"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{place.url} is not the HTTP API of Meterpost: it gives no token") from None


def _credentials(place: ApiPlace) -> tuple[str, str]:
    if place.credentials_file is not None:
        try:
            found = json.loads(read_text(place.credentials_file))
            return str(found["client_id"]), str(found["client_secret"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{place.credentials_file} must hold {{"client_id": "…", "client_secret": "…"}} '
                "(`meterpost api-clients create` gives both)"
            ) from None
    client_id, secret = os.environ.get(ID_VARIABLE), os.environ.get(SECRET_VARIABLE)
    if not client_id or not secret:
        raise UserError(
            f"who asks the HTTP API is not known: give --credentials FILE, or set {FILE_VARIABLE}, or both "
            f"{ID_VARIABLE} and {SECRET_VARIABLE}"
        )
    return client_id, secret


class _translated:  # noqa: N801 - reads as a statement
    """Turn the client's errors into Unavailable."""

    def __init__(self, place: ApiPlace) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        import aiohttp  # noqa: PLC0415 - as above

        if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
            raise Unavailable(f"the HTTP API does not answer at {self._place.url}: {str(error) or 'it takes too long'}")


def refused(status: int, content: bytes, place: ApiPlace) -> UserError | Unavailable:
    """Return what an answer that is a problem says to the user."""
    try:
        problem = json.loads(content)
        sentence = str(problem.get("detail") or problem.get("error_description") or problem.get("error"))
        request = problem.get("request_id")
    except (ValueError, AttributeError):
        return UserError(f"{place.url} answered {status}: is it the HTTP API of Meterpost?")
    if status >= 500 or status == 429:
        return Unavailable(f"{sentence} (request {request})")
    return UserError(sentence)
