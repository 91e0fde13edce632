"""Which addresses a customer's server may have, and that the one that was judged is the one connected to."""

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from services.platform.errors import UserError
from services.platform.outbound import ForbiddenAddress, NotResolved, Outbound, parse_networks

PUBLIC = [
    "8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.1", "192.167.255.255", "100.63.255.255",
    "100.128.0.1", "169.253.0.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e", "2001:200::1", "2a00:1450::200:5efe:808:808", "2a00:1450::5eff:7f00:1",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip
FORBIDDEN = [
    # this host, loopback, private networks, shared by carriers, link-local (with the clouds' metadata)
    "0.0.0.1", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.0.0.1", "10.255.255.255", "172.16.0.1",
    "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "169.254.169.254", "168.63.129.16",
    # protocol assignments, documentation, benchmarks, relays, multicast, reserved, broadcast
    "192.0.0.1", "192.0.0.170", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255",
    "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255",
    # the same in IPv6
    "::", "::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1", "100:0:0:1::1",
    "2001:db8::1", "3fff::1", "5f00::1", "2001::1", "2001:10::1", "2001:20::1", "2620:4f:8000::1", "64:ff9b:1::1",
    # IPv4 in IPv6's clothes: mapped, compatible, translated, NAT64, 6to4
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1",
    "2002:a00:1::1", "2002:c0a8:101::1",
    # ISATAP behind any prefix: what it leads to and what it lies in are both judged
    "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a00:1", "2a00:1450::5efe:a9fe:a9fe", "fe80::5efe:808:808",
    "2002:808:808::5efe:7f00:1", "2002:7f00:1::5efe:808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    Outbound().check(address)


@pytest.mark.parametrize("address", FORBIDDEN)
def test_private_and_special_addresses_do_not(address: str) -> None:
    with pytest.raises(ForbiddenAddress, match="METERPOST_ALLOWED_DESTINATIONS"):
        Outbound().check(address)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "2130706433", "0x7f.1", "127.0.0.1.", "[::1]"])
def test_what_is_no_address_does_not_pass(text: str) -> None:
    with pytest.raises(ForbiddenAddress):
        Outbound().check(text)


def test_allowed_networks_pass_in_every_form_and_no_others() -> None:
    outbound = Outbound(parse_networks(" 10.1.0.0/16 ,::1,"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "::1", "8.8.8.8", "2a00::5efe:a01:203"):
        outbound.check(address)
    for address in ("10.2.0.1", "127.0.0.1", "::ffff:10.2.0.1", "fe80::5efe:a01:203"):
        with pytest.raises(ForbiddenAddress):
            outbound.check(address)


def test_everything_that_python_calls_private_is_forbidden() -> None:
    """Networks of whatever registry this Python knows; ours may be stricter, never laxer."""
    for number in range(256):
        for second in (0, 18, 63, 64, 100, 127, 128, 168, 254):
            address = ipaddress.ip_address(f"{number}.{second}.0.1")
            if not address.is_global:
                with pytest.raises(ForbiddenAddress):
                    Outbound().check(str(address))


@pytest.mark.parametrize("text", ["10.0.0.1/8", "example.org", "10.0.0.0/33"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(UserError, match="is not a network"):
        parse_networks(text)


async def test_numbers_that_mean_an_address_are_judged_as_that_address() -> None:
    for host in ("2130706433", "127.1", "0x7f000001", "localhost"):
        with pytest.raises(ForbiddenAddress):
            await Outbound().resolve(host, 443)


async def test_a_host_without_address_is_not_resolved() -> None:
    for host in ("meterpost-test.invalid", "a..b", "x" * 70 + ".example"):
        with pytest.raises(NotResolved):
            await Outbound().resolve(host, 443)


async def test_a_name_is_looked_up_once_and_only_addresses_that_pass_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers differently at each look: what was judged is what is connected to."""
    looks = []

    def rebinding(host: str, port: int, **_more: Any) -> list[Any]:
        looks.append(host)
        addresses = ("192.168.1.1", "127.0.0.1" if len(looks) == 1 else "10.0.0.1", "10.1.1.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    outbound = Outbound(parse_networks("127.0.0.1"))
    accepted = asyncio.Event()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    server = await asyncio.start_server(accept, sock=listener)
    connected = await outbound.connect("rebinding.example", listener.getsockname()[1])
    assert connected.getpeername()[0] == "127.0.0.1"
    assert looks == ["rebinding.example"]
    connected.close()
    await accepted.wait()
    server.close()
    with pytest.raises(ForbiddenAddress):
        await outbound.connect("rebinding.example", 443)
