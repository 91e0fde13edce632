"""Which names there are in the folders, and what a path means. Pure.

Clients see a tree of their own, in which nothing leads anywhere else: a customer's root holds the files of the
organization, the depositor's root a folder for each organization by its id. A path is cut into names and looked up in
that tree; it is never joined to a path of this machine.
"""

import posixpath
import re
from typing import NamedTuple

PARTIAL_SUFFIX = ".partial"
TEST_PREFIX = "meterpost-connection-test-"
MAX_NAME_BYTES = 230
_MORE_BYTES = 20
"""Of a hidden name's chance part."""
_PARTIAL = re.compile(r"\.(.+)\.partial")
_ORGANIZATION = re.compile(r"[1-9][0-9]{0,9}")
_MAX_ID = 2**31 - 1


class Place(NamedTuple):
    """What a path leads to; without a name it is the folder, without an organization the depositor's root."""

    organization_id: int | None
    name: str | None


def is_file_name(name: str) -> bool:
    """Tell whether a finished file may have this name."""
    return _is_sound(name, MAX_NAME_BYTES) and not name.endswith(PARTIAL_SUFFIX)


def is_partial_name(name: str) -> bool:
    """Tell whether this is a hidden name of a file under way: `.NAME.partial`."""
    found = _PARTIAL.fullmatch(name)
    return found is not None and _is_sound(found[1], MAX_NAME_BYTES + _MORE_BYTES)


def customer_place(organization_id: int, path: bytes) -> Place | None:
    """Return what a customer's path leads to; None: nothing can be there."""
    names = _names(path)
    if not names:
        return Place(organization_id, None)
    if len(names) == 1 and is_file_name(names[0]):
        return Place(organization_id, names[0])
    return None


def depositor_place(path: bytes) -> Place | None:
    """Return what a path of the depositor's leads to; None: nothing can be there."""
    names = _names(path)
    if not names:
        return Place(None, None)
    if not _ORGANIZATION.fullmatch(names[0]) or int(names[0]) > _MAX_ID:
        return None
    if len(names) == 1:
        return Place(int(names[0]), None)
    if len(names) == 2 and (is_file_name(names[1]) or is_partial_name(names[1])):
        return Place(int(names[0]), names[1])
    return None


def shown_path(path: bytes) -> bytes:
    """Return the absolute form of a path in a client's tree, as for SFTP's `realpath`."""
    return posixpath.normpath(b"/" + path.lstrip(b"/"))


def _is_sound(name: str, max_bytes: int) -> bool:
    is_short = 0 < len(name.encode("utf-8", "replace")) <= max_bytes
    return is_short and name.isprintable() and not name.startswith(".") and "/" not in name


def _names(path: bytes) -> list[str]:
    try:
        text = shown_path(path).decode("utf-8")
    except UnicodeDecodeError:
        return ["/"]  # which nothing is called
    return [name for name in text.split("/") if name]
