"""The contract as a page for people: plain HTML without any script, so that a browser runs and loads nothing for it."""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .4rem 0; }
summary { padding: .5rem .8rem; cursor: pointer; } details > div { padding: 0 .8rem .8rem; }
summary b { display: inline-block; min-width: 4.5rem; } .quiet { color: #57606a; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top;
  border-bottom: 1px solid #d0d7de; padding: .3rem .6rem .3rem 0; }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3; } a { color: #79b8ff; }
  .quiet { color: #9aa4ae; } }
"""
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "characters at least",
    "maxLength": "characters at most",
    "minItems": "entries at least",
    "maxItems": "entries at most",
    "default": "default",
}


def render_page(contract: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document as the API publishes it."""
    info = contract["info"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} API</h1><p>{escape(info['description'])}</p>",
            '<p>The same for programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>',
            *_operations(contract),
            "<h2>Shapes</h2>",
            *(_shape(name, schema) for name, schema in contract["components"]["schemas"].items()),
            "</body></html>\n",
        ]
    )


def _operations(contract: Mapping[str, Any]) -> Iterator[str]:
    group = ""
    for path, operations in contract["paths"].items():
        parts = path.strip("/").split("/")
        found = parts[1] if parts[0] == "v1" else parts[0]
        if found != group:
            group = found
            yield f"<h2>{escape(group)}</h2>"
        for method, operation in operations.items():
            yield _operation(method, path, operation)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    name = escape(operation["operationId"])
    needs = operation.get("description") or (
        "Needs a token, of whatever scope." if operation["security"] else "Needs no token."
    )
    parts = [
        f'<details id="{name}"><summary><b>{method.upper()}</b> <code>{escape(path)}</code>',
        f' <span class="quiet">{escape(operation["summary"])}</span></summary><div>',
        f"<p>{escape(needs).replace('`', '')}</p>",
    ]
    if parameters := operation.get("parameters"):
        rows = [
            (one["name"], f"{one['in']}{', needed' if one.get('required') else ''}", one["schema"], one)
            for one in parameters
        ]
        parts.append(_table("Parameters", rows))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body: {escape(media_type)}, {_kind(content['schema'])}</p>")
    parts.append("<table><tr><th>Status</th><th>Answer</th></tr>")
    for status, answer in operation["responses"].items():
        shapes = ", ".join(
            f"{escape(media_type)} {_kind(content['schema'])}"
            for media_type, content in answer.get("content", {}).items()
        )
        parts.append(
            f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}"
            f'<br><span class="quiet">{shapes or "no body"}</span></td></tr>'
        )
    return "".join([*parts, "</table></div></details>"])


def _shape(name: str, schema: Mapping[str, Any]) -> str:
    described = f"<p>{escape(schema['description'])}</p>" if "description" in schema else ""
    needed = schema.get("required", ())
    rows = [(field, "needed" if field in needed else "", of, of) for field, of in schema.get("properties", {}).items()]
    inner = _table("Fields", rows) if rows else f"<p>{_kind(schema)}</p>"
    return (
        f'<details id="shape-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div>{described}{inner}</div></details>"
    )


def _table(title: str, rows: list[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]) -> str:
    lines = [
        f'<tr><td><code>{escape(name)}</code><br><span class="quiet">{escape(more)}</span></td><td>{_kind(schema)}'
        f"<br>{escape(_description(schema, described))}</td></tr>"
        for name, more, schema, described in rows
    ]
    return f"<table><tr><th>{title}</th><th></th></tr>{''.join(lines)}</table>"


def _description(schema: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    return str(described.get("description") or schema.get("description") or "")


def _kind(schema: Mapping[str, Any]) -> str:
    """Return what a value is, in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(_kind(one) for one in schema.get("anyOf") or schema["oneOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    found = escape(str(schema.get("type", "anything")))
    if found == "array":
        found = f"list of {_kind(schema.get('items', {}))}"
    if "format" in schema:
        found += f" ({escape(schema['format'])})"
    if "pattern" in schema:
        found += f", like <code>{escape(schema['pattern'])}</code>"
    for limit, words in _LIMITS.items():
        if limit in schema and schema[limit] is not None:
            found += f", {words} {escape(str(schema[limit]))}"
    return found
