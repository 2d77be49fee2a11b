"""Keeps passwords and tokens out of records, logs and printed recipes."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?)$", re.IGNORECASE
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_IN_QUERY = re.compile(r"(?<=[?&])([\w-]*(?:token|key|secret|password|signature)=)[^&\s]+", re.IGNORECASE)
_IN_PAIR = re.compile(
    r"""((?:\b|_)(?:token|secret|password|passwd|api_?key|access_?key)['"]?\s*[:=]\s*)"""
    r"""(?:'[^']*'|"[^"]*"|[^\s,;}\]'"]+)""",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[bp]-|AKIA)[\w-]{12,}")
"""Beginnings that services give their tokens, wherever they stand."""


def without_secrets(value: Any) -> Any:
    """A copy of settings in which secrets are replaced by ``(hidden)``.

    A secret is the value of a name such as ``api_key`` or ``hub_token``, the user and password or the
    signature in a URL, or a text that looks like the token of a well-known service.
    """
    if isinstance(value, dict):
        return {
            name: HIDDEN if each and is_secret_name(str(name)) else without_secrets(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(each) for each in value]
    return hide_secrets(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Whether values of this name are secret: ``api_key`` and ``HUB_TOKEN`` are, ``eos_token_id`` is not."""
    return _SECRET_NAME.search(name) is not None


def hide_secrets(text: str) -> str:
    """A text in which passwords in URLs, values after secret names and well-known tokens are replaced."""
    text = _IN_PAIR.sub(rf"\1{HIDDEN}", text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(HIDDEN, text))
    return _TOKEN.sub(HIDDEN, text)
