"""A file as the user has it: plain, .gz, or a .zip with one file in it; UTF-8 text."""

import gzip
import zipfile
import zlib
from pathlib import Path

from services.platform.errors import UserError

MAX_TEXT_BYTES = 2_000_000_000
"""Unpacked; an archive that grows beyond this is refused rather than filling the memory."""


def read_text(path: Path) -> str:
    """Return the text of a file, unpacked, with line ends as they are. Blocks. Raises UserError."""
    try:
        content = _unpacked(path)
    # NotImplementedError is zipfile's word for a way of packing that it does not know.
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from None
    except RuntimeError:
        raise UserError(f"{path} is encrypted: unpack it first") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{path} is larger than {MAX_TEXT_BYTES:,} bytes unpacked: split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: the text is not UTF-8; save the file as UTF-8") from None


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise UserError(f"{path} holds {len(names)} files, one is expected: {', '.join(names[:5])}")
                with archive.open(names[0]) as member:
                    return member.read(MAX_TEXT_BYTES + 1)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as stream:
                return stream.read(MAX_TEXT_BYTES + 1)
        return file.read(MAX_TEXT_BYTES + 1)
