"""The rows of the embedded scenes, as those of every other dataset; drawn once, then kept in the cache."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from scst.data.cache_folder import CacheFolder
from scst.data.columns import STORED_IMAGE, TEXT, TEXTS
from scst.data.mapped_rows import mapped_rows
from scst.data.scenes.dataset import SPLIT_SEEDS, scene_rows

_FEATURES = datasets.Features(
    {"image": STORED_IMAGE, "references": TEXTS, "image_id": TEXT, "kind": TEXT, "split": TEXT}
)


def embedded_rows(dataset: str) -> datasets.Dataset:
    """All scenes; ``dataset`` is their name. Drawing the 2,000 takes seconds: they are kept afterwards."""
    return mapped_rows(CacheFolder(dataset), f"rows-{_digest_of_the_drawing()}.arrow", _tables)


def _digest_of_the_drawing() -> str:
    """Of the code of this room and the versions of the libraries that it draws with."""
    digest = hashlib.sha256(f"{PIL.__version__} {np.__version__}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _tables() -> Iterator[pa.Table]:
    for split in SPLIT_SEEDS:
        rows = [
            row | {"image": {"bytes": _png_bytes(row["image"]), "path": None}, "split": split}
            for row in scene_rows(split)
        ]
        yield pa.Table.from_pylist(rows, schema=_FEATURES.arrow_schema)


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
