"""Files that were left in hosted folders, and what became of them. Read only: services/dropbox owns the table."""

from datetime import datetime
from typing import NamedTuple

from services.platform.postgres import Connection

_LIST = """
SELECT f.organization_id, o.name AS organization_name, f.file_name, f.deposited_at, f.size_bytes, f.fetch_count,
       f.first_fetched_at, f.last_fetched_at, f.last_fetched_by, f.removed_at, f.removed_by
FROM dropbox_file f JOIN organization o USING (organization_id)
WHERE ($1::integer IS NULL OR f.organization_id = $1)
  AND ($2 OR f.removed_at IS NULL)
  AND (NOT $3 OR f.fetch_count = 0)
  AND ($5::timestamptz IS NULL OR f.deposited_at < $5 OR (f.deposited_at = $5 AND f.file_name > $6))
ORDER BY f.deposited_at DESC, f.organization_id, f.file_name
LIMIT $4
"""


class ListedFile(NamedTuple):
    """A file and what became of it."""

    organization_id: int
    organization_name: str
    file_name: str
    deposited_at: datetime
    size_bytes: int
    fetch_count: int
    first_fetched_at: datetime | None
    last_fetched_at: datetime | None
    last_fetched_by: str | None
    removed_at: datetime | None
    removed_by: str | None


async def list_files(
    connection: Connection,
    organization_id: int | None,
    *,
    with_removed: bool,
    only_unfetched: bool,
    limit: int | None,
    after: tuple[datetime, str] | None = None,
) -> list[ListedFile]:
    """Return files of an organization, or of all, the newest first; of one, page on with `after` (time and name)."""
    left_at, name = after or (None, None)
    rows = await connection.fetch(_LIST, organization_id, with_removed, only_unfetched, limit, left_at, name)
    return [ListedFile(*row.values()) for row in rows]
