"""Options and arguments of `meterpost jobs` that several of its commands share."""

from pathlib import Path
from typing import Annotated

import typer

from services.core.schedule import FREQUENCY_NAMES

_PAIRS = "day: 15, 60; hour: 5, 15, 60; 15min: 1, 5, 15; 5min: 1, 5"

JobArgument = Annotated[int, typer.Argument(metavar="JOB", help="The job's id, as `jobs list` shows it.")]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="For people; also in file names.", show_default=False)
]
FrequencyOption = Annotated[
    str | None, typer.Option("--frequency", metavar="|".join(FREQUENCY_NAMES), help="How often.", show_default=False)
]
ResolutionOption = Annotated[
    int | None,
    typer.Option("--resolution", metavar="MINUTES", help=f"Of the rows. Allowed with {_PAIRS}.", show_default=False),
]
AllSitesOption = Annotated[bool, typer.Option("--all-sites", help="All sites, those to come too.")]
SiteOption = Annotated[
    list[str] | None,
    typer.Option("--site", metavar="NAME_OR_ID", help="A site; give it again for more.", show_default=False),
]
TransportOption = Annotated[
    str | None,
    typer.Option("--transport", metavar="https|sftp|ftps", help="How it is sent; follows from the address."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Where to. Default: the receiver of the demo that is running.", show_default=False
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", metavar="FILE", help="Certificates (PEM) to trust instead of the system's.", show_default=False
    ),
]
