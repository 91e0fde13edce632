"""Every route of the API."""

from services.api.http.endpoint import Endpoint
from services.api.http.routes import (
    audit,
    clients,
    data_sample,
    devices,
    dry_run,
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
    *jobs.ENDPOINTS,
    *dry_run.ENDPOINTS,
    *runs.ENDPOINTS,
    *audit.ENDPOINTS,
)
