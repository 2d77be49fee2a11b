"""What reading an image once has told: its hash, and whether it decodes. Read again only when it has changed.

The memory is a few Arrow files in the dataset's cache folder. An entry holds for a name, a size and a
modification time that was settled when the image was read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scst.data.cache_folder import SETTLED_NS, CacheFolder
from scst.data.content_hashes import HASH_BYTES
from scst.data.image_files import MISSING, ImageFiles
from scst.data.images import ImageProbe

PARTS = 8
"""Files of entries beyond which they are joined."""
SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "size": pa.int64(),
        "changed": pa.int64(),
        "read": pa.int64(),
        "hash": pa.binary(HASH_BYTES),
        "problem": pa.string(),
    }
)


@dataclass
class Probes:
    """What is known of N images.

    Attributes:
        known: (N,) whether an image was probed, now or before.
        hashes: (N, 32) bytes of the sha256 of the encoded images; zeros where there are none to read.
        problems: row -> why the image cannot be used.
    """

    known: np.ndarray
    hashes: np.ndarray
    problems: dict[int, str]

    @classmethod
    def of_nothing(cls, count: int) -> Probes:
        """Nothing is known of any image."""
        return cls(np.zeros(count, bool), np.zeros((count, HASH_BYTES), np.uint8), {})

    def put(self, row: int, probe: ImageProbe) -> None:
        """Record one."""
        self.known[row] = True
        self.hashes[row] = np.frombuffer(bytes.fromhex(probe.content_hash).ljust(HASH_BYTES, b"\0"), np.uint8)
        if probe.problem is not None:
            self.problems[row] = probe.problem


class RememberedChecks:
    """The memory of a dataset's images.

    Args:
        cache: the dataset's folder.
    """

    def __init__(self, cache: CacheFolder):
        self.cache = cache

    def recall(self, images: ImageFiles) -> Probes:
        """What is known of images that have not changed since they were read."""
        probes = Probes.of_nothing(len(images))
        entries = self._entries()
        if entries is None:
            return probes
        place = pc.index_in(images.names, value_set=entries["name"].combine_chunks())
        rows = np.flatnonzero(pc.is_valid(place).to_numpy(zero_copy_only=False))
        place = place.drop_null().to_numpy().astype(np.int64)
        size, changed, read = (entries[name].to_numpy()[place] for name in ("size", "changed", "read"))
        same = (size == images.sizes[rows]) & (changed == images.changed[rows])
        same &= (changed + SETTLED_NS < read) & (size != MISSING)
        rows, place = rows[same], place[same]
        probes.known[rows] = True
        probes.hashes[rows] = _hash_bytes(entries["hash"])[place]
        problems = entries["problem"].take(pa.array(place))
        for i in np.flatnonzero(pc.is_valid(problems).to_numpy()).tolist():
            probes.problems[int(rows[i])] = problems[i].as_py()
        return probes

    def remember(self, images: ImageFiles, rows: Sequence[int], probes: Probes, read_ns: int) -> None:
        """Keep what some images have told.

        Args:
            images: all of them.
            rows: those that were read.
            probes: of all.
            read_ns: a time before the first of them was read.
        """
        of = np.asarray(rows, dtype=np.int64)
        some = images.take(of)
        table = pa.table(
            [
                some.names,
                some.sizes,
                some.changed,
                np.full(len(of), read_ns),
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(HASH_BYTES), len(of), [None, pa.py_buffer(probes.hashes[of].tobytes())]
                ),
                pa.array([probes.problems.get(row) for row in of.tolist()], pa.string()),
            ],
            schema=SCHEMA,
        )
        self._write(table)
        parts = self.cache.newest("checks-*.arrow")
        if len(parts) > PARTS and (entries := self._entries()) is not None and self._write(entries):
            for part in parts:
                part.unlink(missing_ok=True)

    def _write(self, table: pa.Table) -> bool:
        def write(path: object) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
                writer.write_table(table)

        return self.cache.write(f"checks-{time.time_ns()}-{os.getpid()}.arrow", write) is not None

    def _entries(self) -> pa.Table | None:
        """All entries, of each image the one that was written last; None without any."""
        tables = []
        for part in self.cache.newest("checks-*.arrow"):
            try:
                with pa.memory_map(str(part)) as file:
                    table = pa.ipc.open_file(file).read_all()
            except (OSError, pa.ArrowException):  # damaged, or joined by another process meanwhile
                continue
            if table.schema == SCHEMA:
                tables.append(table)
        if not tables:
            return None
        joined = pa.concat_tables(tables)
        if len(tables) == 1:
            return joined
        names = joined["name"].combine_chunks()
        first = pc.equal(pc.index_in(names, value_set=names), pa.array(np.arange(len(names)), pa.int32()))
        return joined.filter(first)


def _hash_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 32) bytes of a column of hashes."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    bytes_ = np.frombuffer(array.buffers()[1], np.uint8)
    start = array.offset * HASH_BYTES
    return bytes_[start : start + len(array) * HASH_BYTES].reshape(-1, HASH_BYTES)
