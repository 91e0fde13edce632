"""What the worker knows of an export."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from services.core.manual_export import ExportFormat, WantedExport, file_name


class Key(NamedTuple):
    """Names an export."""

    organization_id: int
    export_id: int

    @property
    def folder(self) -> str:
        """Where everything of the export lies in the store."""
        return f"{self.organization_id}/{self.export_id}"

    @property
    def chunks(self) -> str:
        """Where its chunks lie."""
        return f"{self.folder}/chunks"

    @property
    def files(self) -> str:
        """Where its file lies, in a folder that is called like the epoch of whom wrote it."""
        return f"{self.folder}/file"


class Claim(NamedTuple):
    """An export that is ours to work on, until its lease ends or somebody else claims it."""

    key: Key
    epoch: int


class Export(NamedTuple):
    """An export that was begun: what is wanted, and where it stands."""

    key: Key
    wanted: WantedExport
    catalog_revision: int
    meter_ids: Sequence[int]
    is_selective: bool
    chunk_minutes: int
    position: datetime
    row_count: int
    is_cancelled: bool
    cadence_minutes: int
    """The shortest of the meters'."""

    @property
    def readings_in_window(self) -> int:
        """How many readings a window holds, at most as a rule."""
        return max(1, self.wanted.resolution_minutes // self.cadence_minutes)

    @property
    def format(self) -> ExportFormat:
        """How the file is written."""
        return self.wanted.format

    def object_name(self, epoch: int) -> str:
        """Return the name of the file in the store. Under its epoch, as a chunk."""
        return f"{self.key.files}/{epoch}/{file_name(self.wanted, self.key.export_id)}"

    def chunk_name(self, chunk: int, epoch: int) -> str:
        """Return the name of a chunk. Under its epoch, so that a zombie writes over nobody's."""
        return f"{self.key.chunks}/{chunk:07d}-{epoch}"


class Chunk(NamedTuple):
    """A stretch of windows whose rows are in the store."""

    chunk: int
    epoch: int
    row_count: int
    byte_count: int
    sha256: bytes


class File(NamedTuple):
    """The finished file."""

    name: str
    byte_count: int
    sha256: bytes
