"""Wrong settings are named all at once, and never shown: they may be secrets."""

import pytest

from services.ingest.settings import IngestSettings
from services.platform.errors import UserError
from services.platform.settings import load


def test_all_mistakes_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERPOST_BATCH_READINGS", "many")
    monkeypatch.setenv("METERPOST_HEALTH_PORT", "99999")
    monkeypatch.setenv("METERPOST_DATABASE_URL", "mysql://root:geheim@db/x")
    with pytest.raises(UserError) as caught:
        load(IngestSettings)
    told = str(caught.value)
    for name in ("METERPOST_BATCH_READINGS", "METERPOST_HEALTH_PORT", "METERPOST_DATABASE_URL"):
        assert name in told
    assert "geheim" not in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p/ss@127.0.0.1/db",
        "postgresql://u:se#cret@127.0.0.1/db",
        "postgresql://u:x@127.0.0.1:port/db",
        "127.0.0.1:5432",
    ],
)
def test_a_url_that_cannot_be_right_is_refused_without_repeating_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERPOST_DATABASE_URL", url)
    with pytest.raises(UserError) as caught:
        load(IngestSettings)
    assert "percent-encoded" in str(caught.value)
    assert url not in str(caught.value)


def test_sound_urls_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgresql://meterpost@db.example.org/meterpost", "postgres://u:p%2Fss@[::1]:5433/x?sslmode=require"):
        monkeypatch.setenv("METERPOST_DATABASE_URL", url)
        assert load(IngestSettings).database_url.get_secret_value() == url
