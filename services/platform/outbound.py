"""Where we connect for customers: never into private or special networks, judged by the address really used.

A customer names a host; where its name leads is the customer's to say, and may differ from one look-up to the next.
So a name is resolved once, every address is judged, and the connection goes to an address that passed.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from services.platform.errors import MeterpostError, UserError
from services.platform.resolving import Resolver

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's registries of special-purpose addresses in full, so that nothing depends on which of them this Python knows,
# and a few more that are nobody's server: multicast, deprecated forms, and the host services of large clouds.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
            "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
            "168.63.129.16/32",
            "::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32",
            "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
        ),
    )
)  # fmt: skip
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What an ISATAP address has before the IPv4 address at its end, for private and for public ones (RFC 5214).
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


class ForbiddenAddress(MeterpostError):  # noqa: N818 - a state of the destination, reads as one
    """The destination lies in a private or special network that is not on the allow-list."""


class NotResolved(MeterpostError):  # noqa: N818 - as above
    """The host's name has no address, or the resolver does not answer."""


class Target(NamedTuple):
    """An address that passed."""

    family: socket.AddressFamily
    address: str
    port: int


class Outbound:
    """Judges addresses and connects to those that pass; `allowed` networks pass whatever they are."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)
        self._resolver = Resolver()

    def close(self) -> None:
        """Take no more names; does not wait for look-ups that hang."""
        self._resolver.close()

    def check(self, address: str) -> None:
        """Raise ForbiddenAddress unless a connection to this IP address is allowed."""
        try:
            judged = ipaddress.ip_address(address)
        except ValueError:
            raise ForbiddenAddress(f"{address} is not an IP address") from None
        if not self._may_reach(judged):
            raise ForbiddenAddress(
                f"{address} lies in a private or special network: give the job a public address, or have the operator "
                "add the network to METERPOST_ALLOWED_DESTINATIONS"
            )

    def check_literal(self, host: str) -> None:
        """Raise ForbiddenAddress for an IP address that is not allowed; a name is judged when it is resolved."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        self.check(host)

    def _may_reach(self, address: Address) -> bool:
        if self._is_allowed(address):
            return True
        places = [_unwrapped(address)]
        tunnelled = _tunnelled(address)
        if tunnelled is not None:
            places.append(tunnelled)
        return all(self._is_allowed(place) or _is_public(place) for place in places)

    def _is_allowed(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._allowed)

    async def resolve(self, host: str, port: int) -> list[Target]:
        """Return the host's addresses that pass, in the resolver's order; an IP address stands for itself.

        Raises NotResolved, and ForbiddenAddress where no address passes.
        """
        try:
            found = await self._resolver.look_up(host, port)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
            raise NotResolved(f"the host {host!r} has no address: {reason}") from None
        targets = []
        refusal: ForbiddenAddress | None = None
        for family, _kind, _protocol, _name, place in found:
            try:
                self.check(str(place[0]))
            except ForbiddenAddress as error:
                refusal = error
            else:
                targets.append(Target(family, str(place[0]), port))
        if not targets:
            raise refusal or NotResolved(f"the host {host!r} has no address")
        return targets

    async def connect(self, host: str, port: int) -> socket.socket:
        """Return a connected, non-blocking socket to the first of the host's addresses that answers.

        Raises as `resolve`, and OSError where none answers. Deadlines are the caller's: cancelling closes everything.
        """
        return await connect(await self.resolve(host, port))


async def connect(targets: Sequence[Target]) -> socket.socket:
    """Return a connected, non-blocking socket to the first target that answers. Raises OSError where none does."""
    failure = OSError(errno.EADDRNOTAVAIL, "there is no address to connect to")
    for family, address, port in targets:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (address, port))
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
    raise failure


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a comma-separated list such as `10.0.0.0/8, ::1`. Raises UserError."""
    networks = []
    for piece in filter(None, map(str.strip, text.split(","))):
        try:
            networks.append(ipaddress.ip_network(piece))
        except ValueError as error:
            raise UserError(f"{piece!r} is not a network such as 10.0.0.0/8: {error}") from None
    return tuple(networks)


def _is_public(address: Address) -> bool:
    is_special = any(address.version == network.version and address in network for network in _SPECIAL)
    return address.is_global and not is_special


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that a mapped, NAT64 or 6to4 address leads to; any other address as it is."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    with suppress(ValueError):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _tunnelled(address: Address) -> Address | None:
    """Return the IPv4 address inside an ISATAP one, which has any prefix at all; None where it is none."""
    if isinstance(address, ipaddress.IPv6Address) and (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
