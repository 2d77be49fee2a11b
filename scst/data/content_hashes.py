"""Hashes of many images in 32 bytes each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HASH_BYTES = 32


class ContentHashes(Sequence[str]):
    """N hashes as hexadecimal texts, stored as bytes.

    Args:
        array: (N, 32) bytes.
    """

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [row.tobytes().hex() for row in self.array[index]]
        return self.array[index].tobytes().hex()

    def __iter__(self) -> Iterator[str]:
        return (row.tobytes().hex() for row in self.array)

    def take(self, rows: np.ndarray) -> ContentHashes:
        """Those of some rows."""
        return ContentHashes(self.array[rows])

    @property
    def num_distinct(self) -> int:
        """How many different ones there are."""
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(HASH_BYTES), len(self), [None, pa.py_buffer(self.array.tobytes())]
        )
        return pc.count_distinct(column).as_py()
