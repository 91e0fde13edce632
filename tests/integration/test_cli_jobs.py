"""`meterpost jobs` and `runs` on the database."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.core.schedule import ALLOWED_RESOLUTIONS_MINUTES, FREQUENCY_NAMES
from tests.support.command import Meterpost
from tests.support.command_files import DATA, JOB, MIXED_METERS, URL, write, write_meters


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    """Give the command with a database, but no Kafka."""
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


@pytest.fixture
def registered(meterpost: Meterpost) -> Meterpost:
    """Give the command with three meters on two sites."""
    meterpost.ok("meters", "import", write(meterpost, "meters.csv", MIXED_METERS), "--organization", "Acme")
    return meterpost


def test_exactly_the_ten_legal_pairs_can_be_created(registered: Meterpost) -> None:
    created = set()
    for name, minutes in FREQUENCY_NAMES.items():
        for resolution in (1, 5, 15, 60):
            pair = ("--frequency", name, "--resolution", str(resolution))
            allowed = ALLOWED_RESOLUTIONS_MINUTES[minutes]
            if resolution in allowed:
                job = registered.json(*JOB, *pair)
                created.add((job["frequency"], job["resolution_minutes"]))
            else:
                choices = ", ".join(map(str, allowed))
                assert registered.refused(*JOB, *pair) == (
                    f"meterpost: a resolution of {resolution} min does not go with the frequency {name}; "
                    f"allowed resolutions in minutes: {choices}\n"
                )
    assert len(created) == 10
    assert len(registered.json("jobs", "list")["jobs"]) == 10
    told = registered.refused(*JOB, "--frequency", "week", "--resolution", "60")
    assert "no export frequency is called 'week'; allowed: day, hour, 15min, 5min" in told


def test_the_life_of_a_job(registered: Meterpost) -> None:
    hourly = ("--frequency", "hour", "--resolution", "60")
    told = registered.ok(*JOB, *hourly, "--start", "2020-01-01T02:30:00Z")
    assert "Its first slot is 2020-01-01T03:00:00Z to 2020-01-01T04:00:00Z" in told
    job = registered.json("jobs", "show", "1")
    assert job == job | {
        "job_id": 1,
        "name": "J",
        "state": "active",
        "frequency": "hour",
        "resolution_minutes": 60,
        "site_ids": None,
        "transport": "https",
        "transport_settings": {"url": URL},
        "starts_at": "2020-01-01T02:30:00Z",
        "version": 1,
    }
    edited = registered.json("jobs", "edit", "1", "--name", "K", "--site", "Plant", "--site", "1", "--resolution", "5")
    assert (edited["version"], edited["name"], edited["site_ids"], edited["resolution_minutes"]) == (2, "K", [1, 2], 5)
    assert edited["effective_from"] == "2020-01-01T03:00:00Z"
    assert "Nothing changed" in registered.ok("jobs", "edit", "1", "--name", "K")
    assert "a resolution of 5 min does not go with" in registered.refused("jobs", "edit", "1", "--frequency", "day")
    assert "Paused job 1" in registered.ok("jobs", "pause", "1")
    assert "is paused already" in registered.ok("jobs", "pause", "1")
    assert registered.json("jobs", "list")["jobs"][0]["state"] == "paused"
    assert registered.json("jobs", "resume", "1")["changed"] is True
    assert registered.json("jobs", "resume", "1")["changed"] is False
    assert "Plant" in registered.ok("jobs", "list")
    assert registered.json("jobs", "delete", "1") == {"job_id": 1, "deleted": True}
    assert "there is no job 1" in registered.refused("jobs", "show", "1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--url", "http://x"), "must begin with https://"),
        (("--site", "Nowhere"), "either --all-sites or --site, not both"),
        (("--transport", "ftp"), "the transport 'ftp' is not known; allowed: https"),
        (("--start", "tomorrow"), "--start: 'tomorrow' is not an ISO 8601 time"),
        (("--ca-file", "missing.pem"), "the CA file missing.pem cannot be read"),
        (("--ca-file", "meters.csv"), "holds no certificate"),
        (("--name", ""), "a job needs a name"),
        (("--name", "x" * 121), "121 characters"),
    ],
)
def test_a_job_that_cannot_be(registered: Meterpost, options: tuple[str, ...], words: str) -> None:
    told = registered.refused(*JOB, "--frequency", "hour", "--resolution", "60", *options)
    assert words in told


def test_an_unknown_site_is_answered_with_those_there_are(registered: Meterpost) -> None:
    common = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--url", URL)
    assert "there is no site 'Nowhere'; there are: 'UK', 'Plant'" in registered.refused(*common, "--site", "Nowhere")


def test_the_demos_receiver_is_the_default(tmp_path: Path, database_url: str) -> None:
    folder = tmp_path / ".local"
    folder.mkdir()
    receiver = {"url": "https://localhost:9/meterpost", "ca_file": str(folder / "ca.pem"), "folder": "received"}
    found: dict[str, Any] = {"database": database_url, "receivers": {"https": receiver}}
    (folder / "endpoints.json").write_text(json.dumps(found))
    command = Meterpost(tmp_path, {})
    command.ok("meters", "import", write_meters(tmp_path))
    create = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites")
    assert "ca.pem cannot be read" in command(*create).err
    (folder / "ca.pem").write_text((DATA.parent / "support" / "example_ca.pem").read_text())
    outcome = command(*create)
    assert outcome.code == 0
    assert "without --url it goes to the demo's receiver: https://localhost:9/meterpost" in outcome.err
    settings = command.json("jobs", "show", "1")["transport_settings"]
    assert settings["url"] == receiver["url"]
    assert settings["ca_pem"].startswith("-----BEGIN CERTIFICATE-----")


async def test_runs_with_their_parts_and_the_receivers_answers(registered: Meterpost) -> None:
    registered.ok(*JOB, "--frequency", "hour", "--resolution", "60")
    assert "There is no such run yet" in registered.ok("runs", "list")
    assert "there is no run job1-20200101T000000Z" in registered.refused("runs", "show", "job1-20200101T000000Z")
    connection = await asyncpg.connect(registered.environment["METERPOST_DATABASE_URL"])
    slot = datetime(2020, 1, 1, tzinfo=UTC)
    await connection.execute(
        """
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state,
                                part_count, row_count, byte_count)
        SELECT 1, 1, $1::timestamptz + hour * interval '1 hour', $1::timestamptz + (hour + 1) * interval '1 hour', 1, 1,
               CASE hour WHEN 0 THEN 'frozen' ELSE 'empty' END, 1 - hour, 3 * (1 - hour), 400 * (1 - hour)
        FROM generate_series(0, 1) AS hour
        """,
        slot,
    )
    await connection.execute(
        """
        INSERT INTO export_part (organization_id, job_id, slot_start, part, first_measured_at, first_meter_id,
                                 row_count, byte_count, sha256, attempt_count)
        VALUES (1, 1, $1, 1, $1, 1, 3, 400, '\\xabcd', 1)
        """,
        slot,
    )
    await connection.execute(
        """
        INSERT INTO delivery_attempt (organization_id, job_id, slot_start, part, attempt, started_at, finished_at,
                                      outcome, reason, detail)
        VALUES (1, 1, $1, 1, 1, $1, $1::timestamptz + interval '1500 ms', 'retry', 'http_503', 'try [later]')
        """,
        slot,
    )
    await connection.close()
    listed = registered.json("runs", "list")["runs"]
    assert [(one["run"], one["state"]) for one in listed] == [
        ("job1-20200101T010000Z", "empty"),
        ("job1-20200101T000000Z", "frozen"),
    ]
    assert [one["run"] for one in registered.json("runs", "list", "--state", "empty", "--job", "1")["runs"]] == [
        "job1-20200101T010000Z"
    ]
    shown = registered.json("runs", "show", "job1-20200101T000000Z")
    assert (shown["row_count"], shown["parts"][0]["sha256"], shown["slot_end"]) == (3, "abcd", "2020-01-01T01:00:00Z")
    assert shown["parts"][0]["attempts"][0]["detail"] == "try [later]"
    assert "is being sent, or waits to be" in registered.refused("runs", "give-up", "job1-20200101T000000Z")
    for_people = registered.ok("runs", "show", "job1-20200101T000000Z")
    assert "http_503: try [later]" in for_people
    assert "1.50 s" in for_people


async def test_failed_runs_are_given_up_by_name_or_by_time(registered: Meterpost) -> None:
    registered.ok(*JOB, "--frequency", "hour", "--resolution", "60")
    connection = await asyncpg.connect(registered.environment["METERPOST_DATABASE_URL"])
    await connection.execute(
        """
        INSERT INTO export_run (organization_id, job_id, slot_start, slot_end, job_version, catalog_revision, state)
        SELECT 1, 1, start, start + interval '1 hour', 1, 1, 'failed'
        FROM generate_series('2020-01-01T00:00Z'::timestamptz, '2020-01-01T01:00Z', '1 hour') start
        """
    )
    run, before = "job1-20200101T000000Z", ("--before", "2020-01-01T02:00:00Z")
    for wrong in ((), (run, "--job", "1"), ("--job", "1"), before, (run, *before)):
        assert "say what to give up" in registered.refused("runs", "give-up", *wrong)
    assert "is no run" in registered.refused("runs", "give-up", "rubbish")
    assert "--before: " in registered.refused("runs", "give-up", "--job", "1", "--before", "yesterday")
    assert "there is no job 9" in registered.refused("runs", "give-up", "--job", "9", *before)
    assert "is given up" in registered.ok("runs", "give-up", run)
    assert registered.json("runs", "give-up", "--job", "1", *before)["request_id"] == 2
    rows = await connection.fetch("SELECT kind, slot_start, range_end FROM export_request ORDER BY request_id")
    assert [(row["kind"], row["slot_start"] is None, row["range_end"] is None) for row in rows] == [
        ("give_up", False, True),
        ("give_up", True, False),
    ]
    await connection.execute("UPDATE export_run SET state = 'given_up'")
    await connection.close()
    assert "given_up" in registered.ok("runs", "list", "--state", "given_up")
    assert f"`meterpost runs retry {run}` sends it after all" in registered.refused("runs", "resend", run)
