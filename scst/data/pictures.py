"""Pictures named on a command line: files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scst.data.images import decode_image, read_image_file
from scst.errors import DataError, shown

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """Every named file, and the pictures directly in every named folder, sorted by name.

    Raises:
        DataError: when nothing is named, a path does not exist, or a folder holds no picture.
    """
    if not paths:
        raise DataError("no picture given: name image files or a folder of images")
    return [picture for path in paths for picture in _pictures_at(Path(path))]


def _pictures_at(path: Path) -> list[Path]:
    if os.path.isfile(path):  # unlike Path.is_file, it is false for a name that no file system can hold
        return [path]
    if not os.path.isdir(path):
        raise DataError(f"{shown(str(path))} does not exist: name image files or a folder of images")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
    if not found:
        raise DataError(f"the folder {str(path)!r} holds no picture ({', '.join(PICTURE_ENDINGS)})")
    return found


def pictures_by_id(folder: str | Path, image_ids: Sequence[str]) -> list[Path]:
    """The picture of every image id in a folder, by file name without or with its ending.

    Raises:
        DataError: naming the first id without picture.
    """
    found = {name: path for path in _pictures_at(Path(folder)) for name in (path.stem, path.name)}
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        others = f"(and {len(missing) - 1} others)"
        raise DataError(f"the folder {str(folder)!r} has no picture named {shown(missing[0])} {others}")
    return [found[image_id] for image_id in image_ids]


class PictureFiles(Sequence[Image.Image]):
    """Picture files as a sequence of pictures, opened when asked for.

    Args:
        paths: N files.

    Raises:
        DataError: when a file does not exist.
    """

    def __init__(self, paths: Sequence[Path]):
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise DataError(
                f"{shown(str(missing[0]))} does not exist ({len(missing)} of {len(paths)} missing)"
            )
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return open_picture(self.paths[index])


def open_picture(path: Path) -> Image.Image:
    """A fully decoded RGB picture.

    Raises:
        DataError: when the file is no image, is cut off, or is absurdly large.
    """
    try:
        return decode_image(read_image_file(path)).convert("RGB")
    except (OSError, DataError) as error:
        raise DataError(f"{str(path)!r} cannot be read as an image: {error}") from error
