"""A job's settings in the clear, for as long as it takes to reach its server."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from services.core.file_transfer import HOSTED
from services.core.retry import Answer
from services.core.transport_secrets import SEALED, job_place, opened_settings
from services.delivery.model import JobKey
from services.delivery.transports.base import Destination, OutgoingPart, Step, Transport
from services.delivery.transports.hosted import ORGANIZATION_ID
from services.platform.secrets import Vault, without_secrets


class Unsealed(NamedTuple):
    """Settings as a transport takes them, and the secrets among them."""

    settings: Mapping[str, Any]
    secrets: Sequence[str]


def unseal(vault: Vault, job: JobKey, settings: Mapping[str, Any]) -> Unsealed:
    """Return a job's settings in the clear. Raises KeyMissing, or UserError where a secret cannot be read."""
    sealed: Mapping[str, str] = settings.get(SEALED, {})
    secrets = {name: vault.open(text, job_place(*job, name)) for name, text in sealed.items()}
    opened = opened_settings(settings, secrets)
    if HOSTED in opened:
        # Whose folder it is follows from whose job it is, and from nothing that a job says.
        opened[ORGANIZATION_ID] = job.organization_id
    return Unsealed(opened, list(secrets.values()))


class Discreet:
    """A destination whose answers never repeat its secrets, whatever the server or a library says."""

    def __init__(self, transport: Transport, unsealed: Unsealed) -> None:
        self._destination: Destination = transport.destination(unsealed.settings)
        self._secrets = unsealed.secrets

    @property
    def address(self) -> str:
        """As the destination's own."""
        return self._destination.address

    async def send(self, part: OutgoingPart) -> Answer:
        """Make one attempt; raises nothing."""
        answer = await self._destination.send(part)
        return answer._replace(detail=without_secrets(answer.detail, self._secrets)) if self._secrets else answer

    async def check(self) -> AsyncIterator[Step]:
        """Try the connection step by step; raises nothing."""
        async for step in self._destination.check():
            yield step._replace(sentence=without_secrets(step.sentence, self._secrets))


class Withheld:
    """Stands for a destination that cannot be reached now for a reason of ours: every attempt gives the same answer."""

    def __init__(self, address: str, answer: Answer) -> None:
        self.address = address
        self._answer = answer

    async def send(self, part: OutgoingPart) -> Answer:
        """Send nothing."""
        del part
        return self._answer
