"""Opens files from outside: a pipe or device is refused instead of waited for, and sizes are bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from scst.errors import DataError

RECORD_BYTES = 64 << 20
"""Largest record (``run.json``, ``adapter_config.json``, ...) that is read."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: str | Path, *, limit: int = RECORD_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file; links are followed.
        limit: largest size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no regular file, too large, or cannot be read. Pipes and devices are not opened:
            reading them could take for ever.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
            raise DataError(f"{str(path)!r} is {kind}: expected a file")
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # it may be another one by now
            size = os.fstat(file.fileno()).st_size  # reading up to the limit would reserve that much memory
            content = (file.read(size + 1) or b"") if size <= limit else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{_short(path)!r} cannot be read: {reason}") from error
    if max(size, len(content)) > limit:
        raise DataError(f"{str(path)!r} is larger than {limit >> 10} KiB: expected a smaller file")
    return content


def read_text(path: str | Path, *, limit: int = RECORD_BYTES) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError, DataError: as :func:`read_bytes`, or when it is not UTF-8.
    """
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r}: expected UTF-8 text: {error}") from error


def refuse_pipes(paths: Iterable[Path]) -> None:
    """Refuse pipes, sockets and devices among paths that a library will open; it would wait for ever.

    Raises:
        DataError: naming the first one.
    """
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{str(path)!r} is a pipe or device: expected a file")


def _short(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"
