"""topics.yaml is what the code believes, and names no schema that does not exist."""

from pathlib import Path

import yaml

from services.platform import topics
from services.platform.topics import READING_TOPICS, TOPICS_FILE, for_replay, load_topics

SCHEMAS = Path(__file__).parents[2] / "schemas" / "messages"
DECLARED = yaml.safe_load(TOPICS_FILE.read_text(encoding="utf-8"))["topics"]
NAMES = {
    topics.READINGS_BRIDGE,
    topics.READINGS_LOGGER,
    topics.INGEST_PROGRESS,
    topics.WINDOWS_DUE,
    topics.WINDOWS_CLOSED,
}


def test_the_file_declares_exactly_the_topics_of_the_code() -> None:
    assert set(DECLARED) == NAMES == {topic.name for topic in load_topics()}


def test_every_topic_has_a_schema_a_key_writers_and_readers() -> None:
    for name, spec in DECLARED.items():
        assert (SCHEMAS / f"{spec['message']}.schema.json").exists(), name
        assert spec["key"], name
        assert spec["producers"], name
        assert spec["consumers"], name


def test_no_schema_is_an_orphan() -> None:
    used = {spec["message"] for spec in DECLARED.values()}
    assert {path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")} == used


def test_reading_topics_are_alike_and_take_the_brokers_time() -> None:
    bridge, logger = (DECLARED[name] for name in READING_TOPICS)
    assert bridge["partitions"] == logger["partitions"]
    assert bridge["time_type"] == logger["time_type"] == "LogAppendTime"
    assert min(bridge["retention_hours"], logger["retention_hours"]) >= 7 * 24


def test_a_replaying_environment_keeps_readings_for_ever_and_takes_the_producers_time() -> None:
    for topic in map(for_replay, load_topics()):
        if topic.name in READING_TOPICS:
            assert topic.config["retention.ms"] == "-1"
            assert topic.config["message.timestamp.type"] == "CreateTime"
        else:
            assert topic.config["retention.ms"] != "-1"


def test_the_codes_of_reading_topics_follow_the_order_of_their_names() -> None:
    assert list(READING_TOPICS) == sorted(READING_TOPICS)
