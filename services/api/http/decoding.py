"""Queries and bodies into structs; every mistake names its field and says what is allowed."""

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from services.api.http.problems import Problem

Instant = Annotated[datetime, msgspec.Meta(tz=True, description="ISO 8601 with a zone, such as 2026-11-20T10:00:00Z.")]
Amount = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{1,30}(\.[0-9]{1,30})?$", description="An exact decimal number as a string, such as 0.001."
    ),
]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f]*$")]
Id = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
StructT = TypeVar("StructT", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"contains unknown field `(?P<field>.*?)`(?: - at `(?P<at>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>.*?)`(?: - at `(?P<at>.*)`)?$")
_WRONG = re.compile(r"^(?P<what>.*?)(?: - at `(?P<at>.*)`)?$", re.DOTALL)


def decode_json(body: bytes, kind: type[StructT]) -> StructT:
    """Return a body as a struct. Raises Problem."""
    if b"\\u0000" in body:
        raise Problem("malformed_body", "the body holds the character U+0000, which no text has")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _problem(str(error), "the body", msgspec.structs.fields(kind)) from None
    except msgspec.DecodeError as error:
        raise Problem("malformed_body", f"the body is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise Problem("malformed_body", "the body is not UTF-8") from None


def decode_query(pairs: Sequence[tuple[str, str]], kind: type[StructT]) -> StructT:
    """Return a query as a struct; a list is several parameters of a name, or one with commas. Raises Problem."""
    fields = {one.encode_name: one for one in msgspec.structs.fields(kind)}
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields and _is_list(fields[name].type):
            given.setdefault(name, []).extend(part for part in value.split(",") if part)
        elif name in given:
            raise Problem("invalid_value", f"{name} is given twice", field=name)
        elif "\x00" in value:
            raise Problem("invalid_value", f"{name} holds a character that no text has", field=name)
        else:
            given[name] = value
    try:
        return msgspec.convert(given, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise _problem(str(error), "the query", fields.values()) from None


def decode_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form. Raises Problem for a field that is there twice."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=20)
    except ValueError:
        raise Problem("malformed_body", "the body is not a form (application/x-www-form-urlencoded)") from None
    for name, value in pairs:
        if name in found:
            raise Problem("invalid_value", f"{name} is given twice", field=name)
        found[name] = value
    return found


def decimal(amount: str) -> Decimal:
    """Return the number that an Amount is."""
    return Decimal(amount)


def plain(number: Decimal | None) -> str | None:
    """Return an exact number as a string without an exponent and without zeros that say nothing."""
    if number is None:
        return None
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _problem(message: str, where: str, fields: Any) -> Problem:
    names = ", ".join(sorted(one.encode_name for one in fields))
    if found := _UNKNOWN.search(message):
        field = _path(found["at"], found["field"])
        at_top = f"; {where} may have: {names}" if found["at"] is None else ""
        return Problem("unknown_field", f"{where} has the unknown field {field!r}{at_top}", field=field)
    if found := _MISSING.search(message):
        field = _path(found["at"], found["field"])
        return Problem("missing_field", f"{where} lacks the field {field!r}", field=field)
    wrong = _WRONG.search(message)
    at = wrong["at"] if wrong else None
    field = _path(at, "")
    what = (wrong["what"] if wrong else message).replace("`", "")
    what = what[:1].lower() + what[1:]
    return Problem("invalid_value", f"{field or where}: {what}", field=field or None)


def _path(at: str | None, field: str) -> str:
    """Turn msgspec's `$.meters[0]` and a field's name into meters[0].name."""
    start = (at or "").removeprefix("$").removeprefix(".")
    return f"{start}.{field}" if start and field else start or field


def _is_list(kind: Any) -> bool:
    return "list[" in str(kind)
