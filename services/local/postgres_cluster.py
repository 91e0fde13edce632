"""Where the embedded PostgreSQL keeps its files, and how they are made.

As an ordinary user everything lies in the data folder. As root the database's own files lie in a shared folder
that its unprivileged user can enter; both sides then hold the same random id, which tells whether they still
belong together: a data folder may have been removed and made anew under the same path.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from services.local.errors import LocalServerError
from services.local.postgres_binaries import PostgresInstallation
from services.local.programs import run_program

SUPERUSER = "meterpost"

_FILES = "files"
_INITDB_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Cluster:
    """The files of one PostgreSQL server; `home` contains `files` and belongs to the server alone."""

    home: Path
    password: str = field(repr=False)

    @property
    def files(self) -> Path:
        """What PostgreSQL calls its data directory."""
        return self.home / _FILES


def cluster_files(data_folder: Path, installation: PostgresInstallation) -> Path:
    """Return where the files of this data folder's cluster lie or will lie."""
    return _home(data_folder, installation) / _FILES


def open_cluster(data_folder: Path, installation: PostgresInstallation, ending: Event) -> Cluster:
    """Return the cluster of this data folder, made by initdb if there is none. Blocks for about a second then.

    The caller holds the folder's lock, and no server runs on the cluster. LocalServerError when initdb fails
    or `ending` is set meanwhile, and when the cluster has been lost or was made as another user: its data is never
    replaced silently.
    """
    home = _home(data_folder, installation)
    id_file = data_folder / "cluster_id"
    password_file = data_folder / "password"
    try:
        if not id_file.exists():
            _create(home, password_file, installation, ending)
            # Last, so that a folder without an id is known to be unfinished.
            _write_private(id_file, _read(home / "id"))
        elif not (home / "id").is_file():
            raise LocalServerError(
                f"The database of {data_folder} is not where it was left, at {home}: start as the user who made it, "
                "or remove that data folder to start anew."
            )
        elif _read(home / "id") != _read(id_file):
            raise LocalServerError(
                f"The database at {home} belongs to another data folder than {data_folder}: remove the latter to "
                "start anew."
            )
        return Cluster(home=home, password=_read(password_file))
    except OSError as error:
        raise LocalServerError(
            f"The database's files cannot be used ({error.filename}: {error.strerror}): start as the user who made "
            f"them, or choose another data folder than {data_folder}."
        ) from error


def remove_cluster(data_folder: Path, installation: PostgresInstallation) -> None:
    """Remove the cluster of this data folder; no server runs on it."""
    shutil.rmtree(_home(data_folder, installation), ignore_errors=True)


def server_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: nothing of ours, so no PG… variable misleads them."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _home(data_folder: Path, installation: PostgresInstallation) -> Path:
    if installation.shared_folder is None:
        return data_folder / "cluster"
    key = hashlib.sha256(os.fsencode(data_folder)).hexdigest()[:16]
    return installation.shared_folder / f"cluster-{key}"


def _create(home: Path, password_file: Path, installation: PostgresInstallation, ending: Event) -> None:
    # What lies there without an id in the data folder is a stale or unfinished cluster.
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    password = secrets.token_urlsafe(24)
    _write_private(password_file, password)
    for_initdb = home / "initial_password"
    _write_private(for_initdb, password)
    if installation.account is not None:
        for path in (home, for_initdb):
            os.chown(path, installation.account.user_id, installation.account.group_id)
    _run_initdb(home, for_initdb, installation, ending)
    for_initdb.unlink()
    _write_private(home / "id", secrets.token_hex(16))


def _run_initdb(home: Path, password_file: Path, installation: PostgresInstallation, ending: Event) -> None:
    # PostgreSQL's own locale, so that sorting does not depend on the machine.
    locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    access = ["--auth=scram-sha-256", f"--username={SUPERUSER}", f"--pwfile={password_file}"]
    try:
        run_program(
            [str(installation.programs / "initdb"), "-D", str(home / _FILES), *locale, *access],
            timeout_s=_INITDB_TIMEOUT_S,
            ending=ending,
            working_folder=home,
            environment=server_environment(),
            account=installation.account,
        )
    except subprocess.CalledProcessError as error:
        raise LocalServerError(f"PostgreSQL could not make a database in {home}:\n{error.stdout}") from error
    except subprocess.TimeoutExpired as error:
        raise LocalServerError(f"PostgreSQL made no database in {home} within {_INITDB_TIMEOUT_S} seconds.") from error


def _read(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()


def _write_private(file: Path, text: str) -> None:
    """Write a file that only we can read, complete or not at all."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text + "\n")
    fresh.replace(file)
