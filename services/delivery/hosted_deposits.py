"""Files of the hosted folder that are gone because they were fetched: delivered, although nothing is there to be found.

A process that dies between putting a file in place and recording it finds the file there when it tries again. A
customer who was quicker and removed it would get it twice; for the folder that we host its own record tells.
"""

from typing import NamedTuple

from services.core.retry import Answer
from services.delivery.transports.base import OutgoingPart, Receiver
from services.delivery.transports.file_answers import ALREADY_THERE
from services.platform.postgres import Pool, transaction

FETCHED_BEFORE = ALREADY_THERE._replace(detail="the file was left there before, and removed since by whom it is for")

# A file is named after job, slot and part, and what a part holds never changes. What vanished without the doing of an
# account or of the folder's retention ('unknown') may never have been seen by anybody.
_REMOVED = """
SELECT EXISTS (SELECT FROM dropbox_file
               WHERE organization_id = $1 AND file_name = $2 AND size_bytes = $3 AND removed_by <> 'unknown')
"""


class HostedDeposits(NamedTuple):
    """The folder's record, of one organization."""

    pool: Pool
    organization_id: int

    async def was_removed(self, part: OutgoingPart) -> bool:
        """Tell whether the part lay there and was removed. Raises Unavailable."""
        async with transaction(self.pool) as connection:
            return bool(await connection.fetchval(_REMOVED, self.organization_id, part.file_name, len(part.body)))


class HostedReceiver:
    """The hosted folder, which takes no part for the second time unless it was asked for again."""

    def __init__(self, receiver: Receiver, deposits: HostedDeposits) -> None:
        self._receiver = receiver
        self._deposits = deposits

    @property
    def address(self) -> str:
        """As the receiver's own."""
        return self._receiver.address

    async def send(self, part: OutgoingPart) -> Answer:
        """Make one attempt. Raises Unavailable while PostgreSQL is away, nothing else."""
        if part.resend_count == 0 and await self._deposits.was_removed(part):
            return FETCHED_BEFORE
        return await self._receiver.send(part)
