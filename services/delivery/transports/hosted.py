"""Jobs that leave their files in the folder that we host: where that is, is the operator's to say, not the job's."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from services.core.file_transfer import SftpServer, hosted_server
from services.core.retry import Answer, Verdict
from services.delivery.transports.base import OutgoingPart, Step
from services.platform.errors import UserError
from services.platform.hosted import HostedFolder, HostedNotReady

ORGANIZATION_ID = "organization_id"
"""Set among an opened job's settings by whoever opens them, from the job's own key: never a setting of the job's."""


def server_of(hosted: HostedFolder | None, settings: Mapping[str, Any]) -> SftpServer:
    """Return the hosted folder as a job's server. Raises HostedNotReady, and UserError for the job's settings."""
    if hosted is None:
        raise HostedNotReady(
            "the hosted folder is not set up here: METERPOST_DROPBOX_HOST, METERPOST_DROPBOX_KEY_FILE and "
            "METERPOST_DROPBOX_HOST_KEYS_FILE tell where it is"
        )
    own = {name: value for name, value in settings.items() if name != ORGANIZATION_ID}
    try:
        return hosted_server(
            own,
            int(settings[ORGANIZATION_ID]),
            host=hosted.host,
            port=hosted.port,
            private_key=hosted.private_key(),
            host_keys=hosted.host_keys(),
        )
    except ValueError as error:
        raise UserError(f"transport settings: {error}") from None


class NotReady:
    """Stands for the hosted folder where the operator has not set it up: tried again, because no job can mend it."""

    address = "hosted"

    def __init__(self, why: HostedNotReady) -> None:
        self._why = str(why)

    async def send(self, part: OutgoingPart) -> Answer:
        """Send nothing."""
        del part
        return Answer(Verdict.RETRY, "hosted_not_ready", self._why)

    async def check(self) -> AsyncIterator[Step]:
        """Say what is missing."""
        yield Step("resolve", False, self._why)
