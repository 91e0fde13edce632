"""What a route is: one declaration that the router, the authorisation, the decoding and the contract all read."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from services.api.access import Scope

if TYPE_CHECKING:
    from services.api.http.call import Call

BodyForm = Literal["json", "csv", "form"]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A body that is sent while it is made; it has `length` bytes, or the connection is ended before."""

    pieces: AsyncIterator[bytes]
    length: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives: a struct, or bytes with their media type."""

    body: msgspec.Struct | bytes | Streamed | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"


Handler = Callable[["Call"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route."""

    method: str
    path: str
    name: str
    """The operation's id in the contract, in the log and in the metrics."""
    summary: str
    handler: Handler
    scope: Scope | None
    """The scope it needs; None: no token at all."""
    answer: Any
    """The struct of the answer; None: it has no body; bytes: a text that `media_types` name."""
    status: int = 200
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    body_form: BodyForm | None = None
    is_whole_organization: bool = False
    """Callers that are held to some sites may not use it."""
    any_caller: bool = False
    """Whoever has a good token may use it, operators too."""
    has_etag: bool = False
    """The answer has an ETag; where the method changes something, If-Match is needed."""
    is_create: bool = False
    """It takes an Idempotency-Key."""
    has_secret: bool = False
    """The answer holds a secret: it is neither cached nor kept in the clear."""
    holds_connection: bool = True
    """The handler runs inside one transaction of the database."""
    is_ranged: bool = False
    """It is a file of which a range of bytes can be asked for."""
    is_guessable: bool = False
    """A secret can be guessed by it, so an address may try it only so often."""
    media_types: tuple[str, ...] = ("application/json",)
    codes: tuple[str, ...] = ()
    """Problems beside those that every route of its kind has."""

    @property
    def changes(self) -> bool:
        """Whether it changes something."""
        return self.method not in {"GET", "HEAD"}
