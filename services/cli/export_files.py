"""The file that an export is downloaded to: its name, what is there of it already, and whether it is right."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from services.cli.export_texts import ExportUnsuccessfulError
from services.cli.session import Session
from services.platform.errors import UserError

_PIECE = 1 << 20


class Partial(NamedTuple):
    """What is there of a download that broke: so many bytes, with this digest."""

    file: Path
    byte_count: int
    digest: Any


def check_target(output: Path | None, file_name: str, *, overwrite: bool) -> Path:
    """Return where to write to. Raises UserError where something is there."""
    target = output or Path(file_name)
    if target.is_dir():
        target /= file_name
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: choose another name by --output, or add --overwrite")
    return target


def partial_of(target: Path, sha256: str, byte_count: int) -> Partial:
    """Return what is there of the file with this digest; blocks. Named after it, so that no other's is gone on with."""
    file = target.with_name(f"{target.name}.{sha256[:12]}.partial")
    digest = hashlib.sha256()
    if not file.is_file() or file.stat().st_size > byte_count:
        return Partial(file, 0, digest)
    with file.open("rb") as there:
        while piece := there.read(_PIECE):
            digest.update(piece)
    return Partial(file, file.stat().st_size, digest)


def is_wrong(where: str, got: str, expected: str) -> ExportUnsuccessfulError:
    """Return what is said of a file that is not what was put into the store."""
    return ExportUnsuccessfulError(
        f"what {where} gave is not what was put there (SHA-256 {got} instead of {expected}): export anew"
    )


def told(session: Session, target: Path, byte_count: int, sha256: str) -> None:
    """Say what was downloaded."""
    if session.answer.as_json:
        session.answer.json({"file": str(target), "bytes": byte_count, "sha256": sha256})
    else:
        session.answer.say(f"{target}: {byte_count:,} bytes, SHA-256 {sha256}")
