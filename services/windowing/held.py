"""Which partitions hold windows open: pure, and as a metric."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from services.core.windows import due_until
from services.platform.kafka import Partition
from services.platform.metrics import WINDOWS_HELD

_FINEST_MINUTES = 1


def windows_held(
    watermarks: Mapping[Partition, datetime | None], resolution_minutes: int, grace: timedelta
) -> dict[Partition, int | None]:
    """Return how many windows each partition holds open that the one that is furthest would close.

    None: nothing was ever heard of the partition, so it holds everything.
    """
    known = [watermark for watermark in watermarks.values() if watermark is not None]
    if not known:
        return dict.fromkeys(watermarks)
    furthest = due_until(max(known), resolution_minutes, grace)
    step = timedelta(minutes=resolution_minutes)
    return {
        key: None if watermark is None else (furthest - due_until(watermark, resolution_minutes, grace)) // step
        for key, watermark in watermarks.items()
    }


def tell_held(watermarks: Mapping[Partition, datetime | None], grace: timedelta) -> None:
    """Set the metric."""
    for (topic, partition), count in windows_held(watermarks, _FINEST_MINUTES, grace).items():
        WINDOWS_HELD.labels(topic, str(partition)).set(math.inf if count is None else count)
