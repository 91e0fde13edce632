"""What came in a part, whichever data it has: measurements or a catalog."""

from services.core.catalog_content import CatalogContent, read_catalog, said_key
from services.core.catalog_records import CATALOG
from services.core.part_content import PartContent, read_content
from services.core.part_names import PartName
from services.core.times import iso_seconds

Content = PartContent | CatalogContent


def read_part(name: PartName, body: bytes) -> Content:
    """Return what a part holds, by its name. Raises ValueError, with a sentence, for what is wrong."""
    return read_catalog(name.ending, body) if name.data == CATALOG else read_content(name.ending, body)


def outside_window(name: PartName, content: Content) -> str | None:
    """Return a sentence where the content is not of the time that the name says."""
    start, end = iso_seconds(name.start), iso_seconds(name.end)
    if isinstance(content, CatalogContent):
        if content.catalog_time == end:
            return None
        return f"the catalog is of {content.catalog_time}, its name says {end}"
    if start <= content.first.measured_at and content.last.measured_at < end:
        return None
    return f"the rows go from {content.first.measured_at} to {content.last.measured_at}, not {start} to {end}"


def out_of_order(before: Content, content: Content) -> str | None:
    """Return a sentence where a part does not begin behind the end of the part before it."""
    if isinstance(before, CatalogContent) and isinstance(content, CatalogContent):
        if before.last.is_before(content.first):
            return None
        begins, ended = said_key(content.first), said_key(before.last)
    elif isinstance(before, PartContent) and isinstance(content, PartContent):
        if content.first > before.last:
            return None
        begins = f"meter {content.first.meter_id} at {content.first.measured_at}"
        ended = f"meter {before.last.meter_id} at {before.last.measured_at}"
    else:
        return None  # their names differ in the data, which is told
    return f"it begins with {begins}, but the part before ends with {ended}: rows are there twice or out of order"
