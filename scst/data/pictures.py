"""Pictures named on a command line: files and folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from scst.errors import DataError

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
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{str(path)!r} does not exist: name image files or a folder of images")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
    if not found:
        raise DataError(f"the folder {str(path)!r} holds no picture ({', '.join(PICTURE_ENDINGS)})")
    return found


def open_picture(path: Path) -> Image.Image:
    """A fully decoded RGB picture.

    Raises:
        DataError: when the file is no image, is cut off, or is absurdly large.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{str(path)!r} cannot be read as an image: {error}") from error
