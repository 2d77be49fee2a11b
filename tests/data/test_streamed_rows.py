"""A stream gives every row of a pass once, in an order that only the seed decides, and resumes exactly."""

import io
import json
import tarfile
from itertools import chain, islice

import datasets
import pyarrow.parquet as pq
import pytest

from scst.data.load_splits import load_splits
from scst.data.open_stream import load_stream, open_split
from scst.data.sources import check_layout, find_form, read_rows
from scst.data.stream_settings import check_streamed, is_tar
from scst.data.streamed_rows import StreamedRows, decoded
from scst.errors import DataError, RecipeError
from tests.support.rows import CAPTIONS, dataset_of, encoded, rows_of, write_risc


def write_tars(folder, count=11, per_file=4, split="train", captions="json"):
    """Rows ``img_0``, ... in tar archives, as webdataset has them."""
    folder.mkdir(exist_ok=True)
    for first in range(0, count, per_file):
        with tarfile.open(folder / f"{split}-{first:05d}.tar", "w") as archive:
            for number in range(first, min(first + per_file, count)):
                texts = json.dumps({"captions": CAPTIONS, "kind": "toy"}) if captions == "json" else None
                texts = texts or "\n".join(CAPTIONS)
                for ending, data in (("png", encoded(number)), (captions, texts.encode())):
                    entry = tarfile.TarInfo(f"img_{number}.{ending}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    return folder


@pytest.fixture
def tars(tmp_path):
    return write_tars(tmp_path / "tars")


def stream_of(dataset, block=1, **settings):
    return load_stream(str(dataset), "train", block=block, **settings).streams["train"]


def ids(stream, batches, size=4):
    return [[row["image_id"] for row in rows] for rows, _ in islice(stream.batches(size), batches)]


def test_the_sources_own_order_pass_after_pass(tars):
    names = [f"img_{n}" for n in range(11)]
    assert ids(stream_of(tars), 6) == [names[:4], names[4:8], names[8:]] * 2


@pytest.mark.parametrize("block", [3, 100])
def test_blocks_are_shuffled_anew_in_every_pass(tars, block):
    batches = ids(stream_of(tars, block=block), 6)
    first, second = (list(chain.from_iterable(batches[i : i + 3])) for i in (0, 3))
    names = [f"img_{n}" for n in range(11)]
    assert sorted(first) == sorted(second) == sorted(names)
    assert len({tuple(first), tuple(second), tuple(names)}) == 3
    assert ids(stream_of(tars, block=block), 6) == batches
    assert ids(stream_of(tars, block=block, seed=1), 6) != batches
    if block == 3:
        assert set(first[:3]) == set(names[:3])


@pytest.mark.parametrize("form", ["tar", "parquet", "risc"])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_resumes_at_the_very_next_row(form, block, tmp_path):
    if form == "tar":
        path = write_tars(tmp_path / "d")
    elif form == "risc":
        path = write_risc(tmp_path / "d", rows_of({"train": 11}))
    else:
        path = tmp_path / "train.parquet"
        dataset_of(rows_of({"train": 11})).to_parquet(path, batch_size=4)
    whole = [(rows, behind) for rows, behind in islice(stream_of(path, block).batches(4), 8)]
    for at, (_, behind) in enumerate(whole[:-1]):
        again = stream_of(path, block)
        again.position.load_state_dict(json.loads(json.dumps(behind)))  # plain values survive a checkpoint
        rest = [rows for rows, _ in islice(again.batches(4), 7 - at)]
        assert rest == [rows for rows, _ in whole[at + 1 :]]


def test_drop_last_leaves_out_what_does_not_fill_a_batch(tars):
    batches = [rows for rows, _ in islice(stream_of(tars).batches(4, drop_last=True), 4)]
    assert [len(rows) for rows in batches] == [4] * 4
    assert batches[2][0]["image_id"] == "img_0"


def test_rows_are_those_of_a_finite_dataset(tmp_path, tars):
    finite = load_splits(str(write_risc(tmp_path / "d", rows_of({"train": 11}))), ["train"])["train"]
    rows = [decoded(row) for batch, _ in islice(stream_of(tars).batches(4), 3) for row in batch]
    for row, other in zip(rows, finite, strict=True):
        assert (row["image_id"], row["references"]) == (other["image_id"], other["references"])
        assert row["image"].tobytes() == other["image"].tobytes()
        assert row["kind"] == "toy"


def test_captions_in_a_text_one_a_line(tmp_path):
    stream = stream_of(write_tars(tmp_path / "d", captions="txt"))
    assert stream.first(2)["references"][:] == [CAPTIONS] * 2


def test_held_out_rows_and_splits_by_file_name(tars):
    write_tars(tars, count=5, split="val")
    data = load_stream(str(tars), "train", held_out=["validation"], held_out_images=3)
    assert data["validation"]["image_id"][:] == ["img_0", "img_1", "img_2"]
    assert data["validation"][0]["image"].size == (24, 24)
    assert len(list(data.streams["train"].references())) == 11
    assert data.training_rows("train") is data.streams["train"]
    with pytest.raises(DataError, match="no split 'test'; its files are of train, val"):
        open_split(str(tars), "test")


def test_a_column_names_the_split_of_parquet_rows(tmp_path):
    dataset_of(rows_of({"train": 3, "val": 2})).to_parquet(tmp_path / "all.parquet")
    assert ids(stream_of(tmp_path), 1) == [["img_0", "img_1", "img_2"]]


def test_a_hub_dataset_is_streamed(monkeypatch):
    asked = {}

    def load(name, split, streaming):
        asked.update(name=name, split=split, streaming=streaming)
        return dataset_of(rows_of({"train": 3})).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert ids(stream_of("somebody/something"), 1) == [["img_0", "img_1", "img_2"]]
    assert asked == {"name": "somebody/something", "split": "train", "streaming": True}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"captions": ["", " "]}, "all captions are blank"),
        ({"image": {"bytes": b"x", "path": None}}, "decode"),
    ],
)
def test_bad_rows_are_refused_or_skipped(tmp_path, values, problem):
    rows = rows_of({"train": 5})
    rows[2] |= values
    dataset_of(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"img_2.*{problem}"):
        [decoded(row) for batch, _ in islice(stream_of(tmp_path).batches(5), 1) for row in batch]
    assert ids(stream_of(tmp_path, on_bad_example="skip"), 1, size=5) == [
        ["img_0", "img_1", "img_3", "img_4"]
    ]


