"""Nothing that rests on SHA-1, nor any other outdated way to encrypt, is agreed to, whatever a server offers."""

from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.core.retry import Verdict
from services.local.ports import LOOPBACK
from services.platform import ssh_algorithms
from tests.support.dropbox import hosted_folder
from tests.support.file_servers import PASSWORD, USER, FileServer, sftp_settings
from tests.support.transports import send, steps

OUTDATED: dict[str, tuple[dict[str, Any], str, str]] = {
    "key exchange": (
        {"kex_algs": ["diffie-hellman-group14-sha1"]},
        "no key exchange that we take, but diffie-hellman-group14-sha1",
        "allow diffie-hellman-group18-sha512 or diffie-hellman-group14-sha256 there",
    ),
    "cipher": (
        {"encryption_algs": ["aes128-cbc", "3des-cbc"]},
        "no cipher that we take, but aes128-cbc,3des-cbc",
        "allow aes192-ctr or aes256-ctr there",
    ),
    "MAC": (
        {"encryption_algs": ["aes256-ctr"], "mac_algs": ["hmac-sha1", "umac-64@openssh.com"]},
        "no MAC that we take, but hmac-sha1,umac-64@openssh.com",
        "allow hmac-sha2-256 or hmac-sha2-512 there",
    ),
}


class Login(asyncssh.SSHServer):
    """Lets the user of the tests in."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


async def serve(key: asyncssh.SSHKey, **algorithms: Any) -> tuple[asyncssh.SSHAcceptor, dict[str, Any]]:
    """Serve SFTP with the given algorithms; return the server, and what a job says of it."""
    more = {"server_host_keys": [key], "config": []} | algorithms
    server = await asyncssh.create_server(Login, LOOPBACK, 0, **more)
    line = key.export_public_key().decode("ascii")
    return server, sftp_settings(server.get_port(), " ".join(line.split()[:2]))


@pytest.mark.parametrize("kind", OUTDATED)
async def test_a_server_that_offers_only_outdated_ones_gets_nothing(kind: str, tmp_path: Path) -> None:
    algorithms, offered, wanted = OUTDATED[kind]
    server, settings = await serve(asyncssh.generate_private_key("ssh-ed25519"), **algorithms)
    try:
        destination = FileServer("sftp", settings, tmp_path)
        answer = await send(destination)
        assert answer[:2] == (Verdict.STOP, "no_common_cipher"), answer
        assert offered in answer.detail
        assert f"{wanted}, then resume the job" in answer.detail
        [failed] = [step for step in await steps(destination) if not step.passed]
        assert (failed.name, failed.sentence) == ("trust", answer.detail)
    finally:
        server.close()


async def test_a_server_that_signs_over_sha_1_gets_nothing(tmp_path: Path) -> None:
    """An RSA key of itself is fine: it is the signature that counts."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    [pair] = asyncssh.load_keypairs([key])
    pair.host_key_algorithms = [b"ssh-rsa"]
    server, settings = await serve(key, server_host_keys=[pair])
    try:
        answer = await send(FileServer("sftp", settings, tmp_path))
    finally:
        server.close()
    assert answer[:2] == (Verdict.STOP, "no_common_cipher"), answer
    assert "allow rsa-sha2-512 or rsa-sha2-256 there" in answer.detail


def test_no_list_holds_anything_of_sha_1() -> None:
    lists = (
        ssh_algorithms.KEY_EXCHANGES, ssh_algorithms.CIPHERS, ssh_algorithms.MACS, ssh_algorithms.SIGNATURES
    )  # fmt: skip
    for name in (name for one in lists for name in one):
        assert "sha1" not in name
        assert "cbc" not in name
        assert "64" not in name.removeprefix("umac-")
        assert name != "ssh-rsa"


@pytest.mark.parametrize(
    "outdated",
    [
        {"kex_algs": ["diffie-hellman-group14-sha1"]},
        {"encryption_algs": ["aes256-ctr"], "mac_algs": ["hmac-sha1"]},
    ],
    ids=["key exchange", "MAC"],
)
async def test_the_hosted_folder_lets_no_outdated_client_in(
    outdated: dict[str, Any], database_url: str, tmp_path: Path
) -> None:
    async with hosted_folder(database_url, tmp_path / "dropbox") as hosted:
        with pytest.raises((asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError)):
            await hosted.connect(**outdated)
        async with hosted.customer() as files:
            await files.listdir(".")
