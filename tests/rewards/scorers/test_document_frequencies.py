"""Document frequencies: counted per image, saved whole, refused when changed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rewards.scorers.document_frequencies import EOS_WORD, DocumentFrequencies, ngrams

CORPUS = [
    ["a road .", "a road near a river ."],
    ["a river .", "two boats ."],
    ["trees .", "trees .", "trees ."],
]


def table(eos: str = "omitted", **changed) -> DocumentFrequencies:
    return DocumentFrequencies.from_references(CORPUS, **{"eos": eos} | changed)


def test_ngrams_literally():
    orders = [["a", "b", "a"], ["a b", "b a"], ["a b a"]]
    assert ngrams(("a", "b", "a")) == [tuple(ngram.split()) for order in orders for ngram in order]
    assert len(ngrams("abcdefg")) == 7 + 6 + 5 + 4
    assert ngrams(("a",)) == [("a",)]
    assert ngrams(()) == []


def test_the_unit_is_the_image():
    # "a" stands in four captions of two images, "trees" in three captions of one
    counts = table().counts
    assert counts[("a",)] == 2
    assert counts[("trees",)] == 1
    assert counts[("a", "road")] == 1
    assert counts[("near", "a", "river")] == 1
    assert table().num_images == 3


def test_idf_literally():
    # log(3 / 2); an unseen n-gram counts as seen once: log(3 / 1)
    assert table().idf(("a",)) == pytest.approx(math.log(3 / 2), abs=1e-12)
    assert table().idf(("zebra",)) == pytest.approx(math.log(3), abs=1e-12)


def test_eos_policies():
    emitted, omitted = table("emitted"), table("omitted")
    assert emitted.counts[(EOS_WORD,)] == 3
    assert emitted.counts[("river", EOS_WORD)] == 2
    assert not any(EOS_WORD in ngram for ngram in omitted.counts)
    assert {n: c for n, c in emitted.counts.items() if EOS_WORD not in n} == omitted.counts


def test_a_lookup_does_not_grow_the_table():
    frequencies = table()
    before = len(frequencies.counts), frequencies.fingerprint
    frequencies.idf(("zebra", "crossing"))
    assert (len(frequencies.counts), frequencies.fingerprint) == before


def test_save_and_load(tmp_path):
    path = tmp_path / "table.json"
    frequencies = table("emitted", split="train+val")
    frequencies.save(path)
    loaded = DocumentFrequencies.load(path)
    assert loaded == frequencies
    assert loaded.fingerprint == frequencies.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"], "no partial file stays"


def test_the_fingerprint_does_not_depend_on_the_order_of_images_or_captions():
    backwards = [captions[::-1] for captions in CORPUS[::-1]]
    assert DocumentFrequencies.from_references(backwards, eos="omitted").fingerprint == table().fingerprint


def test_the_fingerprint_changes_with_everything_that_must_match():
    one_more = replace(table(), counts=table().counts | {("a",): 3})
    variants = [
        table(),
        table(split="test"),
        table("emitted"),
        one_more,
        replace(table(), tokenizer="whitespace"),
        replace(table(), num_images=4),
        replace(table(), eos="emitted"),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["counts"].update({"a": 1}),
        lambda content: content["counts"].pop("a road"),
        lambda content: content["counts"].update({"zebra": 1}),
        lambda content: content.update(eos="emitted"),
        lambda content: content.update(num_images=30),
        lambda content: content.update(split="test"),
        lambda content: content.update(fingerprint="0" * 64),
    ],
    ids=["count", "missing n-gram", "more n-grams", "eos", "images", "split", "fingerprint"],
)
def test_a_changed_file_is_refused(tmp_path, change):
    path = tmp_path / "table.json"
    table().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"table\.json was changed after it was written"):
        DocumentFrequencies.load(path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"counts": {}}', '{"num_images": 3'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no table of document frequencies|delimiter"):
        DocumentFrequencies.load(path)


def test_an_unknown_eos_policy_is_refused():
    with pytest.raises(ValueError, match="eos must be one of emitted, omitted, got 'always'"):
        table("always")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image, got none"):
        DocumentFrequencies.from_references([], eos="omitted")


def test_images_without_words_are_documents_too():
    frequencies = DocumentFrequencies.from_references([[], [" ."], ["a road"]], eos="omitted")
    assert frequencies.num_images == 3
    assert frequencies.counts == {("a",): 1, ("road",): 1, ("a", "road"): 1}


def test_a_table_of_odd_characters_survives_a_file(tmp_path):
    """A lone surrogate cannot be written as UTF-8 by itself."""
    table = DocumentFrequencies({("\udc80",): 1, ("漢", "é"): 2}, num_images=3, split="train", eos="omitted")
    table.save(tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json") == table
