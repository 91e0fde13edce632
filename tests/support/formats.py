"""As much of a transport as freezing needs: how parts look."""

from collections.abc import Mapping
from typing import Any

from services.core.parts import PartFormat
from services.delivery.transports.base import Destination


class AnyFormat:
    """Parts of one format, whatever the settings."""

    def __init__(self, part_format: PartFormat) -> None:
        self._part_format = part_format

    def part_format(self, settings: Mapping[str, Any]) -> PartFormat:
        return self._part_format

    def destination(self, settings: Mapping[str, Any]) -> Destination:
        raise AssertionError("nothing is sent")

    async def aclose(self) -> None:
        """Nothing is held."""
