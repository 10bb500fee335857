"""``/docs`` on the wire: its policy, its files, and that it can be switched off."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.running import Service, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("docs")) as service:
        yield service


async def test_page_runs_scripts_of_its_own_origin_only(service: Service) -> None:
    async with service.http() as http:
        page = await http.get("/docs")
        other = await http.get("/healthz")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "script-src" not in other.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


async def test_page_asks_for_nothing_from_elsewhere(service: Service) -> None:
    async with service.http() as http:
        page = await http.get("/docs")
        wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(wanted) == 5
        for reference in wanted:
            if not reference.startswith("data:"):
                assert (await http.get(f"/{reference}")).status_code == 200


async def test_asset_is_sent_once_and_then_only_asked_about(service: Service) -> None:
    url = "/docs/assets/swagger-ui/swagger-ui-bundle.js"
    async with service.http() as http:
        first = await http.get(url)
        again = await http.get(url, headers={"if-none-match": first.headers["etag"]})
    assert first.headers["content-type"].startswith("text/javascript")
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["..%2fapp.py", "../app.py", "%2e%2e/gate.py", ""])
async def test_nothing_beside_the_assets_is_served(service: Service, path: str) -> None:
    async with service.http() as http:
        answer = await http.get(f"/docs/assets/{path}")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "not_found"}


async def test_pages_can_be_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path, docs=False) as service, service.http() as http:
        for path in ("/docs", "/docs/assets/docs.js", "/openapi.json", "/redoc"):
            assert (await http.get(path)).status_code == 404, path


async def test_openapi_offers_a_bearer_token_and_the_session_cookie(
    service: Service,
) -> None:
    async with service.http() as http:
        document = (await http.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert [(s["type"], s.get("scheme"), s.get("in")) for s in schemes.values()] == [
        ("http", "bearer", None),
        ("apiKey", None, "cookie"),
    ]
    assert document["paths"]["/auth/me"]["get"]["security"] == [
        {name: []} for name in schemes
    ]
    (_, cookie) = schemes.values()
    assert cookie["name"] == "__Host-authws"
    assert "`authws`" in cookie["description"]


async def test_openapi_says_which_answers_set_the_cookie(service: Service) -> None:
    async with service.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    setting = {
        (method, path, status)
        for path, methods in paths.items()
        for method, call in methods.items()
        for status, answer in call["responses"].items()
        if "Set-Cookie" in answer.get("headers", {})
    }
    assert setting == {
        ("post", "/auth/session", "200"),
        ("delete", "/auth/session", "204"),
    }
