"""Every route of the API."""

from services.api.http.endpoint import Endpoint
from services.api.http.routes import (
    audit,
    clients,
    connections,
    data_sample,
    description,
    devices,
    dry_run,
    export_files,
    exports,
    jobs,
    measurements,
    meter_import,
    meters,
    oauth,
    organizations,
    people,
    runs,
    sites,
)

ENDPOINTS: tuple[Endpoint, ...] = (
    *oauth.ENDPOINTS,
    *people.ENDPOINTS,
    *clients.ENDPOINTS,
    *organizations.ENDPOINTS,
    *sites.ENDPOINTS,
    *devices.ENDPOINTS,
    *meter_import.ENDPOINTS,
    *meters.ENDPOINTS,
    *measurements.ENDPOINTS,
    *data_sample.ENDPOINTS,
    *exports.ENDPOINTS,
    *export_files.ENDPOINTS,
    *jobs.ENDPOINTS,
    *dry_run.ENDPOINTS,
    *connections.ENDPOINTS,
    *runs.ENDPOINTS,
    *audit.ENDPOINTS,
    *description.ENDPOINTS,
)
