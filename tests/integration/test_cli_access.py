"""`meterpost api-clients` and `meterpost users`, and that the API knows whom they admit."""

from pathlib import Path

import asyncpg
import pytest

from tests.support.api import running_api
from tests.support.command import Meterpost
from tests.support.planted import planted
from tests.support.seed import seed_catalog


@pytest.fixture
async def meterpost(database_url: str, tmp_path: Path) -> Meterpost:
    await seed_catalog(database_url)
    return Meterpost(tmp_path, {"METERPOST_DATABASE_URL": database_url})


async def test_clients_and_users_from_the_shell(meterpost: Meterpost, database_url: str, tmp_path: Path) -> None:
    made = meterpost("api-clients", "create", "--name", "BI", "--export", "--site", "1", "--json").json
    assert (made["role"], made["scopes"], made["site_ids"]) == ("viewer", "viewer exporter", [1])
    operator = meterpost("api-clients", "create", "--name", "Ops", "--role", "operator", "--json").json
    (tmp_path / "password").write_text(planted("horse battery") + "\n", encoding="utf-8")
    user = ("users", "create", "--email", "ann@example.org", "--name", "Ann", "--password-file", "password")
    assert meterpost(*user, "--role", "admin", "--json").json["scopes"] == "viewer admin"
    taken = meterpost(*user)
    assert (taken.code, "already" in taken.err) == (2, True)
    async with running_api(database_url, tmp_path) as api:
        assert (await api.exchange(made["client_id"], made["client_secret"])).json["scope"] == "viewer exporter"
        assert (await api.exchange(operator["client_id"], operator["client_secret"])).json["scope"] == "operator"
        login = {"email": "ann@example.org", "password": planted("horse battery")}
        assert (await api.call("POST", "/v1/sessions", body=login)).status == 201
        assert meterpost("api-clients", "revoke", made["client_id"]).code == 0
        assert (await api.exchange(made["client_id"], made["client_secret"])).status == 401
        assert meterpost("users", "disable", "ann@example.org").code == 0
        assert (await api.call("POST", "/v1/sessions", body=login)).status == 401
    listed = meterpost("api-clients", "list").out
    assert made["client_id"] in listed
    assert made["client_secret"] not in listed
    assert "ann@example.org" in meterpost("users", "list").out
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT actor, action, after::text FROM audit_entry ORDER BY audit_id")
    await connection.close()
    actions = ["client.create", "client.create", "user.create", "client.revoke", "user.disable"]
    assert [row["action"] for row in rows] == actions
    assert all(row["actor"].startswith("command:") for row in rows)
    assert made["client_secret"] not in str(rows)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("api-clients", "create", "--name", "X", "--role", "boss"), "viewer, admin, operator"),
        (("api-clients", "create", "--name", "X", "--site", "77"), "77"),
        (("api-clients", "create", "--name", "X", "--role", "operator", "--export"), "operator"),
        (("api-clients", "revoke", "nobody"), "nobody"),
        (("users", "disable", "no@example.org"), "no@example.org"),
        (("users", "create", "--email", "x", "--name", "X", "--password-file", "none"), "e-mail"),
    ],
)
async def test_mistakes(meterpost: Meterpost, arguments: tuple[str, ...], hint: str) -> None:
    done = meterpost(*arguments)
    assert done.code == 2
    assert hint in done.err
