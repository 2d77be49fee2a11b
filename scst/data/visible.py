"""Text of data made safe to print: what a terminal would obey is spelled out.

A caption, an id or a path may hold escape sequences (which move the cursor, clear the screen, set the title)
or characters that reverse the direction of reading. No rich here: messages of errors must come at once.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

# C0 and C1 controls, marks that change the direction of reading, separators of lines, halves of surrogates
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def visible(text: str) -> str:
    r"""The text in one line, with what a terminal would obey spelled out: an escape character is ``\x1b``."""
    return _UNSAFE.sub(_spelled, text)


def visible_lines(text: str) -> str:
    """The same with line breaks and tabs left as they are, for messages of several lines."""
    return _UNSAFE_IN_LINES.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()


def json_text(content: Any, *, indent: int | None = None) -> str:
    r"""JSON that is readable and safe to print: only what a terminal would obey is written as ``\u001b``."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def yaml_text(content: Any) -> str:
    """YAML that is readable and safe to print, in the order of the content."""
    text = str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
    return str(yaml.safe_dump(content, sort_keys=False, width=110)) if _UNSAFE_IN_LINES.search(text) else text
