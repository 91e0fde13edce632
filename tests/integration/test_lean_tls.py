"""The machine's authorities, which aiohttp does not read before it needs them, decide as ever."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.receiver import Authority, ScriptedReceiver, make_authority

REPOSITORY = Path(__file__).parents[2]
RUN_S = 60
ASK = """\
import asyncio, sys
import services.platform.lean_tls, aiohttp
from aiohttp import connector

async def ask():
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            async with http.post(sys.argv[1], data=b"x", headers={"webhook-id": "1"}) as response:
                print(response.status)

print([one.cert_store_stats()["x509"] for one in (connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED)])
try:
    asyncio.run(ask())
except aiohttp.ClientConnectorCertificateError:
    print("refused")
print(connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"])
"""


async def asked(receiver: ScriptedReceiver, trusted: Path) -> list[str]:
    """Return what a process says that asks the receiver, on a machine that trusts these authorities."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ASK, receiver.url.replace("127.0.0.1", "localhost")),
        cwd=REPOSITORY,
        env={**os.environ, "SSL_CERT_FILE": str(trusted), "SSL_CERT_DIR": str(trusted.parent / "none")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _nothing = await asyncio.wait_for(process.communicate(), RUN_S)
    return said.decode().splitlines()


@pytest.fixture
def trusted(authority: Authority, tmp_path: Path) -> Path:
    file = tmp_path / "authorities.pem"
    file.write_text(authority.ca_pem, encoding="ascii")
    return file


async def test_they_are_read_for_the_first_connection_and_hold_for_all(
    receiver: ScriptedReceiver, trusted: Path
) -> None:
    assert await asked(receiver, trusted) == ["[0, 0]", "200", "200", "1"]


async def test_a_server_of_no_known_authority_is_refused(receiver: ScriptedReceiver, tmp_path: Path) -> None:
    (other_folder := tmp_path / "other").mkdir()
    other = tmp_path / "other.pem"
    other.write_text(make_authority(other_folder).ca_pem, encoding="ascii")
    assert await asked(receiver, other) == ["[0, 0]", "refused", "1"]
    assert receiver.received == []
