"""The seeding as a program of its own, and the receiver that is served with what it made."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from cryptography import x509

from services.local.ports import free_port
from tests.support.compose import REPOSITORY, read_compose
from tests.support.polling import eventually

HOST = "receiver-https"
IN_CONTAINER = "/var/lib/meterpost/certificates"
RUN_S = 60


def _seed(database_url: str, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    given = {
        "METERPOST_DATABASE_URL": database_url,
        "METERPOST_METERS": "20",
        "METERPOST_RECEIVER_URL": url,
        "METERPOST_CERTIFICATE_FOLDER": str(folder),
    }
    command = [sys.executable, "-m", "services.local.seed_demo"]
    environment = os.environ | given
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
    )


def _names(certificate: Path) -> list[str]:
    read = x509.load_pem_x509_certificate(certificate.read_bytes())
    found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def test_the_demo_is_seeded_once_and_its_jobs_follow_the_receiver(database_url: str, tmp_path: Path) -> None:
    first = _seed(database_url, tmp_path, "https://localhost:8443/meterpost")
    assert (first.returncode, first.stderr) == (0, "")
    assert "created, with 20 meters" in first.stdout
    authority = (tmp_path / "ca.pem").read_bytes()
    assert _names(tmp_path / "server.pem") == ["localhost"]

    again = _seed(database_url, tmp_path, f"https://{HOST}:8443/meterpost")
    assert (again.returncode, again.stderr) == (0, "")
    assert "there already" in again.stdout
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert _names(tmp_path / "server.pem") == ["localhost", HOST]
    meters, newest = asyncio.run(_meters_and_newest_settings(database_url))
    assert meters == 20
    assert len(newest) == 5
    assert all(f"https://{HOST}:8443/meterpost" in settings for settings in newest)


async def _meters_and_newest_settings(database_url: str) -> tuple[int, list[str]]:
    connection = await asyncpg.connect(database_url)
    try:
        meters: int = await connection.fetchval("SELECT count(*) FROM meter")
        newest = await connection.fetch(
            "SELECT DISTINCT ON (job_id) transport_settings::text FROM export_job_version ORDER BY job_id, version DESC"
        )
    finally:
        await connection.close()
    return meters, [row[0] for row in newest]


def test_what_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    unreachable = f"postgresql://somebody:s3cret@127.0.0.1:{free_port()}/nothing"
    done = _seed(unreachable, tmp_path, "https://localhost:8443/meterpost")
    assert done.returncode == 1
    assert done.stderr.startswith("seed_demo: PostgreSQL does not answer")
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_the_health_check_of_the_receivers_container(database_url: str, tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    assert _seed(database_url, certificates, f"https://{HOST}:8443/meterpost").returncode == 0
    port = free_port()
    assert "refused" in _check_health(certificates, port).stderr
    with _receiver(certificates, tmp_path / "received", port):
        eventually(lambda: _check_health(certificates, port).returncode == 0)
        trusted = ssl.create_default_context(cafile=certificates / "ca.pem")
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            trusted.wrap_socket(plain, server_hostname=HOST) as verified,
        ):
            assert verified.version()


@contextmanager
def _receiver(certificates: Path, received: Path, port: int) -> Iterator[None]:
    """Run the receiver by the command of its container, on loopback."""
    command: list[str] = read_compose()["services"][HOST]["command"]
    moved = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=8443": f"--port={port}",
        "--folder=/var/lib/meterpost/received": f"--folder={received}",
    }
    arguments = [moved.get(word, word).replace(IN_CONTAINER, str(certificates)) for word in command[1:]]
    process = subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def _check_health(certificates: Path, port: int) -> subprocess.CompletedProcess[str]:
    test: list[str] = read_compose()["services"][HOST]["healthcheck"]["test"]
    arguments = [word.replace(IN_CONTAINER, str(certificates)).replace(":8443", f":{port}") for word in test[2:]]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=RUN_S, check=False)
