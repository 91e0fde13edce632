"""The last part of a run: what it says is what was sent, the chain holds, and it never changes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from services.api.request_store import request_resend
from services.core import received_manifest
from services.core.received_requests import check_hash, read_body, read_request
from services.delivery import manifests
from services.platform.postgres import Pool
from tests.integration.test_requests import asker, until_states
from tests.support.exports import Exports, at, delivering
from tests.support.polling import eventually_async
from tests.support.receiver import Received, ScriptedReceiver, status

SCHEMA = Path(__file__).parents[2] / "schemas" / "http" / "manifest.v1.schema.json"


def is_manifest(request: Received) -> bool:
    return request.headers["Meterpost-Part"] == "manifest"


async def test_a_manifest_says_what_was_sent_and_names_the_one_before(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], pool: Pool
) -> None:
    await exports.seed(meters=2_100)
    await exports.close_windows(60, at(8), at(9))
    await exports.close_windows(60, at(9), at(10), meters=[1])
    await exports.close_windows(60, at(10), at(11), meters=[])
    await exports.close_windows(60, at(11), at(12), meters=[1, 2])
    await exports.execute("UPDATE measurement SET intervals_present = 58, intervals_expected = 60 WHERE meter_id = 1")
    job_id = await exports.add_job(to, resolution=60)
    await exports.execute("UPDATE export_job_version SET manifest = true")
    # The first manifest is tried three times.
    receiver.script.extend([status(200), status(200), status(503), status(503)])
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "delivered", "empty", "delivered"])
        await request_resend(pool, 1, job_id, at(9), asker())
        await eventually_async(lambda: len(receiver.accepted) == 9)
        await until_states(exports, job_id, ["delivered", "delivered", "empty", "delivered"])

    tried = [r for r in receiver.received if is_manifest(r)]
    assert [r.status for r in tried] == [503, 503, 200, 200, 200, 200]
    assert len({(r.part_id, r.body) for r in tried[:3]}) == 1
    by_window: dict[str, list[Received]] = {}
    for request in receiver.accepted[:7]:
        by_window.setdefault(request.headers["Meterpost-Window-Start"], []).append(request)
    previous = None
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")), format_checker=FormatChecker())
    for number, (window, requests) in enumerate(by_window.items(), start=1):
        *parts, last = requests
        assert is_manifest(last)
        assert not any(map(is_manifest, parts))
        content = json.loads(last.body)
        validator.validate(content)
        assert last.headers["Meterpost-Content-SHA256"] == hashlib.sha256(last.body).hexdigest()
        assert last.headers["Meterpost-Filename"].endswith("_manifest.json")
        assert last.part_id.endswith(f"-{content['run']}-manifest")
        assert (content["number"], content["window_start"]) == (number, window)
        assert content["previous"] == previous
        assert content["parts"] == [
            {
                "part": place,
                "id": part.part_id,
                "file": part.headers["Meterpost-Filename"],
                "rows": len(json.loads(part.body)["measurements"]),
                "bytes": len(part.body),
                "sha256": hashlib.sha256(part.body).hexdigest(),
            }
            for place, part in enumerate(parts, start=1)
        ]
        assert content["rows"] == sum(part["rows"] for part in content["parts"]) == int(last.headers["Meterpost-Rows"])
        assert content["bytes"] == sum(part["bytes"] for part in content["parts"])
        assert last.headers["Meterpost-Parts"] == str(len(parts))
        previous = {"run": content["run"], "sha256": hashlib.sha256(last.body).hexdigest()}
    assert list(by_window) == [f"2026-11-20T{hour:02}:00:00Z" for hour in (8, 9, 11)]
    second = json.loads(by_window["2026-11-20T09:00:00Z"][-1].body)
    assert second["completeness"] == {"intervals_present": 58, "intervals_expected": 60}
    # Sent again, the run ends with the very same manifest.
    assert receiver.accepted[8].body == by_window["2026-11-20T09:00:00Z"][-1].body
    assert [row[1:] for row in await exports.runs(job_id)] == [
        ("delivered", 2, 2_100), ("delivered", 1, 1), ("empty", 0, 0), ("delivered", 1, 2),
    ]  # fmt: skip


async def test_a_run_of_very_many_parts_has_several_manifests(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "MAX_LISTED_PARTS", 2)
    monkeypatch.setattr(received_manifest, "MAX_LISTED_PARTS", 2)
    await exports.seed(meters=4_100)
    await exports.close_windows(60, at(8), at(9))
    await exports.close_windows(60, at(9), at(10), meters=[1])
    job_id = await exports.add_job(to, resolution=60)
    await exports.execute("UPDATE export_job_version SET manifest = true")
    # The second manifest is tried twice.
    receiver.script.extend([status(200)] * 4 + [status(503)])
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered", "delivered"])
    *_parts, first, second, _part, third = receiver.accepted
    assert len(receiver.accepted) == 7
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")), format_checker=FormatChecker())
    previous = None
    for request, number, section, listed in ((first, 1, 1, [1, 2]), (second, 2, 2, [3]), (third, 3, None, [1])):
        content = json.loads(request.body)
        validator.validate(content)
        assert (content["number"], [part["part"] for part in content["parts"]]) == (number, listed)
        assert content.get("section") == (section and {"number": section, "of": 2})
        assert content["previous"] == previous
        previous = {"run": content["run"], "sha256": hashlib.sha256(request.body).hexdigest()}
        read = read_request(request.headers)
        check_hash(read, request.body)
        read_body(read, request.headers, request.body)
    assert [r.headers["Meterpost-Rows"] for r in (first, second, third)] == ["4000", "100", "1"]
    assert first.part_id.endswith("-manifest1of2")
    assert second.headers["Meterpost-Filename"].endswith("_manifest2of2.json")
    assert [row[1:] for row in await exports.runs(job_id)] == [("delivered", 3, 4_100), ("delivered", 1, 1)]


async def test_completeness_is_that_of_the_chosen_sites(
    exports: Exports, receiver: ScriptedReceiver, to: dict[str, Any]
) -> None:
    await exports.seed(meters=4, sites=2)
    await exports.close_windows(15, at(8), at(9))
    job_id = await exports.add_job(to, sites=[2])
    await exports.execute("UPDATE export_job_version SET manifest = true")
    async with delivering(exports.url):
        await until_states(exports, job_id, ["delivered"])
    assert json.loads(receiver.accepted[-1].body)["completeness"] == {"intervals_present": 8, "intervals_expected": 8}
