"""What the attempts to leave a file on a server have in common: their answers, and the names while under way."""

import re
import secrets

from services.core.retry import Answer, Verdict
from services.platform.outbound import ForbiddenAddress, NotResolved

STORED = Answer(Verdict.DELIVERED, "stored", "the file is in place")
ALREADY_THERE = Answer(Verdict.DELIVERED, "already_there", "the file was there already, with the same content")
TIMEOUT = Answer(Verdict.RETRY, "timeout", "the server did not take the file in time")
CONNECT_TIMEOUT = Answer(Verdict.RETRY, "connect_timeout", "the server did not let us in in time")
CONNECTION_LOST = Answer(Verdict.RETRY, "connection_lost", "the server ended the connection")
DISK_FULL = Answer(Verdict.RETRY, "disk_full", "the server has no space left for the file")
SIZE_DIFFERS = Answer(Verdict.RETRY, "size_differs", "the server says that it stored another number of bytes")
NO_FOLDER = Answer(
    Verdict.STOP,
    "no_such_folder",
    "the folder is not there: create it on the server or correct the job's directory, then resume the job",
)
NO_PERMISSION = Answer(
    Verdict.STOP,
    "no_permission",
    "the account may not do this there: let it write, read and rename in the job's folder, then resume the job",
)

_PARTIAL = ".partial"


def file_exists(name: str) -> Answer:
    """Return the answer where a file of other content has the part's name."""
    return Answer(
        Verdict.STOP,
        "file_exists",
        f"{name} is there with other content and is not overwritten: move it away, then resume the job",
    )


def answer_of_connecting(error: Exception) -> Answer | None:
    """Return the answer for a host that cannot be reached; None where the error says something else."""
    if isinstance(error, ForbiddenAddress):
        return Answer(Verdict.STOP, "address_forbidden", f"nothing is sent there: {error}")
    if isinstance(error, NotResolved):
        return Answer(Verdict.RETRY, "name_not_resolved", str(error))
    return None


def partial_name(file_name: str) -> str:
    """Return a hidden name for a file under way, another one at each attempt.

    So an attempt only ever puts in place what it wrote itself, even when an earlier one comes back to life meanwhile.
    """
    return f".{file_name}.{secrets.token_hex(4)}{_PARTIAL}"


def is_leftover(name: str, job_id: int) -> bool:
    """Tell whether this is the hidden file of an attempt of the job; at most one of them is under way."""
    return re.fullmatch(rf"\.{job_id}-.*\.[0-9a-f]{{8}}{re.escape(_PARTIAL)}", name) is not None
