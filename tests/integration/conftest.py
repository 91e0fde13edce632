"""Fixtures of the tests of single services: a pool to the test's database, and a customer's server."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.platform.postgres import Pool, connect_pool
from tests.support.exports import Exports
from tests.support.receiver import Authority, ScriptedReceiver, make_authority, running_receiver


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Give a pool to the test's database."""
    made = await connect_pool(database_url, max_size=8)
    yield made
    made.terminate()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give a certificate authority and a server certificate."""
    return make_authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def receiver(authority: Authority) -> AsyncIterator[ScriptedReceiver]:
    """Give a customer's server that does as the test says."""
    async with running_receiver(authority.server) as running:
        yield running


@pytest.fixture
def exports(database_url: str) -> Exports:
    """Give an organization whose windows are exported."""
    return Exports(database_url)


@pytest.fixture
def to(receiver: ScriptedReceiver, authority: Authority) -> dict[str, Any]:
    """Give the settings of a job that goes to the receiver."""
    return {"url": receiver.url, "ca_pem": authority.ca_pem}
