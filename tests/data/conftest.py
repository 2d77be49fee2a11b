"""Tiny datasets in every accepted form, and the real packs where they are at hand."""

import csv
import io
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

CAPTIONS = [
    "many planes are parked .",
    "some planes are parked next to a building in an airport .",
    "planes .",
]
PROJECT_ROOT = Path(__file__).resolve().parents[2]


def picture(number: int, size: int = 24) -> Image.Image:
    """A picture that differs from those of other numbers, with enough detail to be truncated."""
    image = Image.new("RGB", (size, size), (number * 7 % 256, number // 36 % 256, 90))
    for x in range(size):
        image.putpixel((x, (x * number + 3) % size), (255, x * 9 % 256, number % 256))
    return image


def encoded(number: int, form: str = "PNG") -> bytes:
    """The bytes of :func:`picture`."""
    buffer = io.BytesIO()
    picture(number).save(buffer, format=form)
    return buffer.getvalue()


def rows_of(splits: dict[str, int]) -> list[dict]:
    """Rows ``img_0``, ``img_1``, ... with three captions each, so many per split."""
    names = [name for name, count in splits.items() for _ in range(count)]
    return [
        {
            "image": {"bytes": encoded(number), "path": None},
            "captions": CAPTIONS,
            "image_id": f"img_{number}",
            "split": name,
            "source": "toy",
        }
        for number, name in enumerate(names)
    ]


def dataset_of(rows: list[dict], captions: str = "captions") -> datasets.Dataset:
    """A dataset in memory with an image column that does not decode."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns[captions] = columns.pop("captions")
    table = datasets.Dataset.from_dict(columns)
    return table.cast_column("image", datasets.Image(decode=False))


def read_form(rows: list[dict]) -> datasets.Dataset:
    """Rows as ``read_rows`` returns them."""
    return dataset_of(rows, captions="references")


def write_risc(folder: Path, rows: list[dict]) -> Path:
    """Write rows as a RISC folder; a row's ``name`` overrides its file name, no bytes leave the file out."""
    (folder / "resized").mkdir(parents=True)
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "split", "image", *(f"caption_{n + 1}" for n in range(len(CAPTIONS)))])
        for row in rows:
            name = row.get("name", f"{row['image_id']}.png")
            writer.writerow([row["source"], row["split"], name, *row["captions"]])
            if row["image"]["bytes"] is not None and "/" not in name:
                (folder / "resized" / name).write_bytes(row["image"]["bytes"])
    return folder


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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real packs; tests that ask for it are skipped where it is absent."""
    folder = Path(os.environ.get("SCST_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not (folder / "rsicd-64").is_dir() or not (folder / "rsicd-224").is_dir():
        pytest.skip(
            f"real data not found in {folder}; set SCST_SHARED_DATA to the folder that holds rsicd-64"
        )
    return folder
