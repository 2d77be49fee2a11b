"""The RISC folder form: ``captions.csv`` (``source,split,image,caption_1..n``) beside ``resized/``."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from scst.errors import DataError

CAPTIONS_FILE = "captions.csv"
IMAGES_FOLDER = "resized"
HEADER = "source,split,image,caption_1,...,caption_n"
REQUIRED_COLUMNS = ("split", "image", "caption_1")
CAPTION_COLUMN = re.compile(r"caption_[1-9]\d*")


def read_risc(folder: Path) -> dict[str, list[Any]]:
    """Read a RISC folder into columns; images stay paths, nothing is decoded.

    Returns:
        ``image`` (``{"bytes": None, "path": ...}``), ``references``, ``image_id`` (the file's stem),
        ``split``, and every further column of the CSV (``source``, ...), one entry per row.

    Raises:
        DataError: a part of the folder is missing, the header is wrong, the file is not UTF-8, a row has too
            few or too many cells, or an image name leaves ``resized/``. The line is named.
    """
    images = _images_folder(folder)
    lines = list(_lines(folder / CAPTIONS_FILE))
    caption_names = sorted((n for n in lines[0][1] if CAPTION_COLUMN.fullmatch(n)), key=lambda n: int(n[8:]))
    extra_names = [n for n in lines[0][1] if n not in {"split", "image", *caption_names}]
    names = [_image_name(row["image"], where) for where, row in lines]
    refuse_links_outside(folder, (images / name for name in names))
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": None, "path": str(images / name)} for name in names],
        "references": [[row[n] for n in caption_names] for _, row in lines],
        "image_id": [PurePosixPath(name).stem for name in names],
        "split": [row["split"].strip() for _, row in lines],
    }
    return columns | {n: [row[n] for _, row in lines] for n in extra_names if n not in columns}


def risc_layout(folder: Path) -> dict:
    """Return ``{"form": "risc", "splits": {name: rows}, "missing_images": n}`` without opening an image.

    Raises:
        DataError: as :func:`read_risc`, and when not one of the listed images exists.
    """
    columns = read_risc(folder)
    missing = [image["path"] for image in columns["image"] if not Path(image["path"]).is_file()]
    if len(missing) == len(columns["image"]):
        raise DataError(
            f"{folder}: none of the {len(missing)} images named in {CAPTIONS_FILE} exists; the first one was "
            f"expected at {missing[0]}. Put the images into {IMAGES_FOLDER}/ or correct the image column."
        )
    return {"form": "risc", "splits": dict(Counter(columns["split"])), "missing_images": len(missing)}


def _images_folder(folder: Path) -> Path:
    images = folder / IMAGES_FOLDER
    if not images.is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
        raise DataError(
            f"{folder}: a RISC folder has its images in {IMAGES_FOLDER}/ beside {CAPTIONS_FILE}; "
            f"found only: {found}."
        )
    return images


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ``("FILE line N", row)`` per data row; at least one, each with exactly the header's cells."""
    reader = csv.reader(io.StringIO(_utf8_text(path), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path)
        number = 0
        for cells in filter(None, reader):
            where = f"{path} line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: expected {len(header)} cells as in the header, got {len(cells)}. "
                    'Put captions that contain a comma between double quotes ("...").'
                )
            number += 1
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: not readable as CSV: {error}.") from error
    if number == 0:
        raise DataError(f"{path}: there is a header but not one row.")


def _utf8_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: expected UTF-8, got the byte 0x{data[error.start]:02x}. "
            f"Convert the file, for example with: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error


def _check_header(header: list[str], path: Path) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path}: expected the header {HEADER}; missing {', '.join(missing)}; "
            f"found: {','.join(header) or 'nothing'}."
        )
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: the header names {', '.join(repeated)} more than once; found: {','.join(header)}."
        )


def _image_name(name: str, where: str) -> str:
    if not name.strip():
        raise DataError(
            f"{where}: the image column is empty; expected a file name relative to {IMAGES_FOLDER}/."
        )
    refuse_outside_path(name, where, f"{IMAGES_FOLDER}/")
    return name


def refuse_outside_path(name: str, where: str, folder: str) -> None:
    """Raise DataError when an image name is absolute or climbs out of its folder, on POSIX or Windows."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts:
        raise DataError(f"{where}: image names are relative to {folder} and stay inside it; got {name!r}.")


def refuse_links_outside(folder: Path, images: Iterable[Path]) -> None:
    """Raise DataError when a symbolic link on the way to an image leads out of the dataset's folder.

    The dataset's folder itself may be a link: its owner made it, while links inside it came with the data.
    """
    root = os.path.realpath(folder)
    real_parents: dict[Path, str] = {}
    for image in images:
        if image.parent not in real_parents:
            real_parents[image.parent] = os.path.realpath(image.parent)
        place = os.path.realpath(image) if image.is_symlink() else real_parents[image.parent]
        if os.path.commonpath([root, place]) != root:
            raise DataError(
                f"{image} is a link to {place}, outside of the dataset's folder; nothing out there is read. "
                "Copy the images into the folder (cp -rL), or put the link on the dataset's folder itself."
            )
