"""Document frequencies: counted per image, saved whole, refused when changed."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace

import pytest

from rewards.scorers import tokenizer
from rewards.scorers.cider import CiderD
from rewards.scorers.document_frequencies import EOS_WORD, DocumentFrequencies
from rewards.scorers.ngram_counts import NgramCounts

CORPUS = [
    ["a road .", "a road near a river ."],
    ["a river .", "two boats ."],
    ["trees .", "trees .", "trees ."],
]


def table(eos: str = "omitted", **changed) -> DocumentFrequencies:
    return DocumentFrequencies.from_references(CORPUS, **{"eos": eos} | changed)


def naive_counts(references, ending=()):
    """The dictionary that the arrays stand for."""
    counts = {}
    for captions in references:
        texts = [(*tokenizer.tokenize(caption), *ending) for caption in captions]
        orders = range(1, 5)
        found = {text[i : i + n] for text in texts for n in orders for i in range(len(text) - n + 1)}
        for ngram in found:
            counts[ngram] = counts.get(ngram, 0) + 1
    return counts


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
    one_more = replace(table(), counts=dict(table().counts) | {("a",): 3})
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


# --- counts in arrays


def random_corpus(seed, images=60):
    rng = random.Random(seed)
    words = ["a", "the", "road", "river", "trees", "é", "near", "plane"]
    return [[" ".join(rng.choices(words, k=rng.randrange(0, 9))) for _ in range(3)] for _ in range(images)]


@pytest.mark.parametrize("documents", [1, 7, 2000])
@pytest.mark.parametrize("eos", ["emitted", "omitted"])
def test_arrays_count_what_a_dictionary_counts(monkeypatch, documents, eos):
    """However many images are counted at a time."""
    monkeypatch.setattr("rewards.scorers.ngram_counts.DOCUMENTS", documents)
    corpus = random_corpus(documents)
    expected = naive_counts(corpus, (EOS_WORD,) if eos == "emitted" else ())
    frequencies = DocumentFrequencies.from_references(corpus, eos=eos)
    assert dict(frequencies.counts) == expected
    assert list(frequencies.counts) == sorted(expected), "in the order of sorting"
    assert len(frequencies.counts) == len(expected)
    assert all(frequencies.counts[ngram] == count for ngram, count in expected.items())
    assert frequencies.fingerprint == replace(frequencies, counts=expected).fingerprint


@pytest.mark.parametrize("ngram", [("zebra",), ("road", "zebra"), (), ("a",) * 5, ("a", "road", "near")])
def test_what_is_not_counted_is_not_there(ngram):
    counts = NgramCounts.of_mapping({("a",): 2, ("a", "road", "near", "a"): 1})
    assert ngram not in counts
    assert counts.get(ngram, 0) == 0


def test_parts_of_a_counted_ngram_are_not_counted():
    counts = NgramCounts.of_mapping({("a", "road", "near"): 1})
    assert dict(counts) == {("a", "road", "near"): 1}
    assert ("a", "road") not in counts


@pytest.mark.parametrize("ngram", [(), ("a",) * 5])
def test_ngrams_of_another_length_are_refused(ngram):
    with pytest.raises(ValueError, match="expected n-grams of 1 to 4 words"):
        NgramCounts.of_mapping({ngram: 1})


def test_arrays_are_saved_and_loaded(tmp_path):
    frequencies = DocumentFrequencies.from_references(random_corpus(3), eos="emitted", split="val")
    frequencies.save_arrays(tmp_path / "f.npz")
    loaded = DocumentFrequencies.load_arrays(tmp_path / "f.npz")
    assert loaded == frequencies
    assert loaded.fingerprint == frequencies.fingerprint
    assert replace(loaded).fingerprint == frequencies.fingerprint, "counted anew"
    captions, references = ["a road near the river"] * 2, random_corpus(4)[:2]
    references = [[caption or "a road" for caption in captions] for captions in references]
    assert CiderD(loaded).scores(captions, references) == CiderD(frequencies).scores(captions, references)


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: data[2:99]])
def test_damaged_arrays_are_refused(tmp_path, damage):
    file = tmp_path / "f.npz"
    table().save_arrays(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"."):
        DocumentFrequencies.load_arrays(file)


def test_more_images_than_there_are_are_refused(tmp_path):
    path = tmp_path / "table.json"
    replace(table(), num_images=1).save(path)
    with pytest.raises(ValueError, match="in more images than `num_images`"):
        DocumentFrequencies.load(path)


def test_an_ngram_takes_sixteen_bytes():
    """Beside its words: a dictionary takes 200. The negative control is that dictionary."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(300)]
    corpus = [tuple(rng.choices(words, k=12)) for _ in range(1500)]
    counts, _ = NgramCounts.of_documents([text] for text in corpus)
    arrays = sum(array.nbytes for name, array in counts.state().items() if name != "words")
    assert arrays < 17 * len(counts) + 1000
    naive = {text[i : i + n] for text in corpus for n in (1, 2, 3, 4) for i in range(13 - n)}
    assert len(counts) == len(naive)
    assert sum(map(sys.getsizeof, naive)) > 3 * arrays
