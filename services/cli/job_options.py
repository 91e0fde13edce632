"""Options and arguments of `meterpost jobs` that several of its commands share."""

from pathlib import Path
from typing import Annotated

import typer

from services.api.job_settings import DATA
from services.core.catalog_records import CATALOG
from services.core.schedule import CATALOG_FREQUENCY_MINUTES, FREQUENCY_NAMES, frequency_name
from services.platform.errors import UserError

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
DataOption = Annotated[
    str,
    typer.Option(
        "--data", metavar="|".join(DATA), help="What is sent. A catalog goes every day, without a resolution."
    ),
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


def check_needed(name: str | None, data: str, frequency: str | None, resolution: int | None, *, has_sites: bool) -> str:
    """Return the frequency of a new job. Raises UserError, naming everything that is missing."""
    if data not in DATA:
        raise UserError(f"there is no data called {data!r} to export; allowed: {', '.join(DATA)}")
    if data == CATALOG and frequency is None:
        frequency = frequency_name(CATALOG_FREQUENCY_MINUTES)
    needed = {"--name": name, "--frequency": frequency}
    if data != CATALOG:
        needed["--resolution"] = None if resolution is None else str(resolution)
    missing = [option for option, value in needed.items() if value is None]
    if not has_sites:
        missing.append("--all-sites or --site")
    if missing or frequency is None:
        raise UserError(f"a job needs {', '.join(missing)} (see `meterpost jobs create --help`)")
    return frequency


def frequency_minutes(name: str) -> int:
    """Return the minutes of a frequency. Raises UserError, naming those there are."""
    try:
        return FREQUENCY_NAMES[name.strip().lower()]
    except KeyError:
        allowed = ", ".join(FREQUENCY_NAMES)
        raise UserError(f"no export frequency is called {name!r}; allowed: {allowed}") from None
