"""The contract, for programs and for people; neither needs a token or the database."""

import json
from functools import cache
from pathlib import Path

import schemas
from services.api.http.call import Call
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.page import CONTENT_SECURITY_POLICY, render_page

_FILE = Path(schemas.__file__).parent / "http" / "openapi.json"


async def show_contract(call: Call) -> Answer:
    """Give the contract."""
    del call
    return Answer(_contract())


async def show_page(call: Call) -> Answer:
    """Give the page."""
    del call
    return Answer(_page(), headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}, media_type="text/html")


@cache
def _contract() -> bytes:
    return _FILE.read_bytes()


@cache
def _page() -> bytes:
    return render_page(json.loads(_contract())).encode()


ENDPOINTS = (
    Endpoint(
        *("GET", "/openapi.json", "show_contract", "This contract"),
        *(show_contract, None, bytes),
        has_etag=True,
        holds_connection=False,
    ),
    Endpoint(
        *("GET", "/docs", "show_page", "This contract as a page for people"),
        *(show_page, None, bytes),
        has_etag=True,
        holds_connection=False,
        media_types=("text/html",),
    ),
)
