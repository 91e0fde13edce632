"""The transports there are, by the name that jobs and processes call them."""

from collections.abc import Callable, Mapping

from services.delivery.transports.base import Means, Transport
from services.delivery.transports.ftps import FtpsTransport
from services.delivery.transports.https import HttpsTransport
from services.delivery.transports.sftp import SftpTransport

TRANSPORTS: Mapping[str, Callable[[Means], Transport]] = {
    "https": HttpsTransport,
    "sftp": SftpTransport,
    "ftps": FtpsTransport,
}
