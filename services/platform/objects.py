"""Files in an object store: a local folder, S3 and friends, by obstore. The only module that imports it.

Everything here blocks: call it in a thread. Names are made by us, from numbers and fixed words; one that could lead
elsewhere is refused before the store sees it.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url
from obstore.store import ObjectStore as AnyStore

from services.platform.errors import Unavailable, UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

READ_BYTES = 1 << 20
WRITE_BUFFER_BYTES = 8 << 20
PATIENCE = timedelta(seconds=30)
"""So long a request over the network may take: a part of 8 MB up a slow line."""
_CONNECT = timedelta(seconds=3)
_TRY_AGAIN = timedelta(seconds=5)
"""So long a failed request is tried again at once; whoever asked knows best how long to wait then."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_MAX_NAME = 500
_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_"}
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "http1_only",
    "http2_only",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "root_certificate",
    "timeout",
)
_SCHEMES = ("file", "s3", "s3a", "gs", "az", "abfs", "abfss", "https", "memory")


_Asking = Callable[[str], AbstractContextManager[None]]


class ObjectMissingError(UserError):
    """There is no such object (any more)."""


class Sink(Protocol):
    """Where an object's bytes go; it stands under its name, complete, once it is closed."""

    def write(self, data: bytes) -> object:
        """Add bytes."""
        ...


class ObjectStore:
    """One place for files. Raises Unavailable while it is away, UserError where it refuses us."""

    def __init__(self, store: AnyStore, folder: Path | None = None) -> None:
        """`folder`: where the store lies, if it is a folder of this machine."""
        self._store = store
        self._folder = folder

    def put(self, name: str, data: bytes) -> None:
        """Store a small object whole, in place of what was there."""
        with self._asking(name):
            obstore.put(self._store, _checked(name), data)

    def get(self, name: str) -> bytes:
        """Return a small object whole. Raises ObjectMissingError."""
        with self._asking(name):
            return bytes(obstore.get(self._store, _checked(name)).bytes())

    def writer(self, name: str) -> "ObjectWriter":
        """Return what takes a large object piece by piece."""
        return ObjectWriter(self._store, _checked(name), self._folder, self._asking)

    def size(self, name: str) -> int:
        """Return an object's size in bytes. Raises ObjectMissingError."""
        with self._asking(name):
            return int(obstore.head(self._store, _checked(name))["size"])

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield an object, or its bytes [start, end), in pieces. Raises ObjectMissingError."""
        until = self.size(name) if end is None else end
        with self._asking(name):
            while start < until:
                piece = min(until, start + READ_BYTES)
                yield bytes(obstore.get_range(self._store, _checked(name), start=start, end=piece))
                start = piece

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder; of what is not there, none."""
        with self._asking(folder):
            found = obstore.list_with_delimiter(self._store, _checked(folder))["common_prefixes"]
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def remove_all(self, folder: str) -> int:
        """Remove every object below `folder`; return how many there were. What is gone already is no error.

        In a folder of this machine whatever a killed process left unfinished goes, too; elsewhere the store's own rule
        for incomplete uploads has to see to that.
        """
        with self._asking(folder):
            names = [one["path"] for batch in obstore.list(self._store, _checked(folder)) for one in batch]
            for name in names:
                try:
                    obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue
            if self._folder is not None:
                shutil.rmtree(self._folder / folder, ignore_errors=True)
        return len(names)

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Translate errors; where the store's bucket or folder is not there, the store is away and nothing is missing.

        Nor is anything removed there, and nothing is put into a folder that would be made anew beside the right one.
        """
        self._check_folder()
        try:
            with _translated(name):
                yield
            self._check_folder()  # what was found or done is true only if it was there all the time
        except ObjectMissingError:
            self._check_folder()
            # The answer to HEAD does not say which of the two it is, that to a list of nothing does.
            with _translated(name), suppress(exceptions.PermissionDeniedError, PermissionError):
                next(iter(obstore.list(self._store, name)), None)
            raise

    def _check_folder(self) -> None:
        if self._folder is not None and not self._folder.is_dir():
            raise Unavailable(f"the store does not answer: its folder {self._folder} is not there")


class ObjectWriter:
    """A large object that is being written. Left by an error, nothing appears under its name."""

    def __init__(self, store: AnyStore, name: str, folder: Path | None, asking: _Asking) -> None:
        self._name = name
        self._folder = folder
        self._asking = asking
        with asking(name):
            self._clear()
            self._writer = obstore.open_writer(store, name, buffer_size=WRITE_BUFFER_BYTES, max_concurrency=2)

    def __enter__(self) -> Self:
        return self

    def write(self, data: bytes) -> None:
        """Add bytes."""
        with self._asking(self._name):
            self._writer.write(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            with self._asking(self._name):
                self._writer.close()
        else:
            self._clear()

    def _clear(self) -> None:
        """Remove what is unfinished: beside the name, with a number behind it, where no list shows it."""
        if self._folder is not None:
            target = self._folder / self._name
            for unfinished in target.parent.glob(f"{target.name}#*"):
                unfinished.unlink(missing_ok=True)


def open_store(url: str, patience: timedelta = PATIENCE, *, makes_folder: bool = True) -> ObjectStore:
    """Open the store at a URL: file:///folder, s3://bucket/prefix and the like.

    With `makes_folder` a folder that is not there is made; else that is a store that is away: Unavailable.

    Credentials come from the store's own environment variables. A request over the network may take as long as
    `patience`, and a failed one is tried again for some seconds: a store that is away is Unavailable after twice
    `patience` at most, and mostly after those seconds. Raises UserError where the URL cannot be right.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES[:5])
        raise UserError(f"the store {url!r} cannot be used: its address begins with one of {known} …")
    try:
        if parts.scheme == "file":
            if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
                raise UserError(f"the folder {url!r} cannot be used: give its whole path, as file:///path/of/folder")
            folder = Path(unquote(parts.path))
            if not makes_folder and not folder.is_dir():
                raise Unavailable(f"the store does not answer: its folder {folder} is not there")
            return ObjectStore(LocalStore(folder, mkdir=makes_folder), folder)
        if parts.scheme == "memory":
            return ObjectStore(from_url(url))
        options: ClientConfig = {"connect_timeout": min(_CONNECT, patience), "timeout": patience}
        options.update(_told_by_the_environment(parts.scheme))
        retrying = min(_TRY_AGAIN, patience)
        retries: RetryConfig = {"retry_timeout": retrying, "backoff": {"max_backoff": retrying / 4}}
        return ObjectStore(from_url(url, client_options=options, retry_config=retries))
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise UserError(f"the store {_without_login(url)} cannot be opened: {_first_line(error)}") from error


def _told_by_the_environment(scheme: str) -> "ClientConfig":
    """Return how the store's own variables want connections to be: options that are given here replace all of those."""
    prefix = next((prefix for start, prefix in _PREFIXES.items() if scheme.startswith(start)), "HTTP_STORE_")
    told = {name: os.environ.get(f"{prefix}{name.upper()}", "") for name in _CLIENT_OPTIONS}
    return cast("ClientConfig", {name: value for name, value in told.items() if value})


def _checked(name: str) -> str:
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is no name of an object")
    return name


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"{name} is not in the store (any more)") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise UserError(f"the store refuses us at {name}: {_first_line(error)}") from error
    except (exceptions.BaseError, OSError) as error:
        raise Unavailable(f"the store does not answer: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
