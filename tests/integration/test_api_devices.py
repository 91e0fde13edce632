"""Devices changed, ended and removed, over HTTP and by the command; their past stays as it was."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Api, Got, running_api
from tests.support.command import Meterpost, Outcome
from tests.support.seed import seed_catalog

NOON, LATER = "2026-11-20T12:00:00Z", "2026-11-25T00:00:00Z"


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def post(api: Api, token: str, path: str, body: dict[str, Any]) -> Got:
    return await api.call("POST", path, token=token, body=body)


async def reported(api: Api, token: str, device_id: str, at: str) -> list[int]:
    """Return the meters that a device reports at an instant."""
    found = (await api.get(f"/v1/attachments?device_id={device_id}&at={at}", token)).json["attachments"]
    return sorted(one["meter_id"] for one in found if one["attached"])


async def test_a_device_that_was_never_attached_is_changed_and_removed(api: Api) -> None:
    token = await api.token(1)
    made = await post(api, token, "/v1/devices", {"device_id": "NEW-1", "kind": "logger"})
    path = made.headers["Location"]
    shown = await api.get(path, token)
    assert (await api.call("PATCH", path, token=token, body={"kind": "bridge"})).status == 428
    edited = await api.call("PATCH", path, token=token, body={"kind": "bridge"}, headers={"If-Match": shown.etag})
    assert (edited.status, edited.json["kind"]) == (200, "bridge")
    assert edited.json["catalog_revision"] > shown.json["catalog_revision"]
    late = await api.call("PATCH", path, token=token, body={"kind": "logger"}, headers={"If-Match": shown.etag})
    assert late.status == 412
    same = await api.call("PATCH", path, token=token, body={"kind": "bridge"}, headers={"If-Match": edited.etag})
    assert same.json == edited.json
    assert (await api.call("DELETE", path, token=token, headers={"If-Match": shown.etag})).status == 412
    assert (await api.call("DELETE", path, token=token, headers={"If-Match": same.etag})).status == 204
    assert (await api.get(path, token)).status == 404
    again = await post(api, token, "/v1/devices", {"device_id": "NEW-1", "kind": "logger"})
    assert again.status == 201
    actions = [one["action"] for one in (await api.get("/v1/audit", token)).json["entries"]]
    assert actions == ["device.create", "device.delete", "device.edit", "device.create"]


async def test_one_that_was_attached_is_ended_and_its_past_stays(api: Api) -> None:
    token = await api.token(1)
    for device_id, kind, links in (
        ("LG-END", "logger", [{"input": 1, "meter_id": 1}, {"input": 2, "meter_id": 2}]),
        ("BR-END", "bridge", [{"meter_id": 3}, {"meter_id": 4}]),
    ):
        await post(api, token, "/v1/devices", {"device_id": device_id, "kind": kind})
        for link in links:
            await post(api, token, "/v1/attachments", {"device_id": device_id, "valid_from": None, **link})
        # The second of them was to change after the end: that does not come about either.
        link = {"input": 2, "meter_id": 5} if kind == "logger" else {"meter_id": 5}
        assert (
            await post(api, token, "/v1/attachments", {"device_id": device_id, "valid_from": LATER, **link})
        ).status == 201
        path = f"/v1/devices/{device_id}"
        before = [await reported(api, token, device_id, at) for at in ("2026-11-20T11:59:59Z", NOON, LATER)]
        shown = await api.get(path, token)
        for method, body in (("PATCH", {"kind": "bridge" if kind == "logger" else "logger"}), ("DELETE", None)):
            refused = await api.call(method, path, token=token, body=body, headers={"If-Match": shown.etag})
            assert (refused.status, refused.json["code"]) == (409, "conflict"), refused
            assert "end it" in refused.json["detail"]
        ended = await post(api, token, f"{path}/end", {"valid_from": NOON})
        assert (ended.status, len(ended.json["attachments"])) == (200, 3), ended.json
        after = [await reported(api, token, device_id, at) for at in ("2026-11-20T11:59:59Z", NOON, LATER)]
        assert after == [before[0], [], []]
        assert (await post(api, token, f"{path}/end", {"valid_from": NOON})).json["attachments"] == []
        # What was known before the end is still known.
        revision = ended.json["attachments"][0]["catalog_revision"] - 1
        found = await api.get(f"/v1/attachments?device_id={device_id}&at={NOON}&revision={revision}", token)
        assert sorted(one["meter_id"] for one in found.json["attachments"]) == before[1]
        # It can be attached again.
        again = {"input": 1, "meter_id": 1} if kind == "logger" else {"meter_id": 3}
        await post(api, token, "/v1/attachments", {"device_id": device_id, "valid_from": LATER, **again})
        assert await reported(api, token, device_id, LATER) == [1 if kind == "logger" else 3]
    old = await post(api, token, "/v1/devices/LG-END/end", {"valid_from": "1800-01-01T00:00:00Z"})
    assert (old.status, old.json["field"]) == (422, "valid_from")


async def test_the_command_does_the_same_on_the_database_and_over_the_api(api: Api, tmp_path: Path) -> None:
    client_id, secret = await api.client(1, "admin")
    (tmp_path / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
    remote = Meterpost(tmp_path, {"METERPOST_API_URL": api.url, "METERPOST_API_CREDENTIALS_FILE": "client.json"})
    local = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": api.database_url})
    token = await api.token(1)

    async def run(meterpost: Meterpost, *arguments: str, code: int = 0) -> Outcome:
        outcome = await asyncio.to_thread(meterpost, "devices", *arguments)
        assert outcome.code == code, (outcome.out, outcome.err)
        return outcome

    for number, meterpost in enumerate((remote, local)):
        name = f"D {number}"
        device_id = f"D-{number}"
        await post(api, token, "/v1/devices", {"device_id": device_id, "kind": "logger"})
        assert device_id in (await run(meterpost, "list")).out
        assert f"{device_id} is a bridge" in (await run(meterpost, "edit", device_id, "--kind", "bridge")).out
        assert "Nothing changed" in (await run(meterpost, "edit", device_id, "--kind", "bridge")).out
        assert (await run(meterpost, "delete", device_id, "--json")).json == {"device_id": device_id, "deleted": True}
        assert f"device {device_id}" in (await run(meterpost, "delete", device_id, code=2)).err.replace("'", "")
        await post(api, token, "/v1/devices", {"device_id": device_id, "kind": "logger"})
        link = {"device_id": device_id, "input": 7, "meter_id": 1, "valid_from": None}
        assert (await post(api, token, "/v1/attachments", link)).status == 201
        ended = (await run(meterpost, "end", device_id, "--from", NOON, "--json")).json["ended"]
        assert ended == [{"input": 7, "meter_id": None, "valid_from": NOON}]
        assert "Nothing changed" in (await run(meterpost, "end", device_id, "--from", NOON)).out
        assert "end it instead" in (await run(meterpost, "delete", device_id, code=2)).err
        assert "no device" in (await run(meterpost, "end", name, code=2)).err
    entries = (await api.get("/v1/audit?limit=200", token)).json["entries"]
    done = [one["action"] for one in entries if one["actor"].startswith("command:")]
    assert done == ["device.end", "device.delete", "device.edit"]
    assert (await run(remote, "list", "--json")).json == (await run(local, "list", "--json")).json
