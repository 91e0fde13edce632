"""The data sample: a fixed example of each kind of data and format, the same for everybody."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from services.api.http.call import Call
from services.api.http.endpoint import Answer, Endpoint

FOLDER = Path(__file__).parents[1] / "samples"
KINDS = ("measurements", "catalog", "pan42_measurements", "meters_measurements")
FORMATS = {"csv": "text/csv", "json": "application/json"}
_SAMPLES = {(kind, form): (FOLDER / f"{kind}.{form}").read_bytes() for kind in KINDS for form in FORMATS}


class SampleQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which example: by the kind of data, and by the format that a job's transport has."""

    data: Literal["measurements", "catalog", "pan42_measurements", "meters_measurements"]
    format: Annotated[Literal["csv", "json"], msgspec.Meta(description="csv: SFTP and FTPS; json: HTTPS.")]


async def show_sample(call: Call) -> Answer:
    """Show the example. Nothing of the caller is in it, nor does any other setting of a job change it."""
    query = call.query(SampleQuery)
    return Answer(_SAMPLES[query.data, query.format], media_type=FORMATS[query.format])


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/data-sample", "show_data_sample", "A fixed example of what a job delivers"),
        *(show_sample, "viewer", bytes),
        query=SampleQuery,
        has_etag=True,
        media_types=("application/json", "text/csv"),
    ),
)
