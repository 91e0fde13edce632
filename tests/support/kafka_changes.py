"""What operators and retention do to topics, and the product never does."""

from collections.abc import Mapping

from aiokafka import TopicPartition
from aiokafka.admin import NewPartitions, RecordsToDelete

from services.platform.kafka import Partition
from services.platform.kafka_admin import Admin


class ChangingAdmin(Admin):
    """An admin client that changes topics, too."""

    async def add_partitions(self, topic: str, total: int) -> None:
        """Grow a topic to `total` partitions."""
        await self._ask("create_partitions", {topic: NewPartitions(total)})

    async def delete_records(self, before_offsets: Mapping[Partition, int]) -> None:
        """Remove all records before the given offsets, as the retention does."""
        await self._ask(
            "delete_records",
            {TopicPartition(*key): RecordsToDelete(offset) for key, offset in before_offsets.items()},
        )
