"""Text from strangers takes time in proportion to its length, wherever it is read as words."""

from __future__ import annotations

import re

import pytest

from rewards.scorers import scene, text
from scst.data.preparation.cleaning import REWRITES, parse_steps
from scst.data.preparation.synonyms import replace_words
from scst.data.risc import CAPTION_COLUMN
from scst.errors import DataError, RecipeError
from scst.evaluation.caption_files import read_pairs
from tests.support.growth import LINEAR, growth

READERS = {
    "words": text.words,
    "repeated_share": text.repeated_share,
    "collapse_blanks": text.collapse_blanks,
    "entities": scene.entities,
    "stated_counts": scene.stated_counts,
    "replace_words": lambda caption: replace_words(caption, {"tree": "trees"}),
    **{f"cleaning {name}": step for name, step in REWRITES.items()},
}
PIECES = ("a ", "a a a b ", "two white ", "pair of ", "a-", "a. ", "- ", " \n", "é ")


@pytest.mark.parametrize("reader", READERS)
def test_time_grows_as_the_text_does(reader):
    ratios = {piece: growth(READERS[reader], piece, 5_000) for piece in PIECES}
    assert max(ratios.values()) < LINEAR, ratios


@pytest.mark.slow
def test_quadratic_time_is_noticed():
    """The control: a pattern that tries every place anew, to the end of the text."""
    ratios = [growth(lambda caption: re.search(r"a+b", caption), "a", 4_000) for _ in range(3)]
    assert max(ratios) > LINEAR, ratios


@pytest.mark.parametrize("long_one", ["predictions", "references"])
def test_a_book_in_place_of_a_caption_is_not_scored(long_one, tmp_path):
    files = {name: tmp_path / f"{name}.txt" for name in ("predictions", "references")}
    for name, file in files.items():
        file.write_text("a road\n" + ("x" * 20_001 if name == long_one else "a river") + "\n")
    with pytest.raises(DataError, match="image '2': a caption has 20001 characters, more than 20000"):
        read_pairs(str(files["predictions"]), [str(files["references"])])


def test_numbers_of_absurd_length_are_no_numbers():
    """Python refuses to convert numbers of more than 4300 digits; that error would have no address."""
    assert not CAPTION_COLUMN.fullmatch("caption_" + "1" * 5000)
    with pytest.raises(RecipeError, match="expected `length MIN-MAX`"):
        parse_steps(["length 1-" + "9" * 5000])
