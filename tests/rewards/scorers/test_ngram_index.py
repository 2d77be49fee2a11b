"""Numbers of n-grams: equal exactly when the n-grams are, lasting or for one call."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rewards.scorers.cider import CiderD
from rewards.scorers.document_frequencies import DocumentFrequencies
from rewards.scorers.ngrams import MAX_ORDER, NgramIndex

WORDS = ["a", "road", "river", "tree", "house", "near"]


def random_texts(seed, how_many=60, words=WORDS):
    rng = random.Random(seed)
    return [tuple(rng.choices(words, k=rng.randrange(0, 9))) for _ in range(how_many)]


def spelled(texts):
    """(text, n-gram) of all n-grams, by order and place: what an index must number."""
    return [
        (i, text[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for i, text in enumerate(texts)
        for start in range(len(text) - order + 1)
    ]


def assert_numbers_mean_ngrams(texts, cells, numbers, known=None):
    """One number per n-gram and order, and one n-gram per number; returns n-gram -> number."""
    expected = spelled(texts)
    assert len(expected) == len(cells) == len(numbers)
    found = dict(known or {})
    for (i, ngram), cell, number in zip(expected, cells.tolist(), numbers.tolist(), strict=True):
        assert (cell // MAX_ORDER, cell % MAX_ORDER + 1) == (i, len(ngram))
        assert found.setdefault(ngram, number) == number
    for order in range(1, MAX_ORDER + 1):
        of_order = [number for ngram, number in found.items() if len(ngram) == order]
        assert len(set(of_order)) == len(of_order)
    return found


def test_numbers_last_only_when_asked():
    index = NgramIndex()
    known = assert_numbers_mean_ngrams(first := random_texts(0), *index.numbers(first, lasting=True))
    sizes = index.sizes.tolist()
    assert sizes == [sum(len(ngram) == order for ngram in known) for order in range(1, MAX_ORDER + 1)]
    other = random_texts(1, words=[*WORDS, "zebra", "lion"])
    met = assert_numbers_mean_ngrams(other, *index.numbers(other), known)
    assert index.sizes.tolist() == sizes
    assert all(number >= sizes[len(g) - 1] for g, number in met.items() if g not in known)
    kept = assert_numbers_mean_ngrams(other, *index.numbers(other, lasting=True), known)
    assert_numbers_mean_ngrams(first + other, *index.numbers(first + other), kept)
    assert index.sizes.sum() == len(kept)


@pytest.mark.parametrize("texts", [[], [()], [(), ("a",), ()]])
def test_texts_without_ngrams(texts):
    cells, numbers = NgramIndex().numbers(texts, lasting=True)
    assert len(cells) == len(numbers) == sum(map(len, texts))


def test_more_words_than_sixteen_bits():
    """Neighbouring words of a large vocabulary: a key must hold the whole number of a word."""
    words = [f"w{i}" for i in range(70_000)]
    index = NgramIndex()
    _, numbers = index.numbers([words], lasting=True)
    assert index.sizes.tolist() == [70_000, 69_999, 69_998, 69_997]
    _, again = index.numbers([words[65_530:65_540]])
    np.testing.assert_array_equal(again[:10], numbers[65_530:65_540])


def test_a_table_may_lack_parts_of_its_ngrams():
    """A table cut by hand: a 4-gram without its bigrams; they are as rare as can be."""
    caption = ("a", "river", "goes", "through")
    table = DocumentFrequencies({caption: 2, ("river",): 3}, num_images=8, split="train", eos="omitted")
    scorer = CiderD(table)
    by_hand = {ngram: table.idf(ngram) for _, ngram in spelled([caption])}
    for order in range(1, MAX_ORDER + 1):
        expected = sum(idf**2 for ngram, idf in by_hand.items() if len(ngram) == order) ** 0.5
        keys, counts = scorer._counted([caption])
        norms = scorer._norms(keys >> 32, keys, counts, 1)
        assert norms[0, order - 1] == pytest.approx(expected, abs=1e-12)
    assert scorer.score("a river goes through", ["a river goes through"]) == pytest.approx(10)
