"""Memory that was needed for a moment, given back to the system."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def release_memory() -> None:
    """Give back what Arrow and the C library keep for later after a column of a million rows went through.

    Otherwise a first start with a million images would hold a gigabyte that nothing uses. Does nothing where
    the C library has no ``malloc_trim``.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
