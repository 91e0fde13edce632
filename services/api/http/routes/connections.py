"""Does the connection to a job's server work, and which SFTP host keys are trusted."""

from dataclasses import replace
from typing import Annotated

import msgspec

from services.api.connection_test_store import ConnectionTest, TestState, find_test, request_test, tested_server
from services.api.file_settings import approve, withdraw
from services.api.http.call import Call
from services.api.http.decoding import Id, Instant
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.problems import invalid, not_found
from services.api.http.routes import jobs
from services.api.http.routes.job_forms import JobShown, shown
from services.api.job_queries import Job
from services.api.job_store import edit_job
from services.api.request_store import Asker
from services.core.file_transfer import HOSTED, SFTP_PORT, fingerprint
from services.platform.errors import UserError

Fingerprint = Annotated[
    str, msgspec.Meta(min_length=1, max_length=200, description="As `ssh-keygen -l` shows it: SHA256:….")
]


class StepShown(msgspec.Struct, frozen=True):
    """One step of a test: resolve, reach, trust, log in, write, rename, remove, as far as the transport has it.

    `sentence` says what was found, or what failed and what to do about it.
    """

    step: str
    passed: bool
    sentence: str


class HostKeyShown(msgspec.Struct, frozen=True):
    """A key of an SFTP server."""

    type: str
    fingerprint: str
    key: str


class ConnectionTestShown(msgspec.Struct, frozen=True):
    """A test of the settings that the job had; it ends as `passed`, `failed` or `expired`, which `is_done` tells.

    `host_key` is one that the server showed and that is not approved. Nothing of the job's data is sent; SFTP and FTPS:
    a small file is written, renamed and removed.
    """

    test_id: int
    state: TestState
    is_done: bool
    job_version: int
    transport: str
    requested_at: Instant
    requested_by: str
    done_at: Instant | None
    steps: list[StepShown]
    host_key: HostKeyShown | None
    problem: str | None


class HostKeys(msgspec.Struct, frozen=True):
    """The keys that the job trusts; without one nothing is sent."""

    host_keys: list[HostKeyShown]


class ApproveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key that a test was shown, by the fingerprint that the server's operator told you."""

    test_id: Id
    fingerprint: Fingerprint


class WithdrawBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is no longer trusted."""

    fingerprint: Fingerprint


async def ask_test(call: Call) -> Answer:
    """Ask delivery to try the connection."""
    job = await jobs.find(call, lock=True)
    test_id = await request_test(call.connection, job, Asker(call.caller.actor, call.now))
    made = await _find(call, job, test_id)
    await call.audit("job.connection_test", job.job_id, None, made)
    return Answer(made, 202, {"Location": f"/v1/jobs/{job.job_id}/connection-tests/{test_id}"})


async def show_test(call: Call) -> Answer:
    """Show a test and what was found so far."""
    job = await jobs.find(call)
    return Answer(await _find(call, job, call.id("test_id", "connection test")))


async def show_host_keys(call: Call) -> Answer:
    """Show the approved keys."""
    job = await jobs.find(call)
    return Answer(HostKeys([_key(one) for one in job.settings.transport_settings.get("host_keys", ())]))


async def approve_host_key(call: Call) -> Answer:
    """Trust the key that a test was shown."""
    body = call.body(ApproveBody)
    job = await _sftp_job(call)
    test = await find_test(call.connection, job, body.test_id)
    if test is None:
        raise invalid("test_id", f"job {job.job_id} has no connection test {body.test_id}")
    if test.done_at is None:
        raise UserError(f"the connection test {body.test_id} is not done yet")
    if not test.host_key:
        raise UserError(f"the connection test {body.test_id} was shown no key that is not approved")
    now = job.settings.transport_settings
    if await tested_server(call.connection, job, test) != (now.get("host"), now.get("port", SFTP_PORT)):
        raise UserError("the job goes to another server since that test: make a new one")
    if fingerprint(test.host_key) != body.fingerprint:
        raise invalid(
            "fingerprint",
            f"the server showed the key {fingerprint(test.host_key)}, not this one: ask its operator which is right",
        )
    return await _changed(call, job, approve(now, test.host_key), "job.approve_host_key")


async def withdraw_host_key(call: Call) -> Answer:
    """Trust a key no longer."""
    job = await _sftp_job(call)
    settings = withdraw(job.settings.transport_settings, call.body(WithdrawBody).fingerprint)
    return await _changed(call, job, settings, "job.withdraw_host_key")


async def _sftp_job(call: Call) -> Job:
    job = await jobs.find(call, lock=True)
    if job.settings.transport != "sftp":
        raise UserError(
            f"job {job.job_id} sends over {job.settings.transport.upper()}: only SFTP servers have host keys"
        )
    if HOSTED in job.settings.transport_settings:
        raise UserError(f"job {job.job_id} goes to the hosted folder, whose keys the operator keeps")
    return job


async def _changed(call: Call, job: Job, settings: dict[str, object], action: str) -> Answer:
    changed = replace(job.settings, transport_settings=settings)
    after = await edit_job(call.connection, call.organization_id, job.job_id, changed, call.now, vault=call.means.vault)
    if shown(after) != shown(job):
        await call.audit(action, job.job_id, shown(job), shown(after))
    return Answer(shown(after))


async def _find(call: Call, job: Job, test_id: int) -> ConnectionTestShown:
    test = await find_test(call.connection, job, test_id)
    if test is None:
        raise not_found(f"connection test {test_id} of job {job.job_id}")
    return _shown(test, test.state(call.now))


def _shown(test: ConnectionTest, state: TestState) -> ConnectionTestShown:
    problem = test.problem
    if state == "expired":
        problem = f"no delivery process of {test.transport} took the test: tell the platform's operator"
    return ConnectionTestShown(
        test_id=test.test_id,
        state=state,
        is_done=state in {"passed", "failed", "expired"},
        job_version=test.job_version,
        transport=test.transport,
        requested_at=test.requested_at,
        requested_by=test.requested_by,
        done_at=test.done_at,
        steps=[StepShown(one.step, one.passed, one.sentence) for one in test.steps],
        host_key=_key(test.host_key) if test.host_key else None,
        problem=problem or None,
    )


def _key(line: str) -> HostKeyShown:
    return HostKeyShown(line.split(maxsplit=1)[0], fingerprint(line), line)


ENDPOINTS = (
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/connection-tests", "test_connection", "Try the connection to a job's server"),
        *(ask_test, "exporter", ConnectionTestShown, 202),
        is_create=True,
        codes=("conflict",),
    ),
    Endpoint(
        *(
            "GET",
            "/v1/jobs/{job_id}/connection-tests/{test_id}",
            "show_connection_test",
            "What a test has found so far",
        ),
        *(show_test, "viewer", ConnectionTestShown),
    ),
    Endpoint(
        *("GET", "/v1/jobs/{job_id}/host-keys", "list_host_keys", "The SFTP host keys that a job trusts"),
        *(show_host_keys, "viewer", HostKeys),
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/host-keys", "approve_host_key", "Trust the SFTP host key that a test was shown"),
        *(approve_host_key, "exporter", JobShown),
        body=ApproveBody,
        body_form="json",
    ),
    Endpoint(
        *("POST", "/v1/jobs/{job_id}/host-keys/withdraw", "withdraw_host_key", "Trust an SFTP host key no longer"),
        *(withdraw_host_key, "exporter", JobShown),
        body=WithdrawBody,
        body_form="json",
    ),
)
