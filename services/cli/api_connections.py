"""`meterpost --url … jobs test` and `jobs host-key`: the delivery process tries the connection, from where it sends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import typer

from services.cli.api_session import Api
from services.cli.session import Session
from services.platform.errors import UserError

EXIT_FAILED = 1
_LOOK_SECONDS = 0.5


async def test(session: Session, api: Api, job_id: int) -> None:
    """Try the connection."""
    steps: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    async for found in _looks(api, job_id):
        for step in found["steps"][len(steps) :]:
            steps.append(step)
            if not session.answer.as_json:
                session.answer.say(f"{'ok    ' if step['passed'] else 'FAILED'}  {step['step']}: {step['sentence']}")
    passed = found["state"] == "passed"
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "passed": passed, "steps": steps})
    elif passed and found["transport"] == "https":
        session.answer.note("nothing was posted: whether the receiver takes exports is seen at the first delivery")
    if found["problem"]:
        session.answer.note(found["problem"])
    if not passed:
        raise typer.Exit(EXIT_FAILED)


async def host_key(session: Session, api: Api, job_id: int, *, approve_: str | None, remove: str | None) -> None:
    """Show, approve or withdraw host keys."""
    path = f"/v1/jobs/{job_id}"
    job = await api.get(path)
    transport = job["destination"]["transport"]
    if transport == "hosted":
        raise UserError(f"job {job_id} goes to the hosted folder, whose keys the operator keeps")
    if transport != "sftp":
        raise UserError(f"job {job_id} sends over {transport.upper()}: only SFTP servers have host keys")
    tried = [look async for look in _looks(api, job_id)][-1]
    shown = tried["host_key"]
    if shown is None and not any(step["step"] == "trust" and step["passed"] for step in tried["steps"]):
        why = tried["problem"] or next((step["sentence"] for step in tried["steps"] if not step["passed"]), "no answer")
        raise UserError(f"the server's key cannot be seen: {why}")
    if approve_ is not None:
        if shown is None or shown["fingerprint"] != approve_:
            there = "none that is not approved already" if shown is None else shown["fingerprint"]
            raise UserError(f"the server does not show the key {approve_}, but {there}")
        await api.send("POST", f"{path}/host-keys", {"test_id": tried["test_id"], "fingerprint": approve_})
    if remove is not None:
        await api.send("POST", f"{path}/host-keys/withdraw", {"fingerprint": remove})
    approved = [_text(key) for key in (await api.get(f"{path}/host-keys"))["host_keys"]]
    new = _text(shown) if shown is not None and approve_ is None else None
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "approved": approved, "shown_and_not_approved": new})
        return
    session.answer.say("approved: " + (", ".join(approved) or "none; nothing is sent"))
    if new is not None:
        session.answer.say(f"the server shows another one: {new}")
        session.answer.say(f"to trust it: meterpost jobs host-key {job_id} --approve {new.split()[1]}")
    if job["stopped_at"] is not None:
        session.answer.note(f"the job is stopped; to go on: meterpost jobs resume {job_id}")


async def _looks(api: Api, job_id: int) -> AsyncIterator[dict[str, Any]]:
    """Ask for a test and yield what it has found, again and again until it is done."""
    path = f"/v1/jobs/{job_id}/connection-tests"
    found: dict[str, Any] = await api.send("POST", path)
    while True:
        yield found
        if found["is_done"]:
            return
        await asyncio.sleep(_LOOK_SECONDS)
        found = await api.get(f"{path}/{found['test_id']}")


def _text(key: dict[str, Any]) -> str:
    return f"{key['type']} {key['fingerprint']}"
