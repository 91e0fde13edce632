"""Secrets at rest: what opens where, with which key, and what is never said."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from services.core.transport_secrets import (
    check_name,
    job_place,
    next_signing_secret,
    notification_place,
    opened_settings,
    public_settings,
)
from services.platform.errors import UserError
from services.platform.secret_settings import SecretSettings
from services.platform.secrets import (
    KeyMissing,
    SecretUnreadableError,
    Vault,
    ensure_key_file,
    new_key,
    parse_keys,
    put_key_first,
    read_keys,
    without_secrets,
)
from services.platform.settings import load

KEYS = {"new": b"n" * 32, "old": b"o" * 32}
PLACE = job_place(1, 7, "password")


@given(st.text(max_size=200))
def test_what_was_sealed_opens_in_its_place(text: str) -> None:
    vault = Vault(KEYS)
    sealed = vault.seal(text, PLACE)
    assert vault.open(sealed, PLACE) == text
    assert sealed.startswith("v1.new.")
    assert len(text) < 4 or text not in sealed


def test_the_same_secret_never_looks_the_same() -> None:
    vault = Vault(KEYS)
    assert len({vault.seal("secret", PLACE) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "elsewhere",
    [
        job_place(2, 7, "password"),
        job_place(1, 8, "password"),
        job_place(17, 7, "password"),
        job_place(1, 7, "token"),
        notification_place(1, "password"),
        ("export_job", "1", "7", "password", ""),
    ],
)
def test_a_text_that_was_copied_elsewhere_does_not_open(elsewhere: tuple[str | int, ...]) -> None:
    vault = Vault(KEYS)
    sealed = vault.seal("hunter2-hunter2", PLACE)
    with pytest.raises(SecretUnreadableError, match="belongs elsewhere") as caught:
        vault.open(sealed, elsewhere)
    assert "hunter2" not in str(caught.value)


def test_every_changed_character_is_noticed() -> None:
    vault = Vault(KEYS)
    sealed = vault.seal("hunter22", PLACE)  # no unused bits at the end of its base64
    for place in range(len(sealed)):
        changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        with pytest.raises((SecretUnreadableError, KeyMissing)):
            vault.open(changed, PLACE)
    for text in ("", "v1", "v1.new", "v1.new.", "v1.new.!", "v2.new.AAAA", "v1.new." + base64.b64encode(b"x").decode()):
        with pytest.raises(SecretUnreadableError):
            vault.open(text, PLACE)


def test_the_first_key_seals_and_every_key_opens() -> None:
    sealed = Vault({"old": KEYS["old"]}).seal("secret", PLACE)
    vault = Vault(KEYS)
    assert vault.open(sealed, PLACE) == "secret"
    assert not vault.is_newest(sealed)
    assert vault.is_newest(vault.seal("secret", PLACE))
    with pytest.raises(KeyMissing, match="the key old"):
        Vault({"new": KEYS["new"]}).open(sealed, PLACE)


def test_without_a_key_nothing_is_sealed() -> None:
    with pytest.raises(UserError, match="meterpost secrets new-key"):
        Vault({}).seal("secret", PLACE)


def test_a_key_that_is_added_to_the_file_is_found_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    ensure_key_file(file, "first")
    running = SecretSettings(secret_keys_file=file, secret_keys=None).vault()
    put_key_first(file, "second")
    sealed = Vault(read_keys(file)).seal("secret", PLACE)
    assert sealed.startswith("v1.second.")
    assert running.open(sealed, PLACE) == "secret"
    assert file.stat().st_mode & 0o077 == 0
    ensure_key_file(file, "third")
    assert list(read_keys(file)) == ["second", "first"]


def test_keys_that_cannot_be_used_are_named_by_number_only() -> None:
    good = new_key("good")
    short = "short:" + base64.b64encode(b"tooshort").decode()
    for text in (f"{good},{short}", f"{good},{good}", f"{good},x:%%%", f"{good},a b:{good[5:]}"):
        with pytest.raises(UserError, match="number 2") as caught:
            parse_keys(text)
        assert good[5:20] not in str(caught.value)
        assert short[6:] not in str(caught.value)
    with pytest.raises(UserError, match="there is no key"):
        parse_keys("# nothing\n\n")
    assert list(parse_keys(f"# comment\n{good}\n\n")) == ["good"]


def test_settings_take_one_place_for_the_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = new_key("k1")
    monkeypatch.setenv("METERPOST_SECRET_KEYS", line)
    settings = load(SecretSettings)
    assert settings.vault().key_ids == ["k1"]
    assert line[3:] not in repr(settings)
    monkeypatch.setenv("METERPOST_SECRET_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(UserError, match="not both"):
        load(SecretSettings)
    monkeypatch.setenv("METERPOST_SECRET_KEYS", "")
    with pytest.raises(UserError, match="cannot be read"):
        load(SecretSettings).vault()
    monkeypatch.delenv("METERPOST_SECRET_KEYS_FILE")
    assert list(load(SecretSettings).vault().key_ids) == []
    with pytest.raises(ValueError, match="cannot be used") as caught:
        SecretSettings(secret_keys=SecretStr("k1:c2hvcnQ="), secret_keys_file=None)
    assert "c2hvcnQ" not in str(caught.value)


def test_settings_are_shown_without_their_secrets_and_opened_with_them() -> None:
    stored = {"url": "https://x/", "auth": "bearer", "sealed": {"token": "v1.a.b", "header:X-Key": "v1.a.c"}}
    shown = public_settings(stored)
    assert shown == {"url": "https://x/", "auth": "bearer", "secrets": {"header:X-Key": "set", "token": "set"}}
    secrets = {"token": "t", "header:X-Key": "k", "signing_secret:2": "s2", "signing_secret:10": "s10"}
    opened = opened_settings(stored, secrets)
    assert opened["token"] == "t"
    assert opened["headers"] == {"X-Key": "k"}
    assert opened["signing_secrets"] == ["s10", "s2"]
    assert "sealed" not in opened
    assert next_signing_secret({"signing_secret:9": "", "signing_secret:10": ""}) == "signing_secret:11"


@pytest.mark.parametrize("name", ["pasword", "header:", "header:a b", "header:a\r\nb", "signing_secret:0", "url"])
def test_unknown_names_of_secrets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no secret setting"):
        check_name(name)


@given(st.text(min_size=6, max_size=40).filter(lambda text: "[" not in text), st.text(max_size=20), st.integers(0, 40))
def test_no_secret_is_left_in_a_text_even_one_that_is_cut_off(secret: str, before: str, cut: int) -> None:
    assert secret not in without_secrets(before + secret + before, [secret])
    begun = secret[: min(cut, len(secret))]
    if len(begun) > 3:
        assert not without_secrets(before + begun, [secret]).endswith(begun)
