"""Notices: by mail through a real SMTP conversation, by webhook to a real TLS server, each once and none lost."""

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from services.api.notification_store import NotificationSettings, list_notifications, set_notifications
from services.local.certificates import CertificateFiles, ensure_certificates
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.postgres import Pool
from services.platform.secrets import Vault, new_key, parse_keys
from tests.integration.test_requests import until_states
from tests.support.exports import Exports, at, delivering
from tests.support.planted import planted
from tests.support.polling import eventually_async
from tests.support.receiver import Authority, ScriptedReceiver, hang, running_receiver, status
from tests.support.smtp_server import SmtpServer, running_smtp

SIGNING = "whsec_" + base64.b64encode(b"s" * 32).decode()
KEYS = new_key("test")
SOON: dict[str, Any] = {"failing_minutes": 0.0}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("smtp"), SystemClock().now())


async def tell(pool: Pool, settings: NotificationSettings, secret: str | None = None, organization_id: int = 1) -> None:
    await set_notifications(pool, organization_id, settings, Vault(parse_keys(KEYS)), secret)


async def sent(pool: Pool) -> list[tuple[str, str]]:
    """Return event and address of what was sent, oldest first."""
    return [(one.event, one.address) for one in reversed(await list_notifications(pool, 1, 100)) if one.sent_at]


def smtp(server: SmtpServer, certificates: CertificateFiles, security: str, **more: Any) -> dict[str, Any]:
    return {
        "smtp_host": "localhost",
        "smtp_port": server.port,
        "smtp_security": security,
        "smtp_from": "Meterpost <post@example.org>",
        "smtp_ca_file": certificates.authority,
        "smtp_timeout_seconds": 5,
        **more,
    }


async def test_failing_and_recovered_are_told_by_mail_and_by_a_signed_webhook_once_each(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool,
    certificates: CertificateFiles,
) -> None:  # fmt: skip
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(10))
    receiver.otherwise = status(503, "disk full")
    async with running_receiver(authority.server) as hook, running_smtp(certificates) as server:
        await tell(pool, NotificationSettings(("ops@example.org",), hook.url, authority.ca_pem), SIGNING)
        job_id = await exports.add_job(to, name="Hourly to\r\nBcc: x@example.org")
        more = smtp(server, certificates, "starttls", smtp_username="u", smtp_password=SecretStr(planted("smtp")))
        async with delivering(exports.url, secret_keys=SecretStr(KEYS), **SOON, **more):
            await eventually_async(lambda: sent_count(pool, 2))
            receiver.otherwise = status(200)
            await until_states(exports, job_id, ["delivered"] * 2)
            await eventually_async(lambda: sent_count(pool, 4))
        failing, recovered = server.messages
        assert server.logins == [("u", planted("smtp"))] * 2
        assert server.was_encrypted == [True, True]
        told = [json.loads(request.body) for request in hook.accepted]
        assert [one["event"] for one in told] == ["job.failing", "job.recovered"]
        for request in hook.accepted:
            Webhook(SIGNING).verify(request.body, dict(request.headers))
        assert len({request.part_id for request in hook.accepted}) == 2
    assert failing["To"] == "ops@example.org"
    assert failing["Bcc"] is None
    assert "fails" in failing["Subject"]
    assert "works again" in recovered["Subject"]
    text = failing.get_payload(decode=True)
    assert isinstance(text, bytes)
    for words in (
        f"Job:      {job_id} ", "2026-11-20T08:00:00Z to 2026-11-20T09:00:00Z", "disk full (http_503)",
        "What it means for your data: Nothing is lost", "What to do: Look whether the server",
    ):  # fmt: skip
        assert words in text.decode(), text.decode()
    assert told[0] | {"at": "", "failing_since": ""} == {
        "event": "job.failing", "at": "", "organization": "Test", "job_id": job_id,
        "job_name": "Hourly to\r\nBcc: x@example.org", "reason": "http_503", "error": "disk full", "failing_since": "",
        "run": f"job{job_id}-20261120T080000Z", "window_start": "2026-11-20T08:00:00Z",
        "window_end": "2026-11-20T09:00:00Z", "waiting_runs": 2, "failed_runs": 0,
        "meaning": told[0]["meaning"], "action": told[0]["action"],
    }  # fmt: skip


async def sent_count(pool: Pool, wanted: int) -> bool:
    return len(await sent(pool)) >= wanted


