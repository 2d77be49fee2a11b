"""Splits by name and by fraction; an image is never in two of them."""

import random

import pytest

from scst.data.fractions import parse_fractions, refuse_to_resplit
from scst.data.sources import read_rows
from scst.data.splits import (
    assign_fractions,
    check_leakage,
    hash_images,
    select_splits,
)
from scst.errors import DataError, RecipeError
from tests.support.rows import read_form, rows_of


def ids(splits):
    return {name: set(rows["image_id"]) for name, rows in splits.items()}


def numbered(count):
    return [f"img_{n}" for n in range(count)], [f"hash_{n}" for n in range(count)]


def test_own_splits_keep_row_order(toy_rows):
    splits = select_splits(read_form(toy_rows), ["val", "train"], None, seed=0)
    assert list(splits) == ["val", "train"]
    assert splits["val"]["image_id"][:] == ["img_8", "img_9", "img_10"]


@pytest.mark.parametrize("stored", ["val", "validation", "valid", "dev"])
@pytest.mark.parametrize("asked", ["val", "validation", "valid", "dev"])
def test_validation_by_any_of_its_names(stored, asked):
    rows = read_form(rows_of({"train": 2, stored: 3}))
    assert len(select_splits(rows, [asked], None, seed=0)[asked]) == 3


@pytest.mark.parametrize("fractions", [None, "60/20/20"])
def test_splits_joined_by_a_plus(toy_rows, fractions):
    rows = read_form(toy_rows)
    parts = ids(select_splits(rows, ["train", "val"], fractions, seed=0))
    both = select_splits(rows, ["train+validation", "val"], fractions, seed=0)
    assert ids(both)["train+validation"] == parts["train"] | parts["val"]
    assert len(both["train+validation"]) == len(parts["train"]) + len(parts["val"])
    with pytest.raises(DataError, match=r"in train\+validation and val"):
        check_leakage(both)
    with pytest.raises(DataError, match="no split 'tset'"):
        select_splits(rows, ["train+tset"], fractions, seed=0)


def test_unknown_split_lists_those_present(toy_rows):
    with pytest.raises(DataError, match=r"no split 'test'; the dataset has train \(8\), val \(3\)"):
        select_splits(read_form(toy_rows), ["test"], None, seed=0)


@pytest.mark.parametrize("declared", [{}, {"": 9}, {"train": 9}])
def test_fractions_of_a_dataset_that_declares_nothing(declared):
    assert refuse_to_resplit(declared) is None


@pytest.mark.parametrize("declared", [{"train": 8, "val": 3}, {"": 2, "test": 1}])
def test_declared_splits_are_not_discarded_silently(declared):
    with pytest.raises(RecipeError, match=r"split_fractions: .*(val \(3\)|test \(1\)).*resplit: true"):
        refuse_to_resplit(declared)


def test_dataset_without_splits_points_to_fractions():
    with pytest.raises(DataError, match=r"does not name splits.*80/10/10"):
        select_splits(read_form(rows_of({"": 4})), ["train"], None, seed=0)


@pytest.mark.parametrize("total", [5, 10, 103, 1000])
def test_60_20_20_is_exact(total):
    # largest remainder: 103 -> 61.8, 20.6, 20.6 -> 62 (61 + 1), 21 (20 + 1), 20
    expected = {5: (3, 1, 1), 10: (6, 2, 2), 103: (62, 21, 20), 1000: (600, 200, 200)}[total]
    assigned = assign_fractions(*numbered(total), [60, 20, 20], seed=3)
    assert tuple(map(len, assigned.values())) == expected
    assert sorted(row for rows in assigned.values() for row in rows) == list(range(total))


def test_two_fractions_are_train_and_val(toy_rows):
    rows = read_form(toy_rows)
    assert {n: len(r) for n, r in select_splits(rows, ["train", "validation"], "90/10", 0).items()} == {
        "train": 10,
        "validation": 1,
    }
    with pytest.raises(DataError, match="no split 'test': the fractions 90/10 make train, val"):
        select_splits(rows, ["test"], "90/10", 0)


