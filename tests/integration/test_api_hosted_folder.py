"""The hosted folder over HTTP: jobs that go there, accounts that fetch from it, and what became of the files."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.core.file_transfer import fingerprint
from services.dropbox.host_keys import public_line
from tests.support.api import Api, running_api
from tests.support.command import Meterpost, Outcome
from tests.support.dropbox import PASSWORD, Hosted, hosted_folder, new_key
from tests.support.polling import eventually_async
from tests.support.seed import seed_catalog

JOB: dict[str, Any] = {"name": "Hosted", "frequency": "hour", "resolution_minutes": 60}
HOSTED: dict[str, Any] = {"transport": "hosted", "line_end": "crlf"}


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    await seed_catalog(database_url)
    async with running_api(database_url, tmp_path, rate_burst=10_000) as running:
        yield running


async def test_a_job_goes_there_and_elsewhere_and_back(api: Api) -> None:
    token = await api.token(1, "viewer", may_export=True)
    made = await api.call("POST", "/v1/jobs", token=token, body={**JOB, "destination": HOSTED})
    assert (made.status, made.json["destination"]) == (201, {**HOSTED, "defuse_formulas": True}), made
    assert (made.json["secrets"], made.json["public_key"]) == ([], None)
    path, etag = made.headers["Location"], made.etag

    async def to(destination: dict[str, Any], **secrets: str | None) -> dict[str, Any]:
        nonlocal etag
        body = {"destination": destination, "secrets": secrets}
        got = await api.call("PATCH", path, token=token, body=body, headers={"If-Match": etag})
        assert got.status == 200, got
        etag = got.etag
        found: dict[str, Any] = got.json
        return found

    sftp = {"transport": "sftp", "host": "sftp.example.org", "user": "u"}
    assert (await to(sftp))["secrets"] == ["private_key"]
    back = await to(HOSTED)
    assert (back["secrets"], back["public_key"], back["destination"]["transport"]) == ([], None, "hosted")
    bearer = {"transport": "https", "url": "https://example.org/in", "auth": "bearer"}
    assert (await to(bearer, token="a-token"))["secrets"] == ["token"]
    # What one transport logs in with is nothing to another: a key of its own is made.
    assert (await to(sftp))["public_key"].startswith("ssh-ed25519 ")
    await to(bearer, token="a-token")
    assert (await to(HOSTED))["secrets"] == []
    for wrong, says in (
        ({"secrets": {"password": "x" * 12}}, "no use"),
        ({"destination": {**HOSTED, "host": "h"}}, "host"),
    ):
        refused = await api.call("POST", "/v1/jobs", token=token, body={**JOB, "destination": HOSTED, **wrong})
        assert refused.status in {409, 422}
        assert says in refused.json["detail"]
    keys = await api.call("POST", f"{path}/host-keys", token=token, body={"test_id": 1, "fingerprint": "SHA256:x"})
    assert "operator keeps" in keys.json["detail"]


async def test_an_account_from_its_beginning_to_its_end(api: Api, tmp_path: Path) -> None:
    admin, key = await api.token(1), new_key()
    hosted = Hosted(tmp_path / "dropbox", api.database_url)
    async with hosted_folder(api.database_url, hosted.root, hosted=hosted) as it:

        async def get_in(user: str = "acme", **how: Any) -> bool:
            try:
                async with it.customer(user, **how) as files:
                    await files.listdir("/")
            except (asyncssh.Error, OSError):
                return False
            return True

        async def change(what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
            got = await api.call("POST", f"/v1/folder-accounts/acme/{what}", token=admin, body=body)
            assert got.status == 200, got
            assert PASSWORD not in got.content.decode()
            found: dict[str, Any] = got.json
            return found

        body = {"user_name": "acme", "password": PASSWORD}
        made = await api.call("POST", "/v1/folder-accounts", token=admin, body=body, headers={"Idempotency-Key": "1"})
        again = await api.call("POST", "/v1/folder-accounts", token=admin, body=body, headers={"Idempotency-Key": "1"})
        assert (made.status, made.json["has_password"], again.json) == (201, True, made.json)
        assert await get_in()
        assert not await get_in(client_keys=[key])
        added = await change("keys", {"public_key": f"{public_line(key)} laptop"})
        assert [(one["fingerprint"], one["comment"]) for one in added["keys"]] == [
            (fingerprint(public_line(key)), "laptop")
        ]
        assert await get_in(client_keys=[key])
        assert (await change("password", {"password": None}))["has_password"] is False
        assert not await get_in()
        assert (await change("disable"))["disabled_at"] is not None
        assert not await get_in(client_keys=[key])
        assert (await change("enable"))["disabled_at"] is None
        it.put("1-Hourly.csv", b"content")
        async with it.depositor() as files:
            async with files.open("/1/.a.csv.0123abcd.partial", "xb") as stream:
                await stream.write(b"content")
            await files.rename("/1/.a.csv.0123abcd.partial", "/1/a.csv")
        async with it.customer("acme", client_keys=[key]) as files:
            await files.get("a.csv", tmp_path / "a.csv")

        async def is_fetched() -> bool:
            found = (await api.get("/v1/folder-files", admin)).json["files"]
            return [(one["file_name"], one["last_fetched_by"]) for one in found if one["fetch_count"]] == [
                ("a.csv", "acme")
            ]

        await eventually_async(is_fetched, 10, because="the fetch is on record")
        one_way = await api.call(
            "POST", "/v1/folder-accounts/acme/keys/withdraw", token=admin, body={"fingerprint": "SHA256:x"}
        )
        assert (one_way.status, one_way.json["field"]) == (422, "fingerprint")
        assert fingerprint(public_line(key)) in one_way.json["detail"]
        await change("password", {"password": PASSWORD + "!"})
        assert (await change("keys/withdraw", {"fingerprint": fingerprint(public_line(key))}))["keys"] == []
        assert not await get_in(client_keys=[key])
    entries = (await api.get("/v1/audit", admin)).json["entries"]
    assert [one["action"].removeprefix("folder_account.") for one in entries] == [
        "remove_key", "set_password", "enable", "disable", "set_password", "add_key", "create",
    ]  # fmt: skip
    assert PASSWORD not in str(entries)


async def test_mistakes_say_what_to_do(api: Api) -> None:
    admin = await api.token(1)
    pair = asyncssh.generate_private_key("ssh-ed25519")
    weak = asyncssh.generate_private_key("ssh-rsa", key_size=1024).export_public_key().decode()
    good = {"user_name": "acme", "password": PASSWORD}
    assert (await api.call("POST", "/v1/folder-accounts", token=admin, body=good)).status == 201
    for body, status, field, says in (
        (good, 409, "user_name", "choose another"),
        ({"user_name": "two"}, 422, "password", "nobody could log in"),
        ({"user_name": "two", "password": "short"}, 422, "password", "12"),
        ({"user_name": "two", "password": "a" * 20}, 422, "password", "different characters"),
        ({**good, "user_name": "meterpost-delivery"}, 422, "user_name", "not with `meterpost`"),
        ({**good, "user_name": "Upper"}, 422, "user_name", "not with `meterpost`"),
        (
            {"user_name": "two", "public_keys": [pair.export_private_key().decode()]},
            422,
            "public_keys[0]",
            "private key",
        ),
        ({"user_name": "two", "public_keys": ["rubbish"]}, 422, "public_keys[0]", "ssh-ed25519 AAAA"),
        ({"user_name": "two", "public_keys": [weak]}, 422, "public_keys[0]", "2048 bits"),
    ):
        got = await api.call("POST", "/v1/folder-accounts", token=admin, body=body)
        assert (got.status, got.json["field"]) == (status, field), got.json
        assert says in got.json["detail"], got.json
    alone = await api.call("POST", "/v1/folder-accounts/acme/password", token=admin, body={"password": None})
    assert "add one first" in alone.json["detail"]
    assert (await api.get("/v1/folder-accounts/nobody", admin)).status == 404
    held = await api.token(1, "admin", site_ids=[1])
    assert (await api.get("/v1/folder-accounts", held)).json["code"] == "organization_wide_only"


async def test_the_command_over_the_api(api: Api, tmp_path: Path) -> None:
    client_id, secret = await api.client(1, "admin", may_export=True)
    (tmp_path / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
    new_key().write_public_key(tmp_path / "acme.pub")
    meterpost = Meterpost(
        tmp_path,
        {"METERPOST_API_URL": api.url, "METERPOST_API_CREDENTIALS_FILE": "client.json", "PW": PASSWORD},
    )

    async def run(*arguments: str, code: int = 0) -> Outcome:
        outcome = await asyncio.to_thread(meterpost, *arguments)
        assert outcome.code == code, (outcome.out, outcome.err)
        return outcome

    made = (await run("dropbox", "add", "acme", "--json")).json
    assert len(made["generated_password"]) > 20
    assert "generated" not in (await run("dropbox", "set-password", "acme", "--password", "env:PW")).out
    [added] = (await run("dropbox", "add-key", "acme", "acme.pub", "--json")).json["added"]
    assert "could log in before" in (await run("dropbox", "add-key", "acme", "acme.pub")).out
    assert added in (await run("dropbox", "accounts")).out
    assert "by key only" in (await run("dropbox", "set-password", "acme", "--none")).out
    assert "is disabled" in (await run("dropbox", "disable", "acme")).out
    assert "disabled already" in (await run("dropbox", "disable", "acme")).out
    assert (await run("dropbox", "enable", "acme", "--json")).json["changed"] is True
    await run("dropbox", "set-password", "acme")
    assert (await run("dropbox", "remove-key", "acme", added, "--json")).json["removed"] == added
    assert "No file matches" in (await run("dropbox", "files")).out
    assert "no account" in (await run("dropbox", "enable", "nobody", code=2)).err
    create = ("jobs", "create", "--name", "J", "--frequency", "hour", "--resolution", "60", "--all-sites", "--hosted")
    job = str((await run(*create, "--json")).json["job_id"])
    local = Meterpost(tmp_path, {"METERPOST_DATABASE_URL": api.database_url})
    shown = (await run("jobs", "show", job, "--json")).json
    there = (await asyncio.to_thread(local.json, "jobs", "show", job)) | {}
    there.pop("platform_clock")
    assert shown == there
    assert shown["transport_settings"]["hosted"] is True
    await run("jobs", "edit", job, "--sftp", "u@sftp.example.org")
    await run("jobs", "edit", job, "--hosted", "--line-end", "crlf")
    assert "the hosted folder" in (await run("jobs", "show", job)).out


async def test_a_customer_is_told_where_the_folder_is_and_gets_in_there(database_url: str, tmp_path: Path) -> None:
    await seed_catalog(database_url)
    hosted = Hosted(tmp_path / "dropbox", database_url)
    async with hosted_folder(database_url, hosted.root, hosted=hosted) as it:
        told = {
            "dropbox_public_host": "127.0.0.1",
            "dropbox_public_port": it.port,
            "dropbox_host_keys_file": hosted.root / "host-keys.pub",
        }
        async with running_api(database_url, tmp_path, **told) as api:
            got = await api.get("/v1/hosted-folder", await api.token(1, "viewer", site_ids=[1]))
            assert got.status == 200
            place = got.json
            # What is told is enough for a client that trusts nothing else.
            admin = await api.token(1)
            body = {"user_name": "acme", "password": PASSWORD}
            assert (await api.call("POST", "/v1/folder-accounts", token=admin, body=body)).status == 201
            known = "".join(f"[{place['host']}]:{place['port']} {key['public_key']}\n" for key in place["host_keys"])
            async with asyncssh.connect(
                place["host"],
                place["port"],
                username="acme",
                password=PASSWORD,
                known_hosts=known.encode(),
                config=None,
            ) as connection:
                server_key = connection.get_server_host_key()
                assert server_key is not None
                shown = [(key["type"], key["fingerprint"]) for key in place["host_keys"]]
                assert (server_key.get_algorithm(), server_key.get_fingerprint()) in shown
            client_id, secret = await api.client(1, "viewer")
            (tmp_path / "client.json").write_text(json.dumps({"client_id": client_id, "client_secret": secret}))
            over_api = {"METERPOST_API_URL": api.url, "METERPOST_API_CREDENTIALS_FILE": "client.json"}
            direct = {name: str(value) for name, value in told.items()}
            for environment in (over_api, {f"METERPOST_{name.upper()}": value for name, value in direct.items()}):
                meterpost = Meterpost(tmp_path, environment)
                assert await asyncio.to_thread(meterpost.json, "dropbox", "address") == place
                said = await asyncio.to_thread(meterpost.ok, "dropbox", "address")
                assert f"sftp -P {it.port} ACCOUNT@127.0.0.1" in said
                assert place["host_keys"][0]["fingerprint"] in said
            for content in (b"", b"ssh-ed25519", b"no key", b"\xff"):
                (hosted.root / "host-keys.pub").write_bytes(content)
                unreadable = await api.get("/v1/hosted-folder", admin)
                assert (unreadable.status, unreadable.json["code"]) == (500, "internal_error"), content


async def test_where_the_operator_told_nothing_nothing_is_told(api: Api, tmp_path: Path) -> None:
    got = await api.get("/v1/hosted-folder", await api.token(1, "viewer"))
    assert (got.status, got.json) == (200, {"host": None, "port": None, "host_keys": []})
    said = await asyncio.to_thread(Meterpost(tmp_path, {}).ok, "dropbox", "address")
    assert "has not said where the hosted folder is reached" in said
