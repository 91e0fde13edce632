"""`meterpost readings publish`: what a file says, as the devices would have reported it."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from services.local.kafka_server import KafkaServer
from tests.support.command import Meterpost
from tests.support.command_files import HOUSEHOLD, MIXED_METERS, NEM12, records_of, uploads_in, with_kafka, write


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
    again = replaying.json("readings", "publish", NEM12, "--format", "nem12", "--force", "--delay", "1s")
    assert (again["readings"], again["clock"]) == (57_024, "2020-01-01T14:06:01Z")
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
