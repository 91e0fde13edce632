"""schemathesis makes requests from the contract, right and wrong ones, and holds the running service to it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.api import CONTRACT, Api, running_api
from tests.support.seed import seed_catalog

EXAMPLES = 15
"""Of each operation and each kind, right or wrong; the same ones at each run."""


def _refused(context: Any, response: Any, case: Any) -> bool | None:
    """Hold that wrong data is refused; a body that is too long is, before it is looked at."""
    refused: bool | None = None if response.status_code == 413 else negative_data_rejection(context, response, case)
    return refused


CHECKS = [
    content_type_conformance,
    ignored_auth,
    _refused,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
_QUIET = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
OPERATIONS = sorted(
    (path, method, operation["operationId"])
    for path, operations in CONTRACT["paths"].items()
    for method, operation in operations.items()
)
FREE = {"give_token", "log_in", "log_out"}
SCHEMA = schemathesis.openapi.from_dict(CONTRACT)


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT setval(pg_get_serial_sequence(name, name || '_id'), 100) FROM unnest(ARRAY['site', 'meter']) name"
    )
    await connection.close()
    limits = {"rate_burst": 100_000, "rate_per_second": 100_000, "login_per_minute": 100_000}
    async with running_api(database_url, tmp_path, **limits) as running:
        yield running


async def test_every_operation_keeps_the_contract(api: Api) -> None:
    """One service for all of them: what one operation made, the next ones meet."""
    tokens = {"operator": await api.token(None, "operator"), "": await api.token(1, "admin", may_export=True)}
    broken: list[str] = []
    for path, method, name in OPERATIONS:
        scope = CONTRACT["paths"][path][method].get("x-scope")
        token = tokens["operator" if scope == "operator" else ""]
        headers = {} if name in FREE else {"Authorization": f"Bearer {token}"}
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                await asyncio.to_thread(_hold, api.url, path, method, headers, mode)
            except Unsatisfiable:
                # What takes neither parameters nor a body cannot be asked wrongly.
                assert mode is schemathesis.GenerationMode.NEGATIVE
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - every operation is looked at first
                broken.append(f"{name}: {error}"[:3_000])
    assert not broken, "\n\n".join(broken)


def _hold(url: str, path: str, method: str, headers: dict[str, str], mode: Any) -> None:
    operation = SCHEMA[path][method.upper()]

    @_QUIET
    @given(case=operation.as_strategy(generation_mode=mode))
    def hold(case: Any) -> None:
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)

    hold()
