"""The transports there are, by the name that jobs and processes call them.

Each is imported when it is made: no process waits for the libraries of the others.
"""

from collections.abc import Callable, Mapping

from services.delivery.transports.base import Means, Transport


def _https(means: Means) -> Transport:
    from services.delivery.transports.https import HttpsTransport  # noqa: PLC0415 - see above

    return HttpsTransport(means)


def _sftp(means: Means) -> Transport:
    from services.delivery.transports.sftp import SftpTransport  # noqa: PLC0415 - see above

    return SftpTransport(means)


def _ftps(means: Means) -> Transport:
    from services.delivery.transports.ftps import FtpsTransport  # noqa: PLC0415 - see above

    return FtpsTransport(means)


TRANSPORTS: Mapping[str, Callable[[Means], Transport]] = {"https": _https, "sftp": _sftp, "ftps": _ftps}
