"""The receivers in examples/: real deliveries to them are kept once and for good, and what is not sound is refused."""

import asyncio
import base64
import hashlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.api.request_store import request_resend
from services.local.certificates import CertificateFiles, ensure_certificates
from services.local.ports import free_port
from services.local.processes import ChildProcess
from services.platform.clock import SystemClock
from services.platform.postgres import Pool
from tests.integration.test_requests import asker, until_states
from tests.support.command import REPOSITORY, Meterpost
from tests.support.exports import Exports, at, delivering
from tests.support.file_servers import installed
from tests.support.polling import eventually, eventually_async

EXAMPLES = REPOSITORY / "examples" / "receivers"
OLD, NEW = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))


class Example:
    """One of the receivers, as a process that can be killed and started again."""

    def __init__(self, program: list[str], folder: Path, certificates: CertificateFiles) -> None:
        self.folder = folder / "received"
        self.port = free_port()
        self.ca_file = certificates.authority
        self.secrets = folder / "secrets"
        self.secrets.write_text(f"{OLD}\n{NEW}\n")
        arguments = ["--folder", str(self.folder), "--port", str(self.port), "--secrets", str(self.secrets)]
        arguments += ["--certificate", str(certificates.server), "--key", str(certificates.server_key)]
        self._process = ChildProcess(
            name="example",
            command=[*program, *arguments],
            log_file=folder / "example.log",
            pid_file=folder / "example.pid",
            working_folder=folder,
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        said = self._process.log_tail(1_000).count("https://")
        self._process.start()
        eventually(lambda: self._process.log_tail(1_000).count("https://") > said, 20, because="it listens")

    def kill(self) -> None:
        self._process.kill()

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "url": f"https://localhost:{self.port}/in",
            "ca_pem": self.ca_file.read_text(),
            "signing_secrets": [NEW, OLD],
        }

    def journal(self) -> list[dict[str, Any]]:
        file = self.folder / "requests.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    async def post(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        tls = ssl.create_default_context(cafile=self.ca_file)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"https://localhost:{self.port}/", data=body, headers=headers, ssl=tls) as response,
        ):
            return response.status, await response.text()


@pytest.fixture(params=["receiver.py", "receiver.mjs"])
async def example(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Example]:
    interpreter = sys.executable if request.param.endswith(".py") else installed("node")
    certificates = ensure_certificates(tmp_path / "certificates", SystemClock().now())
    made = Example([interpreter, str(EXAMPLES / request.param)], tmp_path, certificates)
    await asyncio.to_thread(made.start)
    yield made
    made.kill()


@asynccontextmanager
async def three_runs(exports: Exports, example: Example) -> AsyncIterator[int]:
    """Give a job with runs of 2, 1 and 1 parts and their manifests, while delivery runs."""
    await exports.seed(meters=2_001)
    await exports.close_windows(60, at(8), at(9))
    await exports.close_windows(60, at(9), at(11), meters=[1, 2])
    job_id = await exports.add_job(example.settings, resolution=60)
    await exports.execute("UPDATE export_job_version SET manifest = true")
    async with delivering(exports.url):
        yield job_id


async def test_parts_are_kept_once_through_a_kill_and_the_kit_proves_it(
    exports: Exports, example: Example, pool: Pool, tmp_path: Path
) -> None:
    async with three_runs(exports, example) as job_id:
        await eventually_async(lambda: len(example.journal()) > 1)
        example.kill()
        with (example.folder / "requests.jsonl").open("a") as journal:
            journal.write('{"time": "2026-11-2')  # cut off
        await asyncio.to_thread(example.start)
        await until_states(exports, job_id, ["delivered"] * 3)
        accepted = example.journal()
        content = {file: file.read_bytes() for file in example.folder.rglob("*.json")}
        await request_resend(pool, 1, job_id, at(8), asker())
        attempts = len(await exports.attempts(job_id))
        await until_states(exports, job_id, ["delivered"] * 3)

        async def again() -> bool:
            return len(await exports.attempts(job_id)) == attempts + 3

        await eventually_async(again)

    assert len(content) == len({line["id"] for line in accepted}) == len(accepted) == 7
    assert example.journal() == accepted
    assert {file: file.read_bytes() for file in content} == content
    assert [reason for _part, outcome, reason in await exports.attempts(job_id) if outcome == "stop"] == []
    kit = Meterpost(tmp_path, {})
    secret = f"signing_secret=file:{tmp_path / 'new'}"
    (tmp_path / "new").write_text(NEW)
    outcome = await asyncio.to_thread(kit, "receiver", "check", example.folder, "--secret", secret, "--json")
    assert (outcome.code, outcome.json["findings"]) == (0, [])
    assert (outcome.json["requests_checked"], outcome.json["signatures_checked"]) == (7, 7)
    assert [(job["runs"], job["parts"], job["rows"]) for job in outcome.json["jobs"]] == [(3, 4, 2_005)]


async def test_what_is_not_sound_is_refused(exports: Exports, example: Example) -> None:
    async with three_runs(exports, example) as job_id:
        await until_states(exports, job_id, ["delivered"] * 3)
    line = example.journal()[0]
    headers, [body] = (
        line["headers"],
        [
            file.read_bytes()
            for file in example.folder.rglob("*.json")
            if hashlib.sha256(file.read_bytes()).hexdigest() == line["sha256"]
        ],
    )
    files = sorted(example.folder.rglob("*"))
    assert await example.post(headers, body) == (200, "known already\n")
    other = body.replace(b"METER", b"OTHER", 1)
    other_hash = hashlib.sha256(other).hexdigest()
    changes: list[tuple[Callable[[dict[str, str]], object], bytes, int, str]] = [
        (lambda h: h, other, 400, "does not have the hash"),
        (lambda h: h.update({"meterpost-content-sha256": other_hash}), other, 401, "no signature"),
        (lambda h: h.update({"webhook-signature": "v1,AAAA"}), body, 401, "no signature"),
        (lambda h: h.pop("webhook-signature"), body, 401, "no signature"),
        (lambda h: h.update({"webhook-timestamp": "1700000000"}), body, 401, "too far"),
        (lambda h: h.pop("webhook-id"), body, 400, "webhook-id is missing"),
        (lambda h: h.update({"meterpost-filename": "../../outside.json"}), body, 400, "cannot|not one that"),
        (lambda h: h.update({"meterpost-job": "../7"}), body, 400, "not one that"),
    ]
    for change, sent, status, words in changes:
        changed = dict(headers)
        change(changed)
        answer = await example.post(changed, sent)
        assert answer[0] == status, answer
        assert any(word in answer[1] for word in words.split("|")), answer
    assert sorted(example.folder.rglob("*")) == files


async def test_other_bytes_under_a_known_id_are_refused_without_secrets_too(exports: Exports, example: Example) -> None:
    example.kill()
    example.secrets.write_text("")
    await asyncio.to_thread(example.start)
    async with three_runs(exports, example) as job_id:
        await until_states(exports, job_id, ["delivered"] * 3)
    line = example.journal()[0]
    body = b'{"measurements":[]}'
    headers = line["headers"] | {"meterpost-content-sha256": hashlib.sha256(body).hexdigest()}
    status, said = await example.post(headers, body)
    assert (status, "came before with other bytes" in said) == (409, True)
