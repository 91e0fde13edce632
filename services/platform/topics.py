"""The topics of `schemas/topics.yaml`, as values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TOPICS_FILE = Path(__file__).parents[2] / "schemas" / "topics.yaml"

READINGS_LOGGER = "readings.logger"
READINGS_BRIDGE = "readings.bridge"
INGEST_PROGRESS = "ingest.progress"
WINDOWS_DUE = "windows.due"
WINDOWS_CLOSED = "windows.closed"
READING_TOPICS = (READINGS_BRIDGE, READINGS_LOGGER)

TimeType = Literal["CreateTime", "LogAppendTime"]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How a topic is created; `retention_hours` None keeps records for ever."""

    name: str
    partitions: int
    retention_hours: int | None
    time_type: TimeType
    max_message_bytes: int

    @property
    def config(self) -> dict[str, str]:
        """The topic's settings as Kafka names them."""
        hours = self.retention_hours
        config = {
            "message.timestamp.type": self.time_type,
            "retention.ms": "-1" if hours is None else str(hours * 3_600_000),
            "max.message.bytes": str(self.max_message_bytes),
            "cleanup.policy": "delete",
        }
        if self.time_type == "CreateTime":
            # A replay may run ahead of the broker's clock; the default refuses records an hour ahead.
            config["message.timestamp.after.max.ms"] = str(2**63 - 1)
        return config


def load_topics(path: Path = TOPICS_FILE) -> list[TopicSpec]:
    """Return the declared topics."""
    import yaml  # noqa: PLC0415 - most processes need the names alone

    declared = yaml.safe_load(path.read_text(encoding="utf-8"))["topics"]
    return [
        TopicSpec(
            name=name,
            partitions=spec["partitions"],
            retention_hours=spec["retention_hours"],
            time_type=spec["time_type"],
            max_message_bytes=spec["max_message_bytes"],
        )
        for name, spec in declared.items()
    ]


def for_replay(topic: TopicSpec) -> TopicSpec:
    """Return the topic as a replaying environment declares it: the producer sets the arrival of readings.

    Kafka's retention counts from the records' own times, so a replay of old readings must be kept for ever.
    """
    if topic.name not in READING_TOPICS:
        return topic
    return TopicSpec(topic.name, topic.partitions, None, "CreateTime", topic.max_message_bytes)
