"""One request on its way through a handler: who makes it, what it says, and what the handler may use."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec

from services.api.access import Caller
from services.api.audit_store import Change, record
from services.api.http.endpoint import Endpoint
from services.api.http.problems import Problem, not_found
from services.api.meter_names import MeterNames
from services.api.passwords import Passwords
from services.api.settings import ApiSettings
from services.api.signing_keys import SigningKeys
from services.platform.clock import Clock
from services.platform.errors import OperatorNeeded, Unavailable, UserError
from services.platform.objects import ObjectStore
from services.platform.postgres import Connection, Pool
from services.platform.secrets import Vault

StructT = TypeVar("StructT", bound=msgspec.Struct)
STORE_PATIENCE = timedelta(seconds=4)
"""Whoever waits for a file's first byte is told within twice this time that the store is away."""
_ENCODER = msgspec.json.Encoder(decimal_format="string")


@dataclass
class Means:
    """What all requests share, built once."""

    settings: ApiSettings
    clock: Clock
    keys: SigningKeys
    vault: Vault
    passwords: Passwords
    found_pool: Pool | None = None
    found_store: ObjectStore | None = None
    meter_names: MeterNames = field(default_factory=lambda: MeterNames(time.monotonic))

    def export_store(self) -> ObjectStore:
        """Return the store of exported files, opened once. Blocks. Raises OperatorNeeded, Unavailable."""
        if self.found_store is None:
            try:
                self.found_store = self.settings.store(STORE_PATIENCE)
            except UserError as error:
                raise OperatorNeeded(str(error)) from error
        return self.found_store

    @property
    def pool(self) -> Pool:
        """The connections. Raises Unavailable before the database has answered for the first time."""
        if self.found_pool is None:
            raise Unavailable("PostgreSQL has not answered yet")
        return self.found_pool


@dataclass
class Call:
    """What a handler is given."""

    means: Means
    endpoint: Endpoint
    path: Mapping[str, str]
    request_id: str
    peer: str
    now: datetime
    headers: Mapping[str, str]
    query_struct: msgspec.Struct | None = None
    body_struct: msgspec.Struct | None = None
    raw: bytes = b""
    found_caller: Caller | None = None
    found_connection: Connection | None = None
    token: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    url_path: str = ""

    @property
    def caller(self) -> Caller:
        """Who makes the request; only routes with a scope have one."""
        if self.found_caller is None:
            raise RuntimeError("a route without a scope asked for its caller")
        return self.found_caller

    @property
    def connection(self) -> Connection:
        """The connection of the request's one transaction."""
        if self.found_connection is None:
            raise RuntimeError("a route that holds no connection asked for it")
        return self.found_connection

    @property
    def organization_id(self) -> int:
        """The caller's organization: the only one whose things a handler may touch."""
        return self.caller.organization_id

    def query(self, kind: type[StructT]) -> StructT:
        """Return the query, which the route declared to be of this kind."""
        if not isinstance(self.query_struct, kind):
            raise TypeError("the route declares another query")
        return self.query_struct

    def body(self, kind: type[StructT]) -> StructT:
        """Return the body, which the route declared to be of this kind."""
        if not isinstance(self.body_struct, kind):
            raise TypeError("the route declares another body")
        return self.body_struct

    def id(self, name: str, what: str) -> int:
        """Return a number of the path. Raises Problem for one that no id can be."""
        number = self.path[name]
        if len(number) > 10 or not 0 < int(number) < 2**31:
            raise not_found(f"{what} {number[:40]}")
        return int(number)

    def match(self, shown: msgspec.Struct) -> None:
        """Raise Problem unless If-Match names the thing as it is now; call it with the thing locked."""
        wanted = [tag.strip() for tag in self.headers.get("If-Match", "").split(",")]
        if "*" not in wanted and etag(encode(shown)) not in wanted:
            raise Problem(
                "precondition_failed", "it is not as If-Match says any more; get it again, and send its new ETag"
            )

    async def audit(
        self, action: str, object_id: str | int, before: msgspec.Struct | None, after: msgspec.Struct | None
    ) -> None:
        """Put a change on record, within the transaction that makes it."""
        change = Change(
            self.caller.grant.organization_id,
            self.caller.actor,
            self.caller.name,
            action,
            str(object_id),
            _plain(before),
            _plain(after),
            self.request_id,
        )
        await record(self.connection, change, self.now)


def encode(shown: msgspec.Struct) -> bytes:
    """Return a struct as the JSON that is sent."""
    return _ENCODER.encode(shown)


def etag(body: bytes) -> str:
    """Return the strong ETag of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _plain(shown: msgspec.Struct | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None if shown is None else json.loads(encode(shown))
    return found
