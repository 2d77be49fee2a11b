"""From examples to prepared ones: inspection, splits, repeated images, cleaning, choosing."""

import datasets
import pytest
from PIL import Image

from scst.data.preparation.cleaning import parse_steps
from scst.data.preparation.inspection import Example, image_scores, inspect
from scst.data.preparation.preparation import Preparation
from scst.data.preparation.prepared_dataset import (
    form_to_write,
    prepare,
    split_examples,
    without_repeated_images,
)
from scst.data.preparation.statistics import (
    agreement,
    category_counts,
    count_captions,
    equal_images,
    seen_in_training,
    top_words,
)
from scst.data.preparation.streams import RowStream
from scst.errors import DataError, RecipeError
from tests.support.rows import CAPTIONS, encoded, rows_of, write_risc


def example(number, references=None, split="train", content_hash=None, **columns):
    return Example(
        number,
        f"img_{number}",
        list(references or CAPTIONS),
        split,
        columns,
        content_hash or str(number),
        (8, 8),
    )


TOY = [example(0), example(1), example(2, split="val")]


# --- inspection


def test_inspection_keeps_text_hash_and_size_and_names_what_is_bad(tmp_path):
    rows = rows_of({"train": 6, "val": 1})
    rows[1]["image"]["bytes"] = None  # the file is left out
    rows[2]["image"]["bytes"] = encoded(2)[:60]
    rows[3]["captions"] = ["", " ", ""]
    rows[4]["captions"] = ["one", "", "two"]
    rows[5]["image_id"] = rows[0]["image_id"]
    rows[5]["name"] = "again/img_0.png"
    rows[5]["image"]["bytes"] = None
    done = []
    found = inspect(RowStream(str(write_risc(tmp_path / "toy", rows))), thumbnails=2, advance=done.append)
    assert [e.image_id for e in found.examples] == ["img_0", "img_4", "img_6"]
    assert [e.row for e in found.examples] == [0, 4, 6]
    assert found.examples[1].references == ["one", "two"]
    assert found.blank_captions == 1
    assert {e.size for e in found.examples} == {(24, 24)}
    reasons = [(bad.image_id, bad.reason.split(":")[0]) for bad in found.bad]
    assert reasons == [
        ("img_1", "image file missing"),
        ("img_2", "image does not decode"),
        ("img_3", "all captions are blank"),
        ("img_0", "duplicate image_id"),
    ]
    assert sum(done) == 7
    assert len(found.thumbnails) == 2
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in found.thumbnails.values())


def test_the_contact_sheet_is_the_same_sample_in_any_order(tmp_path):
    rows = rows_of({"train": 40})
    forth = inspect(RowStream(str(write_risc(tmp_path / "a", rows))), thumbnails=5, seed=3)
    back = inspect(RowStream(str(write_risc(tmp_path / "b", rows[::-1]))), thumbnails=5, seed=3)
    other = inspect(RowStream(str(tmp_path / "a")), thumbnails=5, seed=4)
    assert forth.thumbnails == back.thumbnails
    assert set(forth.thumbnails) != set(other.thumbnails)


def test_image_scores_meet_their_captions(tmp_path):
    stream = RowStream(str(write_risc(tmp_path / "toy", rows_of({"train": 5}))))
    examples = [e for e in inspect(stream).examples if e.row != 1]

    def score(captions, images, ids):
        assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
        return [
            len(caption) + int(key.removeprefix("img_")) / 10
            for caption, key in zip(captions, ids, strict=True)
        ]

    wanted = [[len(caption) + e.row / 10 for caption in CAPTIONS] for e in examples]
    assert image_scores(stream, examples, score) == [pytest.approx(row) for row in wanted]


# --- splits


def test_fractions_are_those_of_training(tmp_path):
    """The same images as ``load_splits`` puts into each split."""
    from scst.data.load_splits import load_splits

    folder = str(write_risc(tmp_path / "toy", rows_of({"": 20})))
    examples = split_examples(inspect(RowStream(folder)).examples, "60/20/20", 7)
    loaded = load_splits(folder, ["train", "val", "test"], fractions="60/20/20", split_seed=7).splits
    for name, rows in loaded.items():
        assert [e.image_id for e in examples if e.split == name] == rows["image_id"][:]


