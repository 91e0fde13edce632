"""What the receiver's kit has to say about something that was received."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that was found."""

    what: str
    """A stable code, such as name, form, part_missing, chain."""
    where: str
    """A file, a run or a job."""
    sentence: str
    is_difference: bool = True
    """False: worth knowing, and rightly so in some cases."""
