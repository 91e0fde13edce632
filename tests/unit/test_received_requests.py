"""A request as it is sent is sound; each header that lies is named. Signatures are those of the published package."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from services.core.part_content import read_content
from services.core.parts import HTTPS_JSON, file_stem
from services.core.received_requests import check_hash, check_signature, kept_headers, read_body, read_request
from services.core.webhooks import signing_key
from tests.unit.test_part_content import SOUND, body_of

NOW = datetime(2026, 11, 20, 11, 5, tzinfo=UTC)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = body_of(HTTPS_JSON, SOUND)
STEM = file_stem(3, "Hourly", "meters_measurements", NOW.replace(hour=10, minute=0), NOW.replace(minute=0), 1, 1)


def headers(**changed: Any) -> dict[str, str]:
    part_id = "a1b2c3d4-job3-20261120T100000Z-part1"
    sent = {
        "Authorization": "Bearer s3cret",
        "Content-Type": "application/json; charset=utf-8",
        "webhook-id": part_id,
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(part_id, NOW, BODY.decode()),
        "Meterpost-Job": "3",
        "Meterpost-Run": "job3-20261120T100000Z",
        "Meterpost-Part": "1",
        "Meterpost-Parts": "1",
        "Meterpost-Window-Start": "2026-11-20T10:00:00Z",
        "Meterpost-Window-End": "2026-11-20T11:00:00Z",
        "Meterpost-Rows": "4",
        "Meterpost-Resolution-Minutes": "15",
        "Meterpost-Content-SHA256": hashlib.sha256(BODY).hexdigest(),
        "Meterpost-Filename": f"{STEM}.json",
    }
    return {**sent, **{name.replace("_", "-"): value for name, value in changed.items()}}


def check(sent: dict[str, str], body: bytes = BODY) -> None:
    request = read_request(sent)
    check_hash(request, body)
    read_body(request, sent, body)


def test_a_request_as_it_is_sent_is_sound_whatever_the_case_of_its_headers() -> None:
    check(headers())
    check(kept_headers(headers()))
    check_signature(kept_headers(headers()), BODY, [signing_key(SECRET)], NOW)
    assert "s3cret" not in str(kept_headers(headers()))
    assert read_content(".json", BODY).row_count == 4


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"webhook_id": ""}, "webhook-id is missing"),
        ({"webhook_id": "-job3-20261120T100000Z-part1"}, "does not end with"),
        ({"webhook_id": "a1b2c3d4-job3-20261120T100000Z-part2"}, "does not end with"),
        ({"Meterpost_Job": "4"}, "meterpost-job is '4'"),
        ({"Meterpost_Run": "job3-20261120T110000Z"}, "meterpost-run"),
        ({"Meterpost_Part": "manifest"}, "meterpost-part"),
        ({"Meterpost_Parts": "2"}, "meterpost-parts"),
        ({"Meterpost_Window_End": "2026-11-20T12:00:00Z"}, "meterpost-window-end"),
        ({"Meterpost_Filename": "../1.json"}, "Meterpost-Filename: the name"),
        ({"Meterpost_Rows": "5"}, "4 rows of 15 minutes, the headers say 5 of 15"),
        ({"Meterpost_Rows": "four"}, "which is no number"),
        ({"Meterpost_Resolution_Minutes": "60"}, "the headers say 4 of 60"),
        ({"Meterpost_Content_SHA256": "00"}, "Meterpost-Content-SHA256 says 00"),
    ],
)
def test_a_header_that_lies_is_named(changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(headers(**changed))


def test_rows_of_another_window_are_found() -> None:
    moved = headers(
        Meterpost_Filename=f"{STEM}.json".replace("20261120T10", "20261120T09"),
        Meterpost_Run="job3-20261120T090000Z",
        Meterpost_Window_Start="2026-11-20T09:00:00Z",
        webhook_id="a1b2c3d4-job3-20261120T090000Z-part1",
    )
    check(moved)
    moved |= {
        "Meterpost-Filename": moved["Meterpost-Filename"].replace("20261120T11", "20261120T10"),
        "Meterpost-Window-End": "2026-11-20T10:00:00Z",
    }
    with pytest.raises(ValueError, match="the rows go from 2026-11-20T10:00:00Z"):
        check(moved)


def test_signatures() -> None:
    key, other = signing_key(SECRET), signing_key(OTHER)
    sent = headers()
    check_signature(sent, BODY, [other, key], NOW + timedelta(minutes=5))
    rotating = Webhook(OTHER).sign(sent["webhook-id"], NOW, BODY.decode()) + " " + sent["webhook-signature"]
    check_signature(headers(webhook_signature=rotating), BODY, [key], NOW)
    for broken, keys, body, at, sentence in (
        (headers(webhook_signature=""), [key], BODY, NOW, "webhook-signature is missing"),
        (headers(webhook_signature="v1,ü"), [key], BODY, NOW, "another secret, or other bytes"),
        (sent, [other], BODY, NOW, "another secret, or other bytes"),
        (sent, [key], BODY + b" ", NOW, "another secret, or other bytes"),
        (headers(webhook_id="b" + sent["webhook-id"]), [key], BODY, NOW, "another secret, or other bytes"),
        (headers(webhook_timestamp="1"), [key], BODY, NOW, "another secret, or other bytes"),
        (headers(webhook_timestamp="soon"), [key], BODY, NOW, "no number of seconds"),
        (sent, [key], BODY, NOW + timedelta(minutes=5, seconds=1), "a replay"),
        (sent, [key], BODY, NOW - timedelta(minutes=6), "a replay"),
    ):
        with pytest.raises(ValueError, match=sentence) as refused:
            check_signature(broken, body, keys, at)
        assert SECRET not in str(refused.value)
