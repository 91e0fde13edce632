"""Fixtures that every test may use: one real Kafka and one real PostgreSQL a session, a database of one's own."""

import itertools
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from services.platform.migrations import upgrade
from tests.support.planted import leaks_in, refuse_leaks_in_database, refuse_leaks_in_files
from tests.support.platform import Platform, running
from tests.support.stack import Databases, temporary_kafka, temporary_postgres

pytest_plugins = ["pytester"]

_NUMBERS = itertools.count(1)

# The machines are noisy: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "meterpost", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("meterpost")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a few lines what was tested and how long each kind took, summed over the processes."""
    kinds = {
        "unit": "decisions, without any server",
        "contract": "schemas, topics, container files",
        "integration": "one service on a real Kafka, PostgreSQL, TLS",
        "e2e": "the whole product as processes",
    }
    rows = []
    for kind, what in kinds.items():
        reports = [
            (outcome, report)
            for outcome in ("passed", "failed", "error", "skipped")
            for report in terminalreporter.stats.get(outcome, [])
            if report.nodeid.startswith(f"tests/{kind}/")
        ]
        if reports:
            counts = ", ".join(
                f"{count} {outcome}"
                for outcome in ("passed", "failed", "error", "skipped")
                if (count := sum(found == outcome for found, _report in reports))
            )
            seconds = sum(getattr(report, "duration", 0) for _outcome, report in reports)
            rows.append(f"{kind:<12} {what:<46} {counts}, {seconds:.0f} s")
    terminalreporter.section("what was tested")
    for row in rows:
        terminalreporter.write_line(row)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test where what was captured of it holds a secret."""
    report = yield
    if report.when == "teardown" and report.passed:
        found = leaks_in("\n".join(text for _title, text in report.sections).encode(errors="replace"))
        if found:
            report.outcome, report.longrepr = "failed", f"{item.nodeid} said a secret: {found}"
    return report


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Search, when all tests are through, what services and commands wrote: logs, exports, received files."""
    yield
    refuse_leaks_in_files(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """Give a Kafka that all tests share: use topics of your own. A test that ends it starts it again."""
    with temporary_kafka() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Give a PostgreSQL that all tests share. A test that ends it starts it again."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Databases:
    """Give the maker of databases, migrated once."""
    return Databases(postgres_server, migrate=upgrade, inspect=refuse_leaks_in_database)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """Give the address of a fresh, migrated database."""
    with databases.fresh() as url:
        yield url


@pytest.fixture
def platform(kafka_server: KafkaServer, database_url: str, tmp_path: Path) -> Iterator[Platform]:
    """Give a platform of one's own; declare its topics before use."""
    prefix = f"t{os.getpid()}-{next(_NUMBERS)}."
    with running(Platform(kafka_server.bootstrap_servers, database_url, prefix, tmp_path)) as made:
        yield made
