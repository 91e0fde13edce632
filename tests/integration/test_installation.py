"""Each database has an id of its own, from the first migration on."""

import re

from services.local.postgres_server import PostgresServer
from services.platform.migrations import upgrade_async


async def test_two_databases_have_different_ids_that_stay(postgres_server: PostgresServer) -> None:
    names = ("installation_a", "installation_b")
    found: list[list[str]] = []
    try:
        for name in names:
            postgres_server.create_database(name)
        for _round in range(2):
            for name in names:
                await upgrade_async(postgres_server.url(name))
            query = "SELECT installation_id FROM installation"
            found.append([postgres_server.run_sql(query, database=name) for name in names])
    finally:
        for name in names:
            postgres_server.drop_database(name)
    before, after = found
    assert all(re.fullmatch("[0-9a-f]{8}", one) for one in before)
    assert before[0] != before[1]
    assert after == before
