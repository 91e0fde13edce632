"""Why Kafka does not take us: aiokafka itself tells a refused login or certificate no different from an absence."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from services.platform.errors import MeterpostError, Unavailable, UserError
from services.platform.kafka_access import (
    CA_FILE_VARIABLE,
    CERTIFICATE_FILE_VARIABLE,
    KEY_FILE_VARIABLE,
    MECHANISM_VARIABLE,
    PASSWORD_FILE_VARIABLE,
    PASSWORD_VARIABLE,
    PROTOCOL_VARIABLE,
    USERNAME_VARIABLE,
    KafkaAccess,
)

ASK_SECONDS = 10
CLOSE_SECONDS = 1
CLIENT = "meterpost"
_AWAY = (KafkaError, OSError, TimeoutError)
_LOGIN_REFUSED = (SaslAuthenticationFailed, AuthenticationFailedError)
_LOGIN_UNKNOWN = (UnsupportedSaslMechanismError, IllegalSaslStateError, AuthenticationMethodNotSupported)
_UNPROVED = (ValueError, AssertionError)  # what the client raises where the broker's own proof is wrong
_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_OF_OUR_CERTIFICATE = ("ALERT_CERTIFICATE", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_HANDSHAKE_FAILURE")
_WRONG_NAME = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


class KafkaRefusedError(UserError):
    """A broker does not take our login or certificate, or we do not take its: no waiting mends it."""


class KafkaHangsUp(Unavailable):
    """A broker took the connection and ended it: it is away for now, or we speak to it in the wrong way."""


class _Connection(AIOKafkaConnection):  # type: ignore[misc] # the base class ships no types
    """A connection whose end can be waited for, also when it is refused.

    TLS says goodbye before it closes: a connection that is left in the middle of it stays open. aiokafka begins to
    close one that is refused while it is made, but waits for nothing and leaves nobody anything to wait for.
    """

    _transport: asyncio.WriteTransport | None = None
    """What to close at the end; None where no connection came about."""

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        if self._writer is not None:
            self._transport = self._writer.transport
        return super().close(reason, exc)

    async def end(self) -> None:
        """Close it, and without a goodbye where the broker takes its time over that."""
        closed = self.close()
        if self._transport is None:
            return
        try:
            await asyncio.wait([closed], timeout=CLOSE_SECONDS)
        finally:
            self._transport.abort()


async def start_client(
    access: KafkaAccess,
    start: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    *,
    deadline_s: float,
) -> None:
    """Start a client of aiokafka; one that failed is closed.

    Raises KafkaRefusedError where the brokers that answer refuse us, Unavailable where waiting may help.
    """
    try:
        if access.is_secured:
            # Told at once: past the first broker the client itself would go on trying in silence.
            await ensure_accepted(access)
        async with asyncio.timeout(deadline_s):
            await start()
    except _AWAY as error:
        await close()
        await ensure_accepted(access)
        raise Unavailable(f"Kafka does not answer: {error!r}") from error
    except MeterpostError:
        await close()
        raise


async def ensure_accepted(access: KafkaAccess) -> None:
    """Return where a broker takes us, or none can be reached.

    Raises KafkaRefusedError where those that can be reached refuse us, KafkaHangsUp where they hang up without a word.
    """
    found: list[MeterpostError] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(ASK_SECONDS):
            if await _is_accepted(access, found):
                return
    for error in sorted(found, key=lambda error: not isinstance(error, KafkaRefusedError)):
        raise error


async def refusal(access: KafkaAccess) -> str | None:
    """Return why the brokers refuse us; None where they do not, or hang up without a word."""
    try:
        await ensure_accepted(access)
    except KafkaRefusedError as error:
        return str(error)
    except KafkaHangsUp:
        pass
    return None


async def _is_accepted(access: KafkaAccess, found: list[MeterpostError]) -> bool:
    """Ask the brokers that are named, then those that they name; note in `found` what they have against us."""
    asked: set[tuple[str, int]] = set()
    waiting = [(host, port) for host, port, _family in collect_hosts(access.bootstrap_servers)]
    while waiting:
        address = waiting.pop(0)
        asked.add(address)
        try:
            brokers = await _brokers(access, *address)
        except MeterpostError as error:
            found.append(error)
        except _AWAY:
            continue
        else:
            # Of the first that takes us count those alone that it names: there everything else is done.
            if address in brokers:
                return True
            found.clear()
            waiting = [one for one in brokers if one not in asked]
    return False


async def _brokers(access: KafkaAccess, host: str, port: int) -> list[tuple[str, int]]:
    """Log in to a broker and return which brokers it names. Raises what keeps it from us."""
    settings = {**access.client_settings(), "client_id": CLIENT, "request_timeout_ms": ASK_SECONDS * 1000 // 2}
    del settings["bootstrap_servers"]
    connection = _Connection(host, port, **settings)
    try:
        try:
            await connection.connect()
            answer = await connection.send(MetadataRequest([]))
        finally:
            await connection.end()
    except (*_AWAY, *_UNPROVED) as error:
        verdict = _verdict(access, f"the Kafka broker at {host}:{port}", error)
        if verdict is None:
            raise
        raise verdict from error
    return [(broker[1], broker[2]) for broker in answer.brokers]


def _verdict(access: KafkaAccess, broker: str, error: BaseException) -> MeterpostError | None:
    """Return the sentence about it; None where there is nothing to say but that the broker is away."""
    cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _ENDED):
        return KafkaRefusedError(f"{broker} {_about_tls(access, cause)}")
    if access.login is not None and isinstance(error, _LOGIN_REFUSED):
        return KafkaRefusedError(
            f"{broker} refuses the login of {access.login.username} by {access.login.mechanism}: {_said(error)}. Set "
            f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE} (or {PASSWORD_FILE_VARIABLE}) as it knows them"
        )
    if access.login is not None and isinstance(error, _LOGIN_UNKNOWN):
        return KafkaRefusedError(
            f"{broker} does not take logins by {access.login.mechanism}: {_said(error)}. Set {MECHANISM_VARIABLE} and "
            f"{PROTOCOL_VARIABLE} as its listener has them"
        )
    if access.login is not None and isinstance(error, _UNPROVED) and not isinstance(error, UnicodeError):
        return KafkaRefusedError(f"{broker} does not prove that it knows the password of {access.login.username}")
    if isinstance(error, (KafkaConnectionError, ConnectionResetError, *_ENDED)):
        return KafkaHangsUp(
            f"{broker} hangs up without an answer: it is ending, or its listener wants another "
            f"{PROTOCOL_VARIABLE} than {access.security_protocol}"
        )
    return None


def _about_tls(access: KafkaAccess, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        shown = f"shows a certificate that is not accepted: {error.verify_message.rstrip('.')}. "
        if error.verify_code in _WRONG_NAME:
            return shown + (
                "Name it in METERPOST_KAFKA_BOOTSTRAP_SERVERS, and in its advertised.listeners, as the certificate does"
            )
        return shown + f"{CA_FILE_VARIABLE} must hold the authority that it is from"
    if any(word in str(error.reason) for word in _OF_OUR_CERTIFICATE):
        return (
            f"refuses the connection by TLS ({error.reason}): it wants a certificate that it trusts, in "
            f"{CERTIFICATE_FILE_VARIABLE} and {KEY_FILE_VARIABLE}"
        )
    return (
        f"does not speak TLS as we do ({error.reason}): is {PROTOCOL_VARIABLE}={access.security_protocol} what its "
        "listener has?"
    )


def _said(error: BaseException) -> str:
    """Return the broker's own words, which repeat no password."""
    words = error.args[0] if error.args else None
    return words.rstrip(".") if isinstance(words, str) and words else type(error).__name__
