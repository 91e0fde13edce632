"""The contract is served to programs and to people, without a token, without the database, without any script."""

import json
import re
from pathlib import Path

from tests.support.api import CONTRACT, running_api


async def test_the_contract_and_its_page_are_served_while_the_database_is_away(tmp_path: Path) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"
    async with running_api(away, tmp_path, database_is_away=True) as api:
        got = await api.get("/openapi.json")
        assert json.loads(got.content) == CONTRACT
        again = await api.get("/openapi.json", If_None_Match=got.etag)
        assert (again.status, again.content) == (304, b"")
        page = await api.get("/docs")
        policy = page.headers["Content-Security-Policy"]
    text = page.content.decode()
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script" not in policy
    assert not re.search(r"<script|\son\w+=|\sstyle=|https?://|<img|<link|@import|url\(", text)
    for operations in CONTRACT["paths"].values():
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"' in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors
    for name in CONTRACT["components"]["schemas"]:
        assert f"shape-{name}" in anchors
