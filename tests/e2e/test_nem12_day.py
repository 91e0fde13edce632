"""Real readings through the whole product, by the command, as a new user would: not one may be lost or changed."""

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Meterpost
from tests.support.demo_receiver import DemoReceiver, demo_receiver
from tests.support.platform import Platform
from tests.support.polling import eventually_async
from tests.support.product import QUICK
from tests.support.standing import standing_of

DATA = Path(__file__).parents[1] / "data"
NEM12 = DATA / "nem12_198_meters_5min_one_day.zip"
HOUSEHOLD = DATA / "uk_electricity_hourly.csv.gz"
SUMMER = "2022-08-01"
HOUSE = (
    "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input,cadence_minutes\n"
    "UK house,Electricity,kWh,0.001,UK,LG-UK,logger,1,60\n"
)
KEYS = [
    "METER_ID",
    "METER_TYPE",
    "METER_NAME",
    "METER_UNIT",
    "MEASUREMENT_TIME(UTC)",
    "RESOLUTION(min)",
    "SITE_ID",
    "SITE_NAME",
    "POWER(W)",
    "ENERGY(Wh)",
    "FLOW",
    "VOLUME",
]


@dataclass
class User:
    """Somebody with the command, a server of his own, and the services running."""

    meterpost: Meterpost
    receiver: DemoReceiver
    platform: Platform

    def start_services(self) -> None:
        """Start one process of each service."""
        for service in (("services.ingest",), ("services.windowing",), ("services.delivery", "https")):
            self.platform.start(*service, environment=QUICK)

    def create_job(self, name: str, frequency: str, resolution: int, start: str, organization: str) -> int:
        """Create an export job to the user's own server."""
        job = self.meterpost.json(
            *("jobs", "create", "--name", name, "--frequency", frequency, "--resolution", str(resolution)),
            *("--all-sites", "--start", start, "--organization", organization),
            *("--url", self.receiver.url, "--ca-file", self.receiver.certificates.authority),
        )
        return int(job["job_id"])

    async def until_delivered(self, job_id: int, rows: int, timeout_s: float = 90) -> None:
        """Wait until so many rows of a job have been delivered."""

        async def done() -> bool:
            query = "SELECT coalesce(sum(row_count), 0) FROM export_part WHERE job_id = $1 AND state = 'delivered'"
            return bool(await self.platform.value(query, job_id) >= rows)

        try:
            await eventually_async(done, timeout_s, because=f"{rows} rows of job {job_id} are delivered")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await standing_of(self.platform, job_id)}") from None

    async def records(self, job_id: int) -> list[dict[str, Any]]:
        """Return all records of a job as its files hold them, after comparing these with what the product noted."""
        files = {file: content for file, content in self.receiver.files().items() if file.startswith(f"{job_id}/")}
        noted = await self.platform.fetch("SELECT sha256, byte_count FROM export_part WHERE job_id = $1", job_id)
        on_disk = Counter((hashlib.sha256(content).digest(), len(content)) for content in files.values())
        assert on_disk == Counter((row["sha256"], row["byte_count"]) for row in noted)
        return [record for content in files.values() for record in json.loads(content)["measurements"]]


@pytest.fixture
def user(platform: Platform, tmp_path: Path) -> Iterator[User]:
    environment = {
        "METERPOST_KAFKA_BOOTSTRAP_SERVERS": platform.bootstrap_servers,
        "METERPOST_DATABASE_URL": platform.database_url,
        "METERPOST_TOPIC_PREFIX": platform.prefix,
    }
    with demo_receiver(tmp_path / "receiver") as receiver:
        yield User(Meterpost(tmp_path, environment), receiver, platform)


def energy_of(records: list[dict[str, Any]]) -> Decimal:
    return sum((Decimal(record["ENERGY(Wh)"]) for record in records), Decimal())


async def test_a_nem12_day_arrives_to_the_last_reading(user: User) -> None:
    await user.platform.declare_topics(partitions=2)
    user.start_services()
    imported = user.meterpost.json("meters", "import", "--from-nem12", NEM12, "--organization", "Market")
    assert imported["created"] == {"sites": 1, "devices": 1, "meters": 198}
    fives = user.create_job("Fives", "5min", 5, "2019-12-31T14:00:00Z", "Market")
    hours = user.create_job("Hours", "hour", 60, "2019-12-31T14:00:00Z", "Market")
    published = user.meterpost.json("readings", "publish", NEM12, "--format", "nem12", "--organization", "Market")
    assert (published["readings"], published["pulses"]) == (57_024, 214_621_000)
    for job_id, rows, resolution in ((fives, 57_024, 5), (hours, 4_752, 60)):
        await user.until_delivered(job_id, rows)
        records = await user.records(job_id)
        assert len(records) == rows
        assert len({(record["METER_ID"], record["MEASUREMENT_TIME(UTC)"]) for record in records}) == rows
        assert {record["RESOLUTION(min)"] for record in records} == {resolution}
        assert energy_of(records) == Decimal("214621000.00")
        assert all(list(record) == KEYS for record in records)
        assert all((record["FLOW"], record["VOLUME"]) == ("N/A", "N/A") for record in records)
        rate = Decimal(60 // resolution)
        assert all(Decimal(record["POWER(W)"]) == Decimal(record["ENERGY(Wh)"]) * rate for record in records)
        options = ("--job", str(job_id), "--limit", "1000", "--organization", "Market")
        runs = user.meterpost.json("runs", "list", *options)["runs"]
        assert {run["state"] for run in runs} == {"delivered"}
        assert len(runs) == {5: 288, 60: 24}[resolution]
        assert sum(run["row_count"] for run in runs) == rows


async def test_two_years_of_a_household_published_before_any_service_runs_arrive_too(user: User) -> None:
    """All of them are measured; the last months are delivered, hour by hour what the file says."""
    await user.platform.declare_topics(partitions=1)
    meters = user.meterpost.folder / "meters.csv"
    meters.write_text(HOUSE)
    user.meterpost.ok("meters", "import", meters, "--organization", "Home")
    days = user.create_job("Days", "day", 60, f"{SUMMER}T00:00:00Z", "Home")
    published = user.meterpost.json(
        *("readings", "publish", HOUSEHOLD, "--format", "csv", "--meter", "UK house", "--interval-minutes", "60"),
        *("--round", "--until", "2022-12-07T00:10:00Z", "--organization", "Home"),
    )
    assert (published["readings"], published["pulses"]) == (23_508, 3_789_626)
    user.start_services()
    expected = household_energy()
    assert (len(expected), sum(expected.values())) == (23_508, 3_789_626)
    delivered = {hour: energy for hour, energy in expected.items() if hour >= SUMMER}
    await user.until_delivered(days, len(delivered))
    records = await user.records(days)
    assert len(records) == len(delivered)
    assert {record["MEASUREMENT_TIME(UTC)"]: Decimal(record["ENERGY(Wh)"]) for record in records} == delivered
    [measured] = await user.platform.fetch(
        "SELECT count(*), sum(energy_wh) AS energy_wh FROM measurement WHERE resolution_minutes = 60"
    )
    assert measured == {"count": 23_508, "energy_wh": 3_789_626}


def household_energy() -> dict[str, Decimal]:
    """Return the file's own values in Wh, rounded to whole pulses, by the hour as a record writes it."""
    with gzip.open(HOUSEHOLD, "rt", encoding="utf-8", newline="") as file:
        return {
            line["start"].replace(" ", "T").replace("+00:00", "Z"): (Decimal(line["value"]) * 1000).quantize(Decimal(1))
            for line in csv.DictReader(file)
        }
