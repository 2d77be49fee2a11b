"""Where what was learnt of a dataset is kept between runs: a folder each beside those of ``datasets``.

It is a cache: deleting it costs time and nothing else (``HF_HOME`` or ``HF_DATASETS_CACHE`` move it). A
folder that cannot be written is no error: then nothing is remembered.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import datasets

from scst.data.visible import visible

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of all files in it; a change of what they mean wants another number."""
SETTLED_NS = 2_000_000_000
"""A file that was changed less than this before it was read may change again within one tick of its clock."""


class CacheFolder:
    """The folder of one dataset.

    Args:
        dataset: a path or a hub id.
    """

    def __init__(self, dataset: str):
        self.dataset = dataset
        path = Path(dataset).expanduser()
        name = os.path.abspath(path) if path.exists() else dataset
        digest = hashlib.sha256(f"{FORMAT}:{name}".encode("utf-8", "surrogateescape")).hexdigest()
        self.path = Path(datasets.config.HF_DATASETS_CACHE) / "scst" / digest[:20]

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    def newest(self, pattern: str) -> list[Path]:
        """Files by a pattern, those written last first."""
        found = [(file.stat().st_mtime_ns, file) for file in self.path.glob(pattern)]
        return [file for _, file in sorted(found, reverse=True)]

    def write(self, name: str, write: Callable[[Path], None], *, keep: int = 0) -> Path | None:
        """Write a file that is complete or absent.

        Args:
            name: of the file.
            write: writes the path that it is given.
            keep: of the files with the same beginning (up to the first ``-``), delete all but so many.

        Returns:
            The file, or None where it cannot be written.
        """
        partial = self.file(f"{name}.{os.getpid()}.partial")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                write(partial)
                os.replace(partial, self.file(name))
            finally:
                partial.unlink(missing_ok=True)
            for old in self.newest(f"{name.split('-')[0]}-*")[keep:] if keep else ():
                old.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("what was checked of %s", visible(f"{self.dataset} is not remembered: {error}"))
            return None
        return self.file(name)


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def is_settled(changed_ns: int, read_ns: int) -> bool:
    """Whether a file changed at one time and read at another can be known by its modification time."""
    return changed_ns + SETTLED_NS < read_ns
