"""schemas/http/openapi.json is OpenAPI 3.1, and says what the routes do: neither more nor less."""

import json

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator

from services.api.http.call import Means
from services.api.http.contract import render
from services.api.http.routes.every import ENDPOINTS
from services.api.http.server import build_application
from services.api.passwords import Passwords
from services.api.settings import ApiSettings
from services.api.signing_keys import SigningKeys
from services.platform.clock import SystemClock
from services.platform.secrets import Vault
from tests.support.platform import REPOSITORY

FILE = REPOSITORY / "schemas" / "http" / "openapi.json"
CONTRACT = json.loads(FILE.read_bytes())


def _application() -> web.Application:
    settings, vault = ApiSettings.model_validate({}), Vault({})
    keys = SigningKeys(vault, "x", settings.token_lifetime, settings.token_lifetime)
    return build_application(Means(settings, SystemClock(), keys, vault, Passwords()))


def test_what_is_published_is_what_the_routes_declare() -> None:
    """Run `python -m services.api.http.contract > schemas/http/openapi.json` where a change is meant."""
    assert FILE.read_text(encoding="utf-8") == render()


def test_the_router_serves_the_contract_and_nothing_else() -> None:
    served = set()
    for route in _application().router.routes():
        assert route.resource is not None
        served.add((route.method.lower(), route.resource.canonical))
    published = {(method, path) for path, operations in CONTRACT["paths"].items() for method in operations}
    assert served == published


def test_every_operation_has_a_name_of_its_own_and_refuses_unknown_fields() -> None:
    names = [endpoint.name for endpoint in ENDPOINTS]
    assert len(set(names)) == len(names)
    for endpoint in ENDPOINTS:
        for struct in (endpoint.query, endpoint.body):
            # RFC 6749 wants unknown parameters of a token request ignored.
            assert struct is None or struct.__struct_config__.forbid_unknown_fields or endpoint.name == "give_token"


@pytest.mark.parametrize("name", sorted(CONTRACT["components"]["schemas"]))
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(CONTRACT["components"]["schemas"][name])


def test_whatever_changes_something_needs_a_scope() -> None:
    free = {endpoint.name for endpoint in ENDPOINTS if endpoint.scope is None and endpoint.changes}
    assert free == {"give_token", "log_in", "log_out"}
