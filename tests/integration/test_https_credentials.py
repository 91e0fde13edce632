"""Who we are to an HTTPS receiver: authentication, own headers, client certificates, signatures; on real servers."""

import base64
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from services.core.retry import Answer, Verdict
from services.core.webhooks import check_header, signing_key
from services.delivery.transports.base import Deadlines, Means
from services.delivery.transports.http_answers import answer_of_error
from services.delivery.transports.https import HttpsTransport
from services.local.certificates import ensure_certificates
from services.platform.clock import SystemClock
from services.platform.errors import UserError
from tests.integration.test_https_transport import BODY, LOOPBACK_ALLOWED, PART
from tests.support.client_certificate import ClientCertificate, make_client_certificate
from tests.support.planted import MARKER, planted
from tests.support.receiver import Authority, ScriptedReceiver, running_receiver, status

OLD, NEW, FOREIGN = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n", b"f"))
TOKEN = f"tok-{MARKER}"


@pytest.fixture
async def transport() -> AsyncIterator[HttpsTransport]:
    transport = HttpsTransport(
        Means(Deadlines(timedelta(seconds=2), timedelta(seconds=4)), SystemClock(), LOOPBACK_ALLOWED)
    )
    yield transport
    await transport.aclose()


async def send(transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority, **settings: Any) -> Answer:
    destination = transport.destination({"url": receiver.url, "ca_pem": authority.ca_pem, **settings})
    return await destination.send(PART)


async def test_no_authentication_sends_no_credentials(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    await send(transport, receiver, authority)
    [request] = receiver.received
    assert not {"Authorization", "webhook-signature"} & set(request.headers)


async def test_basic_and_bearer_and_headers_of_the_customers(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    await send(transport, receiver, authority, auth="basic", username="zoë", password=f"pass:wörd-{MARKER}")
    await send(
        transport, receiver, authority, auth="bearer", token=TOKEN, headers={"X-Api-Key": "k 1", "Cookie": "a=b"}
    )
    basic, bearer = (request.headers for request in receiver.received)
    scheme, encoded = basic["Authorization"].split(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", f"zoë:pass:wörd-{MARKER}")
    assert bearer["Authorization"] == f"Bearer {TOKEN}"
    assert (bearer["X-Api-Key"], bearer["Cookie"]) == ("k 1", "a=b")
    assert bearer["webhook-id"] == PART.part_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "a\r\nX-B: b"),
        ("X-A", "a\nb"),
        ("X-A", "a\x00"),
        ("X-A", ""),
        ("X-A", " a"),
        ("X-A", "é"),
        ("X-A", "a" * 8_001),
        ("X A", "a"),
        ("X-A\r\nX-B", "a"),
        ("", "a"),
        ("Host", "a"),
        ("content-TYPE", "a"),
        ("Transfer-Encoding", "chunked"),
        ("Authorization", "a"),
        ("Webhook-Id", "a"),
        ("meterpost-rows", "1"),
    ],
)
async def test_headers_that_cannot_be_given_are_refused_without_their_value(
    transport: HttpsTransport, name: str, value: str
) -> None:
    with pytest.raises(ValueError, match="header"):
        check_header(name, value)
    with pytest.raises(UserError, match="header") as caught:
        transport.destination({"url": "https://localhost/", "headers": {name: value}})
    assert len(value) < 3 or value not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"auth": "basic", "username": "u"},
        {"auth": "basic", "password": "p"},
        {"auth": "basic", "username": "a:b", "password": "p"},
        {"auth": "basic", "username": "u", "password": "p\r\nx"},
        {"auth": "bearer"},
        {"auth": "bearer", "token": "a b"},
        {"auth": "bearer", "token": "a\r\nb"},
        {"auth": "digest"},
        {"signing_secrets": ["whsec_short"]},
        {"signing_secrets": [OLD.removeprefix("whsec_")]},
        {"client_certificate": "x"},
        {"client_key": "x"},
        {"client_certificate": "x", "client_key": "y"},
    ],
)
async def test_credentials_of_no_use_are_refused(transport: HttpsTransport, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="transport settings: "):
        transport.destination({"url": "https://localhost/", **settings})


