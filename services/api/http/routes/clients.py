"""Machines that may use the API."""

import secrets

import msgspec

from services.api import access_store
from services.api.access import SECRET_PREFIX, Grant, fingerprint, new_secret
from services.api.access_store import Client
from services.api.http.call import Call
from services.api.http.decoding import Instant, Name
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import PageQuery, link, page, read_cursor
from services.api.http.problems import Problem, not_found
from services.api.http.routes.people import SiteIds, TenantRole


class ClientShown(msgspec.Struct, frozen=True):
    """A client; its secret is shown once, when it is created."""

    client_id: str
    name: str
    role: str
    may_export: bool
    site_ids: list[int] | None
    created_at: Instant
    revoked_at: Instant | None


class ClientCreated(msgspec.Struct, frozen=True):
    """A client with its secret, which is not shown again."""

    client_id: str
    client_secret: str
    name: str
    role: str
    may_export: bool
    site_ids: list[int] | None
    created_at: Instant


class Clients(msgspec.Struct, frozen=True):
    """A page of clients."""

    clients: list[ClientShown]
    next_cursor: str | None


class NewClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client to be created."""

    name: Name
    role: TenantRole
    may_export: bool = False
    site_ids: SiteIds | None = None


async def list_clients(call: Call) -> Answer:
    """List clients by id."""
    query = call.query(PageQuery)
    [after] = read_cursor(query, [str]) or [""]
    rows = await access_store.list_clients(call.connection, call.organization_id, after, query.limit + 1)
    shown, cursor = page(query, rows, lambda one: [one.client_id])
    return Answer(Clients([_shown(one) for one in shown], cursor), headers=link(call, cursor))


async def create_client(call: Call) -> Answer:
    """Create a client of the caller's organization."""
    return await _create(call, call.organization_id)


async def create_client_of(call: Call) -> Answer:
    """Create a client of any organization: how the operator gives an organization its first one."""
    organization_id = call.id("organization_id", "organization")
    known = await call.connection.fetchval("SELECT true FROM organization WHERE organization_id = $1", organization_id)
    if not known:
        raise not_found(f"organization {organization_id}")
    return await _create(call, organization_id)


async def _create(call: Call, organization_id: int) -> Answer:
    new = call.body(NewClient)
    secret, client_id = new_secret(SECRET_PREFIX), f"mp-{secrets.token_hex(8)}"
    grant = Grant(organization_id, new.role, new.may_export, new.site_ids)
    client = await access_store.create_client(
        call.connection, client_id, new.name, grant, fingerprint(secret), call.now
    )
    await call.audit("client.create", client_id, None, _shown(client))
    created = ClientCreated(
        *(client.client_id, secret, client.name, client.role, client.may_export, client.site_ids, client.created_at)
    )
    return Answer(created, 201)


async def revoke_client(call: Call) -> Answer:
    """End a client; tokens that it has are refused from now on."""
    client = await access_store.find_client(call.connection, call.path["client_id"].replace("\0", ""))
    if client is None or client.organization_id != call.organization_id:
        raise not_found(f"client {call.path['client_id'][:60]}")
    if call.caller.actor == f"client:{client.client_id}":
        raise Problem("conflict", "a client cannot revoke itself; use another one")
    await access_store.revoke_client(call.connection, client.client_id, call.now)
    await call.audit("client.revoke", client.client_id, _shown(client), None)
    return Answer(None, 204)


def _shown(client: Client) -> ClientShown:
    return ClientShown(
        *(client.client_id, client.name, client.role, client.may_export, client.site_ids),
        *(client.created_at, client.revoked_at),
    )


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/api-clients", "list_clients", "The machines of the organization"),
        *(list_clients, "admin", Clients),
        query=PageQuery,
        is_whole_organization=True,
    ),
    Endpoint(
        *("POST", "/v1/api-clients", "create_client", "Admit a machine"),
        *(create_client, "admin", ClientCreated, 201),
        body=NewClient,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        has_secret=True,
    ),
    Endpoint(
        *("DELETE", "/v1/api-clients/{client_id}", "revoke_client", "Keep a machine out"),
        *(revoke_client, "admin", None, 204),
        is_whole_organization=True,
        codes=("conflict",),
    ),
    Endpoint(
        *("POST", "/v1/organizations/{organization_id}/api-clients", "create_client_of", "Give one a client"),
        *(create_client_of, "operator", ClientCreated, 201),
        body=NewClient,
        body_form="json",
        is_create=True,
        has_secret=True,
    ),
)
