"""Which state of the catalog a request asks for: in force when, and as known at which revision."""

from typing import Annotated

import msgspec

from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.problems import invalid
from services.api.registry_queries import AsKnown, current_revision

Revision = Annotated[int, msgspec.Meta(ge=0, le=2**62, description="As known at this revision. Default: the newest.")]
At = Annotated[Instant, msgspec.Meta(description="In force at this instant. Default: now.")]
ValidFrom = Annotated[
    Instant, msgspec.Meta(description="From when on it holds. Left out: from now on. null: since ever.")
]


class KnownQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The state of the catalog that is asked for."""

    at: At | None = None
    revision: Revision | None = None


async def as_known(call: Call, query: "KnownQuery | None" = None) -> AsKnown:
    """Return the state that is asked for. Raises Problem for a revision that is yet to come."""
    newest = await current_revision(call.connection)
    if query is None:
        return AsKnown(call.now, newest)
    if query.revision is not None and query.revision > newest:
        raise invalid("revision", f"revision {query.revision} is yet to come; the newest is {newest}")
    return AsKnown(query.at or call.now, newest if query.revision is None else query.revision)
