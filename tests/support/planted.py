"""Secrets that tests give to the product, and the search for them in whatever it produced.

Every secret of a test holds MARKER, or is told by `plant`: so one search finds all of them, wherever they went. The
search runs for every test: see the fixtures in tests/conftest.py. It knows the forms in which a secret could be written
without anybody seeing it: base64, at any place in what was encoded, and hexadecimal digits.
"""

import asyncio
import base64
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import asyncpg

MARKER = "planted-7f2e91c4d0b3"
_BLOCK_BYTES, _OVERLAP_BYTES = 10_000_000, 10_000
# What tests write to be read by the product has other endings (keys, tokens, PEM), or none.
_PRODUCED = frozenset({".log", ".csv", ".json", ".jsonl", ".parquet", ".partial", ".out", ".html"})
# Readings and rows of windows: numbers alone, and the only large tables.
_NUMBERS_ALONE = r"^(reading|measurement|window_(start|row))"

# Credentials files, made by tests for a command to read.
_GIVEN = frozenset({"client.json", "api-client.json"})

_exempt: set[tuple[str, str]] = set()
_tails: set[bytes] = set()
_TAIL_BYTES = 24
_WORD = re.compile(rb"[A-Za-z0-9+/_-]{24,}")


def planted(name: str) -> str:
    """Return a secret for a test; different names are different secrets."""
    return f"{MARKER} {name}"


def plant(secret: str) -> str:
    """Have a secret searched for that cannot hold the marker, such as a key or a token, and return it.

    It is found as it is, or line by line, not in other forms: a search for thousands of them would take minutes.
    """
    words = (word for line in secret.splitlines() if "---" not in line for word in _WORD.findall(line.encode()))
    _tails.update(word[-_TAIL_BYTES:] for word in words)
    return secret


def leaks_in(text: bytes) -> list[str]:
    """Return what of the planted secrets stands in a text, with what stands around it."""
    places = [(found.start(), found.end()) for found in _MARKED.finditer(text)]
    places += [
        (found.start(), found.end()) for found in _WORD.finditer(text) if _tails and found[0][-_TAIL_BYTES:] in _tails
    ]
    return [text[max(0, start - 80) : end + 20].decode(errors="replace") for start, end in places[:5]]


def leaks_in_files(folder: Path) -> Iterator[str]:
    """Yield where in the files that were produced below a folder a secret stands."""
    for path in folder.rglob("*"):
        if path.suffix not in _PRODUCED or path.name in _GIVEN or path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as stream:
            while text := stream.read(_BLOCK_BYTES):
                yield from (f"{path}: {found}" for found in leaks_in(text))
                if len(text) == _BLOCK_BYTES:
                    stream.seek(-_OVERLAP_BYTES, 1)


def refuse_leaks_in_files(folder: Path) -> None:
    """Raise AssertionError where a secret stands in the files that were produced below a folder."""
    found = list(leaks_in_files(folder))
    if found:
        raise AssertionError("secrets were written to files:\n" + "\n".join(found[:20]))


def written_by_the_test(url: str, table: str) -> None:
    """Say that a test wrote secrets into a table itself, which is not searched then."""
    _exempt.add((url, table))


def refuse_leaks_in_database(url: str) -> None:
    """Raise AssertionError where a secret stands in a table. Blocks; other event loops are not disturbed."""
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(asyncio.run, leaks_in_database(url)).result()
    if found:
        raise AssertionError("secrets were written to the database:\n" + "\n".join(found[:20]))


async def leaks_in_database(url: str) -> list[str]:
    """Return where in the tables of a database a secret stands."""
    try:
        connection = await asyncpg.connect(url)
    except asyncpg.InvalidCatalogNameError:
        return []  # the test dropped it
    try:
        tables = await connection.fetch(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
            "AND relnamespace = 'public'::regnamespace AND relname !~ $1",
            _NUMBERS_ALONE,
        )
        # bytea is written in hexadecimal digits, and its content may be in any form.
        wanted = [form.decode() for form in _forms(MARKER)] + [form.hex() for form in _forms(MARKER)]
        if _tails:
            wanted.append("[A-Za-z0-9+/_-]{40}")
        rows = await connection.fetch(
            " UNION ALL ".join(
                f"SELECT '{name}', t::text FROM {name} t WHERE t::text ~ $1"
                for (name,) in tables
                if (url, name) not in _exempt
            ),
            "|".join(wanted),
        )
    finally:
        await connection.close()
    return [f"table {name}: {found}" for name, row in rows for found in leaks_in(_with_bytes_read(row))]


def _with_bytes_read(row: str) -> bytes:
    read = (bytes.fromhex(digits) for digits in re.findall(r"\\x((?:[0-9a-f]{2})+)", row))
    return b" ".join([row.encode(), *read])


def _forms(secret: str) -> Iterable[bytes]:
    raw = secret.encode()
    yield raw
    yield quote(secret).encode()
    yield raw.hex().encode()
    for shift in range(3):
        # The first and the last characters depend on what stands beside the secret.
        encoded = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        yield encoded[4 if shift else 0 : -2]


_MARKED = re.compile(b"|".join(map(re.escape, sorted(_forms(MARKER)))))