def test_a_dataset_that_names_no_split_is_one():
    bare = [example(0, split=""), example(1, split="")]
    assert {e.split for e in split_examples(bare, None, 0)} == {"train"}
    mixed = [example(0, split=""), example(1, split="val")]
    assert [e.split for e in split_examples(mixed, None, 0)] == ["", "val"]


def test_a_missing_training_split_lists_what_there_is():
    with pytest.raises(DataError, match=r"no split 'trian'; the dataset has train \(2\), val \(1\)"):
        prepare(TOY, train_split="trian")


def test_an_image_in_two_splits_is_refused_and_can_be_dropped():
    examples = [example(0, content_hash="x"), example(1), example(2, split="val", content_hash="x")]
    with pytest.raises(DataError, match="same picture"):
        prepare(examples)
    kept = prepare(examples, drop_repeated_images=True)
    assert kept.repeated_images == ["img_0"], "evaluation keeps its images"
    assert [e.image_id for e in kept.after] == ["img_1", "img_2"]


def test_of_equal_images_the_first_stays():
    left, out = without_repeated_images([example(0, content_hash="x"), example(1, content_hash="x")], "train")
    assert ([e.image_id for e in left], out) == (["img_0"], ["img_1"])


# --- captions


def test_only_the_training_split_is_changed():
    steps = parse_steps(["length 1-5"])
    done = prepare(TOY, steps=steps, selection="longest", kept_captions="chosen")
    assert [e.references for e in done.after] == [CAPTIONS[:1], CAPTIONS[:1], CAPTIONS]
    assert done.changed_splits == ["train"]
    everywhere = prepare(TOY, steps=steps, all_splits=True)
    assert [e.references for e in everywhere.after] == [[CAPTIONS[0], CAPTIONS[2]]] * 3


def test_the_chosen_caption_comes_first_and_the_others_stay():
    done = prepare(TOY, selection="longest")
    assert done.after[0].references == [CAPTIONS[1], CAPTIONS[0], CAPTIONS[2]]
    assert done.chosen == {1: 2}
    assert done.before[0].references == CAPTIONS


def test_all_leaves_captions_alone():
    assert prepare(TOY, selection="all", kept_captions="chosen").after == TOY


def test_scores_are_asked_for_cleaned_captions_only():
    asked = []

    def scores(examples):
        asked.extend(examples)
        return [[1, 2] for _ in examples]

    done = prepare(TOY, steps=parse_steps(["length 1-5"]), selection="consensus", scores=scores)
    assert [e.references for e in asked] == [[CAPTIONS[0], CAPTIONS[2]]] * 2
    assert done.after[0].references == [CAPTIONS[2], CAPTIONS[0]]
    with pytest.raises(RecipeError, match="wants a score"):
        prepare(TOY, selection="clipscore")


def test_an_image_without_captions_left_is_left_out():
    examples = [example(0), example(1, ["1 ."]), example(2, ["1 ."], split="val")]
    done = prepare(examples, steps=parse_steps(["drop-degenerate"]))
    assert done.emptied == ["img_1"]
    assert [e.image_id for e in done.after] == ["img_0", "img_2"]


def test_layouts_and_folders_in_each_other(tmp_path):
    assert form_to_write("auto", "risc", tmp_path / "new", str(tmp_path / "old")) == "risc"
    assert form_to_write("auto", "saved", tmp_path / "new", str(tmp_path / "old")) == "parquet"
    assert form_to_write("risc", "parquet", tmp_path / "new", str(tmp_path / "old")) == "risc"
    for inner in (tmp_path, tmp_path / "inside"):
        with pytest.raises(DataError, match="lie in each other"):
            form_to_write("auto", "risc", inner, str(tmp_path))


