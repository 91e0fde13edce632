"""Pages by cursor: where the last page ended, not how many rows there were, so added rows shift nothing."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from services.api.http.call import Call
from services.api.http.problems import Problem

DEFAULT_PAGE = 100
Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000, description="At most so many on a page.")]
Cursor = Annotated[str, msgspec.Meta(max_length=2_000, description="`next_cursor` of the page before.")]
RowT = TypeVar("RowT")
ItemT = TypeVar("ItemT")


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every list takes."""

    limit: Limit = DEFAULT_PAGE
    cursor: Cursor | None = None


def read_cursor(query: Any, kinds: Sequence[type]) -> list[Any] | None:
    """Return where the page before ended; None: there was none. Raises Problem for a cursor of another question."""
    text: str | None = query.cursor
    if text is None:
        return None
    values: list[Any] = []
    is_ours = False
    try:
        decoded = msgspec.json.decode(base64.b64decode(text.encode(), altchars=b"-_", validate=True), type=list)
        values = [msgspec.convert(value, kind) for value, kind in zip(decoded[1:], kinds, strict=True)]
        is_ours = decoded[:1] == [_question(query)]
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        pass
    if not is_ours:
        raise Problem(
            "bad_cursor",
            "the cursor is not one that this question with these filters gave; begin again without it",
            field="cursor",
        )
    return values


def write_cursor(query: Any, last: Sequence[Any]) -> str:
    """Return the cursor that goes on after `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode([_question(query), *last])).decode()


def page(query: Any, rows: Sequence[RowT], key: Callable[[RowT], Sequence[Any]]) -> tuple[Sequence[RowT], str | None]:
    """Return what of `rows`, of which there may be one more than the limit, is on the page, and the next cursor."""
    if len(rows) <= query.limit:
        return rows, None
    shown = rows[: query.limit]
    return shown, write_cursor(query, key(shown[-1]))


def link(call: Call, cursor: str | None) -> dict[str, str]:
    """Return the Link header to the next page, if there is one."""
    if cursor is None:
        return {}
    again = [(name, value) for name, value in call.pairs if name != "cursor"]
    path = "/".join(quote(part, safe="") for part in call.url_path.split("/"))
    return {"Link": f'<{path}?{urlencode([*again, ("cursor", cursor)])}>; rel="next"'}


def _question(query: Any) -> str:
    """Return what identifies the filters, so that a cursor is not used with others."""
    filters = {
        name: getattr(query, name) for name in query.__struct_fields__ if name not in {"limit", "cursor", "format"}
    }
    return hashlib.sha256(type(query).__name__.encode() + msgspec.json.encode(filters)).hexdigest()[:12]
