"""Pages in a real browser: a headless Chromium at desktop and phone size, without any network.

Playwright drives the Chromium of this machine; `make test` sees to one. ``SCST_BROWSER`` names another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PHONE, DESKTOP = (390, 844), (1280, 900)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]

_PATIENCE_MS = 180_000  # a machine may be busy with other things; what is wrong fails at once
_BROKEN_IMAGES = """async () => (await Promise.all([...document.images].map(async image => {
    image.loading = 'eager';  // those below the window too
    await image.decode().catch(() => null);
    return image.naturalWidth > 0 ? null : image.alt;
}))).filter(alt => alt !== null)"""


def browser_path() -> str | None:
    """The Chromium of this machine."""
    names = (os.environ["SCST_BROWSER"],) if "SCST_BROWSER" in os.environ else _NAMES
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'scst[test]'")
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or SCST_BROWSER=/path/to/one")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=_ARGUMENTS, timeout=_PATIENCE_MS)
        yield browser
        browser.close()


class OpenPage:
    """A page of this project in a browser, and what every one of them must be.

    Args:
        browser: of :func:`chromium`.
        file: the HTML file.
        size: of the window, in CSS pixels.
    """

    def __init__(self, browser: Any, file: Path, size: tuple[int, int] = PHONE):
        width, height = size
        self.width = width
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            is_mobile=size == PHONE,
            has_touch=size == PHONE,
        )
        self._context.set_default_timeout(_PATIENCE_MS)
        self.page = self._context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url[:80]}"))
        self.page.on("dialog", lambda dialog: (self.errors.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.resolve().as_uri())

    def in_the_dark(self) -> None:
        """The same page for a reader who prefers dark ones."""
        self.page.emulate_media(color_scheme="dark")

    def __enter__(self) -> OpenPage:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def check(self) -> None:
        """Nothing went wrong, nothing was fetched, nothing is wider than the window, every picture is one."""
        assert self.errors == [], self.errors
        outside = [url for url in self.requests[1:] if not url.startswith("data:")]
        assert outside == [], "the file stands alone"
        assert self.document_width() <= self.width, f"too wide: {self.widest()}"
        broken = self.page.evaluate(_BROKEN_IMAGES)
        assert broken == []
        assert self.page.evaluate("getComputedStyle(document.body).fontSize") >= "16px", "legible on a phone"

    def document_width(self) -> int:
        """Of everything, in CSS pixels: more than the window's means that the page scrolls sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth")

    def widest(self) -> list[str]:
        """Elements that reach out of the window without a container that scrolls, for messages."""
        return self.page.evaluate(
            """width => [...document.body.querySelectorAll('*')]
            .filter(e => e.getBoundingClientRect().right > width + 1 && !e.closest('.scroll'))
            .slice(0, 5).map(e => e.tagName + '.' + e.className)""",
            self.width,
        )

    def count(self, selector: str) -> int:
        """Elements that can be seen."""
        return self.page.locator(selector).filter(visible=True).count()

    def contrast(self, selector: str = "body") -> float:
        """Contrast of text and background (WCAG 2.1, 1 to 21) of the first such element."""
        colours = self.page.eval_on_selector(
            selector,
            """element => {
                const canvas = document.createElement('canvas').getContext('2d');
                const rgb = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
                const dark = matchMedia('(prefers-color-scheme: dark)').matches;
                return [rgb(dark ? 'black' : 'white'), rgb(getComputedStyle(element).color)]; }""",
        )
        light, dark = sorted((_luminance(colour) for colour in colours), reverse=True)
        return (light + 0.05) / (dark + 0.05)


def _luminance(colour: list[int]) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
