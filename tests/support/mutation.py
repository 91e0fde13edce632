"""Records as a broken device, a broken cable or an attacker would send them."""

import json
import random
from collections.abc import Callable, Iterator

from tests.support.wire import reading

_NUMBERS = (
    "1e400",
    "-0",
    "1.0",
    "1e5",
    "9" * 25,
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 30,
    "1e99999999999",
    "0x1F",
    "NaN",
)
_STRINGS = (
    r'"LG\u00002"',
    r'"\u0000"',
    r'"\ud800"',
    r'"\ude00\ud83d"',
    r'"\ud83d\ude00"',
    '""',
    '"' + "é" * 101 + '"',
    '"0001-01-01T00:00:00+01:00"',
    '"9999-12-31T23:59:00-23:59"',
    '"2026-11-20T10:00:00.000000000001Z"',
    '"2026-11-20T24:00:00Z"',
    '"2026-11-20t10:00:00z"',
)
_BYTES = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc0\x80",
    b'"',
    b"\\",
    b"\\u0000",
    b"{",
    b"]",
    b",",
    b"-",
)
_DEEP = (100, 600, 1_000, 20_000, 200_000)


def sound_record(chance: random.Random, devices: tuple[str, ...]) -> bytes:
    """Return a record of a few readings, most of which can be stored."""
    readings = [
        reading(
            input=chance.choice([1, 1, 2, 2, 9]),
            measurement_time=f"2026-11-20T{chance.randrange(8, 10):02}:{chance.randrange(60):02}:00Z",
            pulses=chance.randrange(1000),
            note=chance.choice([None, "x", 1.5, [1], {"a": None}]),
        )
        for _number in range(chance.randrange(1, 5))
    ]
    record = {"device_id": chance.choice(devices), "sent_at": "2026-11-20T10:01:00Z", "readings": readings}
    return json.dumps(record, separators=chance.choice([(",", ":"), (", ", ": ")])).encode()


def mutated(record: bytes, chance: random.Random) -> bytes:
    """Return a record with one to three things wrong."""
    for _time in range(chance.choice([1, 1, 1, 2, 3])):
        record = chance.choice(_MUTATIONS)(record, chance)
    return record


def fuzzed_records(seed: int, count: int, devices: tuple[str, ...]) -> Iterator[bytes]:
    """Yield records, of which about one in five is sound."""
    chance = random.Random(seed)
    for _number in range(count):
        record = sound_record(chance, devices)
        yield record if chance.random() < 0.2 else mutated(record, chance)


def _flip_bits(record: bytes, chance: random.Random) -> bytes:
    changed = bytearray(record)
    for _time in range(chance.choice([1, 1, 1, 8])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut_off(record: bytes, chance: random.Random) -> bytes:
    return record[: chance.randrange(len(record) + 1)]


def _repeat_a_piece(record: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(record) + 1)
    end = min(len(record), start + chance.choice([1, 4, 40, 400]))
    return record[:end] + record[start:end] * chance.choice([1, 1, 5]) + record[end:]


def _drop_a_piece(record: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(record) + 1)
    return record[:start] + record[start + chance.choice([1, 4, 40]) :]


def _insert_bytes(record: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(record) + 1)
    return record[:at] + chance.choice(_BYTES) + record[at:]


def _repeat_a_field(record: bytes, chance: random.Random) -> bytes:
    """Write a field of a reading or of the record twice, with another value or its name escaped."""
    name = chance.choice(["measurement_time", "input", "pulses", "interval_minutes", "device_id", "readings"])
    written = chance.choice([name, name.replace("_", r"\u005f"), name.replace("i", r"\u0069")])
    value = chance.choice(_NUMBERS + _STRINGS + ("null", "[]", "{}", "5"))
    places = [at for at in range(len(record)) if record[at : at + 1] in b"{,"]
    at = chance.choice(places) + 1 if places else 0
    comma = b"," if record[at : at + 1] not in b"}" else b""
    return record[:at] + f'"{written}":{value}'.encode() + comma + record[at:]


def _replace_a_value(record: bytes, chance: random.Random) -> bytes:
    colons = [at for at in range(len(record)) if record[at : at + 1] == b":"]
    if not colons:
        return record
    start = chance.choice(colons) + 1
    ends = [at for at in (record.find(b",", start), record.find(b"}", start)) if at >= 0]
    end = min(ends, default=len(record))
    return record[:start] + chance.choice(_NUMBERS + _STRINGS).encode() + record[end:]


def _nest_deeply(record: bytes, chance: random.Random) -> bytes:
    depth = chance.choice(_DEEP)
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nested = opening * depth + b"1" + closing * chance.choice([depth, 0])
    at = record.find(b"{", chance.randrange(len(record) + 1)) + 1
    return record[:at] + b'"x":' + nested + b"," + record[at:]


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _cut_off,
    _repeat_a_piece,
    _drop_a_piece,
    _insert_bytes,
    _repeat_a_field,
    _repeat_a_field,
    _replace_a_value,
    _replace_a_value,
    _nest_deeply,
)
