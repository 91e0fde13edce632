"""Strategies and a small registry for tests of judging."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from services.core.registry import BridgeAttachmentRow, InputAttachmentRow, Registry, RegistryChange

ARRIVAL = datetime(2026, 11, 20, 10, 1, 2, tzinfo=UTC)
ALWAYS = datetime(1, 1, 2, tzinfo=UTC)
MOVED_AT = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


def small_registry() -> Registry:
    """Return a logger whose inputs 1 and 2 changed at MOVED_AT, a plain one, and a bridge."""
    made = Registry()
    made.apply(
        RegistryChange(
            revision=2,
            devices=["LG-1", "LG-2", "BR-1"],
            meters=[1, 2, 3, 4, 5],
            input_attachments=[
                InputAttachmentRow("LG-1", 1, ALWAYS, 1, 1),
                InputAttachmentRow("LG-1", 1, MOVED_AT, 2, 2),
                InputAttachmentRow("LG-1", 2, ALWAYS, 1, 1),
                InputAttachmentRow("LG-1", 2, MOVED_AT, 2, None),
                InputAttachmentRow("LG-2", 1, ALWAYS, 1, 4),
                InputAttachmentRow("LG-2", 2, ALWAYS, 1, 5),
            ],
            bridge_attachments=[
                BridgeAttachmentRow("BR-1", 3, ALWAYS, 1, True),
                BridgeAttachmentRow("BR-1", 2, ALWAYS, 1, True),
                BridgeAttachmentRow("BR-1", 2, MOVED_AT, 2, False),
            ],
        )
    )
    return made


def reading(**changes: Any) -> dict[str, Any]:
    """Return a sound reading with changes; a field set to None is left out."""
    made = {"input": 1, "measurement_time": "2026-11-20T10:00:00Z", "interval_minutes": 1, "pulses": 42, **changes}
    return {name: value for name, value in made.items() if value is not None}


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_fields: dict[str, st.SearchStrategy[Any]] = {
    "input": st.sampled_from([None, -1, 0, 1, 2, 9]) | json_values,
    "meter_id": st.sampled_from([None, -1, 0, 2, 3, 999]) | json_values,
    "measurement_time": st.sampled_from(
        [
            "2026-11-20T08:59:00Z",
            "2026-11-20T09:00:00Z",
            "2026-11-20T10:06:00Z",
            "2026-11-20T10:07:00Z",
            "2026-11-20T10:00:30Z",
            "2026-11-20T10:00:00.5Z",
            "2026-11-20T11:00:00+01:00",
            "2026-11-20T10:00:00",
            "2026-W47-5T10:00:00Z",
            "2026-08-20T10:00:00Z",
            "2026-08-20T10:02:00Z",
            "1970-01-01T00:00:00Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:00Z",
            "2026-13-01T00:00:00Z",
        ]
    )
    | json_values,
    "interval_minutes": st.sampled_from([-1, 0, 1, 5, 7, 15, 30, 60]) | json_values,
    "pulses": st.sampled_from([None, -1, 0, 10**15, 10**15 + 1, 2**63, 2**70]) | json_values,
    "register": st.sampled_from([None, -1, 0, 10**15, 10**15 + 1]) | json_values,
    "revision": st.sampled_from([-1, 0, 1, 2**31 - 1, 2**31]) | json_values,
}
changes = st.lists(st.sampled_from(sorted(_fields)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: _fields[name] for name in names})
)
readings: st.SearchStrategy[Any] = changes.map(lambda made: reading(**made)) | json_values
"""Mostly sound readings with something odd about them, and sometimes anything at all."""
