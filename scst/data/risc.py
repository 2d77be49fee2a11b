"""The RISC folder form: ``captions.csv`` (``source,split,image,caption_1..n``) beside ``resized/``."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from scst.errors import DataError

CAPTIONS_FILE = "captions.csv"
IMAGES_FOLDER = "resized"
HEADER = "source,split,image,caption_1,...,caption_n"
REQUIRED_COLUMNS = ("split", "image", "caption_1")
CAPTION_COLUMN = re.compile(r"caption_[1-9]\d{0,5}")
BATCH = 10_000
"""Rows of the CSV in memory at once."""


def read_risc(folder: Path, *, batch_size: int = BATCH) -> Iterator[dict[str, list[Any]]]:
    """Read a RISC folder a few rows at a time; images stay paths, nothing is decoded.

    Yields:
        Columns of at most ``batch_size`` rows, at least one batch: ``image`` (``{"bytes": None, "path":
        ...}``, the path absolute), ``references``, ``image_id`` (the file's stem), ``split``, and every
        further column of the CSV (``source``, ...).

    Raises:
        DataError: a part of the folder is missing, the header is wrong, the file is not UTF-8, a row has too
            few or too many cells, or an image name leaves ``resized/``. The line is named.
    """
    images = os.path.abspath(_images_folder(folder))
    lines = _lines(folder / CAPTIONS_FILE)
    while batch := list(islice(lines, batch_size)):
        yield _columns(batch, Path(images))


def _columns(lines: list[tuple[str, dict[str, str]]], images: Path) -> dict[str, list[Any]]:
    header = lines[0][1]
    caption_names = sorted((n for n in header if CAPTION_COLUMN.fullmatch(n)), key=lambda n: int(n[8:]))
    extra_names = [n for n in header if n not in {"split", "image", *caption_names}]
    names = [_image_name(row["image"], where) for where, row in lines]
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
    splits: Counter[str] = Counter()
    missing: list[str] = []
    for columns in read_risc(folder):
        splits.update(columns["split"])
        paths = [image["path"] for image in columns["image"]]
        refuse_links_outside(folder, paths)
        missing += [path for path in paths if not os.path.isfile(path)]
    if len(missing) == splits.total():
        raise DataError(
            f"{folder}: none of the {len(missing)} images named in {CAPTIONS_FILE} exists; the first one was "
            f"expected at {missing[0]}. Put the images into {IMAGES_FOLDER}/ or correct the image column."
        )
    return {"form": "risc", "splits": dict(splits), "missing_images": len(missing)}


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
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte-order mark
            yield from _rows(csv.reader(file), path)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _rows(reader: Any, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
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


def _not_utf8(path: Path) -> DataError:
    """The error that names the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    f"{path} line {number}: expected UTF-8, got the byte 0x{line[error.start]:02x}. "
                    f"Convert the file, for example with: iconv -f LATIN1 -t UTF-8 {path.name}"
                )
    return DataError(f"{path}: expected UTF-8 (the file changed while it was read).")


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


def refuse_links_outside(folder: Path, images: Iterable[str]) -> None:
    """Raise DataError when a symbolic link on the way to an image leads out of the dataset's folder.

    The dataset's folder itself may be a link: its owner made it, while links inside it came with the data.
    """
    guard = LinkGuard(folder)
    for image in images:
        guard.check(image, is_link=os.path.islink(image))


class LinkGuard:
    """Refuses links on the way to images that lead out of a folder; every folder is looked at once."""

    def __init__(self, folder: Path):
        self.root = os.path.realpath(folder)
        self._inside: set[str] = set()

    def check(self, image: str, *, is_link: bool) -> None:
        """Check one image.

        Raises:
            DataError: it, or a folder on the way to it, is a link out of the dataset's folder.
        """
        parent = image.rpartition("/")[0]
        if parent not in self._inside:
            self._refuse_outside(image, os.path.realpath(parent))
            self._inside.add(parent)
        if is_link:
            self._refuse_outside(image, os.path.realpath(image))

    def _refuse_outside(self, image: str, place: str) -> None:
        if os.path.commonpath([self.root, place]) != self.root:
            raise DataError(
                f"{image} is a link to {place}, outside of the dataset's folder; nothing out there is read. "
                "Copy the images into the folder (cp -rL), or put the link on the dataset's folder itself."
            )
