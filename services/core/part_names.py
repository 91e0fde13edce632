"""What a receiver can read from the name of a file that it got; the reverse of the names in services.core.parts."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from services.core.parts import compact_time, run_id

_TIME = r"[0-9]{8}T[0-9]{6}Z"
_NAME = re.compile(
    r"([1-9][0-9]{0,11})-([A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)_(meters_measurements|catalog)"
    rf"_({_TIME})_({_TIME})_"
    r"(?:([1-9][0-9]{0,8})of([1-9][0-9]{0,8})\.(csv|json)|manifest(?:([1-9][0-9]{0,8})of([1-9][0-9]{0,8}))?\.json)"
)
_TEMPORARY = re.compile(r"\..*\.partial", re.DOTALL)
_MAX_SLUG = 60
FORM = "JOB-NAME_meters_measurements_START_END_KofN.csv (or .json, or …_manifest.json, …_manifestKofN.json)"


class PartName(NamedTuple):
    """What a name says. `part` None: a manifest, of which `parts` and `ending` say nothing."""

    job_id: int
    slug: str
    data: str
    start: datetime
    end: datetime
    part: int | None
    parts: int
    ending: str
    section: int = 1
    """Of a manifest: which of the run's it is. More than one of them have very long runs only."""
    sections: int = 1

    @property
    def run(self) -> str:
        """The id of the run."""
        return run_id(self.job_id, self.start)


def read_part_name(name: str) -> PartName:
    """Return what a file's name says. Raises ValueError, with a sentence, where it is not of the form."""
    found = _NAME.fullmatch(name)
    if found is None or len(found[2]) > _MAX_SLUG:
        raise ValueError(f"the name is not of the form {FORM}")
    start, end = _time(found[4]), _time(found[5])
    if start >= end:
        raise ValueError(f"the name says a window that ends ({found[5]}) before it begins ({found[4]})")
    part, parts = (int(found[6]), int(found[7])) if found[6] else (None, 0)
    if part is not None and part > parts:
        raise ValueError(f"the name says part {part} of {parts}")
    section, sections = (int(found[9]), int(found[10])) if found[9] else (1, 1)
    if section > sections or (found[9] and sections == 1):
        raise ValueError(f"the name says manifest {section} of {sections}")
    ending = f".{found[8]}" if found[8] else ""
    return PartName(int(found[1]), found[2], found[3], start, end, part, parts, ending, section, sections)


def is_temporary(name: str) -> bool:
    """Tell whether this is the hidden name of a file under way."""
    return _TEMPORARY.fullmatch(name) is not None


def _time(text: str) -> datetime:
    try:
        instant = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        instant = None
    if instant is None or compact_time(instant) != text:
        raise ValueError(f"the name holds {text}, which is no time")
    return instant
