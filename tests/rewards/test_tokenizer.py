"""The caption tokeniser against the Stanford PTB tokenizer of pycocoevalcap."""

from __future__ import annotations

import json
import shutil

import pytest

from rewards.tokenizer import tokenize

# Provenance: pycocoevalcap 1.2 PTBTokenizer (CoreNLP 3.4.1), OpenJDK 17.0.15, on exactly these captions.
GOLDEN = [
    ("Two planes are parked next to a building.", "two planes are parked next to a building"),
    ("many buildings , green trees ; and a road :", "many buildings green trees and a road"),
    ("a T-shaped road", "a t-shaped road"),
    ("the river's bank", "the river 's bank"),
    ("it isn't a lake, it's a pond", "it is n't a lake it 's a pond"),
    ("they've got boats and we'll see", "they 've got boats and we 'll see"),
    ("it 's a lake that ca n't dry", "it 's a lake that ca n't dry"),
    ("cannot be seen", "can not be seen"),
    ("gonna go", "gon na go"),
    ("wanna see", "wan na see"),
    ("1,000 houses and 3.5 hectares", "1,000 houses and 3.5 hectares"),
    ("a 50 % slope", "a 50 % slope"),
    ("cars at 12:30", "cars at 12:30"),
    ("1/2 of the field", "1/2 of the field"),
    ("white/gray roofs and/or grass/trees/roads", "white/gray roofs and/or grass/trees/roads"),
    ("runway 09L/27R", "runway 09l/27r"),
    ("trees (green) and [brown] roofs", "trees -lrb- green -rrb- and -lsb- brown -rsb- roofs"),
    ('a so called "port"', "a so called port"),
    ("it is the children’s park", "it is the children 's park"),
    ("three-story building--near a lake", "three-story building near a lake"),
    ("u.s. style houses", "u.s. style houses"),
    ("a & b", "a & b"),
    ("roads... and roofs !", "roads and roofs"),
    ("", ""),
    ("   ", ""),
    (" .", ""),
    ("1 .", "1"),
    ("Über den Fluss", "über den fluss"),
    ("café near 2nd street", "café near 2nd street"),
    ("ponds 🌊 and trees", "ponds and trees"),
    ("farm_land", "farm_land"),
    ("#3 tank", "# 3 tank"),
    ("a $ 5 ticket", "a $ 5 ticket"),
    ("the dogs' park", "the dogs park"),
    ("e.g. houses", "e.g. houses"),
    ("a well-known x-ray", "a well-known x-ray"),
    ("east - west road", "east west road"),
    ("'quoted' house", "quoted house"),
    ("a river;a road,a house", "a river a road a house"),
    ("a+b=c", "a + b = c"),
    ("u . s . a", "u s a"),
    ("20th-century", "20th-century"),
]

KNOWN_EXCEPTIONS = 3
"""Captions of the real corpora that may differ. Two do: one with a quote mark that Stanford's tokenizer glues
to a letter (‘L’ becomes "l’"), and one with p#q. Titles and joined sentences ("st. mary", "trees.some")
differ too but occur in none."""


@pytest.mark.parametrize(("caption", "expected"), GOLDEN, ids=[caption for caption, _ in GOLDEN])
def test_golden(caption, expected):
    assert " ".join(tokenize(caption)) == expected


@pytest.mark.parametrize("caption", ["one\ntwo", "one\r\ntwo", "one \n\n two\n", "one\ttwo"], ids=repr)
def test_line_breaks_are_spaces(caption):
    assert tokenize(caption) == ("one", "two")


def test_tokens_never_look_like_the_end_of_sequence_word():
    """A caption that says "<eos>" must not be paid for it."""
    assert tokenize("a road <eos>") == ("a", "road", "<", "eos", ">")


def test_every_real_caption_equals_the_java_tokenizer(shared_data):
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    files = sorted((shared_data / "captions").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    captions = sorted({caption for line in lines for caption in json.loads(line)["captions"]})
    assert len(captions) > 10_000
    java = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    different = [c for i, c in enumerate(captions) if " ".join(tokenize(c)) != java[i][0]]
    assert len(different) <= KNOWN_EXCEPTIONS, different[:20]
