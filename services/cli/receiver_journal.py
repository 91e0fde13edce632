"""The lines that a receiver kept of its requests (`requests.jsonl`), looked up by the file that a request left.

Form: one JSON object a line with `id`, `status`, `sha256`, `time`, and `headers` with the names in small letters. The
demo's receiver and those in examples/receivers write it. Of each request only hash and place in the file are in memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from services.core.findings import Finding
from services.platform.errors import UserError

JOURNAL = "requests.jsonl"
_MAX_LINE_BYTES = 64 * 1024
_FILE_NAME = "meterpost-filename"


class _Known(NamedTuple):
    sha256: str
    offset: int


class Journal:
    """The accepted requests of one folder."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._by_name: dict[str, _Known] = {}
        self._seen: set[str] = set()
        self.findings = list(self._read())
        """What is wrong with the requests themselves."""
        self.repeats = 0
        """How often a part was sent again with the same bytes, which is no fault."""

    def headers_of(self, file_name: str) -> tuple[dict[str, str], str] | None:
        """Return the headers and the time of the first accepted request with this file; None: there was none."""
        known = self._by_name.get(file_name)
        if known is None:
            return None
        self._seen.add(file_name)
        with self._file.open("rb") as stream:
            stream.seek(known.offset)
            line = json.loads(stream.readline(_MAX_LINE_BYTES))
        return line["headers"], str(line.get("time", ""))

    def unseen(self) -> int:
        """Return of how many accepted requests nobody asked for the file."""
        return len(self._by_name) - len(self._seen)

    def _read(self) -> Iterator[Finding]:
        hashes: dict[str, str] = {}
        self.repeats = 0
        unreadable = 0
        where = self._file.name
        for offset, line in self._lines():
            request = _request(line)
            if request is None:
                unreadable += 1
                continue
            part_id, status, sha256 = request["id"], request["status"], request["sha256"]
            if status == 409:
                yield Finding("other_bytes", where, f"{part_id} came again with other bytes, and was refused")
            elif not 200 <= status < 300:
                sentence = f"{part_id or 'a request without id'} was refused with {status}: {request.get('said', '')}"
                yield Finding("refused", where, sentence, is_difference=False)
            elif part_id in hashes:
                self.repeats += 1
                if hashes[part_id] != sha256:
                    yield Finding("other_bytes", where, f"{part_id} was accepted twice, with other bytes")
            else:
                hashes[part_id] = sha256
                headers = request.get("headers")
                if isinstance(headers, dict) and _FILE_NAME in headers:
                    self._by_name.setdefault(str(headers[_FILE_NAME]), _Known(sha256, offset))
        if unreadable:
            sentence = f"{unreadable:,} lines cannot be read: an end of the receiver's may have cut them off"
            yield Finding("journal", where, sentence, is_difference=False)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        offset = 0
        try:
            with self._file.open("rb") as stream:
                while line := stream.readline(_MAX_LINE_BYTES):
                    yield offset, line
                    offset += len(line)
        except OSError as error:
            raise UserError(f"{self._file} cannot be read: {error.strerror}") from None


def _request(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("status"), int):
        return None
    if not isinstance(found.get("id"), str | None) or not isinstance(found.get("sha256"), str):
        return None
    return found
