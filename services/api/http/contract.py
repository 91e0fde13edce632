"""The contract (OpenAPI 3.1), written from the routes' declarations: what is decoded and checked is what is published.

`python -m services.api.http.contract` prints it; the published one is schemas/http/openapi.json, and a test holds both
together, so every change of the contract is seen in review.
"""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from services.api.http.endpoint import Endpoint
from services.api.http.problems import CODES, MEDIA_TYPE, ProblemBody
from services.api.http.routes.every import ENDPOINTS
from services.api.http.routes.oauth import OAuthError

_REF = "#/components/schemas/{name}"
_BODY_TYPES: Mapping[str, str] = {
    "json": "application/json",
    "csv": "text/csv",
    "form": "application/x-www-form-urlencoded",
}
_TEXT_IDS = {"device_id", "client_id", "run_id", "user_name"}


def build_contract() -> dict[str, Any]:
    """Return the document."""
    structs: set[type] = {ProblemBody, OAuthError}
    for endpoint in ENDPOINTS:
        structs |= {one for one in (endpoint.query, endpoint.body, endpoint.answer) if one not in {None, bytes}}
    ordered = sorted(structs, key=lambda one: f"{one.__module__}.{one.__qualname__}")
    _refs, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    queries = {endpoint.query.__name__ for endpoint in ENDPOINTS if endpoint.query is not None}
    shown = {name: _strict(schema) for name, schema in sorted(schemas.items()) if name not in queries}
    shown["ProblemBody"]["properties"]["code"] = {"type": "string", "enum": sorted(CODES)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meterpost",
            "version": "1",
            "description": "Times are UTC and end with Z. Exact decimals are strings. Errors are RFC 9457 problems "
            "with a stable code. Unknown fields are refused by name. A caller sees the organization of its token "
            "alone: whatever belongs to another is not found.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {path: dict(sorted(paths[path].items())) for path in sorted(paths)},
        "components": {
            "schemas": shown,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A client's token (POST /oauth/token) or a session's (POST /v1/sessions).",
                }
            },
        },
    }


def _operation(endpoint: Endpoint, schemas: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "responses": _responses(endpoint),
        "security": [{"token": []}] if _needs_token(endpoint) else [],
    }
    if endpoint.scope is not None:
        where = ", over the whole organization" if endpoint.is_whole_organization else ""
        operation["description"] = f"Needs the scope `{endpoint.scope}`{where}."
        operation["x-scope"] = endpoint.scope
    parameters = _parameters(endpoint, schemas)
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body_form is not None:
        schema = {"type": "string"} if endpoint.body is None else _reference(endpoint.body)
        operation["requestBody"] = {"required": True, "content": {_BODY_TYPES[endpoint.body_form]: {"schema": schema}}}
    return operation


def _parameters(endpoint: Endpoint, schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in re.findall(r"\{(\w+)\}", endpoint.path):
        schema: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
        if name in _TEXT_IDS:
            schema = {"type": "string", "minLength": 1, "maxLength": 100}
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    if endpoint.query is not None:
        described = schemas[endpoint.query.__name__]
        for name, schema in described["properties"].items():
            one: dict[str, Any] = {"name": name, "in": "query", "schema": _not_null(schema)}
            if name in described.get("required", ()):
                one["required"] = True
            if schema.get("type") == "array":
                one |= {"style": "form", "explode": False}
            found.append(one)
    if endpoint.is_create:
        found.append(
            _header("Idempotency-Key", "Repeating a request under its key repeats its answer.", required=False)
        )
    elif endpoint.is_ranged:
        found.append(_header("Range", "Which bytes, such as `bytes=1000-`; one range.", required=False))
    elif endpoint.has_etag and endpoint.changes:
        found.append(_header("If-Match", "The ETag that GET gave.", required=True))
    return found


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    good: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.answer is not None:
        schema = {} if endpoint.answer is bytes else _reference(endpoint.answer)
        good["content"] = {
            kind: {"schema": {"type": "string"} if kind.startswith("text/") else schema}
            for kind in endpoint.media_types
        }
    if endpoint.has_etag and endpoint.answer is not None:
        good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {str(endpoint.status): good}
    if endpoint.is_ranged:
        responses["206"] = good | {"description": f"A range of: {endpoint.summary}"}
    if endpoint.has_etag and not endpoint.changes:
        responses["304"] = {"description": "It is as If-None-Match says"}
    statuses: dict[int, list[str]] = {}
    for code in codes_of(endpoint):
        statuses.setdefault(CODES[code].status, []).append(code)
    problem = {MEDIA_TYPE: {"schema": _reference(ProblemBody)}}
    for status, codes in sorted(statuses.items()):
        responses[str(status)] = {"description": ", ".join(sorted(codes)), "content": dict(problem)}
    if endpoint.name == "give_token":
        for number in ("400", "401"):
            content = responses.get(number, {}).get("content", {})
            content = {**content, "application/json": {"schema": _reference(OAuthError)}}
            responses[number] = {"description": "Refused as RFC 6749 says", "content": content}
    return dict(sorted(responses.items()))


def codes_of(endpoint: Endpoint) -> set[str]:
    """Return the problems that a route may answer with."""
    codes = {"internal_error", "unavailable", "malformed_body", "body_too_slow", "body_too_large", "unknown_field"}
    if _needs_token(endpoint):
        codes |= {"unauthorized", "invalid_token", "too_many_requests"}
    if endpoint.scope is not None:
        codes |= {"insufficient_scope"}
    if endpoint.is_guessable:
        codes |= {"too_many_requests"}
    if endpoint.is_ranged:
        codes |= {"range_not_satisfiable"}
    if endpoint.is_whole_organization:
        codes |= {"organization_wide_only"}
    if "{" in endpoint.path:
        codes |= {"not_found"}
    if endpoint.query is not None:
        codes |= {"missing_field", "invalid_value"}
        if "cursor" in endpoint.query.__struct_fields__:
            codes |= {"bad_cursor"}
    if endpoint.body_form is not None:
        codes |= {"unsupported_media_type", "missing_field", "invalid_value", "conflict"}
    if endpoint.is_create:
        codes |= {"idempotency_key_reused", "invalid_value"}
    elif endpoint.has_etag and endpoint.changes:
        codes |= {"precondition_required", "precondition_failed", "conflict"}
    return codes | set(endpoint.codes)


def _needs_token(endpoint: Endpoint) -> bool:
    return endpoint.scope is not None or endpoint.any_caller


def _header(name: str, description: str, *, required: bool) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 200}
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _not_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Leave null out: a parameter that is not given is not there."""
    found = {name: value for name, value in schema.items() if name != "default" or value is not None}
    if "anyOf" in found:
        kinds = [one for one in found.pop("anyOf") if one != {"type": "null"}]
        found = {**found, **kinds[0]} if len(kinds) == 1 else {**found, "anyOf": kinds}
    return found


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Answers have exactly the fields that are declared."""
    return {**schema, "additionalProperties": False} if schema.get("type") == "object" else schema


def render() -> str:
    """Return the document as it is published."""
    return json.dumps(build_contract(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
