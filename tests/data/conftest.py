"""Tiny datasets in every accepted form, and the real packs where they are at hand."""

from pathlib import Path

import datasets
import pytest

from tests.support.rows import dataset_of, rows_of, write_risc


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Keep what ``datasets`` prepares inside the test's own folder, and the network out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def toy_rows() -> list[dict]:
    return rows_of({"train": 8, "val": 3})


@pytest.fixture(params=["risc", "parquet", "parquet_folder", "saved", "saved_dict"])
def any_form(request, tmp_path, toy_rows) -> str:
    """The same eleven rows in one of the local forms."""
    return str(WRITERS[request.param](tmp_path / "toy", toy_rows))


def _write_parquet(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    dataset_of(rows).to_parquet(folder / "all.parquet")
    return folder / "all.parquet"


def _write_parquet_folder(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    for split in ("train", "val"):  # no split column: the file name tells
        part = dataset_of([row for row in rows if row["split"] == split]).remove_columns("split")
        part.to_parquet(folder / f"{split}.parquet")
    return folder


def _write_saved(folder: Path, rows: list[dict]) -> Path:
    dataset_of(rows).save_to_disk(folder)
    return folder


def _write_saved_dict(folder: Path, rows: list[dict]) -> Path:
    parts = datasets.DatasetDict()
    for split in ("train", "val"):  # no split column: the part's name tells
        part = dataset_of([row for row in rows if row["split"] == split])
        parts[split] = part.remove_columns("split")
    parts.save_to_disk(folder)
    return folder


WRITERS = {
    "risc": write_risc,
    "parquet": _write_parquet,
    "parquet_folder": _write_parquet_folder,
    "saved": _write_saved,
    "saved_dict": _write_saved_dict,
}
