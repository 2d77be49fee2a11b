"""The shell of HTML pages, and that the browser's checks find what is wrong with one."""

from __future__ import annotations

import pytest

from scst.report.page import MOST_TABS, html_page, tabs
from tests.support.browser import OpenPage

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def write_page(folder, body):
    file = folder / "page.html"
    file.write_text(html_page("t", "s", body), encoding="utf-8")
    return file


def test_one_tab_is_open_and_labels_are_escaped():
    html = tabs("g", {"<b>": "<p>one</p>", "two": "<p>two</p>"})
    assert html.count(" checked") == 1
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    with pytest.raises(ValueError, match="at most 8 tabs, got 9"):
        tabs("g", {str(i): "" for i in range(MOST_TABS + 1)})


def test_every_tab_opens_by_touch_and_by_keyboard(browser, tmp_path):
    panels = {f"tab {i}": f'<p class="p{i}">panel {i}</p>' for i in range(MOST_TABS)}
    with OpenPage(browser, write_page(tmp_path, tabs("g", panels) + f'<img src="{PIXEL}">')) as opened:
        for i in reversed(range(MOST_TABS)):
            opened.page.locator("label", has_text=f"tab {i}").tap()
            assert opened.page.locator(".panels > div").filter(visible=True).all_inner_texts() == [
                f"panel {i}"
            ]
        opened.page.keyboard.press("ArrowRight")
        assert opened.page.locator(".p1").is_visible()
        opened.check()


@pytest.mark.parametrize(
    "body",
    [
        '<div style="width: 500px">wide</div>',
        '<img src="data:image/gif;base64,AAAA" alt="broken">',
        "<script>console.log('x')</script>",
        "<script>throw Error('x')</script>",
        '<img src="other.png" alt="outside">',
        "<style>body { font-size: 12px !important; }</style>",
    ],
)
def test_the_checks_find_what_is_wrong(browser, tmp_path, body):
    with OpenPage(browser, write_page(tmp_path, body)) as opened, pytest.raises(AssertionError):
        opened.check()
