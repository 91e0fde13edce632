"""The real `meterpost` command, as a process, against a real PostgreSQL and a real Kafka."""

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import uuid
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.core.messages import ReadingUpload
from services.core.schedule import ALLOWED_RESOLUTIONS_MINUTES, FREQUENCY_NAMES
from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.platform.kafka import GroupConsumer, Record
from services.platform.kafka_access import KafkaAccess
from services.platform.topics import READING_TOPICS
from tests.support.command import REPOSITORY, Meterpost
from tests.support.polling import eventually_async

DATA = Path(__file__).parents[1] / "data"
NEM12 = DATA / "nem12_198_meters_5min_one_day.zip"
HOUSEHOLD = DATA / "uk_electricity_hourly.csv.gz"
URL = "https://localhost:8443/in"
JOB = ("jobs", "create", "--name", "J", "--all-sites", "--url", URL)
METERS = "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\n"
MIXED_METERS = (
    METERS
    + "UK house,Electricity,kWh,0.001,UK,BR-UK,bridge,\nHall,Electricity,kWh,0.5,Plant,LG-1,logger,1\n"
    + "Tap,Water,m3,0.01,Plant,LG-1,logger,2\n"
)


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    """Give the command with a database, but no Kafka."""
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


@pytest.fixture
def replaying(tmp_path: Path, database_url: str, kafka_server: KafkaServer) -> Meterpost:
    """Give the command with a database and with topics of its own, on which publishers set the arrival."""
    command = with_kafka(tmp_path, database_url, kafka_server)
    command.ok("topics", "declare", "--replay")
    return command


def with_kafka(folder: Path, database_url: str, kafka_server: KafkaServer) -> Meterpost:
    return Meterpost(
        folder,
        {
            "METERPOST_DATABASE_URL": database_url,
            "METERPOST_KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
            "METERPOST_TOPIC_PREFIX": f"{uuid.uuid4().hex[:8]}.",
        },
    )


def write(meterpost: Meterpost, name: str, text: str) -> Path:
    file = meterpost.folder / name
    file.write_text(text, encoding="utf-8")
    return file


async def records_of(meterpost: Meterpost) -> dict[tuple[str, int], list[Record]]:
    """Return all records of the reading topics, by partition without the prefix."""
    prefix = meterpost.environment["METERPOST_TOPIC_PREFIX"]
    topics = [prefix + topic for topic in READING_TOPICS]
    servers = meterpost.environment["METERPOST_KAFKA_BOOTSTRAP_SERVERS"]
    consumer = GroupConsumer(KafkaAccess(servers), group=f"{prefix}look", topics=topics, client="test")
    await consumer.start()
    try:
        await eventually_async(lambda: len(consumer.assigned) == 16)
        ends = await consumer.end_offsets(consumer.assigned)
        found: dict[tuple[str, int], list[Record]] = {}
        async with asyncio.timeout(30):
            while any(end > len(found.get(partition, [])) for partition, end in ends.items()):
                for batch in await consumer.poll(timeout_ms=200):
                    found.setdefault((batch.topic, batch.partition), []).extend(batch.records)
    finally:
        await consumer.stop()
    return {(topic.removeprefix(prefix), partition): records for (topic, partition), records in found.items()}


def uploads_in(records: dict[tuple[str, int], list[Record]]) -> list[tuple[str, Record, ReadingUpload]]:
    return [
        (topic, record, msgspec.json.decode(record.value, type=ReadingUpload))
        for (topic, _partition), found in records.items()
        for record in found
        if record.value is not None
    ]


# --- where the servers are ---------------------------------------------------------------------------------------


