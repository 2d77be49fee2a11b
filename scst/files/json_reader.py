"""JSON from outside: repeated names, deep nesting, overlong numbers, half characters: one sentence each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from scst.errors import DataError, shown
from scst.files.reading import RECORD_BYTES, read_text

MAX_DEPTH = 100
"""Of nested lists and objects; the program's own files have fewer than ten levels."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class NoJson(DataError):
    """Text that is no JSON at all, or not to the end; captions may begin like JSON and be plain text."""


def read_json(path: str | Path, *, limit: int = RECORD_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        DataError: no regular file, too large, or not as :func:`parse_json` wants it.
    """
    return parse_json(read_text(path, limit=limit), str(path))


def read_json_object(path: str | Path, *, limit: int = RECORD_BYTES) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Raises:
        FileNotFoundError, DataError: as :func:`read_json`, or when it holds something else.
    """
    return as_object(read_json(path, limit=limit), repr(str(path)))


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        name: of where it comes from, for errors.

    Raises:
        DataError: naming the place and the fault; :class:`NoJson` where the syntax is wrong.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
        if _HALF_CHARACTER.search(text):  # \ud800 alone can be neither printed nor written
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise NoJson(f"{name!r} is no readable JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{name!r} is nested more than {MAX_DEPTH} levels deep") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{name!r} holds half a character (an unpaired surrogate \\ud...)") from error
    except ValueError as error:  # repeated names, numbers of thousands of digits
        raise DataError(f"{name!r} is no readable JSON: {str(error)[:200]}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(content):
        raise DataError(f"{name!r} is nested more than {MAX_DEPTH} levels deep")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {shown(name)} stands twice in one object")
            seen.add(name)
    return found


def _is_too_deep(content: Any) -> bool:
    """Whether lists and objects are nested more than ``MAX_DEPTH`` levels deep, found without recursion."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return False
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return True


def as_object(content: Any, place: str) -> dict[str, Any]:
    """A part of a record that must be an object.

    Raises:
        DataError: naming the place.
    """
    if not isinstance(content, dict):
        raise DataError(f"{place}: expected a JSON object, got {shown(content)}")
    return content
