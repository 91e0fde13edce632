"""`meterpost meters`: registered from files, all of them or none."""

import gzip
import zipfile
from pathlib import Path

import pytest

from tests.support.command import Meterpost
from tests.support.command_files import METERS, MIXED_METERS, NEM12, write


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    """Give the command with a database, but no Kafka."""
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


def test_the_channels_of_a_nem12_file_are_registered_once(meterpost: Meterpost) -> None:
    first = meterpost.json("meters", "import", "--from-nem12", NEM12)
    assert first == {
        "organization": "Default",
        "created": {"sites": 1, "devices": 1, "meters": 198},
        "unchanged": 0,
        "left_out": [],
        "catalog_revision": 1,
    }
    again = meterpost.json("meters", "import", "--from-nem12", NEM12)
    assert again["created"] == {"sites": 0, "devices": 0, "meters": 0}
    assert (again["unchanged"], again["catalog_revision"]) == (198, None)
    assert "Nothing changed: all 198 meters" in meterpost.ok("meters", "import", "--from-nem12", NEM12)
    listed = meterpost.json("meters", "list", "--search", "NMI10 ")
    assert [one["name"] for one in listed["meters"]] == ["nmi10 E1", "nmi10 E2"]
    one = listed["meters"][0]
    assert (one["unit"], one["units_per_pulse"], one["cadence_minutes"]) == ("kWh", "0.001", 5)
    assert (one["site_name"], one["time_zone"]) == ("NEM12", "Australia/Brisbane")


def test_a_csv_of_meters_is_imported_and_grows(meterpost: Meterpost) -> None:
    file = write(meterpost, "meters.csv", MIXED_METERS)
    assert "Registered in 'Acme': 3 meters, 2 sites, 2 devices." in meterpost.ok(
        "meters", "import", file, "--organization", "Acme", "--time-zone", "Europe/Berlin"
    )
    write(meterpost, "meters.csv", MIXED_METERS + "Tap 2,Water,m3,0.01,1,LG-1,logger,3\n")
    grown = meterpost.json("meters", "import", file)
    assert (grown["organization"], grown["created"], grown["unchanged"]) == (
        "Acme",
        {"sites": 0, "devices": 0, "meters": 1},
        3,
    )
    listed = meterpost.json("meters", "list")["meters"]
    assert [(one["name"], one["site_name"]) for one in listed][-1] == ("Tap 2", "UK")


def test_nothing_is_imported_unless_every_line_is_sound(meterpost: Meterpost) -> None:
    text = MIXED_METERS + "Bad,Steam,m3,1,Plant,LG-1,logger,4\nTap,Water,m3,1,Plant,LG-1,logger,5\nshort\n"
    file = write(meterpost, "meters.csv", text)
    told = meterpost.refused("meters", "import", file)
    assert "3 lines cannot be used, so nothing was done" in told
    for words in (
        "line 5: unknown meter type 'Steam'",
        "line 6: the name 'Tap' is already in line 4",
        "line 7: it has 1",
    ):
        assert words in told
    assert "no organization yet" in meterpost.refused("meters", "list")
    skipped = meterpost.json("meters", "import", file, "--skip-bad")
    assert skipped["created"]["meters"] == 3
    assert [one["line"] for one in skipped["left_out"]] == [5, 6, 7]


def test_a_line_that_contradicts_the_catalog_is_refused(meterpost: Meterpost) -> None:
    meterpost.ok("meters", "import", write(meterpost, "meters.csv", MIXED_METERS), "--organization", "Acme")
    changed = (
        METERS
        + "Hall,Electricity,kWh,0.25,UK,LG-1,logger,1\nNew,Water,m3,1,Plant,LG-1,logger,2\n"
        + "Other,Water,m3,1,Plant,BR-UK,logger,9\nAny,Water,m3,1,77,LG-9,logger,1\n"
    )
    told = meterpost.refused("meters", "import", write(meterpost, "changed.csv", changed))
    assert (
        "line 2: the meter 'Hall' is there already, but units_per_pulse is 0.5, not 0.25; its site is 'Plant'" in told
    )
    assert "input 2 of LG-1 counts for meter 3 already" in told
    assert "device BR-UK is a bridge, not a logger" in told
    assert "there is no site with the id 77" in told
    foreign = write(meterpost, "foreign.csv", METERS + "X,Water,m3,1,S,LG-1,logger,9\n")
    assert "is taken on this platform" in meterpost.refused("meters", "import", foreign, "--organization", "Other")
    assert meterpost.json("meters", "list")["organization"] == "Acme"


def test_several_organizations_must_be_told_apart(meterpost: Meterpost) -> None:
    for name in ("Acme", "Beta"):
        file = write(
            meterpost, f"{name}.csv", MIXED_METERS.replace("LG-1", f"LG-{name}").replace("BR-UK", f"BR-{name}")
        )
        meterpost.ok("meters", "import", file, "--organization", name)
    told = meterpost.refused("meters", "list")
    assert "say which by --organization: 'Acme', 'Beta'" in told
    assert "no organization 'Gamma'; there are: 'Acme', 'Beta'" in meterpost.refused(
        "jobs", "list", "--organization", "Gamma"
    )
    assert meterpost.json("meters", "list", "--organization", "Beta")["total"] == 3


def test_files_that_are_no_text_are_refused(meterpost: Meterpost) -> None:
    latin = meterpost.folder / "latin.csv"
    latin.write_bytes(METERS.encode() + "Küche,Water".encode("latin-1"))
    assert "latin.csv, line 2: the text is not UTF-8" in meterpost.refused("meters", "import", latin)
    two = meterpost.folder / "two.zip"
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    assert "holds 2 files, one is expected: a.csv, b.csv" in meterpost.refused("meters", "import", two)
    cut = meterpost.folder / "cut.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:15])
    assert "cannot be unpacked" in meterpost.refused("meters", "import", cut)
    assert "cannot be read: Is a directory" in meterpost.refused("meters", "import", meterpost.folder)
    marked = meterpost.folder / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + MIXED_METERS.replace("\n", "\r\n").encode())
    assert meterpost.json("meters", "import", marked)["created"]["meters"] == 3
