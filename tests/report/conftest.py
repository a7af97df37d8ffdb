"""A real browser, and sweeps to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from reports import READY, Opened


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium, headless."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("no chromium to open the report in: scripts/browser.sh installs it")
    with sync_playwright() as playwright:
        # Root has no sandbox; the page has no network, and is ours.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_report(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a page from the disk, and waits until all of it is drawn."""
    pages: list[Page] = []

    def opened(path: Path, wait_for: str = READY, **options: object) -> Opened:
        page = browser.new_page(**options)  # type: ignore[arg-type]
        pages.append(page)
        seen = Opened(page)
        seen.show(path, wait_for)
        return seen

    yield opened
    for page in pages:
        page.close()