def test_help_begins_with_examples(tmp_path: Path) -> None:
    shown = Meterpost(tmp_path, {}).ok("--help")
    assert shown.lstrip().startswith("Examples")
    assert "Exit codes: 0 done; 2" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_servers_a_sentence_says_how_to_tell_them(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    told = Meterpost(tmp_path, {"METERPOST_DATA_FOLDER": str(empty)}).refused("jobs", "list")
    assert f"there is no endpoints.json in {empty}, the folder from METERPOST_DATA_FOLDER" in told


def test_a_demo_is_found_from_the_folders_below(tmp_path: Path, database_url: str) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local" / "endpoints.json").write_text(json.dumps({"database": database_url}))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert Meterpost(below, {}).json("meters", "import", write_meters(below))["created"]["meters"] == 3
    assert Meterpost(tmp_path.parent, {}).json("meters", "list", "--data-folder", tmp_path)["total"] == 3
    assert Meterpost(tmp_path.parent, {}).json("meters", "list", "--data-folder", tmp_path / ".local")["total"] == 3
    told = Meterpost(below, {}).refused("readings", "tick", "--at", "2020-01-01T00:00:00Z")
    assert "endpoints.json does not name it" in told


def test_a_demo_that_was_killed_is_said_not_to_run(tmp_path: Path) -> None:
    (tmp_path / ".local").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    question = "does `make run` still run?"
    for pid, sentence in ((ended.pid, "does not seem to run any more: start `make run`"), (os.getpid(), question)):
        found = {"database": "postgresql://nobody@127.0.0.1:9/meterpost", "supervisor_pid": pid}
        (tmp_path / ".local" / "endpoints.json").write_text(json.dumps(found))
        outcome = Meterpost(tmp_path, {})("jobs", "list")
        assert outcome.code == 1
        assert "PostgreSQL does not answer at 127.0.0.1:9/meterpost" in outcome.err
        assert sentence in outcome.err


def write_meters(folder: Path) -> Path:
    file = folder / "meters.csv"
    file.write_text(MIXED_METERS)
    return file


def test_unreachable_servers_exit_with_1_and_show_no_password(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        command = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": f"postgresql://me:secret@127.0.0.1:{port}/x"})
        told = command.refused("jobs", "list", code=1)
        assert f"PostgreSQL does not answer at 127.0.0.1:{port}/x" in told
        assert "METERPOST_DATABASE_URL" in told
        assert "secret" not in told
        told = command.refused("topics", "declare", "--kafka", f"127.0.0.1:{port}", code=1)
        assert f"Kafka does not answer at 127.0.0.1:{port} (told by --kafka)" in told
    assert "must begin with postgresql://" in command.refused("jobs", "list", "--database", "mysql://x")


def test_a_wrong_password_and_a_missing_database_are_said(tmp_path: Path, postgres_server: PostgresServer) -> None:
    command = Meterpost(tmp_path, {})
    right = postgres_server.url("no_such_database")
    assert "no_such_database" in command.refused("jobs", "list", "--database", right)
    user, _, rest = right.removeprefix("postgresql://").partition(":")
    wrong = f"postgresql://{user}:wrong{rest[rest.index('@') :]}"
    assert "password" in command.refused("jobs", "list", "--database", wrong)


def test_a_database_without_tables_and_topics_that_are_missing(
    tmp_path: Path, postgres_server: PostgresServer, kafka_server: KafkaServer
) -> None:
    name = f"bare_{uuid.uuid4().hex[:8]}"
    postgres_server.create_database(name)
    command = with_kafka(tmp_path, postgres_server.url(name), kafka_server)
    assert "meterpost db migrate" in command.refused("jobs", "list")
    assert "from version none to" in command.ok("db", "migrate")
    assert "up to date already" in command.ok("db", "migrate")
    migrated = command.json("db", "migrate")
    assert migrated["version"] == migrated["version_before"]
    told = command.refused("readings", "tick", "--at", "2020-01-01T00:00:00Z")
    assert "run `meterpost topics declare`" in told
    assert {one["created"] for one in command.json("topics", "declare")["topics"]} == {True}
    outcome = command("topics", "declare", "--replay")
    assert outcome.code == 0
    assert "exist with another time type" in outcome.err
    assert "its clock moves on by itself" in command.refused("readings", "tick", "--at", "2020-01-01T00:00:00Z")
    postgres_server.drop_database(name)


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(meterpost: Meterpost) -> None:
    meterpost.ok("meters", "import", "--from-nem12", NEM12)
    for form in ("", "--json"):
        command = f"{sys.executable} -m services.cli meters list {form} | head -2; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=REPOSITORY,
            env={**os.environ, "METERPOST_DATABASE_URL": meterpost.environment["METERPOST_DATABASE_URL"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("jobs", "list", "--nonsense"), "No such option: --nonsense"),
        (("jobs", "show"), "Missing argument 'JOB'"),
        (("jobs", "show", "x"), "JOB"),
        (("jobs", "create", "--name", "x"), "a job needs --frequency, --resolution, --all-sites or --site"),
        (("jobs", "show", "1"), "there is no organization yet"),
        (("runs", "show", "job1"), "'job1' is no run"),
        (("runs", "list", "--state", "lost"), "no run is ever 'lost'"),
        (("readings", "publish", "x", "--format", "xml"), "the format 'xml' is not known; allowed: nem12, csv"),
        (("readings", "publish", "x", "--format", "csv", "--delay", "1x"), "--delay is '1x'"),
        (("readings", "publish", "x", "--format", "nem12"), "x cannot be read: No such file"),
        (("readings", "tick", "--at", "now"), "--at: 'now' is not an ISO 8601 time"),
        (("readings", "tick", "--at", "2020-01-01T00:00"), "names no time zone"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    meterpost: Meterpost, arguments: tuple[str, ...], words: str
) -> None:
    told = meterpost.refused(*arguments)
    assert words in told
    assert told.startswith("meterpost: ")
    assert told.count("\n") == 1


# --- meters ------------------------------------------------------------------------------------------------------


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


# --- jobs and runs -----------------------------------------------------------------------------------------------


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
    for_people = registered.ok("runs", "show", "job1-20200101T000000Z")
    assert "http_503: try [later]" in for_people
    assert "1.50 s" in for_people


# --- readings ----------------------------------------------------------------------------------------------------


async def test_the_nem12_day_is_published_as_its_bridge_would_have(replaying: Meterpost) -> None:
    replaying.ok("meters", "import", "--from-nem12", NEM12)
    done = replaying.json("readings", "publish", NEM12, "--format", "nem12", "--delay", "1m")
    assert done == {
        "readings": 57_024,
        "uploads": 288,
        "pulses": 214_621_000,
        "first_arrival": "2019-12-31T14:06:00Z",
        "last_arrival": "2020-01-01T14:01:00Z",
        "clock": "2020-01-01T14:06:01Z",
        "left_out": [],
    }
    records = await records_of(replaying)
    uploads = uploads_in(records)
    assert {topic for topic, _record, _upload in uploads} == {"readings.bridge"}
    assert {record.key for _topic, record, _upload in uploads} == {b"NEM12-Default"}
    readings = [reading for _topic, _record, upload in uploads for reading in upload.readings]
    assert (len(readings), sum(int(str(one.pulses)) for one in readings)) == (57_024, 214_621_000)
    for _topic, record, upload in uploads:
        assert {(one.measurement_time.timestamp() + 300 + 60) * 1000 for one in upload.readings} == {
            record.timestamp_ms
        }
    end = int(datetime(2020, 1, 1, 14, 6, 1, tzinfo=UTC).timestamp() * 1000)
    assert len(records) == 16
    for found in records.values():
        stamps = [record.timestamp_ms for record in found]
        assert stamps == sorted(stamps)
        assert (found[-1].is_tick, found[-1].timestamp_ms) == (True, end)
        assert sum(record.is_tick for record in found) >= 90

    told = replaying.refused("readings", "publish", NEM12, "--format", "nem12")
    assert "the platform's clock stands at 2020-01-01T14:06:01Z already" in told
    assert "make run FLEET=0 DATA=another-folder" in told
    assert replaying.json("readings", "publish", NEM12, "--format", "nem12", "--force")["readings"] == 57_024
    assert "never goes back" in replaying.refused("readings", "tick", "--at", "2020-01-01T00:00:00Z")
    assert replaying.json("readings", "tick", "--at", "2020-01-02T00:00:00Z")["partitions"] == 16
    assert "Kafka takes no time an hour or more" in replaying.refused(
        "readings", "tick", "--at", "2999-01-01T00:00:00Z"
    )


async def test_the_household_is_published_once_rounding_is_asked_for(replaying: Meterpost) -> None:
    replaying.ok("meters", "import", write(replaying, "meters.csv", MIXED_METERS))
    publish = ("readings", "publish", HOUSEHOLD, "--format", "csv", "--meter", "UK house", "--interval-minutes", "60")
    told = replaying.refused(*publish)
    assert "is no whole number of pulses of 0.001" in told
    assert await records_of(replaying) == {}
    done = replaying.json(*publish, "--round", "--until", "2022-12-07T00:00:00Z")
    assert (done["readings"], done["pulses"], done["clock"]) == (23_508, 3_789_626, "2022-12-07T00:00:00Z")


async def test_loggers_report_by_input_and_bridges_by_meter(replaying: Meterpost) -> None:
    replaying.ok("meters", "import", write(replaying, "meters.csv", MIXED_METERS))
    text = (
        "meter,measurement_time,interval_minutes,pulses,register,kwh,value,revision\n"
        "UK house,2020-01-01T00:00:00Z,15,,,0.25,,\n"
        "Hall,2020-01-01T00:00:00Z,5,7,,,,\n"
        "2,2020-01-01T00:05:00Z,5,,,1.5,,1\n"
        "Tap,2020-01-01T00:00:00Z,5,,99,,,\n"
        "Tap,2020-01-01T00:05:00Z,5,,,,0.03,\n"
    )
    done = replaying.json("readings", "publish", write(replaying, "r.csv", text), "--format", "csv")
    assert (done["readings"], done["uploads"]) == (5, 3)
    uploads = {
        (topic, upload.device_id, record.timestamp_ms): [
            msgspec.to_builtins(one) | {"measurement_time": None} for one in upload.readings
        ]
        for topic, record, upload in uploads_in(await records_of(replaying))
    }
    start = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000) + 30_000
    plain = {"measurement_time": None, "interval_minutes": 5, "revision": 0}
    assert uploads == {
        ("readings.bridge", "BR-UK", start + 900_000): [plain | {"interval_minutes": 15, "meter_id": 1, "pulses": 250}],
        ("readings.logger", "LG-1", start + 300_000): [
            plain | {"input": 1, "pulses": 7},
            plain | {"input": 2, "register": 99},
        ],
        ("readings.logger", "LG-1", start + 600_000): [
            plain | {"input": 1, "pulses": 3, "revision": 1},
            plain | {"input": 2, "pulses": 3},
        ],
    }


async def test_a_file_with_broken_lines_is_not_published_at_all(replaying: Meterpost) -> None:
    replaying.ok("meters", "import", write(replaying, "meters.csv", MIXED_METERS))
    text = (
        "meter,measurement_time,interval_minutes,kwh\n"
        "Hall,2020-01-01T00:00:00Z,5,1\n"
        "Nobody,2020-01-01T00:00:00Z,5,1\n"
        "Tap,2020-01-01T00:00:00Z,5,1\n"
        "Hall,2020-01-01T00:05:00Z,5,0.3\n"
        "Hall,2020-01-01T00:07:00Z,5,1\n"
    )
    file = write(replaying, "r.csv", text)
    told = replaying.refused("readings", "publish", file, "--format", "csv")
    assert "line 6: 2020-01-01T00:07:00+00:00 is no multiple of 5 minutes" in told
    assert await records_of(replaying) == {}
    done = replaying.json("readings", "publish", file, "--format", "csv", "--skip-bad")
    assert done["readings"] == 1
    problems = {one["line"]: one["problem"] for one in done["left_out"]}
    assert sorted(problems) == [3, 4, 5, 6]
    assert "no meter 'Nobody' is registered" in problems[3]
    assert "measures in m3, so it has no kWh" in problems[4]
    assert "0.3 is no whole number of pulses of 0.5" in problems[5]


def test_a_broken_nem12_file_names_its_lines(replaying: Meterpost) -> None:
    day = ",".join(["1"] * 48)
    text = f"100,NEM12,x,y,z\n200,N,E1,,E1,,,kWh,30,\n300,20200101,{day},A\n300,20200102,{day},1,A\n450,x\n900\n"
    file = write(replaying, "broken.csv", text)
    told = replaying.refused("meters", "import", "--from-nem12", file)
    assert "line 4: 300 record with 49 interval values; a day of 30 minutes has 48" in told
    assert "line 5: unknown record '450'" in told
    replaying.ok("meters", "import", "--from-nem12", file, "--skip-bad")
    told = replaying.refused("readings", "publish", file, "--format", "nem12")
    assert "2 lines cannot be used, so nothing was done" in told
    outcome = replaying("readings", "publish", file, "--format", "nem12", "--skip-bad")
    assert outcome.code == 0
    assert "left out because of 2 problems" in outcome.err
    assert "Published 48 readings (48,000 pulses)" in outcome.out


def test_channels_that_are_not_registered_are_named(replaying: Meterpost) -> None:
    replaying.ok("meters", "import", write(replaying, "meters.csv", MIXED_METERS))
    told = replaying.refused("readings", "publish", NEM12, "--format", "nem12")
    assert "198 lines cannot be used" in told
    assert "line 3: no meter 'nmi1 E1' is registered" in told
    assert "meters import --from-nem12" in told
    assert "and 178 more" in told


def test_where_the_broker_sets_the_arrival_the_delay_has_no_effect(
    tmp_path: Path, database_url: str, kafka_server: KafkaServer
) -> None:
    command = with_kafka(tmp_path, database_url, kafka_server)
    command.ok("topics", "declare")
    command.ok("meters", "import", write(command, "meters.csv", MIXED_METERS))
    text = "meter,measurement_time,interval_minutes,pulses\nHall,2020-01-01T00:00:00Z,5,1\n"
    outcome = command("readings", "publish", write(command, "r.csv", text), "--format", "csv")
    assert outcome.code == 0
    assert "--delay and --until have no effect" in outcome.err
    assert "Published 1 readings" in outcome.out
