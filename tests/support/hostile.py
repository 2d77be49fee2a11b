"""Text that a terminal, rich, a spreadsheet or a browser would obey, and how to see whether one did."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

from rich.console import Console

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r"
MARKUP = "[bold red]x[/bold red] [/] [link=http://evil]y[/link] :boom:"
HOSTILE = f"<script>alert(1)</script> {ESCAPES}{MARKUP} '\"&"
"""One line that does it all."""
STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[2K|\x1b\[1A|\r(?=\x1b\[1A)")
"""What rich itself writes: colours, and the moves of a progress bar."""


class Screen(Console):
    """A terminal of colours that keeps what is printed."""

    def __init__(self, width: int = 2000):
        super().__init__(file=io.StringIO(), force_terminal=True, width=width, color_system="standard")

    @property
    def text(self) -> str:
        """Everything printed."""
        return self.file.getvalue()  # type: ignore[attr-defined]


def assert_shown(printed: str, *, markup: bool = True) -> None:
    """The hostile text is there to be read, and nothing of it was obeyed.

    Args:
        printed: what a terminal would get.
        markup: whether all of `MARKUP` must be readable in it, in one piece.
    """
    assert_not_obeyed(printed)
    assert "x1b[2J" in printed.replace("u001b", "x1b"), "spelled out"
    if markup:
        assert _letters(MARKUP) in _letters(printed), "markup and emoji codes are text"


def _letters(printed: str) -> str:
    """Without colours, blanks and frames: long lines are wrapped."""
    return re.sub(r"[\s│┃║]", "", STYLES.sub("", printed))


def assert_not_obeyed(printed: str) -> None:
    """No control character but line breaks, tabs and the colours of rich."""
    left = STYLES.sub("", printed)
    obeyed = [character for character in left if character < " " and character not in "\n\t"]
    obeyed += [character for character in left if character in "\x7f\x9b\u202e\u2066"]
    assert not obeyed, (obeyed, printed)


class _Elements(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def assert_inert(page: str, text: str) -> None:
    """The page runs nothing, loads nothing, says so to the browser, and shows the hostile text."""
    parsed = _Elements(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "xlink:href", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/")), address
    policy = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy, "the browser is told to run nothing"
    assert "default-src 'none'" in str(policy[0])
    assert text in "".join(parsed.texts)
