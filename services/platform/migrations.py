"""Brings the database's schema up to date: Alembic runs the plain SQL files of `schemas/postgres`."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config

SCRIPTS = Path(__file__).parents[2] / "schemas" / "postgres"


def upgrade(url: str) -> None:
    """Apply every migration that the database has not had. Safe to call twice, and from two processes at once."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = url
    command.upgrade(config, "head")


async def upgrade_async(url: str) -> None:
    """Do the same from inside an event loop."""
    await asyncio.to_thread(upgrade, url)
