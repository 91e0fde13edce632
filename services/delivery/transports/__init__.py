"""The transports there are, by the name that jobs and processes call them."""

from collections.abc import Callable, Mapping

from services.delivery.transports.base import Deadlines, Transport
from services.delivery.transports.https import HttpsTransport
from services.platform.clock import Clock

TRANSPORTS: Mapping[str, Callable[[Deadlines, Clock], Transport]] = {"https": HttpsTransport}
