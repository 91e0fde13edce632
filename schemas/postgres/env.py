"""Alembic's entry: one connection, one lock, one transaction for all migrations."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# Two processes that migrate at once take turns; the number is arbitrary but ours.
MIGRATION_LOCK = 7_316_042


def migrate(connection: Connection) -> None:
    """Run the migrations on an open connection."""
    context.configure(connection=connection, transactional_ddl=True, version_table="schema_version")
    with context.begin_transaction():
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


async def main() -> None:
    """Connect and migrate."""
    url = str(context.config.attributes["url"]).replace("postgres://", "postgresql://", 1)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
