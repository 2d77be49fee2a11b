"""Tiny datasets in every accepted form."""

import csv
import io
from pathlib import Path

import datasets
from PIL import Image

CAPTIONS = [
    "many planes are parked .",
    "some planes are parked next to a building in an airport .",
    "planes .",
]


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
