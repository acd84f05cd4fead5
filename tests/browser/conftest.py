"""Debian's Chromium, driven as a person drives it; what it shows is kept as pictures for the documentation."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import Picture
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PICTURES = Path(__file__).parents[2] / "docs" / "img"
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""A browser for loopback only, in a container too, that asks nobody for anything."""
PATIENCE_MS = 60_000


@pytest.fixture
def chromium() -> Iterator[Browser]:
    """A browser of a test: its event loop must not be there when fixtures run theirs, so ask for it after these."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert program, "chromium is missing: apt-get install -y chromium, or set CHROMIUM to its path"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A visitor without cookies."""
    with chromium.new_context(viewport={"width": 1400, "height": 900}, timezone_id="UTC", locale="en-GB") as opened:
        opened.set_default_timeout(PATIENCE_MS)
        yield opened


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails the test when a script in it throws."""
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    assert not errors


@pytest.fixture
def picture(tmp_path: Path, request: pytest.FixtureRequest) -> Picture:
    """Keeps what a page shows: in the documentation with --update-golden, else in the test's folder."""
    folder = PICTURES if request.config.getoption("--update-golden") else tmp_path

    def keep(page: Page, name: str) -> None:
        file = folder / f"{name}.png"
        page.screenshot(path=file)
        assert file.stat().st_size > 10_000, "an empty page is smaller"

    return keep
