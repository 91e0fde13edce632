"""Fixtures of the tests of single services: the test's database, a worker of exports, customers' servers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from services.platform.postgres import Pool, connect_pool
from tests.support.dropbox import hosted_folder
from tests.support.exports import Exports
from tests.support.file_servers import (
    FileServer,
)
from tests.support.manual_exports import Exporting, TurnedClock, seed_catalog
from tests.support.receiver import Authority, ScriptedReceiver, make_authority, running_receiver
from tests.support.transports import HOSTED, SERVERS


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
async def exporting(pool: Pool, database_url: str, tmp_path: Path) -> Exporting:
    """Give a worker of manual exports on a catalog with awkward names."""
    await seed_catalog(database_url)
    return Exporting(pool, tmp_path / "store", TurnedClock())


@pytest.fixture
def to(receiver: ScriptedReceiver, authority: Authority) -> dict[str, Any]:
    """Give the settings of a job that goes to the receiver."""
    return {"url": receiver.url, "ca_pem": authority.ca_pem}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """Give an authority of our own and a certificate for localhost, as files."""
    return ensure_certificates(tmp_path_factory.mktemp("certificates"), SystemClock().now())


@pytest.fixture
def hosted_database(request: pytest.FixtureRequest) -> str:
    """Give a database where the test's server needs one; made before there is an event loop."""
    if request.node.callspec.params.get("server") != HOSTED:
        return ""
    return str(request.getfixturevalue("database_url"))


@pytest.fixture(params=[*SERVERS, HOSTED])
async def server(
    request: pytest.FixtureRequest, hosted_database: str, tmp_path: Path, certificates: CertificateFiles
) -> AsyncIterator[FileServer]:
    """Give each server in turn that parts can be sent to."""
    if request.param == HOSTED:
        async with hosted_folder(hosted_database, tmp_path / HOSTED) as hosted:
            yield hosted.file_server()
        return
    async with SERVERS[request.param](tmp_path, certificates) as running:
        yield running
