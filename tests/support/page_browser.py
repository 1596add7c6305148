"""The system's Chromium, to open pages in; tests that ask for it are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str | None:
    """The path of a Chromium or Chrome that is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def lacking() -> str | None:
    """What keeps pages from being opened here; None: nothing does."""
    if chromium() is None:
        return "there is no Chromium (apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright is not installed (pip install playwright)"
    return None


class Opened:
    """One page in one browser, and what its console said."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.fetched: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.fetched.append(request.url))

    def show(self, file: Path, state: str = "") -> Any:
        """The page's file in this state, newly loaded."""
        self.page.goto("about:blank")
        self.page.goto(f"{file.resolve().as_uri()}#{state}")
        return self.page


@contextmanager
def opened_browser(**options: Any) -> Iterator[Opened]:
    """A browser with one page; ``options`` are its context's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without a sandbox of its own, which containers refuse; it opens files that we wrote.
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(5000)
        try:
            yield Opened(page)
        finally:
            browser.close()
