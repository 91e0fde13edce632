"""The API on a real server in this process, and a caller that holds every answer against the contract."""

import asyncio
import base64
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator
from pydantic import SecretStr

from services.api.access import SECRET_PREFIX, Grant, fingerprint, new_secret
from services.api.access_store import create_client
from services.api.app import serve
from services.api.settings import ApiSettings
from services.platform.clock import SystemClock
from services.platform.health import Health
from services.platform.postgres import connect_pool, transaction
from services.platform.secrets import new_key
from tests.support.planted import plant
from tests.support.platform import REPOSITORY
from tests.support.polling import eventually_async

CONTRACT: dict[str, Any] = json.loads((REPOSITORY / "schemas" / "http" / "openapi.json").read_bytes())


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def etag(self) -> str:
        return self.headers["ETag"]


@dataclass
class Api:
    """A running API, and how it is called."""

    url: str
    database_url: str
    session: aiohttp.ClientSession
    answered: set[tuple[str, int]] = field(default_factory=set)
    """Operations of the contract with the statuses that they were seen to answer with."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | str | Mapping[str, str] | None = None,
    ) -> Got:
        """Make a request and hold its answer against the contract."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, headers=sent, data=data) as response:
            got = Got(response.status, response.headers.copy(), await response.read())
        self.check(method, path.partition("?")[0], got)
        return got

    async def get(self, path: str, token: str | None = None, **headers: str) -> Got:
        """GET; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("GET", path, token=token, headers=named)

    async def client(
        self,
        organization_id: int | None,
        role: str = "admin",
        *,
        may_export: bool = False,
        site_ids: list[int] | None = None,
        name: str = "test",
    ) -> tuple[str, str]:
        """Create a client straight in the database; return its id and its secret."""
        pool = await connect_pool(self.database_url, max_size=1)
        try:
            async with transaction(pool) as connection:
                client_id, secret = f"mp-{new_secret('')[:16]}", plant(new_secret(SECRET_PREFIX))
                grant = Grant(organization_id, role, may_export, site_ids)  # type: ignore[arg-type] # the test knows
                now = SystemClock().now()
                await create_client(connection, client_id, name, grant, fingerprint(secret), now)
        finally:
            pool.terminate()
        return client_id, secret

    async def exchange(self, client_id: str, secret: str, scope: str | None = None) -> Got:
        """Ask for a token."""
        basic = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
        form = {"grant_type": "client_credentials", **({"scope": scope} if scope else {})}
        return await self.call("POST", "/oauth/token", headers={"Authorization": f"Basic {basic}"}, data=form)

    async def token(self, organization_id: int | None, role: str = "admin", **more: Any) -> str:
        """Create a client and return a token of it."""
        got = await self.exchange(*await self.client(organization_id, role, **more))
        assert got.status == 200, got
        return plant(str(got.json["access_token"]))

    def check(self, method: str, path: str, got: Got) -> None:
        """Hold an answer against the contract."""
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert got.headers["Server"] == "meterpost"
        assert got.headers["X-Request-Id"]
        assert not any(name.startswith("Access-Control") for name in got.headers)
        media_type = got.headers.get("Content-Type", "").partition(";")[0]
        if method == "HEAD":
            assert got.content == b""
        elif media_type == "application/problem+json":
            validate("ProblemBody", got.json)
            assert got.json["status"] == got.status
            assert got.json["request_id"] == got.headers["X-Request-Id"]
        operation = operation_of(method, path)
        if operation is None:
            assert got.status in {404, 405}
            return
        self.answered.add((operation["operationId"], got.status))
        assert str(got.status) in operation["responses"], f"{method} {path} answered {got.status}: {got.content!r}"
        if method == "HEAD":
            return
        content = operation["responses"][str(got.status)].get("content", {})
        if not content:
            assert got.content == b""
            return
        assert media_type in content, f"{method} {path} answered with {media_type}"
        if media_type == "application/problem+json":
            assert got.json["code"] in operation["responses"][str(got.status)]["description"].split(", "), got.json
        elif media_type == "application/json":
            schema = content[media_type]["schema"]
            if schema:
                validate(schema["$ref"].rpartition("/")[2], got.json)


def validate(name: str, value: Any) -> None:
    """Hold a value against a schema of the contract."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": CONTRACT["components"]}
    errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)]
    assert errors == []


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """Return the operation of the contract that a request belongs to; a path without variables goes first."""
    for template, operations in sorted(CONTRACT["paths"].items(), key=lambda item: "{" in item[0]):
        pattern = re.sub(r"\{(\w+)\}", lambda found: "[^/]+" if found[1] in TEXT_IDS else "[0-9]+", template)
        if re.fullmatch(pattern, path) and method.lower() in operations:
            found: dict[str, Any] = operations[method.lower()]
            return found
    return None


TEXT_IDS = {"device_id", "client_id", "run_id", "user_name"}


@asynccontextmanager
async def running_api(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[Api]:
    """Run the API until the test ends."""
    keys = folder / "secret-keys"
    if not keys.exists():
        keys.write_text(new_key("k1") + "\n", encoding="ascii")
    given = {"api_port": 0, "api_public_url": "https://api.example.org", "secret_keys_file": keys, **settings}
    made = ApiSettings(database_url=SecretStr(database_url), instance=f"test-{os.getpid()}", **given)
    stopping, health = asyncio.Event(), Health()
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(made, health, stopping, SystemClock(), listening.set_result))
    try:
        port = await asyncio.wait_for(listening, 10)

        async def is_ready() -> bool:
            return health.waiting_for is None or bool(settings.get("database_is_away"))

        await eventually_async(is_ready, 20, because="the API is ready")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            yield Api(f"http://127.0.0.1:{port}", database_url, session)
    finally:
        stopping.set()
        await task