async def test_a_stop_is_told_with_what_to_do(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    async with running_receiver(authority.server) as hook:
        await tell(pool, NotificationSettings((), hook.url, authority.ca_pem))
        job_id = await exports.add_job(to)
        async with delivering(exports.url):
            await eventually_async(lambda: hook.accepted)
    told = json.loads(hook.accepted[0].body)
    assert (told["event"], told["reason"]) == ("job.paused", "http_410")
    assert f"meterpost jobs resume {job_id}" in told["action"]
    assert "give the job another URL" in told["error"]
    assert "webhook-signature" not in hook.accepted[0].headers


@pytest.mark.parametrize("security", ["tls", "none"])
async def test_other_ways_to_the_mail_server(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, certificates: CertificateFiles,
    security: str,
) -> None:  # fmt: skip
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(403)
    await tell(pool, NotificationSettings(("a@example.org", "b@example.org")))
    async with running_smtp(certificates, implicit_tls=security == "tls") as server:
        await exports.add_job(to)
        async with delivering(exports.url, **smtp(server, certificates, security)):
            await eventually_async(lambda: sent_count(pool, 2))
        assert sorted(message["To"] for message in server.messages) == ["a@example.org", "b@example.org"]
        assert server.was_encrypted == [security == "tls"] * 2


async def test_a_mail_server_that_is_away_gets_it_later_and_an_unknown_address_is_given_up(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, certificates: CertificateFiles,
) -> None:  # fmt: skip
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(403)
    await tell(pool, NotificationSettings(("ok@example.org", "unknown@example.org")))
    await exports.add_job(to)
    async with running_smtp(certificates) as gone:
        port = gone.port
    away = smtp(gone, certificates, "none") | {"smtp_port": port}
    async with delivering(exports.url, **away):

        async def failed() -> bool:
            found = await list_notifications(pool, 1, 10)
            return len(found) == 2 and all("smtp_failed" in one.problem for one in found)

        await eventually_async(failed)
    await exports.execute("UPDATE notification SET next_attempt_at = now()")
    async with running_smtp(certificates, refused="unknown@example.org") as server:
        async with delivering(exports.url, **smtp(server, certificates, "none")):

            async def settled() -> bool:
                return all(one.next_attempt_at is None for one in await list_notifications(pool, 1, 10))

            await eventually_async(settled)
        assert [message["To"] for message in server.messages] == ["ok@example.org"]
    found = {one.address: one for one in await list_notifications(pool, 1, 10)}
    assert found["ok@example.org"].sent_at is not None
    assert found["unknown@example.org"].sent_at is None
    assert "smtp_recipient_refused" in found["unknown@example.org"].problem


async def test_two_processes_tell_everything_once(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(401)
    async with running_receiver(authority.server) as hook:
        await tell(pool, NotificationSettings((), hook.url, authority.ca_pem))
        for _ in range(12):
            await exports.add_job(to)
        async with delivering(exports.url, instance="one"), delivering(exports.url, instance="two"):
            await eventually_async(lambda: sent_count(pool, 12))
    assert len(hook.received) == len({request.part_id for request in hook.received}) == 12


async def stopped_jobs(exports: Exports, to: dict[str, Any], count: int) -> None:
    """Have organization 1 told of so many jobs that were stopped."""
    for _ in range(count):
        await exports.add_job(to)

    async def told() -> bool:
        return await exports.column("SELECT count(*) FROM notification WHERE organization_id = 1") == [count]

    await eventually_async(told)


async def test_a_webhook_that_hangs_holds_up_its_own_notices_alone(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.add_organization(2)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    async with running_receiver(authority.server) as dead, running_receiver(authority.server) as hook:
        dead.otherwise = hang()
        await tell(pool, NotificationSettings((), dead.url, authority.ca_pem))
        await tell(pool, NotificationSettings((), hook.url, authority.ca_pem), organization_id=2)
        async with delivering(exports.url):
            await stopped_jobs(exports, to, 6)
            await eventually_async(lambda: dead.at_once)
            await exports.add_job(to, organization_id=2)
            await eventually_async(lambda: hook.accepted, 8)
            assert (dead.at_once, dead.most_at_once, len(dead.received)) == (1, 1, 1)
            dead.closing.set()


async def test_what_a_webhook_did_not_take_its_other_notices_wait_for_and_old_ones_are_given_up_together(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    async with running_receiver(authority.server) as hook:
        hook.otherwise = status(503)
        async with delivering(exports.url):
            await tell(pool, NotificationSettings((), hook.url, authority.ca_pem))
            await stopped_jobs(exports, to, 6)
            begun = SystemClock().now()

            async def all_wait() -> bool:
                notices = await list_notifications(pool, 1, 10)
                return all(one.next_attempt_at and one.next_attempt_at > begun for one in notices)

            await eventually_async(all_wait)
        # A notice that came to be after the first attempt may have had one of its own.
        tries = len(hook.received)
        assert tries == sum(one.attempt_count for one in await list_notifications(pool, 1, 10))
        await exports.execute(
            "UPDATE notification SET created_at = created_at - interval '73 hours', next_attempt_at = now()"
        )
        async with delivering(exports.url):

            async def all_given_up() -> bool:
                return all(one.next_attempt_at is None for one in await list_notifications(pool, 1, 10))

            await eventually_async(all_given_up)
        assert len(hook.received) == tries + 1
        found = await list_notifications(pool, 1, 10)
        assert [(one.sent_at, "http_503" in one.problem) for one in found] == [(None, True)] * 6


async def test_an_address_that_works_again_gets_all_that_waits_for_it(
    exports: Exports, receiver: ScriptedReceiver, authority: Authority, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    async with running_receiver(authority.server) as hook:
        hook.otherwise = status(503)
        await tell(pool, NotificationSettings((), hook.url, authority.ca_pem))
        async with delivering(exports.url):
            await stopped_jobs(exports, to, 4)
            await exports.execute("UPDATE notification SET next_attempt_at = now() + interval '50 minutes'")
            hook.otherwise = status(200)
            await exports.execute(
                "UPDATE notification SET next_attempt_at = now() "
                "WHERE notification_id = (SELECT min(notification_id) FROM notification)"
            )

            async def all_sent() -> bool:
                return all(one.sent_at for one in await list_notifications(pool, 1, 10))

            await eventually_async(all_sent)


async def test_a_mail_that_was_taken_is_sent_once_whatever_the_server_does_then(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, certificates: CertificateFiles
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    await tell(pool, NotificationSettings(("ops@example.org",)))
    async with running_smtp(certificates) as smtp:
        smtp.says_goodbye.clear()
        settings: dict[str, Any] = {
            "smtp_host": "localhost", "smtp_port": smtp.port, "smtp_ca_file": certificates.authority,
            "smtp_timeout_seconds": 1,
        }  # fmt: skip
        async with delivering(exports.url, **settings):
            await stopped_jobs(exports, to, 1)

            async def is_told() -> bool:
                return (await list_notifications(pool, 1, 10))[0].sent_at is not None

            await eventually_async(is_told)
        smtp.says_goodbye.set()
        assert len(smtp.messages) == 1


async def test_mail_without_a_host_waits_visibly_and_is_given_up_after_three_days(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    await tell(pool, NotificationSettings(("ops@example.org",)))

    async def problem() -> tuple[bool, bool]:
        [one] = await list_notifications(pool, 1, 10)
        return "no_smtp_host" in one.problem, one.next_attempt_at is not None

    async with delivering(exports.url):
        await stopped_jobs(exports, to, 1)
        await eventually_async(lambda: is_now(problem, (True, True)))
    await exports.execute(
        "UPDATE notification SET created_at = created_at - interval '73 hours', next_attempt_at = now()"
    )
    async with delivering(exports.url):
        await eventually_async(lambda: is_now(problem, (True, False)))


async def is_now(question: Callable[[], Awaitable[object]], answer: object) -> bool:
    return await question() == answer


@pytest.mark.parametrize("security", ["none", "tls"])
async def test_a_mail_server_that_dribbles_is_cut_off(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool, certificates: CertificateFiles,
    security: str,
) -> None:  # fmt: skip
    """Every read of it succeeds in time, and the greeting never ends."""
    await exports.seed(meters=1)
    await exports.close_windows(15, at(8), at(9))
    receiver.otherwise = status(410)
    ended = asyncio.Event()

    async def dribble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                writer.write(b"220-and then\r\n")
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await ended.wait()
        except OSError:
            pass
        finally:
            ended.set()
            writer.transport.abort()

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    listener = await asyncio.start_server(dribble, "127.0.0.1", 0, ssl=tls if security == "tls" else None)
    settings = {
        "smtp_host": "localhost", "smtp_port": listener.sockets[0].getsockname()[1], "smtp_security": security,
        "smtp_ca_file": certificates.authority, "smtp_timeout_seconds": 1,
    }  # fmt: skip
    await tell(pool, NotificationSettings(("ops@example.org",)))
    try:
        async with delivering(exports.url, **settings):
            await stopped_jobs(exports, to, 1)

            async def timed_out() -> bool:
                return "smtp_timeout" in (await list_notifications(pool, 1, 10))[0].problem

            await eventually_async(timed_out, 8)
            # The connection is ended, not only left behind with its thread.
            async with asyncio.timeout(5):
                await ended.wait()
    finally:
        ended.set()
        listener.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (NotificationSettings(("nobody",)), "no e-mail address"),
        (NotificationSettings(("a@b.c\r\nBcc: d@e.f",)), "no e-mail address"),
        (NotificationSettings((), "http://plain.example/"), "https://"),
        (NotificationSettings((), None, "x"), "no use without a webhook"),
    ],
)
async def test_settings_that_cannot_work_are_refused(
    exports: Exports, pool: Pool, settings: NotificationSettings, words: str
) -> None:
    await exports.seed(meters=1)
    with pytest.raises(UserError, match=words):
        await tell(pool, settings)
