"""``/docs`` in a browser: it needs no network, and its Authorize button works."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.running import PASSWORD, Service, running


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(tmp_path) as service:
        yield service


async def test_pasted_access_token_authorizes_the_requests_of_the_page(
    service: Service, page: Page
) -> None:
    await service.add_user("alice")
    token = await service.token("alice")
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # a violation of the page's policy is an error on its console
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type in {"error", "warning"}
            else None
        ),
    )

    await page.goto(f"{service.origin}/docs")
    await page.click("button.authorize")
    await page.fill(".dialog-ux input", token)
    await page.click(".dialog-ux button.authorize")
    await page.click(".dialog-ux button.btn-done")
    me = page.locator(".opblock", has=page.locator("[data-path='/auth/me']"))
    await me.locator(".opblock-summary-control").click()
    await me.locator("button.execute").click()
    response = me.locator(".live-responses-table").first

    await expect(response.locator(".response-col_status").last).to_contain_text("200")
    body = await response.locator(".response-col_description code").first.inner_text()
    assert json.loads(body)["subject"] == "alice"
    assert not complaints
    elsewhere = [
        url for url in asked if not url.startswith((f"{service.origin}/", "data:"))
    ]
    assert not elsewhere


async def test_the_cookie_of_a_login_on_the_page_authorizes_its_requests(
    service: Service, page: Page
) -> None:
    await service.add_user("alice")
    await page.goto(f"{service.origin}/docs")
    await page.click("button.authorize")
    await expect(page.locator(".dialog-ux input")).to_have_count(1)  # no cookie's
    await page.click(".dialog-ux button.btn-done")
    logged_in = await page.evaluate(
        """login => fetch("auth/session", {
            method: "POST",
            headers: {"content-type": "application/json"},
            body: JSON.stringify(login),
        }).then(answer => answer.status)""",
        {"username": "alice", "password": PASSWORD},
    )
    assert logged_in == 200
    me = page.locator(".opblock", has=page.locator("[data-path='/auth/me']"))
    await me.locator(".opblock-summary-control").click()
    await me.locator("button.execute").click()
    response = me.locator(".live-responses-table").first
    await expect(response.locator(".response-col_status").last).to_contain_text("200")


async def test_token_does_not_outlive_the_page(service: Service, page: Page) -> None:
    await page.goto(f"{service.origin}/docs")
    await page.click("button.authorize")
    await page.fill(".dialog-ux input", "pasted")
    await page.click(".dialog-ux button.authorize")
    await page.reload()
    await page.click("button.authorize")
    await expect(page.locator(".dialog-ux input")).to_have_value("")
    assert await page.evaluate("localStorage.length + sessionStorage.length") == 0
