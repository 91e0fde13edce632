"""Topics of Kafka: what they are, and making them."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from services.platform.errors import Unavailable
from services.platform.kafka import START_SECONDS, Partition
from services.platform.kafka_access import KafkaAccess
from services.platform.kafka_refusal import refusal, start_client
from services.platform.topics import TopicSpec


class Admin:
    """Topics: what they are, and creating those that are missing."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._client: AIOKafkaAdminClient | None = None

    async def start(self) -> None:
        """Connect. Raises Unavailable where no broker answers, KafkaRefusedError where they refuse us."""
        client = AIOKafkaAdminClient(**self._access.client_settings(), request_timeout_ms=10_000)
        await start_client(self._access, client.start, client.close, deadline_s=START_SECONDS)
        self._client = client

    async def stop(self) -> None:
        """Close."""
        if self._client is not None:
            await self._client.close()

    async def partitions(self, topics: Iterable[str]) -> frozenset[Partition]:
        """Return all partitions of the topics, as the broker knows them now.

        Raises Unavailable where the broker does not answer or does not know one of the topics.
        """
        wanted = list(topics)
        described = await self._ask("describe_topics", wanted)
        found: set[Partition] = set()
        for topic in described:
            if topic["error_code"]:
                raise Unavailable(f"Kafka says of topic {topic['topic']}: {for_code(topic['error_code']).__name__}")
            found.update((topic["topic"], partition["partition"]) for partition in topic["partitions"])
        return frozenset(found)

    async def time_types(self, topics: Iterable[str]) -> dict[str, str]:
        """Return each topic's message.timestamp.type."""
        name = "message.timestamp.type"
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic, configs={name: ""}) for topic in topics]
        found: dict[str, str] = {}
        for response in await self._ask("describe_configs", resources):
            for code, _message, _kind, topic, entries in response.resources:
                if code:
                    raise Unavailable(f"Kafka says of topic {topic}: {for_code(code).__name__}")
                found[topic] = next(str(entry[1]) for entry in entries if entry[0] == name)
        return found

    async def declare(self, topics: Iterable[TopicSpec], *, prefix: str = "", replication: int = 1) -> list[str]:
        """Create the topics that do not exist and return their names. An existing topic is left as it is."""
        created = []
        for topic in topics:
            name = prefix + topic.name
            new = NewTopic(name, topic.partitions, replication, topic_configs=topic.config)
            try:
                response = await self._ask("create_topics", [new])
            except TopicAlreadyExistsError:
                continue
            for _topic, code, *message in response.topic_errors:
                if code == TopicAlreadyExistsError.errno:
                    break
                if code:
                    raise Unavailable(f"Kafka did not create topic {name}: {for_code(code).__name__} {message}")
            else:
                created.append(name)
        await self._until_known(created)
        return created

    async def _until_known(self, topics: list[str]) -> None:
        """Wait until the broker's metadata names topics that it has just created."""
        deadline = time.monotonic() + 10
        while topics:
            try:
                await self.partitions(topics)
                await self.time_types(topics)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def _ask(self, question: str, *arguments: Any) -> Any:
        if self._client is None:
            raise Unavailable("the admin client is not connected")
        try:
            return await getattr(self._client, question)(*arguments)
        except TopicAlreadyExistsError:
            raise
        except (KafkaError, OSError) as error:
            # It has taken us before: whatever it refuses now may be let in again.
            reason = await refusal(self._access) or repr(error)
            raise Unavailable(f"Kafka does not answer {question}: {reason}") from error