def test_fractions_do_not_depend_on_row_order(toy_rows):
    shuffled = random.Random(1).sample(toy_rows, len(toy_rows))
    names = ["train", "val", "test"]
    first = ids(select_splits(read_form(toy_rows), names, "60/20/20", seed=5))
    assert ids(select_splits(read_form(shuffled), names, "60/20/20", seed=5)) == first
    assert ids(select_splits(read_form(toy_rows), names, "60/20/20", seed=6)) != first


def test_fractions_do_not_depend_on_resolution():
    image_ids, hashes = numbered(100)
    other = [f"other pixels {digest}" for digest in hashes]
    assert assign_fractions(image_ids, hashes, [80, 10, 10], 0) == assign_fractions(
        image_ids, other, [80, 10, 10], 0
    )


def test_equal_images_stay_together_and_counts_stay_exact():
    image_ids, _ = numbered(100)
    hashes = [
        f"hash_{n // 3 if n < 30 else n}" for n in range(100)
    ]  # ten groups of three, seventy single images
    for seed in range(50):
        assigned = assign_fractions(image_ids, hashes, [60, 20, 20], seed)
        assert [len(rows) for rows in assigned.values()] == [60, 20, 20]
        place = {row: name for name, rows in assigned.items() for row in rows}
        assert all(place[n] == place[n - n % 3] for n in range(30))


def test_every_image_can_land_in_every_split():
    landed = [[] for _ in range(10)]
    for seed in range(300):
        for name, rows in assign_fractions(*numbered(10), [60, 20, 20], seed).items():
            for row in rows:
                landed[row].append(name)
    for names in landed:  # binomial(300, 0.6): mean 180, standard deviation 8.5
        assert 140 < names.count("train") < 220


def test_too_few_images_for_the_fractions():
    with pytest.raises(DataError, match="3 images are too few for the fractions 80/10/10"):
        assign_fractions(*numbered(3), [80, 10, 10], seed=0)


@pytest.mark.parametrize(
    "text", ["80", "80/10", "50/50/0", "80/10/5/5", "a/b", "-20/120", "80/10/10/", "33.3/66.7", ""]
)
def test_wrong_fractions(text):
    with pytest.raises(RecipeError, match=r"sum 100.*such as 80/10/10; got"):
        parse_fractions(text)


def test_clean_splits_pass_the_leakage_check(toy_rows):
    assert check_leakage(select_splits(read_form(toy_rows), ["train", "val"], None, 0)) is None


def test_leak_by_id(toy_rows):
    toy_rows[9]["image_id"] = "img_2"
    with pytest.raises(
        DataError, match=r"1 images are in more than one split.*\n.*image_id img_2 in train and val"
    ):
        check_leakage(select_splits(read_form(toy_rows), ["train", "val"], None, 0))


def test_leak_by_content_only(toy_rows):
    toy_rows[9]["image"] = toy_rows[2]["image"]
    with pytest.raises(DataError, match="same picture: img_2 in train = img_9 in val"):
        check_leakage(select_splits(read_form(toy_rows), ["train", "val"], None, 0))


def test_a_leak_is_told_once_and_five_are_shown():
    rows = rows_of({"train": 7, "val": 7})
    for number in range(7):
        rows[number + 7] |= {"image_id": f"img_{number}", "image": rows[number]["image"]}
    with pytest.raises(DataError, match=r"^7 images") as caught:
        check_leakage(select_splits(read_form(rows), ["train", "val"], None, 0))
    assert str(caught.value).count("img_") == 5


def test_unreadable_images_are_no_leak(toy_rows):
    for number in (2, 9):
        toy_rows[number]["image"] = {"bytes": None, "path": "/absent.png"}
    assert check_leakage(select_splits(read_form(toy_rows), ["train", "val"], None, 0)) is None


def test_real_pack_has_no_leak_and_one_pair_of_equal_images(shared_data):
    rows = read_rows(str(shared_data / "rsicd-64"))
    hashes = hash_images(rows)
    train, val = hashes[:8734], hashes[8734:]
    assert (len(set(train)), len(set(val)), set(train) & set(val)) == (8733, 1094, set())
    parts = select_splits(rows, ["train", "val", "test"], "60/20/20", 0, content_hashes=hashes)
    assert [len(part) for part in parts.values()] == [5897, 1966, 1965]  # of 5896.8, 1965.6, 1965.6
