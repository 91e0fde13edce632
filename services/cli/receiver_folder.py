"""Looks at everything that lies in a receiver's folder, run by run. Holds one part and, of each file, its name."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from services.cli.receiver_journal import JOURNAL, Journal
from services.core.findings import Finding
from services.core.part_names import PartName, is_temporary, read_part_name
from services.core.received_content import read_part
from services.core.received_manifest import ReceivedManifest, read_manifest
from services.core.received_requests import check_hash, check_signature, read_body, read_request
from services.core.received_runs import JobCheck, JobTotals, ReceivedPart
from services.core.times import parse_instant, to_epoch_microseconds
from services.core.webhooks import SIGNATURE_HEADER
from services.platform.errors import UserError

# 10,000 rows with names of thousands of characters; what is larger is no part, and not read.
MAX_PART_BYTES = 128 * 1024 * 1024


class _File(NamedTuple):
    name: PartName
    path: Path
    size: int
    changed_at_ns: int

    @property
    def order(self) -> tuple[int, datetime, int, int, str]:
        """Job, slot, part, the manifests last."""
        return self.name.job_id, self.name.start, self.name.part or 10**9, self.name.section, str(self.path)


class FolderCheck:
    """Looks once; what was counted stands in the attributes when `run` is through."""

    def __init__(
        self,
        folder: Path,
        keys: Sequence[bytes],
        *,
        now: datetime,
        settle: timedelta,
        progress: Callable[[int, int], None],
    ) -> None:
        """Look in `folder`, with `keys` to check signatures by.

        What came after `now` is left for the next look. Of runs whose newest file is younger than `settle`, something
        may be on its way.
        """
        self._folder = folder
        self._keys = keys
        self._began_ns = _nanoseconds(now)
        self._settled_before_ns = _nanoseconds(now - settle)
        self._too_new = 0
        self._progress = progress
        self._journals: dict[Path, Journal] = {}
        self.jobs: list[JobTotals] = []
        self.file_count = 0
        self.requests_checked = 0
        self.signatures_checked = 0
        self.signatures_unchecked = 0

    def run(self) -> Iterator[Finding]:
        """Look at every file. Raises UserError where the folder cannot be read."""
        files: list[_File] = []
        yield from self._walk(files)
        for folder, journal in self._journals.items():
            for finding in journal.findings:
                yield finding._replace(where=self._where(folder / finding.where))
        files.sort(key=lambda file: file.order)
        self.file_count = len(files)
        done = 0
        for job_id, of_job in groupby(files, key=lambda file: file.name.job_id):
            check = JobCheck(job_id)
            for _start, of_run in groupby(of_job, key=lambda file: file.name.start):
                group = list(of_run)
                yield from self._run(check, group)
                done += len(group)
                self._progress(done, self.file_count)
            yield from check.finish()
            self.jobs.append(check.totals)
        yield from self._gone()

    def _walk(self, files: list[_File]) -> Iterator[Finding]:
        def give_up(error: OSError) -> None:
            raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")

        for place, folders, names in os.walk(self._folder, onerror=give_up):
            folders.sort()
            for name in sorted(names):
                path = Path(place, name)
                if name == JOURNAL:
                    self._journals[path.parent] = Journal(path)
                    continue
                finding = self._sort_out(path, files)
                if finding is not None:
                    yield finding

    def _sort_out(self, path: Path, files: list[_File]) -> Finding | None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None  # renamed or taken away since
        where = self._where(path)
        if is_temporary(path.name):
            is_young = status.st_mtime_ns >= self._settled_before_ns
            if is_young:
                return Finding("left_over", where, "a file under way", is_difference=False)
            return Finding("left_over", where, "a transfer left it behind: it may be removed")
        if path.is_symlink() or not path.is_file():
            return Finding("name", where, "it is no regular file")
        try:
            name = read_part_name(path.name)
        except ValueError as error:
            return Finding("name", where, str(error))
        if status.st_mtime_ns > self._began_ns:
            # Of what arrives while we look, the later may be seen without the earlier.
            self._too_new += 1
        else:
            files.append(_File(name, path, status.st_size, status.st_mtime_ns))
        return None

    def _run(self, check: JobCheck, files: Sequence[_File]) -> Iterator[Finding]:
        parts: list[ReceivedPart] = []
        manifests: list[ReceivedManifest] = []
        for file in files:
            where = self._where(file.path)
            body = _read(file)
            if body is None:
                yield Finding("form", where, "it cannot be read, is larger than a part can be, or is gone")
                continue
            try:
                if file.name.part is None:
                    if manifests and file.name.section == manifests[-1].section:
                        sentence = f"the manifest of the run lies in {manifests[-1].where} as well"
                        yield Finding("part_twice", where, sentence)
                        continue
                    manifests.append(read_manifest(file.name, body, where))
                else:
                    parts.append(_part(file, where, body))
                    parts[-1] = parts[-1]._replace(content=read_part(file.name, body))
            except ValueError as error:
                yield Finding("form" if file.name.part else "manifest", where, str(error))
            else:
                yield from self._request(file, where, body)
        is_arriving = max(file.changed_at_ns for file in files) >= self._settled_before_ns
        yield from check.run(parts, manifests, files[0].name, is_arriving=is_arriving)

    def _request(self, file: _File, where: str, body: bytes) -> Iterator[Finding]:
        """Compare a file with the request that brought it, where the receiver kept that."""
        journal = self._journal(file.path)
        if journal is None:
            return
        found = journal.headers_of(file.path.name)
        if found is None:
            sentence = "no request with its headers is noted: its id and signature cannot be checked"
            yield Finding("request", where, sentence, is_difference=False)
            return
        headers, time = found
        self.requests_checked += 1
        try:
            request = read_request(headers)
            check_hash(request, body)
            read_body(request, headers, body)
        except ValueError as error:
            yield Finding("request", where, str(error))
            return
        if not self._keys:
            self.signatures_unchecked += SIGNATURE_HEADER in headers
            return
        try:
            check_signature(headers, body, self._keys, parse_instant(time))
        except ValueError as error:
            yield Finding("signature", where, str(error))
        else:
            self.signatures_checked += 1

    def _journal(self, path: Path) -> Journal | None:
        for folder in path.parents:
            if folder in self._journals:
                return self._journals[folder]
            if folder == self._folder:
                break
        return None

    def _gone(self) -> Iterator[Finding]:
        if self._too_new:
            sentence = f"{self._too_new:,} files came while this was looking, and are left for the next look"
            yield Finding("arriving", self._where(self._folder), sentence, is_difference=False)
            return  # their requests are noted already
        for folder, journal in self._journals.items():
            if unseen := journal.unseen():
                sentence = f"{unseen:,} parts were accepted whose files are not here, or are not sound"
                yield Finding("request", self._where(folder / JOURNAL), sentence, is_difference=False)

    def _where(self, path: Path) -> str:
        return str(path.relative_to(self._folder))


def _nanoseconds(instant: datetime) -> int:
    """Return an instant as files tell theirs."""
    return to_epoch_microseconds(instant) * 1_000


def _read(file: _File) -> bytes | None:
    if file.size > MAX_PART_BYTES:
        return None
    try:
        return file.path.read_bytes()
    except OSError:
        return None


def _part(file: _File, where: str, body: bytes) -> ReceivedPart:
    return ReceivedPart(file.name, file.path.name, where, len(body), hashlib.sha256(body).hexdigest(), None)
