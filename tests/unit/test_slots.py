"""What is passed over when a job is claimed, by what is at work already."""

from services.core.retry import Answer, Verdict
from services.delivery.circuits import FAILURES_BEFORE, Account, Circuits
from services.delivery.model import NOWHERE, Busy, Claim, JobKey
from services.delivery.slots import Slots

HOSTED = "127.0.0.1:2022"
SHARED = "files.example.org:22"
FULL = Answer(Verdict.RETRY, "disk_full", "")
REFUSED = Answer(Verdict.RETRY, "connection_refused", "")
TAKEN = Answer(Verdict.DELIVERED, "ok", "")


def slots(circuits: Circuits | None = None, *, is_shared: bool = True) -> Slots:
    made = Slots(16, 4, circuits or Circuits(), [HOSTED])
    made.has_several_organizations = is_shared
    return made


def take(where: Slots, organization_id: int, addresses: list[str], *, is_failing: bool = False) -> list[Claim]:
    claims = [
        Claim(JobKey(organization_id, number), 1, address, is_failing) for number, address in enumerate(addresses)
    ]
    for claim in claims:
        where.take(claim)
    return claims


def hosts(count: int) -> list[str]:
    return [f"host-{number}:443" for number in range(count)]


def test_nothing_at_work_nothing_busy() -> None:
    assert slots().busy() == Busy([], [], [], [], False)


def test_half_of_the_slots_for_one_organization_where_there_are_others() -> None:
    shared, alone = slots(), slots(is_shared=False)
    claims = take(shared, 1, hosts(8))
    take(alone, 1, hosts(16))
    assert shared.busy().organizations == [1]
    assert alone.busy().organizations == []
    assert not alone.is_free
    shared.give_back(claims[0])
    assert shared.busy().organizations == []


def test_a_quarter_for_what_fails_of_one_and_half_for_what_fails_of_all() -> None:
    shared = slots()
    take(shared, 1, hosts(3), is_failing=True)
    assert shared.busy().failing_organizations == []
    take(shared, 2, hosts(4), is_failing=True)
    assert shared.busy() == Busy([], [], [], [2], False)
    take(shared, 3, hosts(1), is_failing=True)
    assert shared.busy().is_failing_busy


def test_one_address_takes_so_many_of_one_organization_and_twice_as_many_of_all() -> None:
    shared = slots()
    take(shared, 1, [SHARED] * 4)
    assert shared.busy() == Busy([], [Account(1, SHARED)], [], [], False)
    take(shared, 2, [SHARED] * 4)
    assert shared.busy().addresses == [SHARED]


def test_what_the_installation_runs_itself_and_nowhere_have_no_common_limit() -> None:
    for address in (HOSTED, NOWHERE):
        shared = slots()
        for organization_id in range(1, 5):
            take(shared, organization_id, [address] * 3)
        assert shared.busy() == Busy([], [], [], [], False)


def test_a_full_account_is_tried_by_one_job_and_its_neighbours_by_as_many_as_ever() -> None:
    circuits = Circuits()
    for _ in range(FAILURES_BEFORE):
        circuits.note(Account(1, HOSTED), FULL)
    shared = slots(circuits)
    take(shared, 1, [HOSTED])
    take(shared, 2, [HOSTED] * 3)
    assert shared.busy() == Busy([], [Account(1, HOSTED)], [], [], False)
    circuits.note(Account(1, HOSTED), TAKEN)
    assert shared.busy().accounts == []


def test_an_address_that_cannot_be_reached_is_tried_by_one_job_whoever_s() -> None:
    circuits = Circuits()
    for number in range(FAILURES_BEFORE):
        circuits.note(Account(number, SHARED), REFUSED)
    shared = slots(circuits)
    take(shared, 9, [SHARED])
    assert shared.busy().addresses == [SHARED]
    # An answer, even a bad one, says that it is there.
    circuits.note(Account(3, SHARED), FULL)
    assert shared.busy().addresses == []