def test_a_preparation_from_plain_values(tmp_path):
    """No recipe: the notebook's way."""
    data = write_risc(tmp_path / "data", rows_of({"train": 4, "val": 2}))
    finished = []
    report = Preparation(
        str(data),
        str(tmp_path / "new"),
        cleaning=["dedupe"],
        selection="longest",
        agreement=[],
        eos="omitted",
    ).run(lambda folder, report, table: finished.append((folder.name, report.dataset, table.eos)))
    assert finished == [("new.partial", str(data), "omitted")]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "captions.csv", "data_report.json", "document_frequencies.json", "resized",
    }  # fmt: skip
    assert report.prepared.changed_splits == ["train"]
    assert [e.references[0] for e in report.prepared.after] == [CAPTIONS[1]] * 4 + [CAPTIONS[0]] * 2
    with pytest.raises(RecipeError, match="holds an earlier prepared dataset"):
        Preparation(str(data), str(tmp_path / "new")).check()


# --- statistics


def test_facts_literally():
    found = count_captions([example(0, ["a big tree", "a big tree", " ."]), example(1, ["a big tree"])])
    assert found.summary() == {
        "images": 2,
        "captions": 4,
        "distinct_captions": 2,
        "repeated_in_image": 1,
        "degenerate_captions": 1,
        "vocabulary": 3,
        "words_per_caption": 2.25,  # (3 + 3 + 0 + 3) / 4
        "shortest": 0,
        "longest": 3,
    }
    assert found.distinct_per_image == {2: 1, 1: 1}
    assert found.most_repeated[0] == ("a big tree", 3)
    assert found.degenerate_examples == [("img_0", " .", "no letters")]
    assert top_words(found.frequencies) == ["big", "tree"], "`a` is a function word"


def test_what_evaluation_shares_with_training():
    examples = [
        example(0, ["a", "b"]),
        example(1, ["a", "c", "c"], split="val"),
        example(2, ["d"], split="test"),
    ]
    assert seen_in_training(examples, "train") == {"val": (1, 3), "test": (0, 1)}
    pairs = [example(0, content_hash="x"), example(1), example(2, content_hash="x")]
    assert equal_images(pairs) == [["img_0", "img_2"]]


def test_categories_from_a_column_or_a_file():
    examples = [example(0, scene="port"), example(1, scene="port"), example(2, scene="")]
    assert category_counts(examples) == {"port": 2, "(none)": 1}
    assert category_counts(examples, {"img_0": "beach"}) == {"beach": 1, "(none)": 2}
    assert category_counts(TOY) is None
    labels = {"label": datasets.ClassLabel(names=["port", "beach"])}
    numbers = [example(0, label=0), example(1, label=1), example(2, label=0)]
    assert category_counts(numbers, features=labels) == {"port": 2, "beach": 1}


def test_agreement_with_and_without_repeats():
    def same(captions, references):
        return [sum(text == caption for text in group) / len(group)
                for caption, group in zip(captions, references, strict=True)]  # fmt: skip

    found = agreement([["a", "a", "b"], ["c", "c"]], same)
    # against siblings: a 1/2, a 1/2, b 0; c 1, c 1. Without repeats: a 0, b 0, and c has no sibling
    assert found.mean == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)
    assert found.per_image == [pytest.approx(1 / 3), 1]
    assert (found.distinct_mean, found.distinct_images, found.images) == (0, 1, 2)


def test_statistics_of_real_captions(shared_data):
    """The counts that the data's own README gives for the training split."""
    import pyarrow.parquet as pq

    table = pq.read_table(shared_data / "rsicd-64" / "train.parquet", columns=["image_id", "captions"])
    rows = table.to_pylist()
    examples = [
        Example(i, r["image_id"], r["captions"], "train", {}, str(i), (64, 64)) for i, r in enumerate(rows)
    ]
    found = count_captions(examples)
    assert (found.images, found.captions, found.distinct) == (8734, 43670, 12973)
    assert dict(found.distinct_per_image) == {1: 4529, 2: 1403, 3: 1295, 4: 942, 5: 565}
    # the README counts runs of letters, 10.65 a caption; here words are those of the tokeniser, as in logs:
    # `x-shaped` is one, `it's` two
    assert found.mean_length == pytest.approx(10.641, abs=0.0005)
