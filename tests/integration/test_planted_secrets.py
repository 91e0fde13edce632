"""Secrets are planted everywhere a person can give one; then everything that was produced is searched for them."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from standardwebhooks import Webhook

from services.core.transport_secrets import job_place
from services.platform.secrets import Vault, read_keys
from tests.support.client_certificate import ClientCertificate, make_client_certificate
from tests.support.command import Meterpost
from tests.support.exports import NO_KAFKA, Exports, at
from tests.support.planted import MARKER, planted
from tests.support.platform import Platform, running
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, ScriptedReceiver, running_receiver, status

SIGNING = "whsec_" + base64.b64encode(f"{MARKER}-signing-key".encode()).decode()
SECRETS = {
    "password": f"{MARKER}-pässword",
    "token": f"{MARKER}-token",
    "header:X-Api-Key": f"{MARKER}-api-key",
    "signing_secret": SIGNING,
}
SMTP_PASSWORD = planted("smtp")


def forms(secret: str) -> set[str]:
    """Return the secret as it might be written: raw, in base64, as basic credentials, in hex, escaped for JSON."""
    raw = secret.encode()
    return {
        secret,
        base64.b64encode(raw).decode(),
        base64.b64encode(b"ana:" + raw).decode(),
        raw.hex(),
        json.dumps(secret)[1:-1],
    }


class Search:
    """Takes every text that was produced, and looks for what must not be in it."""

    def __init__(self, client: ClientCertificate, keys: str) -> None:
        self.texts: dict[str, str] = {}
        self.forbidden = {form for secret in (*SECRETS.values(), SMTP_PASSWORD) for form in forms(secret)}
        self.forbidden |= set(client.key.splitlines()[1:-1])
        self.forbidden |= {line.partition(":")[2] for line in keys.split()}
        self.forbidden.add(base64.b64decode(SIGNING.removeprefix("whsec_")).decode())

    def found(self) -> list[tuple[str, str]]:
        return [(where, form) for where, text in self.texts.items() for form in self.forbidden if form in text]


@pytest.fixture(scope="module")
def client() -> ClientCertificate:
    return make_client_certificate()


@pytest.fixture
def command(tmp_path: Path, database_url: str, client: ClientCertificate) -> Meterpost:
    """Give the command with keys in a file, and the secrets in files and variables."""
    (tmp_path / "client.pem").write_text(client.certificate)
    (tmp_path / "client-key.pem").write_text(client.key)
    for name, secret in SECRETS.items():
        (tmp_path / name.replace(":", "-")).write_text(secret + "\n", encoding="utf-8")
    environment = {
        "METERPOST_DATABASE_URL": database_url,
        "METERPOST_SECRET_KEYS_FILE": str(tmp_path / "keys"),
        "PLANTED_TOKEN": SECRETS["token"],
    }
    made = Meterpost(tmp_path, environment)
    made.ok("secrets", "new-key", "--file", "keys", "--name", "first")
    return made


async def database_text(url: str) -> str:
    """Return every row of every table, as text."""
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
        )
        rows = [row[0] for table in tables for row in await connection.fetch(f"SELECT t::text FROM {table['name']} t")]
    finally:
        await connection.close()
    text = "\n".join(rows)
    # bytea columns are written in hexadecimal digits.
    return text + "".join(
        bytes.fromhex(hexed).decode(errors="replace") for hexed in re.findall(r"\\x((?:[0-9a-f]{2})+)", text)
    )


async def test_no_planted_secret_is_in_anything_that_was_produced(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, command: Meterpost, client: ClientCertificate,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Through the command, delivery with debugging logs, a receiver that repeats what it hears, and a rotation."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    (tmp_path / "ca.pem").write_text(authority.ca_pem)
    said: list[str] = []

    def run(*arguments: str) -> Any:
        outcome = command(*arguments)
        said.extend((outcome.out, outcome.err))
        return outcome

    async def echo(_receiver: ScriptedReceiver, request: Any) -> Any:
        text = " ".join(
            f"{name}={value}" for name, value in request.headers.items() if name in {"Authorization", "X-Api-Key"}
        )
        decoded = SECRETS["password"] if request.headers["Meterpost-Job"] == "1" else ""
        return await status(418, f"{text} {decoded}")(_receiver, request)

    common = ("--frequency", "hour", "--resolution", "15", "--all-sites", "--url", receiver.url, "--ca-file", "ca.pem",
              "--start", "2026-11-20T08:00:00Z", "--secret", "header:X-Api-Key=file:header-X-Api-Key",
              "--secret", "signing_secret=file:signing_secret")  # fmt: skip
    basic = run(
        "jobs", "create", "--name", "Basic", *common, "--auth", "basic", "--username", "ana",
        "--secret", "password=file:password", "--manifest",
    )  # fmt: skip
    bearer = run(
        "jobs", "create", "--name", "Bearer", *common, "--auth", "bearer", "--secret", "token=env:PLANTED_TOKEN",
        "--client-certificate", "client.pem", "--secret", "client_key=file:client-key.pem", "--json",
    )  # fmt: skip
    assert (basic.code, bearer.code) == (0, 0), said
    # Mistakes are answered without repeating what was given.
    for wrong in (
        ("jobs", "edit", "1", "--secret", f"password={SECRETS['password']}"),
        ("jobs", "edit", "1", "--secret", "token=file:token"),
        ("jobs", "edit", "1", "--secret", "signing_secret=file:password"),
        ("jobs", "edit", "1", "--secret", "header:Host=file:token"),
        ("jobs", "edit", "2", "--secret", "client_key=file:password"),
        ("jobs", "edit", "2", "--secret", "password=file:nowhere"),
        ("jobs", "edit", "1", "--secret", "password=prompt"),
    ):
        assert run(*wrong).code == 2, wrong
    receiver.otherwise = echo
    hook_settings = (
        "--ca-file",
        "ca.pem",
        "--email",
        "ops@example.org",
        "--secret",
        "signing_secret=file:signing_secret",
    )
    async with running_receiver(authority.server) as hook:
        assert run("notifications", "set", "--webhook", hook.url, *hook_settings).code == 0
        settings = {
            "METERPOST_SECRET_KEYS_FILE": str(tmp_path / "keys"), "METERPOST_LOOK_SECONDS": "0.05",
            "METERPOST_LOG_LEVEL": "debug", "METERPOST_SMTP_HOST": "localhost", "METERPOST_SMTP_PORT": "9",
            "METERPOST_SMTP_USERNAME": "u", "METERPOST_SMTP_PASSWORD": SMTP_PASSWORD,
        }  # fmt: skip
        with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
            process = platform.start("services.delivery", "https", environment=settings)

            async def both_stopped() -> bool:
                reasons = await exports.column("SELECT stopped_reason FROM export_job_progress")
                return reasons == ["http_418"] * 2

            await eventually_async(both_stopped, 30)
            await eventually_async(lambda: len(hook.accepted) == 2)
            receiver.otherwise = status(200)
            # A rotation while delivery runs: it finds the new key in the file by itself.
            run("secrets", "new-key", "--file", "keys", "--name", "second")
            assert "8 of 8 secrets were sealed anew" in run("secrets", "rotate").out
            assert "0 of 8 secrets" in run("secrets", "rotate").out
            for job_id in ("1", "2"):
                run("jobs", "resume", job_id)

            async def both_delivered() -> bool:
                return await exports.column("SELECT state FROM export_run") == ["delivered"] * 2

            await eventually_async(both_delivered, 30)
            log = process.log_tail(100_000)
    # What was kept sealed reached the receiver in the clear.
    accepted = {r.headers["Meterpost-Job"]: r for r in receiver.accepted if r.headers["Meterpost-Part"] == "1"}
    assert accepted["2"].headers["Authorization"] == f"Bearer {SECRETS['token']}"
    assert accepted["1"].headers["X-Api-Key"] == SECRETS["header:X-Api-Key"]
    Webhook(SIGNING).verify(accepted["1"].body, dict(accepted["1"].headers))
    Webhook(SIGNING).verify(hook.accepted[0].body, dict(hook.accepted[0].headers))

    for arguments in (
        ("jobs", "list"), ("jobs", "list", "--json"), ("jobs", "show", "1"), ("jobs", "show", "2", "--json"),
        ("runs", "list", "--json"), ("runs", "show", "job1-20261120T080000Z"), ("secrets", "status"),
        ("runs", "show", "job2-20261120T080000Z", "--json"), ("secrets", "status", "--json"),
        ("notifications", "show"), ("notifications", "list", "--json"), ("notifications", "list"),
    ):  # fmt: skip
        assert run(*arguments).code == 0
    search = Search(client, (tmp_path / "keys").read_text())
    search.texts = {
        "answers": "\n".join(said),
        "log": log,
        "database": await database_text(exports.url),
        "notices": "\n".join(request.body.decode() for request in hook.received),
    }
    assert "Basic [secret]" in search.texts["database"]
    assert '"password": "set"' in search.texts["answers"] or "password (set)" in search.texts["answers"]
    assert search.found() == []
    # The search itself can find: what the process list must not hold is in what was typed wrongly above.
    search.texts = {"proof": SECRETS["token"] + client.key}
    assert len(search.found()) > 1
    # What lies in the database opens with the newest key alone, in its place alone.
    newest = dict([next(iter(read_keys(tmp_path / "keys").items()))])
    [sealed] = await exports.column(
        "SELECT transport_settings -> 'sealed' ->> 'token' FROM export_job_version WHERE job_id = 2"
    )
    assert Vault(newest).open(sealed, job_place(1, 2, "token")) == SECRETS["token"]


async def test_without_the_key_a_part_waits_and_no_job_is_stopped(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, command: Meterpost, tmp_path: Path
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    (tmp_path / "ca.pem").write_text(authority.ca_pem)
    command.ok("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "15", "--all-sites", "--url",
               receiver.url, "--ca-file", "ca.pem", "--start", "2026-11-20T08:00:00Z", "--auth", "bearer",
               "--secret", "token=file:token")  # fmt: skip
    quick = {"METERPOST_LOOK_SECONDS": "0.05", "METERPOST_LONGEST_RETRY_SECONDS": "1"}
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        blind = platform.start("services.delivery", "https", environment=quick)

        async def waits() -> bool:
            return (1, "retry", "secret_key_missing") in await exports.attempts(1)

        await eventually_async(waits, 20)
        blind.stop(timeout_s=6)
        assert receiver.received == []
        keys = {"METERPOST_SECRET_KEYS_FILE": str(tmp_path / "keys")}
        platform.start("services.delivery", "https", environment=quick | keys)

        async def delivered() -> bool:
            return await exports.states(1) == ["delivered"]

        await eventually_async(delivered, 20)
    unkeyed = replace(command, environment={"METERPOST_DATABASE_URL": exports.url})
    assert "MISSING" in unkeyed.ok("secrets", "status")
    assert "no key to seal it with" in unkeyed.refused("jobs", "edit", "1", "--secret", "token=file:token")
    # What does not touch secrets needs no key.
    assert "Changed job 1" in unkeyed.ok("jobs", "edit", "1", "--name", "K")
    shown = unkeyed.json("jobs", "show", "1")["transport_settings"]
    assert shown["secrets"] == {"token": "set"}


def test_signing_secrets_are_generated_shown_once_rotated_and_dropped(command: Meterpost) -> None:
    (command.folder / "meters.csv").write_text(
        "name,meter_type,unit,units_per_pulse,site,device_id,device_kind,input\nTap,Water,m3,0.01,Plant,LG-1,logger,2\n"
    )
    command.ok("meters", "import", "meters.csv")
    create = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites", "--url",
              "https://localhost:8443/in")  # fmt: skip
    made = command.json(*create, "--secret", "signing_secret=generate")
    assert made["generated_signing_secret"].startswith("whsec_")
    assert made["transport_settings"]["secrets"] == {"signing_secret:1": "set"}
    again = command.ok("jobs", "edit", "1", "--secret", "signing_secret=generate")
    assert "shown this once: whsec_" in again
    assert made["generated_signing_secret"] not in again
    assert "signing_secret:1 (set), signing_secret:2 (set)" in " ".join(command.ok("jobs", "show", "1").split())
    command.ok("jobs", "edit", "1", "--drop-secret", "signing_secret:1")
    assert command.json("jobs", "show", "1")["transport_settings"]["secrets"] == {"signing_secret:2": "set"}
    assert "has no secret signing_secret:1" in command.refused("jobs", "edit", "1", "--drop-secret", "signing_secret:1")
    for wrong, words in (
        (("--auth", "basic"), "user name is needed"),
        (("--auth", "bearer"), "the secret token is needed"),
        (("--auth", "digest"), "is not known"),
        (("--client-certificate", "meters.csv"), "BEGIN CERTIFICATE"),
        (("--secret", "password=generate"), "only a signing_secret can be generated"),
        (("--secret", "x=file:meters.csv"), "no secret setting is called 'x'"),
        (("--secret", "password=file:meters.csv"), "has no use with --auth none"),
    ):
        assert words in command.refused("jobs", "edit", "1", *wrong), wrong


async def test_what_is_asked_of_delivery_by_command(
    exports: Exports, receiver: ScriptedReceiver, command: Meterpost, to: dict[str, Any], tmp_path: Path
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(7), at(9, 30))
    job_id = await exports.add_job(to, starts_at=at(8))
    first = "job1-20261120T080000Z"
    with running(Platform(NO_KAFKA, exports.url, "", tmp_path)) as platform:
        platform.start("services.delivery", "https", environment={"METERPOST_LOOK_SECONDS": "0.05"})

        async def delivered(count: int) -> bool:
            return (await exports.states(job_id)).count("delivered") >= count and len(receiver.accepted) >= count

        await eventually_async(lambda: delivered(1), 20)
        assert "is sent" in command.ok("runs", "run-now", "1")
        await eventually_async(lambda: delivered(2), 20)
        command.ok("jobs", "backfill", "1", "--from", "2026-11-20T07:00:00Z", "--to", "2026-11-20T08:00:00Z")
        await eventually_async(lambda: delivered(3), 20)
        command.ok("runs", "resend", first)
        await eventually_async(lambda: len(receiver.accepted) == 4, 20)
        assert "is delivered, so it cannot be tried again" in command.refused("runs", "retry", first)
        assert "say what to try again" in command.refused("runs", "retry")
        assert "nothing is missing" in command.refused("jobs", "recover", "1")
        command.ok("runs", "retry", "--job", "1")

        async def all_done() -> bool:
            return all(one["done_at"] for one in command.json("jobs", "requests", "1")["requests"])

        await eventually_async(all_done, 20)
    kinds = [one["kind"] for one in command.json("jobs", "requests", "1")["requests"]]
    assert kinds == ["retry", "resend", "backfill", "run_now"]
    assert "resend" in command.ok("jobs", "requests", "1")
    assert "sent again 1 time" in command.ok("runs", "show", first)
