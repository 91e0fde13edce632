"""Paths and names of the hosted folder, and the counting of refused passwords: pure."""

import inspect

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dropbox.names import (
    Place,
    customer_place,
    depositor_place,
    is_file_name,
    is_partial_name,
    shown_path,
)
from services.dropbox.sftp import RefusingFiles
from services.dropbox.throttle import Failures, delay_seconds, network_of
from services.platform.passwords import check_new_password, generated_password, hash_password, is_password


@pytest.mark.parametrize("path", [b"", b"/", b".", b"./", b"..", b"../..", b"/..", b"//", b"/x/..", b"/../."])
def test_every_way_to_the_root_is_the_customers_own_folder(path: bytes) -> None:
    assert customer_place(7, path) == Place(7, None)


@pytest.mark.parametrize(
    "path", [b"a.csv", b"/a.csv", b"./a.csv", b"../a.csv", b"/x/../a.csv", b"//a.csv", b"/../8/../a.csv"]
)
def test_dots_never_lead_out(path: bytes) -> None:
    assert customer_place(7, path) == Place(7, "a.csv")


@pytest.mark.parametrize(
    "path",
    [
        b"/8/a.csv", b"../8/a.csv", b"/etc/passwd", b"/../../etc/passwd", b"/.a.csv.0123abcd.partial", b".hidden",
        b"a.csv/", b"a.csv/.", b"\xff\xfe", b"a\x00b", b"a\nb", b"a" * 231, b"x/y",
    ],
)  # fmt: skip
def test_nothing_else_is_there_for_a_customer(path: bytes) -> None:
    found = customer_place(7, path)
    assert found is None or found == Place(7, "a.csv")
    if not path.startswith(b"a.csv"):
        assert found is None


@given(st.binary(max_size=60))
def test_whatever_the_path_a_customer_stays_in_the_own_folder(path: bytes) -> None:
    found = customer_place(7, path)
    assert found is None or (found.organization_id == 7 and (found.name is None or is_file_name(found.name)))


@given(st.binary(max_size=60))
def test_whatever_the_path_the_depositor_reaches_sound_names_only(path: bytes) -> None:
    found = depositor_place(path)
    if found is not None and found.name is not None:
        assert found.organization_id is not None
        assert is_file_name(found.name) or is_partial_name(found.name)
        assert "/" not in found.name
        assert found.name not in {".", ".."}


def test_the_depositor_reaches_the_organizations_folders() -> None:
    assert depositor_place(b"/") == Place(None, None)
    assert depositor_place(b"/7") == Place(7, None)
    assert depositor_place(b"/7/a.csv") == Place(7, "a.csv")
    assert depositor_place(b"/7/.a.csv.0123abcd.partial") == Place(7, ".a.csv.0123abcd.partial")
    for path in (b"/07/a", b"/0", b"/x", b"/7/a/b", b"/99999999999", b"/7/.hidden", b"/-1"):
        assert depositor_place(path) is None, path


def test_a_name_of_the_greatest_length_can_be_under_way() -> None:
    name = "n" * 230
    assert is_file_name(name)
    assert is_partial_name(f".{name}.0123abcd.partial")
    assert not is_file_name(name + "n")


def test_shown_paths_are_absolute() -> None:
    assert [shown_path(path) for path in (b".", b"", b"//", b"../x", b"a/./b")] == [b"/", b"/", b"/", b"/x", b"/a/b"]


def test_nothing_of_asyncssh_that_touches_a_disk_is_left() -> None:
    """A new version of the library that adds a request must not open a way to the disk."""
    harmless = {"channel", "connection", "env", "logger", "convert_attrs"}
    public = {name for name, _value in inspect.getmembers(asyncssh.SFTPServer) if not name.startswith("_")}
    # It lists a folder by `scandir`, which is ours.
    assert public - harmless - set(vars(RefusingFiles)) <= {"listdir"}


def test_refused_passwords_are_forgotten_after_a_while() -> None:
    failures = Failures(limit=3, window_seconds=60)
    for second in range(3):
        assert not failures.are_too_many("a", second)
        failures.note("a", second)
    assert failures.are_too_many("a", 3)
    assert not failures.are_too_many("b", 3)
    assert failures.are_too_many("a", 59)
    assert not failures.are_too_many("a", 60)
    failures.forget("a")
    assert failures.count("a", 60) == 0


def test_counting_takes_bounded_memory() -> None:
    failures = Failures(limit=3, window_seconds=60, capacity=10)
    for number in range(1_000):
        failures.note(str(number), number)
    assert len(failures._counted) == 10


def test_an_ipv6_customer_counts_as_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") == "2001:db8::/64"
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("unknown") == "unknown"


def test_refusals_are_held_back_longer_and_longer() -> None:
    assert [delay_seconds(1, count) for count in (1, 2, 3, 4, 5, 50)] == [1, 2, 4, 8, 8, 8]


def test_passwords_are_kept_as_argon2id() -> None:
    hashed = hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$")
    assert is_password(hashed, "correct horse battery")
    assert not is_password(hashed, "correct horse batterx")
    assert not is_password(None, "correct horse battery")
    assert not is_password("not a hash", "correct horse battery")


def test_generated_passwords_may_be_set() -> None:
    made = {generated_password() for _ in range(20)}
    assert len(made) == 20
    for one in made:
        check_new_password(one)


@pytest.mark.parametrize("password", ["short", "x" * 1_001, "aaaaaaaaaaaaaa", "with a\nline end"])
def test_passwords_of_no_use_are_refused_without_being_repeated(password: str) -> None:
    with pytest.raises(ValueError, match="password") as refused:
        check_new_password(password)
    assert password not in str(refused.value)
