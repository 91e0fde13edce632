"""The parts of a catalog run: the catalog at the slot's end, as known at the revision that the run has pinned."""

import asyncio
import hashlib

from services.core.catalog_format import CatalogCutter, CatalogFormat, CutCatalog, catalog_format
from services.core.catalog_records import BEGINNING, CatalogKey, CatalogRecord, parse_key
from services.delivery.kept_parts import KeptParts
from services.delivery.model import FrozenPart, RowRange, Run, Version
from services.platform.errors import UserError
from services.platform.postgres import Pool, transaction

# Read in one go; some 500 bytes each.
PAGE_RECORDS = 10_000

_RECORDS = "SELECT * FROM catalog_records($1, $2, $3, $4, $5, $6, $7, $8)"


class CatalogStore:
    """Reads catalogs in the order of their keys. What one holds is never changed, so a pinned one stays as it is."""

    def __init__(self, pool: Pool, page_records: int = PAGE_RECORDS) -> None:
        self._pool = pool
        self.page_records = page_records

    async def page(self, run: Run, version: Version, first: CatalogKey, most: int) -> list[CatalogRecord]:
        """Return at most `most` records from a key on; fewer only where the catalog ends. Raises Unavailable."""
        sites = None if version.site_ids is None else list(version.site_ids)
        of = (run.job.organization_id, run.slot.end, run.catalog_revision, sites)
        async with transaction(self._pool) as connection:
            rows = await connection.fetch(_RECORDS, *of, first.kind, first.number, first.device_id, most)
        return [CatalogRecord(*row) for row in rows]


async def catalog_parts(
    store: CatalogStore, turn: asyncio.Semaphore, kept: KeptParts, run: Run, version: Version
) -> list[FrozenPart]:
    """Return what the parts of a run are. Holds one page and one part, and of the parts as many as may be kept.

    Raises Unavailable while PostgreSQL is away, and UserError where the job's settings are of no use.
    """
    cutter = CatalogCutter(_format(run, version))
    parts: list[FrozenPart] = []

    def freeze(cut: CutCatalog) -> None:
        sha256 = hashlib.sha256(cut.body).digest()
        kept.keep(sha256, cut.body)
        rows = RowRange(run.slot.start, 0, cut.row_count, str(cut.first))
        parts.append(FrozenPart(rows, len(cut.body), sha256))

    first = BEGINNING
    while True:
        async with turn:
            page = await store.page(run, version, first, store.page_records)
        for cut in cutter.add(page):
            freeze(cut)
        if len(page) < store.page_records:
            break
        first = page[-1].key.following
    for cut in cutter.finish():
        freeze(cut)
    return parts


async def catalog_body(store: CatalogStore, run: Run, version: Version, rows: RowRange) -> bytes | None:
    """Return the bytes of a part, rendered anew; None where it has no records. Raises as `catalog_parts`."""
    if rows.first_record is None:
        return None
    form = _format(run, version)
    records = await store.page(run, version, parse_key(rows.first_record), rows.row_count)
    return form.assemble((record.kind, form.row(record)) for record in records) if records else None


def _format(run: Run, version: Version) -> CatalogFormat:
    try:
        return catalog_format(version.transport, version.settings, run.slot.end)
    except ValueError as error:
        raise UserError(f"transport settings: {error}") from None
