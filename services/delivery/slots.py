"""Who may be worked on beside what is at work already: shares that no dead destination and no organization exceeds.

An attempt at a destination that hangs holds its slot until the deadline. Whatever its owner has set up, others must
find a free one meanwhile:

- jobs that failed last time hold at most half of the slots; where several organizations have jobs, those of one of
  them at most a quarter;
- where several organizations have jobs, one of them holds at most half of the slots, failing or not;
- one organization sends to one address by so many jobs at a time, all together by twice as many; by one job while a
  circuit is open.
"""

from collections import Counter
from collections.abc import Collection

from services.delivery.circuits import Account, Circuits
from services.delivery.model import NOWHERE, Busy, Claim


class Slots:
    """Counts what is at work."""

    def __init__(
        self, concurrency: int, at_one_destination: int, circuits: Circuits, own_addresses: Collection[str] = ()
    ) -> None:
        """`own_addresses` are servers of the installation, which all organizations together may use as they like."""
        self._concurrency = concurrency
        self._at_one_destination = at_one_destination
        self._circuits = circuits
        self._own_addresses = {*own_addresses, NOWHERE}
        self._at_work: set[Claim] = set()
        self.has_several_organizations = False
        """To be kept up to date by whoever knows."""

    @property
    def is_free(self) -> bool:
        """Tell whether there is a slot at all."""
        return len(self._at_work) < self._concurrency

    def take(self, claim: Claim) -> None:
        """Count a claim from now on."""
        self._at_work.add(claim)

    def give_back(self, claim: Claim) -> None:
        """Count it no longer."""
        self._at_work.discard(claim)

    def busy(self) -> Busy:
        """Return what has as much as it may."""
        accounts = Counter(Account(claim.job.organization_id, claim.destination) for claim in self._at_work)
        addresses = Counter(claim.destination for claim in self._at_work)
        organizations = Counter(claim.job.organization_id for claim in self._at_work)
        failing = Counter(claim.job.organization_id for claim in self._at_work if claim.is_failing)
        return Busy(
            addresses=[address for address, count in addresses.items() if self._is_address_busy(address, count)],
            accounts=[account for account, count in accounts.items() if self._is_account_busy(account, count)],
            organizations=self._beyond(organizations, 2) if self.has_several_organizations else [],
            failing_organizations=self._beyond(failing, 4) if self.has_several_organizations else [],
            is_failing_busy=failing.total() >= self._share(2),
        )

    def _is_account_busy(self, account: Account, count: int) -> bool:
        return count >= (1 if self._circuits.is_account_open(account) else self._at_one_destination)

    def _is_address_busy(self, address: str, count: int) -> bool:
        if self._circuits.is_address_open(address) and address != NOWHERE:
            return count >= 1
        return address not in self._own_addresses and count >= 2 * self._at_one_destination

    def _beyond(self, counts: Counter[int], parts: int) -> list[int]:
        return [organization_id for organization_id, count in counts.items() if count >= self._share(parts)]

    def _share(self, parts: int) -> int:
        return max(1, self._concurrency // parts)
