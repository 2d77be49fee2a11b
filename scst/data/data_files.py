"""Datasets in files: parquet, and the names that files of a split have."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scst.data.columns import STORED_IMAGE, check_columns, concatenate, normalise
from scst.data.risc import refuse_links_outside, refuse_outside_path
from scst.errors import DataError
from scst.files.reading import refuse_pipes


def parquet_files(path: Path) -> list[Path]:
    """The parquet files that a path means: itself, those of a folder, or of its ``data/``."""
    if path.is_file():
        return [path]
    return _glob(path, "*.parquet") or _glob(path / "data", "*.parquet")


def tar_files(path: Path) -> list[Path]:
    """The tar archives that a path means: itself, or those of a folder."""
    return [path] if path.is_file() else _glob(path, "*.tar")


def _glob(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder with names of a pattern; refuses what is no file."""
    found = sorted(folder.glob(pattern))
    refuse_pipes(found)
    return found


def stem_split(path: Path) -> str:
    """``val.parquet`` and ``val-00000-of-00001.parquet`` are ``val``; other names say nothing."""
    found = re.fullmatch(r"(train|val|validation|valid|dev|test)([-_.].*)?", path.stem)
    return found[1] if found else ""


def parquet_schema(path: Path) -> pa.Schema:
    """The schema of a file. Raises DataError: it is no parquet file, or lacks a column."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    check_columns(schema.names, str(path))
    return schema


def read_parquet(dataset: str) -> datasets.Dataset:
    """The rows of a parquet file or of a folder of them."""
    parts = []
    for path in parquet_files(Path(dataset).expanduser()):
        parquet_schema(path)
        try:
            rows = datasets.Dataset.from_parquet(str(path))
        except Exception as error:  # whatever the libraries raise on damaged data
            raise _unreadable(path, error) from error
        part = normalise(rows, str(path), stem_split(path))
        parts.append(resolve_paths(part, path, path.parent))
    return concatenate(parts, dataset)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error.__cause__ or error)[:300]
    return DataError(f"{path}: expected a parquet file, but it cannot be read as one: {reason}")


def resolve_paths(part: datasets.Dataset, where: Path, folder: Path) -> datasets.Dataset:
    """Make image paths that come without bytes relative to a folder that they must not leave."""
    if _stored_inside(part):
        return part
    resolved = []
    for chunk in part.data.column("image").chunks:
        inside, paths = pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path")
        by_path = pc.and_(pc.is_null(inside), pc.fill_null(pc.not_equal(paths, ""), False))
        names = pc.filter(paths, by_path).to_pylist()
        for name in names:
            refuse_outside_path(name, str(where), str(folder))
        places = [str(folder / name) for name in names]
        refuse_links_outside(folder, places)
        paths = pc.replace_with_mask(paths, by_path, pa.array(places, paths.type))
        resolved.append(pa.StructArray.from_arrays([inside, paths], ["bytes", "path"]))
    return part.remove_columns("image").add_column("image", pa.chunked_array(resolved), feature=STORED_IMAGE)


def _stored_inside(part: datasets.Dataset) -> bool:
    chunks = part.data.column("image").chunks
    return all(chunk.field("bytes").null_count == 0 for chunk in chunks)


def parquet_layout(dataset: str) -> dict:
    """Rows by split, counted without reading an image."""
    splits: Counter[str] = Counter()
    for path in parquet_files(Path(dataset).expanduser()):
        if "split" in parquet_schema(path).names:
            try:
                values = pq.read_table(path, columns=["split"])["split"].to_pylist()
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _unreadable(path, error) from error
            splits.update(value or stem_split(path) for value in values)
        else:
            splits[stem_split(path)] += pq.read_metadata(path).num_rows
    return {"form": "parquet", "splits": dict(splits)}
