"""A RISC folder of any size: a pool of rendered scenes whose files differ in a JPEG comment.

Every file has bytes of its own, so that no picture counts as a duplicate or stands in two splits; the pixels
repeat after ``POOL`` images. Five captions an image, those of its scene.
"""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path

POOL = 512
EVERY_HUNDREDTH = 100
"""One image in so many is of the split ``val``."""


def write_folder(folder: Path, images: int, side: int = 224) -> Path:
    """Write ``images`` pictures of ``side`` pixels and their captions; returns the folder.

    Files are dated an hour back: the memory of checks takes nothing on trust that is seconds old.
    """
    pool = _pool(side)
    (folder / "resized").mkdir(parents=True)
    then = time.time() - 3600
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "split", "image", *(f"caption_{k}" for k in range(1, 6))])
        for number in range(images):
            data, captions = pool[number % len(pool)]
            path = folder / "resized" / f"tile_{number}.jpg"
            path.write_bytes(_with_comment(data, str(number)))
            os.utime(path, (then, then))
            split = "val" if number % EVERY_HUNDREDTH == 0 else "train"
            writer.writerow(["generated", split, path.name, *captions])
    os.utime(folder / "captions.csv", (then, then))
    return folder


def _pool(side: int) -> list[tuple[bytes, list[str]]]:
    from scst.data.scenes.dataset import scene_rows

    pool = []
    for row in scene_rows("train")[:POOL]:
        buffer = io.BytesIO()
        row["image"].convert("RGB").resize((side, side)).save(buffer, "JPEG", quality=90)
        pool.append((buffer.getvalue(), row["references"]))
    return pool


def _with_comment(jpeg: bytes, text: str) -> bytes:
    """The same picture with a comment segment behind the start marker."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
