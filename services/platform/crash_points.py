"""Places where a process can be told to die at once, as by SIGKILL: how tests prove that a crash loses nothing.

METERPOST_CRASH_AT names the place: `ingest.before_commit`, or `ingest.before_commit:3` for the third time that it is
passed. METERPOST_CRASH_ON holds a text: whoever judges a record that contains it dies. Unset, as in every deployment,
a place costs one comparison.
"""

import os
import signal

_VARIABLE = "METERPOST_CRASH_AT"


def _parse(wanted: str) -> tuple[str, int]:
    name, _colon, count = wanted.partition(":")
    return name, int(count) if count.isdecimal() else 1


_NAME, _COUNT = _parse(os.environ.get(_VARIABLE, ""))
_passed = 0
DEADLY = os.environ.get("METERPOST_CRASH_ON", "").encode()
"""Empty, or what makes a record deadly."""


def crash_point(name: str) -> None:
    """Kill this process when its environment says so; nothing is flushed, closed or rolled back."""
    if _NAME and name == _NAME:
        _count_down()


def crash_on(payload: bytes) -> None:
    """Kill this process when a record is of the kind that its environment says."""
    if DEADLY in payload:
        os.kill(os.getpid(), signal.SIGKILL)


def _count_down() -> None:
    global _passed  # noqa: PLW0603 - a count of the process, like its environment
    _passed += 1
    if _passed == _COUNT:
        os.kill(os.getpid(), signal.SIGKILL)
