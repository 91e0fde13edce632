"""The SQL of what became of the files. Every statement may be repeated: done twice, it does no more than once."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from services.platform.postgres import Connection

DEPOSITED = """
INSERT INTO dropbox_file (organization_id, file_name, deposited_at, size_bytes)
SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT FROM organization WHERE organization_id = $1)
ON CONFLICT DO NOTHING
"""
FETCHED = """
UPDATE dropbox_file SET fetch_count = fetch_count + 1, first_fetched_at = coalesce(first_fetched_at, $3),
       last_fetched_at = $3, last_fetched_by = $4
WHERE organization_id = $1 AND file_name = $2 AND removed_at IS NULL AND last_fetched_at IS DISTINCT FROM $3
"""
REMOVED = """
UPDATE dropbox_file SET removed_at = $3, removed_by = $4
WHERE organization_id = $1 AND file_name = $2 AND removed_at IS NULL AND deposited_at <= $3
"""
LOGGED_IN = "UPDATE dropbox_account SET last_login_at = $2, last_login_from = $3 WHERE user_name = $1"

_PRESENT = "SELECT organization_id, file_name FROM dropbox_file WHERE removed_at IS NULL"
_FORGET = "DELETE FROM dropbox_file WHERE removed_at < $1"


class FoundFile(NamedTuple):
    """A file that lies on disk."""

    organization_id: int
    file_name: str
    deposited_at: datetime
    size_bytes: int


async def reconcile(connection: Connection, found: Sequence[FoundFile], now: datetime) -> tuple[int, int]:
    """Make the records agree with what lies on disk; return how many were added, and how many are gone."""
    present = {(row["organization_id"], row["file_name"]) for row in await connection.fetch(_PRESENT)}
    on_disk = {(file.organization_id, file.file_name) for file in found}
    added = [file for file in found if (file.organization_id, file.file_name) not in present]
    gone = present - on_disk
    await connection.executemany(DEPOSITED, added)
    await connection.executemany(REMOVED, [(*one, now, "unknown") for one in sorted(gone)])
    return len(added), len(gone)


async def forget_removed(connection: Connection, now: datetime, keep: timedelta) -> None:
    """Delete the records of files that have been gone for long."""
    await connection.execute(_FORGET, now - keep)
