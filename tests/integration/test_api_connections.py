"""Connection tests over HTTP: the delivery process of the transport makes them, and host keys are approved by them."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.core.file_transfer import fingerprint
from services.delivery.connection_tests import TAKEN_OVER_AFTER, ConnectionTests
from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from services.platform.postgres import Pool
from services.platform.secrets import Vault
from tests.support.api import Api, running_api
from tests.support.command import Meterpost, Outcome
from tests.support.exports import delivering
from tests.support.file_servers import PASSWORD, USER, in_process_https, in_process_sftp
from tests.support.polling import eventually_async
from tests.support.seed import seed_catalog

BASE: dict[str, Any] = {"name": "J", "frequency": "hour", "resolution_minutes": 60}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


@pytest.fixture
def certificates(tmp_path: Path) -> CertificateFiles:
    return ensure_certificates(tmp_path / "certificates", SystemClock().now())


def sftp_job(port: int) -> dict[str, Any]:
    destination = {"transport": "sftp", "host": "localhost", "port": port, "user": USER}
    return {**BASE, "destination": destination, "secrets": {"password": PASSWORD}}


async def outcome_of(api: Api, token: str, job: str) -> dict[str, Any]:
    """Ask for a test and wait for its end."""
    asked = await api.call("POST", f"{job}/connection-tests", token=token)
    assert asked.status == 202, asked
    found: dict[str, Any] = {}

    async def is_done() -> bool:
        found.update((await api.get(asked.headers["Location"], token)).json)
        return bool(found["is_done"])

    await eventually_async(is_done, 20, because="the test is made")
    return found


async def test_a_host_key_is_shown_by_a_test_compared_approved_and_withdrawn(
    api: Api, tmp_path: Path, certificates: CertificateFiles
) -> None:
    token = await api.token(1, "viewer", may_export=True)
    async with (
        in_process_sftp()(tmp_path, certificates) as server,
        delivering(api.database_url, transport="sftp", secret_keys_file=tmp_path / "secret-keys"),
    ):
        [key] = server.settings["host_keys"]
        made = await api.call("POST", "/v1/jobs", token=token, body=sftp_job(server.port))
        job = made.headers["Location"]
        first = await outcome_of(api, token, job)
        assert (first["state"], first["steps"][-1]["step"], first["steps"][-1]["passed"]) == ("failed", "trust", False)
        assert first["host_key"] == {"type": key.split()[0], "fingerprint": fingerprint(key), "key": key}
        wrong = {"test_id": first["test_id"], "fingerprint": "SHA256:other"}
        refused = await api.call("POST", f"{job}/host-keys", token=token, body=wrong)
        assert (refused.status, refused.json["field"]) == (422, "fingerprint")
        assert fingerprint(key) in refused.json["detail"]
        right = {**wrong, "fingerprint": fingerprint(key)}
        approved = await api.call("POST", f"{job}/host-keys", token=token, body=right)
        assert (approved.status, approved.json["destination"]["host_keys"]) == (200, [key])
        second = await outcome_of(api, token, job)
        assert (second["state"], second["host_key"]) == ("passed", None)
        assert [one["step"] for one in second["steps"]] == [
            "resolve", "reach", "trust", "log in", "write", "rename", "remove",
        ]  # fmt: skip
        assert PASSWORD not in str(second)
        listed = await api.get(f"{job}/host-keys", token)
        assert [one["fingerprint"] for one in listed.json["host_keys"]] == [fingerprint(key)]
        body = {"fingerprint": fingerprint(key)}
        withdrawn = await api.call("POST", f"{job}/host-keys/withdraw", token=token, body=body)
        assert withdrawn.json["destination"]["host_keys"] == []
        assert (await outcome_of(api, token, job))["state"] == "failed"
    actions = [one["action"] for one in (await api.get("/v1/audit", await api.token(1))).json["entries"]]
    assert actions == [
        *("job.connection_test", "job.withdraw_host_key", "job.connection_test", "job.approve_host_key"),
        *("job.connection_test", "job.create"),
    ]


async def test_the_command_over_the_api_tries_and_approves(
    api: Api, tmp_path: Path, certificates: CertificateFiles
) -> None:
    client_id, secret = await api.client(1, "viewer", may_export=True)
    (tmp_path / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
    known = {"METERPOST_API_URL": api.url, "METERPOST_API_CREDENTIALS_FILE": "client.json", "PW": PASSWORD}
    meterpost = Meterpost(tmp_path, known)

    async def run(*arguments: str, code: int = 0) -> Outcome:
        outcome = await asyncio.to_thread(meterpost, *arguments)
        assert outcome.code == code, (outcome.out, outcome.err)
        return outcome

    create = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites")
    async with (
        in_process_sftp()(tmp_path, certificates) as server,
        delivering(api.database_url, transport="sftp", secret_keys_file=tmp_path / "secret-keys"),
    ):
        [key] = server.settings["host_keys"]
        await run(*create, "--sftp", f"{USER}@localhost:{server.port}", "--secret", "password=env:PW")
        assert "FAILED  trust" in (await run("jobs", "test", "1", code=1)).out
        shown = (await run("jobs", "host-key", "1", "--json")).json
        assert (shown["approved"], shown["shown_and_not_approved"].split()[1]) == ([], fingerprint(key))
        assert "does not show the key" in (await run("jobs", "host-key", "1", "--approve", "SHA256:x", code=2)).err
        approved = await run("jobs", "host-key", "1", "--approve", fingerprint(key))
        assert f"approved: {key.split()[0]} {fingerprint(key)}" in approved.out
        tried = (await run("jobs", "test", "1", "--json")).json
        assert (tried["passed"], tried["steps"][-1]["step"]) == (True, "remove")
        assert "none; nothing is sent" in (await run("jobs", "host-key", "1", "--remove", fingerprint(key))).out
    await run(*create, "--url", "https://example.org/in")
    assert "only SFTP servers" in (await run("jobs", "host-key", "2", code=2)).err


async def test_https_posts_nothing_and_a_stopped_or_paused_job_is_tried_too(
    api: Api, tmp_path: Path, certificates: CertificateFiles
) -> None:
    token = await api.token(1, "viewer", may_export=True)
    async with in_process_https(tmp_path, certificates) as server, delivering(api.database_url):
        destination = {"transport": "https", "url": server.settings["url"], "ca_pem": server.settings["ca_pem"]}
        made = await api.call("POST", "/v1/jobs", token=token, body={**BASE, "destination": destination})
        job = made.headers["Location"]
        await api.call("POST", f"{job}/pause", token=token)
        found = await outcome_of(api, token, job)
        assert (found["state"], [one["step"] for one in found["steps"]]) == ("passed", ["resolve", "reach", "trust"])
        approve = await api.call(
            "POST", f"{job}/host-keys", token=token, body={"test_id": found["test_id"], "fingerprint": "SHA256:x"}
        )
        assert (approve.status, "only SFTP servers" in approve.json["detail"]) == (409, True)


async def test_a_second_test_waits_for_the_first_and_one_that_nobody_takes_expires(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    job = (await api.call("POST", "/v1/jobs", token=token, body=sftp_job(1))).headers["Location"]
    asked = await api.call("POST", f"{job}/connection-tests", token=token, headers={"Idempotency-Key": "k"})
    assert (asked.status, asked.json["state"]) == (202, "waiting")
    again = await api.call("POST", f"{job}/connection-tests", token=token, headers={"Idempotency-Key": "k"})
    assert (again.status, again.headers["Location"]) == (202, asked.headers["Location"])
    second = await api.call("POST", f"{job}/connection-tests", token=token)
    assert (second.status, "not done yet" in second.json["detail"]) == (409, True)
    connection = await asyncpg.connect(api.database_url)
    await connection.execute("UPDATE connection_test SET requested_at = requested_at - interval '11 minutes'")
    await connection.close()
    late = (await api.get(asked.headers["Location"], token)).json
    assert (late["state"], late["is_done"]) == ("expired", True)
    assert "no delivery process of sftp took the test" in late["problem"]
    assert (await api.call("POST", f"{job}/connection-tests", token=token)).status == 202
    assert (await api.get(f"{job}/connection-tests/999", token)).status == 404


async def test_a_test_whose_secret_cannot_be_opened_says_so(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    job = (await api.call("POST", "/v1/jobs", token=token, body=sftp_job(1))).headers["Location"]
    async with delivering(api.database_url, transport="sftp"):
        found = await outcome_of(api, token, job)
    assert (found["state"], found["steps"]) == ("failed", [])
    assert "key" in found["problem"]


async def test_a_test_is_taken_by_one_process_and_taken_over_from_a_dead_one(api: Api, pool: Pool) -> None:
    token = await api.token(1, "viewer", may_export=True)
    job = (await api.call("POST", "/v1/jobs", token=token, body=sftp_job(1))).headers["Location"]
    await api.call("POST", f"{job}/connection-tests", token=token)
    clock = SystemClock()
    both = [ConnectionTests("sftp", None, pool, Vault({}), clock) for _number in range(2)]  # type: ignore[arg-type] # not reached
    taken = await asyncio.gather(*(one._take() for one in both))
    [first] = [one for one in taken if one is not None]
    assert first.epoch == 1
    async with pool.acquire() as connection:
        await connection.execute(
            "UPDATE connection_test_result SET started_at = started_at - $1::interval",
            TAKEN_OVER_AFTER + timedelta(seconds=1),
        )
    second = await both[0]._take()
    assert second is not None
    assert second.epoch == 2
    await both[1]._note(first, [], "of the dead one", is_done=True)
    await both[0]._note(second, [], "of the living one", is_done=True)
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT problem FROM connection_test_result") == "of the living one"
