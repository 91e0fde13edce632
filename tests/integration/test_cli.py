"""The real `meterpost` command, as a process: help, places, exit codes, sentences."""

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from services.local.kafka_server import KafkaServer
from services.local.postgres_server import PostgresServer
from tests.support.command import REPOSITORY, Meterpost
from tests.support.command_files import NEM12, with_kafka, write_meters


@pytest.fixture
def meterpost(tmp_path: Path, database_url: str) -> Meterpost:
    """Give the command with a database, but no Kafka."""
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


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
