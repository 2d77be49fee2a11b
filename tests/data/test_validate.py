"""Bad examples are found before training: refused together, or skipped and listed."""

import io

import datasets
import pytest
from PIL import Image
from rich.console import Console

from scst.data.load_splits import load_splits
from scst.data.validate import check_policy, inspect_examples, refuse_bad
from scst.errors import DataError, RecipeError
from tests.support.rows import CAPTIONS, encoded, read_form, rows_of, write_risc


def bomb(width: int, height: int) -> bytes:
    """A small file that would unpack to a huge picture."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def change(rows, row, **values):
    rows[row] |= values
    return rows


def with_bytes(data):
    return {"image": {"bytes": data, "path": None}}


BAD = {
    "missing": ({"image": {"bytes": None, "path": "/absent/a.png"}}, "image file missing: /absent/a.png"),
    "no image": ({"image": {"bytes": None, "path": None}}, "image file missing: no bytes and no path"),
    "zero byte in path": ({"image": {"bytes": None, "path": "a\0.png"}}, "image file"),
    "folder": ({"image": {"bytes": None, "path": "/"}}, "image file cannot be read"),
    "empty": (with_bytes(b""), "image is empty"),
    "text": (with_bytes(b"hello"), "image does not decode: UnidentifiedImageError"),
    "truncated png": (with_bytes(encoded(1)[:-40]), "image does not decode"),
    "truncated jpeg": (
        with_bytes(encoded(1, "JPEG")[:-40]),
        "image does not decode: OSError: image file is truncated",
    ),
    "truncated webp": (with_bytes(encoded(1, "WEBP")[:-40]), "image does not decode"),
    "bomb": (with_bytes(bomb(10_000, 10_000)), "decompression bomb: 10000 x 10000"),
    "big bomb": (with_bytes(bomb(20_000, 10_000)), "decompression bomb"),
    "no captions": ({"captions": []}, "empty caption list"),
    "blank captions": ({"captions": ["", "  \n"]}, "all captions are blank"),
    "null caption": ({"captions": ["a", None]}, "caption is not text: None"),
    "duplicate": ({"image_id": "img_0"}, "duplicate image_id: rows 0 and 3"),
    "no id": ({"image_id": " "}, "image_id is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_bad_example_is_named_or_skipped(case, toy_rows):
    values, reason = BAD[case]
    found = inspect_examples(read_form(change(toy_rows, 3, **values)))
    with pytest.raises(DataError, match=r"^1 examples cannot be used") as caught:
        refuse_bad(found.bad)
    assert reason in str(caught.value)
    assert "--on_bad_example skip" in str(caught.value)
    assert len(found.rows) == 10
    assert [example.reason.startswith(reason) for example in found.bad] == [True]


def test_good_rows_pass_unchanged(toy_rows):
    rows = read_form(toy_rows)
    found = inspect_examples(rows)
    refuse_bad(found.bad)
    assert found.rows[:] == rows[:]


def test_error_lists_five_and_the_total(toy_rows):
    for row in range(7):
        toy_rows[row]["captions"] = []
    with pytest.raises(DataError, match=r"^7 examples") as caught:
        refuse_bad(inspect_examples(read_form(toy_rows)).bad)
    assert str(caught.value).count("empty caption list") == 5


def test_degenerate_captions_stay_blank_ones_go(tmp_path, toy_rows):
    change(toy_rows, 0, captions=[" .", "1 .", ""])
    data = load_splits(str(write_risc(tmp_path / "d", toy_rows)), ["train"])
    assert data.splits["train"][0]["references"] == [" .", "1 ."]
    assert data.blank_captions == 1
    assert data.bad_examples == []


def test_wrong_policy():
    with pytest.raises(RecipeError, match="on_bad_example should be one of error, skip; got 'ignore'"):
        check_policy("ignore")


def test_progress_bar_beyond_500_images():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    inspect_examples(read_form(rows_of({"train": 501})), console)
    assert "checking images" in screen.getvalue()


class TestLoadSplits:
    """The whole way through the room."""

    def test_images_decode_and_counts_add_up(self, any_form):
        data = load_splits(any_form, ["train", "val"])
        assert data.counts["train"] == {"images": 8, "captions": 24, "distinct_captions": 24, "duplicates": 0}
        assert data.splits["val"].features["image"] == datasets.Image()
        assert data.splits["val"][0]["image"].size == (24, 24)
        assert data.splits["val"][0]["references"] == CAPTIONS

    def test_same_data_same_fingerprint_in_every_form(self, any_form, toy_rows, tmp_path):
        other = load_splits(str(write_risc(tmp_path / "other", toy_rows)), ["train", "val"]).fingerprint
        assert load_splits(any_form, ["train", "val"]).fingerprint == other

    @pytest.mark.parametrize(
        "values",
        [{"image_id": "other"}, {"captions": ["other"] * 3}, {"image": {"bytes": encoded(99), "path": None}}],
    )
    def test_fingerprint_sees_every_part(self, values, toy_rows, tmp_path):
        before = load_splits(str(write_risc(tmp_path / "a", toy_rows)), ["train"]).fingerprint
        change(toy_rows, 3, **values)
        assert load_splits(str(write_risc(tmp_path / "b", toy_rows)), ["train"]).fingerprint != before

    def test_skipped_examples_are_listed(self, tmp_path, toy_rows):
        change(toy_rows, 3, image={"bytes": None, "path": None})
        change(toy_rows, 9, captions=["", "", ""])
        folder = str(write_risc(tmp_path / "d", toy_rows))
        with pytest.raises(DataError, match=r"^2 examples"):
            load_splits(folder, ["train", "val"])
        data = load_splits(folder, ["train", "val"], on_bad_example="skip")
        assert [example.image_id for example in data.bad_examples] == ["img_3", "img_9"]
        assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 7, "val": 2}

    def test_splits_not_asked_for_are_not_read(self, tmp_path, toy_rows):
        change(toy_rows, 9, image={"bytes": b"broken", "path": None})
        assert len(load_splits(str(write_risc(tmp_path / "d", toy_rows)), ["train"]).splits["train"]) == 8

    def test_bad_images_take_no_place_in_fractions(self, tmp_path, toy_rows):
        change(toy_rows, 3, image={"bytes": b"broken", "path": None})
        folder = str(write_risc(tmp_path / "d", toy_rows))
        fractions = {"fractions": "60/20/20", "on_bad_example": "skip"}
        with pytest.raises(RecipeError, match="the dataset declares the splits"):
            load_splits(folder, ["train", "val", "test"], **fractions)
        data = load_splits(folder, ["train", "val", "test"], resplit=True, **fractions)
        assert [len(rows) for rows in data.splits.values()] == [6, 2, 2]

    def test_leak_and_duplicates(self, tmp_path, toy_rows):
        change(toy_rows, 4, image=toy_rows[2]["image"])
        data = load_splits(str(write_risc(tmp_path / "a", toy_rows)), ["train", "val"])
        assert (data.duplicates, data.counts["train"]["duplicates"]) == (1, 1)
        change(toy_rows, 9, image=toy_rows[2]["image"])
        with pytest.raises(DataError, match="same picture: img_2 in train = img_9 in val"):
            load_splits(str(write_risc(tmp_path / "b", toy_rows)), ["train", "val"])

    def test_nothing_left(self, tmp_path, toy_rows):
        for row in (8, 9, 10):
            change(toy_rows, row, captions=["", "", ""])
        with pytest.raises(DataError, match="no usable example is left in the split 'val'"):
            load_splits(str(write_risc(tmp_path / "d", toy_rows)), ["train", "val"], on_bad_example="skip")

    def test_limit_is_a_seeded_sample_and_nested(self, tmp_path):
        folder = str(write_risc(tmp_path / "d", rows_of({"train": 40, "val": 10})))

        def chosen(limit, seed=0):
            rows = load_splits(folder, ["train", "val"], limit=limit, split_seed=seed).splits
            return rows["train"]["image_id"][:], len(rows["val"])

        ten, val = chosen({"train": 10})
        assert (len(ten), val) == (10, 10)
        assert ten != [f"img_{n}" for n in range(10)]
        assert chosen({"train": 10})[0] == ten
        assert chosen({"train": 10}, seed=1)[0] != ten
        assert set(chosen(5)[0]) < set(ten)
        assert chosen(100) == chosen(None)

    @pytest.mark.parametrize(
        ("limit", "message"),
        [({"test": 3}, "names the splits test, but loaded are train"), (0, "at least 1")],
    )
    def test_wrong_limit(self, limit, message, any_form):
        with pytest.raises(RecipeError, match=message):
            load_splits(any_form, ["train"], limit=limit)


@pytest.mark.slow
def test_real_pack_loads(shared_data):
    data = load_splits(str(shared_data / "rsicd-64"), ["train", "val"])
    assert {name: count["images"] for name, count in data.counts.items()} == {"train": 8734, "val": 1094}
    assert (data.duplicates, data.blank_captions, data.bad_examples) == (1, 0, [])


def test_real_folder_loads_a_sample(shared_data):
    data = load_splits(str(shared_data / "rsicd-224"), ["train", "validation"], limit=20)
    assert data.splits["train"][0]["image"].size == (224, 224)
    assert len(data.splits["validation"]) == 20
