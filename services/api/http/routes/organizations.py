"""Organizations, which the operator creates, and their customers' accounts."""

import msgspec

from services.api.catalog_edits import create_account, create_organization
from services.api.catalog_store import catalog_change
from services.api.http.call import Call
from services.api.http.decoding import Name
from services.api.http.endpoint import Answer, Endpoint
from services.api.http.paging import PageQuery, link, page, read_cursor
from services.api.http.problems import Problem, not_found


class Organization(msgspec.Struct, frozen=True):
    """A tenant."""

    organization_id: int
    name: str


class Organizations(msgspec.Struct, frozen=True):
    """A page of tenants."""

    organizations: list[Organization]
    next_cursor: str | None


class Account(msgspec.Struct, frozen=True):
    """A customer of the organization."""

    account_id: int
    name: str


class Accounts(msgspec.Struct, frozen=True):
    """A page of customers."""

    accounts: list[Account]
    next_cursor: str | None


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has just a name."""

    name: Name


_ORGANIZATIONS = """
SELECT organization_id, name FROM organization WHERE organization_id > $1 ORDER BY organization_id LIMIT $2
"""
_ACCOUNTS = """
SELECT account_id, name FROM account WHERE organization_id = $1 AND account_id > $2 ORDER BY account_id LIMIT $3
"""


async def list_organizations(call: Call) -> Answer:
    """List tenants by id."""
    query = call.query(PageQuery)
    [after] = read_cursor(query, [int]) or [0]
    rows = await call.connection.fetch(_ORGANIZATIONS, after, query.limit + 1)
    shown, cursor = page(query, [Organization(*row) for row in rows], lambda one: [one.organization_id])
    return Answer(Organizations(list(shown), cursor), headers=link(call, cursor))


async def show_organization(call: Call) -> Answer:
    """Show a tenant."""
    organization_id = call.id("organization_id", "organization")
    return Answer(await _find(call, organization_id))


async def show_own_organization(call: Call) -> Answer:
    """Show the caller's own organization."""
    return Answer(await _find(call, call.organization_id))


async def new_organization(call: Call) -> Answer:
    """Create a tenant."""
    name = call.body(Named).name
    async with catalog_change(call.connection) as change:
        created = await create_organization(change, name)
        if created is None:
            raise Problem("conflict", f"there is an organization named {name!r} already", field="name")
    organization = Organization(created, name)
    await call.audit("organization.create", created, None, organization)
    return Answer(organization, 201, {"Location": f"/v1/organizations/{created}"})


async def list_accounts(call: Call) -> Answer:
    """List customers by id."""
    query = call.query(PageQuery)
    [after] = read_cursor(query, [int]) or [0]
    rows = await call.connection.fetch(_ACCOUNTS, call.organization_id, after, query.limit + 1)
    shown, cursor = page(query, [Account(*row) for row in rows], lambda one: [one.account_id])
    return Answer(Accounts(list(shown), cursor), headers=link(call, cursor))


async def new_account(call: Call) -> Answer:
    """Create a customer."""
    name = call.body(Named).name
    async with catalog_change(call.connection) as change:
        created = await create_account(change, call.organization_id, name)
        if created is None:
            raise Problem("conflict", f"there is an account named {name!r} already", field="name")
    account = Account(created, name)
    await call.audit("account.create", created, None, account)
    return Answer(account, 201)


async def _find(call: Call, organization_id: int) -> Organization:
    row = await call.connection.fetchrow(_ORGANIZATIONS, organization_id - 1, 1)
    if row is None or row["organization_id"] != organization_id:
        raise not_found(f"organization {organization_id}")
    return Organization(*row)


ENDPOINTS = (
    Endpoint(
        *("GET", "/v1/organizations", "list_organizations", "The organizations of the platform"),
        *(list_organizations, "operator", Organizations),
        query=PageQuery,
    ),
    Endpoint(
        *("POST", "/v1/organizations", "create_organization", "Create an organization"),
        *(new_organization, "operator", Organization, 201),
        body=Named,
        body_form="json",
        is_create=True,
        codes=("conflict",),
    ),
    Endpoint(
        *("GET", "/v1/organizations/{organization_id}", "show_organization", "An organization"),
        *(show_organization, "operator", Organization),
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/organization", "show_own_organization", "The caller's own organization"),
        *(show_own_organization, "viewer", Organization),
        has_etag=True,
    ),
    Endpoint(
        *("GET", "/v1/accounts", "list_accounts", "The organization's customers"),
        *(list_accounts, "viewer", Accounts),
        query=PageQuery,
        is_whole_organization=True,
    ),
    Endpoint(
        *("POST", "/v1/accounts", "create_account", "Create an account of a customer"),
        *(new_account, "admin", Account, 201),
        body=Named,
        body_form="json",
        is_whole_organization=True,
        is_create=True,
        codes=("conflict",),
    ),
)
