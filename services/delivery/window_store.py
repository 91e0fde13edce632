"""How far windows are closed, as windowing tells."""

from datetime import datetime

from services.platform.postgres import Pool, transaction


class WindowStore:
    """Reads the table of closed windows; by resolution in minutes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def opened_at(self) -> dict[int, datetime]:
        """Return where the first closing began: earlier windows are empty by definition."""
        return await self._column("opened_at")

    async def closed_until(self) -> dict[int, datetime]:
        """Return up to which start all windows are closed."""
        return await self._column("closed_until")

    async def _column(self, name: str) -> dict[int, datetime]:
        async with transaction(self._pool) as connection:
            rows = await connection.fetch("SELECT resolution_minutes, opened_at, closed_until FROM window_closed")
        return {row["resolution_minutes"]: row[name] for row in rows}
