"""Where the hosted folder is: what a customer's SFTP client has to be told, and what its user compares."""

import asyncio

import msgspec

from services.api.http.call import Call
from services.api.http.endpoint import Answer, Endpoint
from services.core.file_transfer import fingerprint
from services.platform.errors import OperatorNeeded
from services.platform.hosted import HostedAddress, HostedNotReady


class HostKey(msgspec.Struct, frozen=True):
    """A key by which the server proves that it is the right one; `public_key` is as in `known_hosts`."""

    type: str
    fingerprint: str
    public_key: str


class HostedFolderPlace(msgspec.Struct, frozen=True):
    """Where the hosted folder is reached by SFTP; null and empty where the operator has not said it."""

    host: str | None
    port: int | None
    host_keys: list[HostKey]


async def show_place(call: Call) -> Answer:
    """Tell the address and the keys; the file with these is read anew, so a rotation is seen."""
    address = call.means.settings.hosted_address()
    return Answer(HostedFolderPlace(None, None, []) if address is None else await asyncio.to_thread(_place, address))


def _place(address: HostedAddress) -> HostedFolderPlace:
    try:
        keys = [HostKey(line.split()[0], fingerprint(line), line) for line in address.host_keys()]
    except HostedNotReady as error:
        raise OperatorNeeded(str(error)) from error
    return HostedFolderPlace(address.host, address.port, keys)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/hosted-folder", "show_hosted_folder", "Where the hosted folder is, and its host keys"),
        *(show_place, "viewer", HostedFolderPlace),
    ),
)
