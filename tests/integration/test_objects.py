"""What every object store has to do: a folder, the tests' S3 server, and a real endpoint where one is named.

`METERPOST_TEST_S3_URL=s3://bucket/prefix` and the `AWS_…` variables that reach it add that endpoint; what the suite
leaves there is removed.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest

from services.platform.errors import Unavailable, UserError
from services.platform.export_store import ExportStoreSettings
from services.platform.objects import ObjectMissingError, ObjectStore, open_store
from tests.support.s3_server import BUCKET, S3Server, running_s3

REAL = os.environ.get("METERPOST_TEST_S3_URL", "")
BIG = bytes(range(256)) * (21 * 4096)
"""21 MB: three parts."""


@dataclass
class Place:
    """Where a test's objects lie, and how a test opens it: twice, as two processes would."""

    url: str

    def open(self) -> ObjectStore:
        """Open the place."""
        return open_store(self.url, timedelta(seconds=30))


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """Give a server, and what reaches it in the environment."""
    with running_s3(tmp_path / "s3") as server:
        yield server


@pytest.fixture(params=["folder", "s3", *(["real"] if REAL else [])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Give an empty place."""
    match request.param:
        case "folder":
            yield Place((tmp_path / "a folder").as_uri())
        case "s3":
            request.getfixturevalue("s3")
            yield Place(f"s3://{BUCKET}/some/prefix")
        case "real":
            made = Place(f"{REAL.rstrip('/')}/test-{secrets.token_hex(6)}")
            yield made
            for folder in ("1", "2", "11"):
                made.open().remove_all(folder)


def test_what_is_put_is_got_whole_and_a_later_put_takes_its_place(place: Place) -> None:
    store = place.open()
    for content in (b"first", b"", b"the second, longer", bytes(range(256))):
        store.put("1/7/chunks/0000001-1", content)
        assert place.open().get("1/7/chunks/0000001-1") == content
        assert store.size("1/7/chunks/0000001-1") == len(content)
    store.put("1/7/chunks/0000001-2", b"beside it")
    assert store.get("1/7/chunks/0000001-1") == bytes(range(256))


def test_a_big_object_is_put_whole(place: Place) -> None:
    store = place.open()
    store.put("1/7/chunks/0000001-1", BIG)
    assert store.get("1/7/chunks/0000001-1") == BIG


def test_ranges_are_the_bytes_that_were_asked_for(place: Place) -> None:
    store = place.open()
    content = BIG[: (5 << 20) + 17]
    store.put("1/8/file.csv", content)
    size = len(content)
    for start, end in ((0, None), (0, 1), (0, size), (size - 1, size), (7, 7 + (2 << 20)), (size - 5, None), (9, 9)):
        until = size if end is None else end
        assert b"".join(store.read("1/8/file.csv", start, end)) == content[start:until], (start, end)
    assert max(len(piece) for piece in store.read("1/8/file.csv")) == 1 << 20


def test_what_is_missing_is_said_to_be_missing(place: Place) -> None:
    store = place.open()
    store.put("1/7/there", b"x")
    for name in ("1/7/not-there", "1/7", "2/1/there", "1/7/there-not"):
        with pytest.raises(ObjectMissingError, match=name):
            store.get(name)
        with pytest.raises(ObjectMissingError):
            store.size(name)
        with pytest.raises(ObjectMissingError):
            list(store.read(name))
        with pytest.raises(ObjectMissingError):
            list(store.read(name, 0, 10))


@pytest.mark.parametrize("size", [0, 1, 8 << 20, len(BIG)])
def test_a_written_object_appears_when_it_is_complete(place: Place, size: int) -> None:
    store, name = place.open(), "1/9/export.csv"
    with store.writer(name) as writer:
        for start in range(0, size, 1 << 20):
            writer.write(BIG[start : min(size, start + (1 << 20))])
        with pytest.raises(ObjectMissingError):
            place.open().size(name)
    assert place.open().get(name) == BIG[:size]
    assert b"".join(store.read(name)) == BIG[:size]


def test_a_written_object_takes_the_place_of_an_older_one_at_once(place: Place) -> None:
    store, name = place.open(), "1/9/export.csv"
    store.put(name, b"the older")
    with store.writer(name) as writer:
        writer.write(BIG)
        assert place.open().get(name) == b"the older"
    assert store.get(name) == BIG


@pytest.mark.parametrize("size", [10, len(BIG)])
def test_a_writer_that_an_error_ends_leaves_nothing(place: Place, size: int) -> None:
    store, name = place.open(), "1/9/export.csv"

    def fail() -> None:
        with store.writer(name) as writer:
            writer.write(BIG[:size])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(ObjectMissingError):
        place.open().size(name)
    assert place.open().remove_all("1/9") == 0
    with store.writer(name) as writer:
        writer.write(b"the next one")
    assert store.get(name) == b"the next one"


def test_everything_below_a_folder_is_removed_and_nothing_beside_it(place: Place) -> None:
    store = place.open()
    inside = [f"1/7/chunks/{number:07d}-1" for number in range(23)] + ["1/7/file.csv"]
    beside = ["1/77/file.csv", "11/7/file.csv", "1/6/file.csv", "2/7/file.csv"]
    for name in inside + beside:
        store.put(name, name.encode())
    assert store.remove_all("1/7/chunks") == 23
    assert store.get("1/7/file.csv") == b"1/7/file.csv"
    assert store.remove_all("1/7") == 1
    assert store.remove_all("1/7") == 0
    assert store.remove_all("2/8") == 0
    for name in inside:
        with pytest.raises(ObjectMissingError):
            store.get(name)
    for name in beside:
        assert store.get(name) == name.encode()


def test_folders_are_named_without_what_lies_beside_or_below_them(place: Place) -> None:
    store = place.open()
    for number in range(17):
        store.put(f"1/7/file/{number}/export.csv", b"x")
        store.put(f"1/7/file/{number}/deeper/export.csv", b"x")
    store.put("1/7/file/none", b"x")
    store.put("1/7/files/18/export.csv", b"x")
    assert sorted(store.folders("1/7/file"), key=int) == [str(number) for number in range(17)]
    assert store.folders("1/8/file") == []
    with store.writer("1/9/file/3/export.csv") as writer:
        writer.write(BIG)
        assert store.folders("1/9/file") in ([], ["3"])
    assert store.folders("1/9/file") == ["3"]


@pytest.mark.parametrize("name", ["", "/1", "1//2", "../1", "1/../2", "1/.hidden", "1/a b", "1/é", "1/" + "x" * 500])
def test_a_name_that_could_lead_elsewhere_never_reaches_the_store(place: Place, name: str) -> None:
    with pytest.raises(ValueError, match="no name of an object"):
        place.open().put(name, b"x")


def test_a_store_that_is_away_is_said_to_be_away_in_bounded_time(s3: S3Server) -> None:
    store = open_store(f"s3://{BUCKET}/p", timedelta(seconds=1))
    store.put("1/1/file", b"x")
    s3.stop()
    began = monotonic()
    for attempt in (
        lambda: store.get("1/1/file"),
        lambda: list(store.read("1/1/file")),
        lambda: store.put("1/1/file", b"y"),
        lambda: store.remove_all("1"),
    ):
        with pytest.raises(Unavailable, match="the store does not answer"):
            attempt()
    assert monotonic() - began < 4 * 2 + 2
    s3.start()
    assert store.get("1/1/file") == b"x"


def test_a_store_that_is_not_there_is_away_and_its_objects_are_not_missing(s3: S3Server, tmp_path: Path) -> None:
    """Whoever is told that a file is gone asks for it anew, in vain."""
    folder = tmp_path / "not mounted"
    in_folder, in_bucket = open_store(folder.as_uri()), open_store(f"s3://{BUCKET}/p")
    folder.rmdir()
    s3.buckets.clear()
    for store in (in_folder, in_bucket):
        for attempt in (
            lambda store: store.get("1/1/file"),
            lambda store: store.size("1/1/file"),
            lambda store: list(store.read("1/1/file")),
            lambda store: list(store.read("1/1/file", 0, 9)),
        ):
            with pytest.raises(Unavailable, match=r"the store does not answer: .*(is not there|NoSuchBucket)"):
                attempt(store)

    def write(store: ObjectStore) -> None:
        with store.writer("1/1/file") as writer:
            writer.write(BIG)

    for store in (in_folder, in_bucket):
        for change in (
            lambda store: store.put("1/1/file", b"x"),
            write,
            lambda store: store.remove_all("1/1"),
            lambda store: store.folders("1/1"),
        ):
            with pytest.raises(Unavailable, match=r"the store does not answer: .*(is not there|NoSuchBucket)"):
                change(store)
    assert not folder.exists()
    s3.buckets.add(BUCKET)
    write(in_bucket)
    assert in_bucket.size("1/1/file") == len(BIG)


def test_who_only_reads_makes_no_folder_in_place_of_one_that_is_not_there(tmp_path: Path) -> None:
    """The worker would take it for the store, and what is due for removal for removed."""
    folder = tmp_path / "not mounted"
    settings = ExportStoreSettings(export_store_url=folder.as_uri())
    with pytest.raises(Unavailable, match=r"the store does not answer: its folder .* is not there"):
        settings.store()
    assert not folder.exists()
    settings.store(makes_folder=True).put("1/1/file", b"x")
    assert settings.store().get("1/1/file") == b"x"


def test_a_key_that_the_store_does_not_know_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(UserError, match="the store refuses us at 1/1/file"):
        open_store(f"s3://{BUCKET}/p").put("1/1/file", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEONE")
    with pytest.raises(UserError, match="the store refuses us"):
        open_store(f"s3://{BUCKET}/p").get("1/1/file")
    assert s3.names() == []
