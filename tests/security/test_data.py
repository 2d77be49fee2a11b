"""Datasets and pictures from somebody else: links, devices, bombs, absurd sizes, formats with a past."""

from __future__ import annotations

import os
import shutil
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rewards.scorers.text import MAX_CAPTION_CHARACTERS
from scst.data import images
from scst.data.images import image_bytes
from scst.data.pictures import open_picture
from scst.data.sources import check_layout, read_rows
from scst.data.validate import inspect_examples
from scst.errors import DataError
from tests.support.rows import dataset_of, encoded, rows_of, write_risc

READERS = {"read_rows": read_rows, "check_layout": check_layout}


@pytest.fixture
def private(tmp_path):
    """A picture that the dataset has no business with."""
    path = tmp_path / "private" / "holiday.png"
    path.parent.mkdir()
    path.write_bytes(encoded(7))
    return path


@pytest.fixture
def risc(tmp_path):
    return write_risc(tmp_path / "data", rows_of({"train": 3, "val": 2}))


@pytest.mark.parametrize("reader", READERS)
class TestLinksOutOfTheFolder:
    def test_a_linked_image_is_refused(self, reader, risc, private):
        (risc / "resized" / "img_1.png").unlink()
        (risc / "resized" / "img_1.png").symlink_to(private)
        with pytest.raises(DataError, match=r"img_1.png is a link to .*holiday.png, outside"):
            READERS[reader](str(risc))

    def test_a_linked_images_folder_is_refused(self, reader, risc, tmp_path):
        shutil.move(risc / "resized", tmp_path / "elsewhere")
        (risc / "resized").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=r"is a link to .*elsewhere, outside"):
            READERS[reader](str(risc))

    def test_links_inside_and_a_link_to_the_dataset_are_fine(self, reader, risc, tmp_path):
        (risc / "resized" / "img_1.png").unlink()
        (risc / "resized" / "img_1.png").symlink_to("img_2.png")
        (tmp_path / "my-data").symlink_to(risc)
        found = READERS[reader](str(tmp_path / "my-data"))
        if reader == "check_layout":
            assert (found["splits"], found["missing_images"]) == ({"train": 3, "val": 2}, 0)
        else:
            assert len(found) == 5
            linked = found["image_id"].index("img_1")
            assert image_bytes(found[linked]["image"]) == (risc / "resized" / "img_2.png").read_bytes()


def test_a_link_beside_a_parquet_file_is_refused(tmp_path, private):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").symlink_to(private)
    table = pa.table({"image": ["a.png"], "captions": [["x"]], "image_id": ["a"], "split": ["train"]})
    pq.write_table(table, tmp_path / "d" / "t.parquet")
    with pytest.raises(DataError, match=r"is a link to .*, outside"):
        read_rows(str(tmp_path / "d"))


def test_a_saved_dataset_cannot_name_files_elsewhere(tmp_path, private):
    """``save_to_disk`` stores bytes; rows that only name a file were made by hand."""
    rows = rows_of({"train": 2})
    rows[1]["image"] = {"bytes": None, "path": str(private)}
    table = dataset_of(rows)
    table.save_to_disk(tmp_path / "honest")
    assert read_rows(str(tmp_path / "honest"))[1]["image"]["bytes"] == encoded(7), "its bytes are embedded"
    saved = tmp_path / "made"
    shutil.copytree(tmp_path / "honest", saved)
    arrow = next(saved.glob("*.arrow"))
    arrow.unlink()
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, table.data.schema) as writer:
        writer.write_table(table.data.table)
    with pytest.raises(DataError, match=r"stay inside it; got .*holiday.png"):
        read_rows(str(saved))


def test_captions_of_absurd_length_are_named():
    rows = rows_of({"train": 2})
    rows[1]["captions"] = ["fine", "a" * (MAX_CAPTION_CHARACTERS + 1)]
    found = inspect_examples(dataset_of(rows, captions="references"))
    assert len(found.rows) == 1
    assert found.bad[0].reason == "a caption has 20001 characters, more than 20000"


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces a picture of ``width`` x ``height``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
HOSTILE = {
    "bomb": (huge_png(10_000, 10_000), "decompression bomb: 10000 x 10000"),
    "great bomb": (huge_png(2**31 - 1, 2**31 - 1), "decompression bomb"),
    "EPS, for which Pillow starts Ghostscript": (EPS, "does not decode: UnidentifiedImageError"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_pictures_are_refused_at_both_doors(case, tmp_path):
    content, reason = HOSTILE[case]
    assert reason in images.decoding_problem(content)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_picture(tmp_path / "a.png")


def test_eps_would_have_been_opened_without_the_list_of_formats(tmp_path):
    (tmp_path / "a.eps").write_bytes(EPS)
    assert Image.open(tmp_path / "a.eps").format == "EPS"


def test_a_pipe_a_device_and_a_giant_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    with open(tmp_path / "giant.png", "wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    for path, reason in (
        (tmp_path / "pipe.png", "no regular file"),
        ("/dev/zero", "no regular file"),
        (tmp_path / "giant.png", "1000000000000 bytes"),
    ):
        probe = images.probe_image({"bytes": None, "path": str(path)})
        assert reason in probe.problem
        assert images.content_hash({"bytes": None, "path": str(path)}) == ""


def test_giant_bytes_are_refused_too(monkeypatch):
    monkeypatch.setattr(images, "MAX_ENCODED_BYTES", 10)
    assert "none above 10 is read" in images.decoding_problem(encoded(1))
