"""The steps that every connection test begins with: find the host, reach it, and for TLS trust its certificate."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

from services.delivery.transports.base import Means, Step
from services.platform.outbound import ForbiddenAddress, NotResolved, Target, connect


class Reached:
    """What the first steps found; `connection` is None where one of them failed."""

    def __init__(self) -> None:
        self.connection: socket.socket | None = None


async def reach(means: Means, host: str, port: int, reached: Reached) -> AsyncIterator[Step]:
    """Resolve the host and connect to it, through the judgement of addresses."""
    try:
        async with asyncio.timeout(means.deadlines.connect.total_seconds()):
            targets = await means.outbound.resolve(host, port)
    except ForbiddenAddress as error:
        yield Step("resolve", False, f"nothing is sent there: {error}")
        return
    except NotResolved as error:
        yield Step("resolve", False, f"{error}; correct the host's name, or its entry in the DNS")
        return
    except TimeoutError:
        yield Step("resolve", False, f"no name server told the address of {host!r} in time; try again")
        return
    yield Step("resolve", True, f"{host} is {_list(targets)}")
    try:
        async with asyncio.timeout(means.deadlines.connect.total_seconds()):
            reached.connection = await connect(targets)
    except TimeoutError:
        yield Step("reach", False, f"port {port} did not accept a connection in time: is a firewall in between?")
    except OSError as error:
        yield Step("reach", False, f"port {port} does not accept connections ({error.strerror}): does the server run?")
    else:
        yield Step("reach", True, f"port {port} accepts connections")


async def check_https(means: Means, host: str, port: int, context: Callable[[], ssl.SSLContext]) -> AsyncIterator[Step]:
    """Resolve, reach, and verify the certificate for the host's name."""
    reached = Reached()
    async for step in reach(means, host, port, reached):
        yield step
    if reached.connection is not None:
        yield await _trust(reached.connection, host, context(), means.deadlines.connect)


async def _trust(connection: socket.socket, host: str, context: ssl.SSLContext, within: timedelta) -> Step:
    try:
        async with asyncio.timeout(within.total_seconds()):
            _reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=host)
    except (OSError, TimeoutError) as error:
        connection.close()
        return Step("trust", False, trust_problem(error))
    version = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return Step("trust", True, f"the certificate is trusted and names {host}; {version}")


def trust_problem(error: Exception) -> str:
    """Return the sentence for a TLS connection that did not come about."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted: {error.verify_message}; install the right one there, or give the job the "
            "authority's certificate"
        )
    if isinstance(error, TimeoutError):
        return "the server did not complete the TLS handshake in time: does this port speak TLS?"
    return f"no TLS connection came about: does this port speak TLS? ({error})"


def _list(targets: list[Target]) -> str:
    return ", ".join(target.address for target in targets[:4]) + (", …" if len(targets) > 4 else "")
