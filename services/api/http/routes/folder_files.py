"""The files that were left in the organization's hosted folder: are they fetched, by whom, and are they still there."""

from datetime import datetime

import msgspec

from services.api.folder_file_queries import list_files
from services.api.http.call import Call
from services.api.http.decoding import Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import PageQuery, link, page, read_cursor


class FolderFilesQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which files: those that are there, with `removed` those, too, that are gone."""

    removed: bool = False
    unfetched: bool = False


class FolderFile(msgspec.Struct, frozen=True):
    """A file; it counts as fetched when all its bytes were read."""

    file_name: str
    bytes: int
    left_at: Instant
    fetch_count: int
    first_fetched_at: Instant | None
    last_fetched_at: Instant | None
    last_fetched_by: str | None
    removed_at: Instant | None
    removed_by: str | None


class FolderFiles(msgspec.Struct, frozen=True):
    """A page of files, the newest first."""

    files: list[FolderFile]
    next_cursor: str | None


async def show_files(call: Call) -> Answer:
    """List files."""
    query = call.query(FolderFilesQuery)
    after = read_cursor(query, [datetime, str])
    rows = await list_files(
        *(call.connection, call.organization_id),
        with_removed=query.removed,
        only_unfetched=query.unfetched,
        limit=query.limit + 1,
        after=None if after is None else (after[0], after[1]),
    )
    found, cursor = page(query, rows, lambda one: [one.deposited_at, one.file_name])
    shown = [
        FolderFile(
            *(one.file_name, one.size_bytes, one.deposited_at, one.fetch_count, one.first_fetched_at),
            *(one.last_fetched_at, one.last_fetched_by, one.removed_at, one.removed_by),
        )
        for one in found
    ]
    return Answer(FolderFiles(shown, cursor), headers=link(call, cursor))


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/folder-files", "list_folder_files", "Files in the hosted folder: fetched or not, and by whom"),
        *(show_files, "viewer", FolderFiles),
        query=FolderFilesQuery,
        is_whole_organization=True,
    ),
)
