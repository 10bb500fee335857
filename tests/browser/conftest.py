"""A real browser: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright

from tests.requirements import require

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    # root, in a container, has no sandbox to offer; the pages are our own
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """An empty page of a browser without a history."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    require("chromium", executable is not None, f"none of {', '.join(NAMES)}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, args=QUIET
        )
        try:
            yield await browser.new_page()
        finally:
            await browser.close()