def test_text_that_is_no_utf_8_is_one_sentence(tmp_path):
    """A byte that changed on the disk: parquet's pages have no checksum by default."""
    file = tmp_path / "train.parquet"
    table = dataset_of(rows_of({"train": 5})).data.table
    pq.write_table(table, file, compression="none", use_dictionary=False)
    place, content = file.read_bytes().index(b"img_2") + 1, bytearray(file.read_bytes())
    content[place] = 0xAA
    file.write_bytes(content)
    with pytest.raises(DataError, match="split train: the stream cannot be read here: UnicodeDecodeError"):
        next(stream_of(tmp_path).batches(5))


def test_a_stream_without_a_usable_row_ends(tmp_path):
    rows = [row | {"captions": [""]} for row in rows_of({"train": 3})]
    dataset_of(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="not one usable row"):
        next(stream_of(tmp_path, on_bad_example="skip").batches(2))
    with pytest.raises(DataError, match="not one usable row"):
        stream_of(tmp_path, on_bad_example="skip").first(2)


def test_rows_without_captions_name_what_is_there():
    source = datasets.Dataset.from_dict({"image": ["a"], "label": [1]}).to_iterable_dataset()
    with pytest.raises(DataError, match=r"captions .*found image, label"):
        next(StreamedRows(source, "toy").batches(1))


def test_tar_archives_are_a_form_and_other_commands_say_so(tars):
    assert (find_form(str(tars)), is_tar(str(tars))) == ("tar", True)
    assert check_layout(str(tars)) == {"form": "tar", "splits": {"train": None}}
    with pytest.raises(DataError, match="read in order, by scst sft and scst rl"):
        read_rows(str(tars))
    assert not is_tar("somebody/something")


@pytest.mark.parametrize(
    ("training", "settings", "message"),
    [
        ({}, {}, "max_steps: missing"),
        ({"max_steps": 5, "dataloader_num_workers": 2}, {}, "one worker, got 2"),
        ({"max_steps": 5}, {"caption_policy": "all"}, "caption_policy: all needs all captions"),
        ({"max_steps": 5}, {"feature_cache": "f"}, "feature_cache: cannot be used with a stream"),
        ({"max_steps": 5}, {"one_step_off_policy": True}, "one_step_off_policy: cannot"),
    ],
)
def test_what_a_stream_cannot_have(training, settings, message):
    check_streamed(
        {"max_steps": 5, "dataloader_num_workers": 1}, caption_policy="random", feature_cache="off"
    )
    with pytest.raises(RecipeError, match=message):
        check_streamed(training, **settings)
