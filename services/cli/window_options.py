"""What the commands about windows have in common: the range and the resolution."""

from datetime import datetime
from typing import Annotated

import typer

from services.cli import choosing
from services.core.windows import RESOLUTIONS_MINUTES
from services.platform.errors import UserError

From = Annotated[str, typer.Option("--from", metavar="TIME", help="Windows that start at or after this.")]
To = Annotated[str, typer.Option("--to", metavar="TIME", help="Windows that start before this.")]
Resolution = Annotated[
    int | None,
    typer.Option("--resolution", metavar="MINUTES", help="1, 5, 15 or 60; default: all.", show_default=False),
]


def parse_range(from_: str, to: str) -> tuple[datetime, datetime]:
    """Return the range of two instants. Raises UserError where they are none, or the wrong way round."""
    start, end = choosing.instant(from_, "--from"), choosing.instant(to, "--to")
    if end <= start:
        raise UserError(f"--to ({to}) must be after --from ({from_})")
    return start, end


def check_resolution(resolution: int | None) -> None:
    """Raise UserError where there are no such windows."""
    if resolution is not None and resolution not in RESOLUTIONS_MINUTES:
        raise UserError(
            f"--resolution is {resolution}; windows have {', '.join(map(str, RESOLUTIONS_MINUTES))} minutes"
        )
