"""Rows in order from every form, hub datasets spooled, memory that does not grow, and writing them again."""

import subprocess
import sys

import datasets
import pytest

from scst.data.images import content_hash
from scst.data.preparation.streams import ParquetSink, Row, RowStream
from scst.data.preparation.writers import RiscWriter, ending, make_writer
from scst.data.sources import read_rows
from scst.errors import DataError
from tests.support.paths import ROOT
from tests.support.rows import dataset_of, encoded, rows_of, write_risc


def facts(row: Row) -> tuple:
    return row.image_id, row.split, row.references, content_hash(row.image), row.columns.get("source")


def test_a_stream_reads_what_read_rows_reads(any_form):
    wanted = [
        (row["image_id"], row["split"], row["references"], content_hash(row["image"]), row["source"])
        for row in read_rows(any_form)
    ]
    stream = RowStream(any_form)
    assert [facts(row) for row in stream] == wanted
    assert [facts(row) for row in stream] == wanted, "a second time"
    assert set(stream.features) == {"source"}


@pytest.mark.parametrize("layout", ["risc", "parquet"])
def test_writing_and_reading_again(any_form, layout, tmp_path):
    """Every form to both layouts: ids, splits, captions, columns and the image bytes are the same."""
    stream = RowStream(any_form)
    rows = [facts(row) for row in stream]
    folder = tmp_path / "new"
    folder.mkdir()
    writer = make_writer(layout, folder, stream.features, 3)
    for row in stream:
        writer.add(row)
    writer.close()
    assert [facts(row) for row in RowStream(str(folder))] == rows
    trained_on = read_rows(str(folder))
    assert trained_on["references"][:] == [row[2] for row in rows]
    assert trained_on["split"][:] == [row[1] for row in rows]


def test_fewer_captions_leave_empty_cells(tmp_path):
    writer = RiscWriter(tmp_path, ["note"], 3)
    writer.add(Row({"bytes": encoded(1, "JPEG"), "path": None}, ["one, two"], "a", "train", {"note": "n"}))
    writer.close()
    lines = (tmp_path / "captions.csv").read_text().splitlines()
    assert lines == ["source,split,image,caption_1,caption_2,caption_3,note", ',train,a.jpeg,"one, two",,,n']
    assert (tmp_path / "resized" / "a.jpeg").read_bytes() == encoded(1, "JPEG")


def test_endings():
    assert ending("somewhere/x.webp", b"") == ".webp"
    assert ending(None, encoded(1)) == ".png"
    assert ending("no_ending", encoded(1)) == ".png"


@pytest.mark.parametrize("image_id", ["../up", "a/b", "/root"])
def test_an_id_that_is_no_file_name(image_id, tmp_path):
    writer = RiscWriter(tmp_path, [], 1)
    with pytest.raises(DataError, match="image_id"):
        writer.add(Row({"bytes": encoded(1), "path": None}, ["x"], image_id, "train"))


def test_splits_with_odd_names_get_files_of_their_own(tmp_path):
    writer = make_writer("parquet", tmp_path, {}, 1)
    for number, split in enumerate(["", "a/b", "train"]):
        writer.add(Row({"bytes": encoded(number), "path": None}, ["x"], f"i{number}", split))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a_b.parquet",
        "data.parquet",
        "train.parquet",
    ]
    assert {row.image_id: row.split for row in RowStream(str(tmp_path))} == {
        "i0": "",
        "i1": "a/b",
        "i2": "train",
    }


def test_a_hub_dataset_passes_through_once(tmp_path, monkeypatch, toy_rows):
    """``load_dataset`` answers with an iterable dataset, as it does for a hub id with streaming."""
    asked = []

    def load_dataset(name, streaming):
        asked.append((name, streaming))
        parts = {split: [r for r in toy_rows if r["split"] == split] for split in ("train", "val")}
        return datasets.IterableDatasetDict(
            {
                split: dataset_of(rows).remove_columns("split").to_iterable_dataset()
                for split, rows in parts.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stream = RowStream("owner/name", tmp_path / "spool")
    for _ in range(2):
        assert [(row.image_id, row.split) for row in stream] == [
            (r["image_id"], r["split"]) for r in toy_rows
        ]
    assert asked == [("owner/name", True)]
    assert next(iter(stream)).image["bytes"] == toy_rows[0]["image"]["bytes"]


def test_a_hub_that_does_not_answer(tmp_path, monkeypatch):
    def load_dataset(name, streaming):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="loading it as a hub id failed: ConnectionError"):
        RowStream("owner/name", tmp_path / "spool")


def test_no_rows_and_wrong_columns(tmp_path):
    ParquetSink(tmp_path / "empty.parquet", {}).close()
    with pytest.raises(DataError, match="has no rows"):
        list(RowStream(str(tmp_path / "empty.parquet")))
    datasets.Dataset.from_dict({"picture": ["x"]}).to_parquet(tmp_path / "wrong.parquet")
    with pytest.raises(DataError, match="expected the columns image"):
        list(RowStream(str(tmp_path / "wrong.parquet")))


MEASURE = """
import os, resource, sys
from pathlib import Path
from scst.data.preparation.streams import ParquetSink, Row, RowStream
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
folder, count = Path(sys.argv[1]), 600
sink = ParquetSink(folder / "train.parquet", {})
before = peak()
for number in range(count):
    sink.add(Row({"bytes": os.urandom(250_000), "path": None}, ["a b"], str(number), "train"))
sink.close()
written = peak() - before
assert sum(len(row.image["bytes"]) for row in RowStream(str(folder))) == count * 250_000
print(written, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kB")
def test_memory_is_that_of_some_rows_not_of_the_dataset(tmp_path):
    # 143 MB of images; 100 rows wait to be written: 24 MB, in Python, in Arrow and in the file's buffer
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.split())
    assert written < 120
    assert read < 130


def test_risc_rows_keep_their_order(tmp_path):
    write_risc(tmp_path / "toy", rows_of({"val": 2, "train": 2}))
    assert [row.split for row in RowStream(str(tmp_path / "toy"))] == ["val", "val", "train", "train"]