async def test_the_published_library_verifies_every_key_of_a_rotation(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    """Two keys, two signatures: a receiver that knows either one accepts; ids stay, timestamps are the attempt's."""
    for _ in range(2):
        await send(transport, receiver, authority, signing_secrets=[NEW, OLD])
    now = SystemClock().now().timestamp()
    for request in receiver.received:
        assert request.headers["webhook-signature"].count("v1,") == 2
        for secret in (OLD, NEW):
            assert Webhook(secret).verify(request.body, dict(request.headers)) == {"measurements": []}
        with pytest.raises(WebhookVerificationError):
            Webhook(FOREIGN).verify(request.body, dict(request.headers))
        with pytest.raises(WebhookVerificationError):
            Webhook(OLD).verify(request.body + b" ", dict(request.headers))
        assert abs(int(request.headers["webhook-timestamp"]) - now) < 60
    assert {request.part_id for request in receiver.received} == {PART.part_id}
    assert signing_key(OLD) == b"o" * 32


async def test_a_receiver_that_repeats_our_secrets_does_not_bring_them_into_our_tables(
    transport: HttpsTransport, receiver: ScriptedReceiver, authority: Authority
) -> None:
    """A debugging page with all headers, cut off anywhere."""
    password = planted("horse battery")
    encoded = base64.b64encode(f"u:{password}".encode()).decode()
    for before in range(0, 230, 7):
        receiver.script.append(status(401, "x" * before + f"{password} {encoded} k-e-y-planted {NEW}"))
        answer = await send(
            transport, receiver, authority, auth="basic", username="u", password=password,
            headers={"X-Key": "k-e-y-planted"}, signing_secrets=[NEW],
        )  # fmt: skip
        assert answer.verdict is Verdict.STOP
        for secret in (password, encoded, "k-e-y-planted", NEW):
            assert secret[:5] not in answer.detail
    destination = transport.destination(
        {"url": receiver.url, "auth": "basic", "username": "u", "password": password, "signing_secrets": [NEW]}
    )
    for secret in (password, encoded, NEW, str(signing_key(NEW))):
        assert secret not in repr(destination)


@pytest.fixture(scope="module")
def client() -> ClientCertificate:
    return make_client_certificate()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def choosy(
    client: ClientCertificate, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[ScriptedReceiver, str]]:
    """Give a server that lets in whoever shows a certificate of the client's authority, and what to trust it by."""
    files = ensure_certificates(tmp_path, SystemClock().now())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    context.maximum_version = request.param
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=client.authority)
    async with running_receiver(context) as receiver:
        yield receiver, files.authority.read_text(encoding="ascii")


async def test_a_client_certificate_opens_the_door(
    transport: HttpsTransport, choosy: tuple[ScriptedReceiver, str], client: ClientCertificate
) -> None:
    receiver, ca_pem = choosy
    names: list[Any] = []

    async def remember(_receiver: ScriptedReceiver, request: web.Request) -> web.Response:
        assert request.transport is not None
        names.append(request.transport.get_extra_info("peercert")["subject"])
        return web.Response()

    receiver.script.append(remember)
    shown = {"client_certificate": client.certificate, "client_key": client.key}
    answer = await transport.destination({"url": receiver.url, "ca_pem": ca_pem, **shown}).send(PART)
    assert answer[:2] == (Verdict.DELIVERED, "http_200")
    assert names == [((("commonName", "meterpost"),),)]
    assert receiver.received[0].body == BODY


async def test_without_it_or_with_a_strangers_the_door_stays_shut(
    transport: HttpsTransport, choosy: tuple[ScriptedReceiver, str]
) -> None:
    receiver, ca_pem = choosy
    stranger = make_client_certificate("stranger")
    strangers = {"client_certificate": stranger.certificate, "client_key": stranger.key}
    for shown in ({}, strangers):
        answer = await transport.destination({"url": receiver.url, "ca_pem": ca_pem, **shown}).send(PART)
        assert answer.verdict is not Verdict.DELIVERED
    assert receiver.received == []


@pytest.mark.parametrize(
    ("alert", "verdict"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", Verdict.STOP),
        ("TLSV1_ALERT_UNKNOWN_CA", Verdict.STOP),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", Verdict.STOP),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", Verdict.RETRY),
        ("TLSV1_ALERT_INTERNAL_ERROR", Verdict.RETRY),
    ],
)
def test_what_the_server_says_of_our_certificate_is_understood(alert: str, verdict: Verdict) -> None:
    """Most servers hang up so soon after this word that it is seldom heard; so no server is asked here."""
    heard = ssl.SSLError(1, f"[SSL: {alert}] alert")
    heard.reason = alert
    lost = ConnectionResetError(104, "reset")
    lost.__cause__ = heard
    assert answer_of_error(heard).verdict is verdict
    assert answer_of_error(lost).verdict is verdict


async def test_a_key_that_is_not_the_certificates_is_refused(
    transport: HttpsTransport, client: ClientCertificate
) -> None:
    other = make_client_certificate()
    with pytest.raises(UserError, match="client_certificate") as caught:
        transport.destination(
            {"url": "https://localhost/", "client_certificate": client.certificate, "client_key": other.key}
        )
    assert other.key.splitlines()[1] not in str(caught.value)
