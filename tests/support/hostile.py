"""Text that a terminal, rich, a spreadsheet or a browser would obey, and how to see whether one did."""

from __future__ import annotations

import io
import re

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
