"""One attempt over HTTPS, against real TLS servers that behave and misbehave."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from services.core.retry import Answer, Verdict
from services.core.schedule import Slot
from services.delivery.transports.base import Deadlines, Means, OutgoingPart
from services.delivery.transports.https import HttpsTransport
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from services.platform.outbound import Outbound, parse_networks
from tests.support.polling import eventually_async
from tests.support.receiver import (
    Answering,
    Authority,
    ScriptedReceiver,
    dribble,
    hang,
    hang_after_headers,
    make_authority,
    raw_server,
    running_receiver,
    status,
)

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
BODY = b'{"measurements":[]}'
PART = OutgoingPart(
    part_id="a1b2c3d4-job7-20261120T100000Z-part1",
    job_id=7,
    run_id="job7-20261120T100000Z",
    part=1,
    parts=2,
    slot=Slot(START, START + timedelta(hours=1)),
    resolution_minutes=15,
    row_count=1,
    sha256=hashlib.sha256(BODY).digest(),
    file_name="7-a_1of2.json",
    body=BODY,
)
DEADLINE_SECONDS = 1.0
LOOPBACK_ALLOWED = Outbound(parse_networks("127.0.0.0/8, ::1"))


@pytest.fixture
async def transport() -> AsyncIterator[HttpsTransport]:
    deadlines = Deadlines(connect=timedelta(seconds=0.5), total=timedelta(seconds=DEADLINE_SECONDS))
    transport = HttpsTransport(Means(deadlines, SystemClock(), LOOPBACK_ALLOWED))
    yield transport
    await transport.aclose()


async def send(transport: HttpsTransport, url: str, ca_pem: str | None) -> Answer:
    return await transport.destination({"url": url, "ca_pem": ca_pem}).send(PART)


async def answer_to(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, answering: Answering
) -> Answer:
    receiver.script.append(answering)
    return await send(transport, receiver.url, authority.ca_pem)


@pytest.mark.parametrize("code", [200, 201, 202, 204])
async def test_any_2xx_is_a_delivery(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, code: int
) -> None:
    answer = await answer_to(transport, receiver, authority, status(code))
    assert answer[:2] == (Verdict.DELIVERED, f"http_{code}")
    assert receiver.received[0].body == BODY
    assert receiver.received[0].part_id == PART.part_id


async def test_connections_are_kept_for_the_next_part(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    peers = set()

    async def remember_peer(_receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text="thank you")

    for _ in range(3):
        answer = await answer_to(transport, receiver, authority, remember_peer)
        assert answer.detail == "thank you"
    assert len(peers) == 1


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_what_may_pass_is_tried_again(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, code: int
) -> None:
    answer = await answer_to(transport, receiver, authority, status(code, "later"))
    assert answer == (Verdict.RETRY, f"http_{code}", "later", None)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 409, 410, 413, 415, 418, 422])
async def test_what_will_not_pass_stops_and_says_what_to_fix(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, code: int
) -> None:
    answer = await answer_to(transport, receiver, authority, status(code, "because"))
    assert answer[:2] == (Verdict.STOP, f"http_{code}")
    assert answer.detail.endswith("it said: because")
    assert len(answer.detail) > len("it said: because") + 20


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, code: int
) -> None:
    answer = await answer_to(transport, receiver, authority, status(code, headers={"Location": "/elsewhere"}))
    assert answer[:2] == (Verdict.STOP, f"http_{code}")
    assert "final URL" in answer.detail
    assert len(receiver.received) == 1


async def test_retry_after_in_seconds_and_as_a_date(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    seconds = await answer_to(transport, receiver, authority, status(429, headers={"Retry-After": "120"}))
    assert seconds.retry_after == timedelta(seconds=120)
    then = SystemClock().now() + timedelta(minutes=10)
    date = await answer_to(
        transport, receiver, authority, status(503, headers={"Retry-After": format_datetime(then, usegmt=True)})
    )
    assert date.retry_after is not None
    assert timedelta(minutes=9) < date.retry_after <= timedelta(minutes=10)
    past = await answer_to(
        transport, receiver, authority, status(503, headers={"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"})
    )
    assert past.retry_after == timedelta()
    for nonsense in ("soon", "-1", "1e9", "9" * 40, "Fri, 1 Jan 99999999999999 12:00:00 GMT"):
        answer = await answer_to(transport, receiver, authority, status(503, headers={"Retry-After": nonsense}))
        assert (answer.verdict, answer.retry_after) == (Verdict.RETRY, None)


async def test_the_receivers_words_are_shortened_and_printable(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    answer = await answer_to(transport, receiver, authority, status(500, "\x1b[2J<b>é\n\n\x00" + "x" * 100_000))
    assert answer.detail == "[2J<b>é " + "x" * 192


async def test_a_certificate_of_an_unknown_authority_is_refused(
    transport: HttpsTransport, receiver: ScriptedReceiver, tmp_path: Path
) -> None:
    """Neither the system's authorities nor another one of the job's own will do."""
    stranger = make_authority(tmp_path)
    for ca_pem in (None, stranger.ca_pem):
        answer = await send(transport, receiver.url, ca_pem)
        assert answer[:2] == (Verdict.STOP, "certificate_refused")
        assert "ca_pem" in answer.detail
    assert receiver.received == []


async def test_a_certificate_for_another_host_is_refused(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    """127.0.0.2 reaches no other machine, but the certificate does not name it."""
    async with running_receiver(authority.server, host="127.0.0.2") as elsewhere:
        answer = await send(transport, f"https://127.0.0.2:{elsewhere.port}/", authority.ca_pem)
    assert answer[:2] == (Verdict.STOP, "certificate_refused")
    assert elsewhere.received == []


async def test_a_server_that_never_answers_is_cut_off(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    begun = time.monotonic()
    answer = await answer_to(transport, receiver, authority, hang())
    assert answer[:2] == (Verdict.RETRY, "timeout")
    assert DEADLINE_SECONDS <= time.monotonic() - begun < DEADLINE_SECONDS + 2


async def test_headers_that_dribble_in_are_cut_off(transport: HttpsTransport, authority: Authority) -> None:
    begun = time.monotonic()
    async with raw_server(authority.server, b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 500, every_seconds=0.02) as url:
        answer = await send(transport, url, authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "timeout")
    assert time.monotonic() - begun < DEADLINE_SECONDS + 2


@pytest.mark.parametrize("answering", [hang_after_headers, dribble])
@pytest.mark.parametrize(("code", "verdict"), [(200, Verdict.DELIVERED), (503, Verdict.RETRY), (410, Verdict.STOP)])
async def test_the_status_is_the_answer_however_long_the_body_takes(
    receiver: ScriptedReceiver, authority: Authority, answering: Callable[[int], Answering], code: int, verdict: Verdict
) -> None:
    """A receiver that took the part is not sent it again because its page never ends."""
    deadlines = Deadlines(timedelta(seconds=1), timedelta(seconds=30), words=timedelta(seconds=0.3))
    transport = HttpsTransport(Means(deadlines, SystemClock(), LOOPBACK_ALLOWED))
    begun = time.monotonic()
    answer = await answer_to(transport, receiver, authority, answering(code))
    assert answer[:2] == (verdict, f"http_{code}")
    assert time.monotonic() - begun < 5
    await transport.aclose()


async def test_a_status_that_comes_at_the_last_moment_is_the_answer(
    receiver: ScriptedReceiver, authority: Authority
) -> None:
    """The time for its words is what is left, so that a part that was taken is not sent again."""
    deadlines = Deadlines(timedelta(seconds=1), timedelta(seconds=4), words=timedelta(seconds=4))
    transport = HttpsTransport(Means(deadlines, SystemClock(), LOOPBACK_ALLOWED))
    begun = time.monotonic()

    async def late(receiver: ScriptedReceiver, request: web.Request) -> web.StreamResponse:
        await eventually_async(lambda: time.monotonic() - begun > 2.8)
        return await hang_after_headers(200)(receiver, request)

    answer = await answer_to(transport, receiver, authority, late)
    assert answer[:2] == (Verdict.DELIVERED, "http_200")
    assert time.monotonic() - begun < 4
    await transport.aclose()


async def test_a_server_that_is_not_there(transport: HttpsTransport, authority: Authority) -> None:
    async with running_receiver(authority.server) as gone:
        url = gone.url
    answer = await send(transport, url, authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "connection_refused")


async def test_a_host_that_has_no_address(transport: HttpsTransport, authority: Authority) -> None:
    answer = await send(transport, "https://meterpost-test.invalid/", authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "name_not_resolved")


async def test_a_server_that_speaks_no_tls(transport: HttpsTransport, authority: Authority) -> None:
    async with raw_server(None, b"220 ready\r\n", every_seconds=0.01) as url:
        answer = await send(transport, url, authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "tls_failed")


async def test_a_server_that_accepts_and_says_nothing(transport: HttpsTransport, authority: Authority) -> None:
    """Not even the TLS handshake: the connect deadline ends it."""
    async with raw_server(None, b"", every_seconds=0.05) as url:
        answer = await send(transport, url, authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "connect_timeout")


async def test_an_answer_that_is_not_http(transport: HttpsTransport, authority: Authority) -> None:
    async with raw_server(authority.server, b"220 ready\r\n", every_seconds=0.001) as url:
        answer = await send(transport, url, authority.ca_pem)
    assert answer[:2] == (Verdict.RETRY, "bad_answer")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"url": 5},
        {"url": "http://plain.example/"},
        {"url": "https://"},
        {"url": "https://host:99999/"},
        {"url": "ftp://host/"},
        {"url": "https://host/", "ca_pem": "no certificate"},
        {"url": "https://host/", "ca_pem": 5},
    ],
)
async def test_settings_of_no_use_are_named(transport: HttpsTransport, settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r'"(url|ca_pem)"'):
        transport.destination(settings)


async def test_where_a_job_sends_to(transport: HttpsTransport) -> None:
    assert transport.destination({"url": "https://Example.org/in"}).address == "example.org:443"
    assert transport.destination({"url": "HTTPS://[::1]:8443/in?a=b"}).address == "::1:8443"
