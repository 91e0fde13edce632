"""Parts kept until they are sent: never more than may be, never others than were asked for."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from services.delivery.kept_parts import KeptParts


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=8)), max_size=30))
def test_what_is_found_is_what_was_kept_and_never_too_much_is(steps: list[tuple[bool, bytes]]) -> None:
    kept, model = KeptParts(most_bytes=20), dict[bytes, list[bytes]]()
    for is_kept, body in steps:
        sha256 = hashlib.sha256(body).digest()
        if is_kept:
            kept.keep(sha256, body)
            if sha256 in model or sum(len(bodies[0]) for bodies in model.values()) + len(body) <= 20:
                model.setdefault(sha256, []).append(body)
        elif sha256 in model:
            assert kept.take(sha256) == model[sha256].pop()
            if not model[sha256]:
                del model[sha256]
        else:
            assert kept.take(sha256) is None


def test_what_nobody_came_for_makes_room() -> None:
    kept = KeptParts(most_bytes=4, keep_seconds=0)
    kept.keep(b"a", b"aaaa")
    kept.keep(b"b", b"bbbb")
    assert kept.take(b"a") is None
    assert kept.take(b"b") == b"bbbb"
