"""The caption tokeniser against the Stanford PTB tokenizer of pycocoevalcap.

``python -m tests.rewards.scorers.test_tokenizer`` asks Java anew and writes tests/reference/ptb_tokens.json.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import string
import subprocess
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from rewards.scorers import tokenizer
from rewards.scorers.java import find_java
from rewards.scorers.tokenizer import tokenize
from tests.support.growth import LINEAR, cpu_seconds, growth
from tests.support.java_ptb import PTB_JAR, ptb_tokenize

REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "ptb_tokens.json"
NEUTRAL = "' \"x"
"""A caption that ends whatever came before it: between two others it makes Java's answers independent."""

# Provenance: pycocoevalcap 1.2 PTBTokenizer (CoreNLP 3.4.1), OpenJDK 17, on exactly these captions.
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
    ("‘L’ shaped", "l’ shaped"),
    ("p#q", "p #q"),
    ("y'all at five o'clock", "y' all at five o'clock"),
    ("'tis rock 'n' roll of the '90s", "'t is rock 'n' roll of the '90s"),
    ("the '10s, the '20s", "the 10s the '20s"),
    ("D'Angelo doesn’t, ma'am", "d'angelo does n't ma'am"),
    ("I cannot, he cannot's", "i can not he cannot 's"),
    ("no. 5 and no. of", "no. 5 and no of"),
    ("st. mary of st.louis", "st. mary of st.louis"),
    ("trees etc.b", "trees etc. b"),
    ("trees.some grass!and", "trees.some grass!and"),
    ("roofs., trees", "roofs. trees"),
    ("gate b. The road", "gate b the road"),
    ("gate b. the road", "gate b. the road"),
    ("GATE B. THE ROAD", "gate b the road"),
    ("Mass. is here, the mass. is there", "mass. is here the mass is there"),
    ("non-u.s.-based", "non-u.s.-based"),
    ("5 1/2 by 5½ m²", "5 1/2 by 5 1/2 m ²"),
    ("+5 -5 3-4 5.5-inch", "+5 -5 3-4 5.5-inch"),
    ("£5 €5 ¢5 US$5 us$5", "# 5 $ 5 cents 5 us$ 5 us $ 5"),
    ("AT&T at&t a &amp; b", "at&t at & t a & b"),
    ("what?! a ----- b *** c", "what ?! a ----- b *** c"),
    ("c++ x++ @home a@b #tag", "c++ x + + @home a@b #tag"),
    ("smile :-) end", "smile :--rrb- end"),
    ("a…b–c«d»", "a b c d"),
    ("a|||b", "a | | | b"),
    ("İstanbul ΟΔΟΣ ﬁne １２", "i̇stanbul οδος ﬁne １２"),
    ("e\u0301tage\u0301 100\u00a0000", "e\u0301tage\u0301 100 000"),
    ("1️⃣ and 👩‍👩‍👧 🇺🇸 👍🏽", "1 and"),
]

WORDS = (
    "a the many roof planes are parked near green trees in an of and road river houses white b c x storage "
    "river's UPPER Title Mixed farmland"
)
PIECES = {  # kind: (weight, pieces)
    "word": (30, WORDS),
    "mark": (14, ". , ; : ! ? - ' \" -- --- .. ... .... !! ?! ,, ;; :: - – — … ' ''"),
    "contraction": (
        8,
        "n't 's 'm 'd 're 've 'll N'T 'S ’s ’t n’t ’ll ’re don't isn't can't won't DON'T it's I'm they've "
        "we'll he'd don’t it’s 'tis 'Twas y'all o'clock o’clock rock'n'roll 'n' '90s ’90s 1990's cannot "
        "gonna wanna gotta gimme lemme Cannot ma'am o'neil d'or 'em 'til dogs' s'",
    ),
    "hyphen": (
        4,
        "three-story well-known x-ray T-shaped non-u.s. 20th-century mid-90s north-east- -west e-mail "
        "jack-in-the-box",
    ),
    "number": (
        8,
        "1,000.5 1/2 ½ 3-4 -5 +5 12:30 10% $5 £5 5th 3x4 1e5 10/12/2020 7 42 2020 0.5 .5 1. 3.14 ¼ ¾ 5² 2nd "
        "100m 09L/27R 1,000 5/8 ²",
    ),
    "abbreviation": (
        6,
        "u.s. U.S. e.g. i.e. st. St. mr. Mr. dr. Dr. a.m. p.m. no. No. etc. Etc. vs. b. C. x. jr. co. ave. "
        "blvd. ft. u.s fig. prof. jan. d.c. approx. km. sq.",
    ),
    "quote": (5, "\" ' ` “ ” ‘ ’ « » ‹ › `` '' ‘L’ “ab” 'ab' \"ab\" ´"),
    "bracket": (4, "( ) [ ] { } < > (ab) [ab] (s)"),
    "symbol": (
        6,
        "& @ # * ^ ~ | \\ / _ = + % $ € £ ¢ ¥ ° &amp; &lt; #1 #tag @home a&b AT&T p#q and/or a/b/c a_b a+b "
        "c++ **",
    ),
    "letters": (
        4,
        "é café naïve Über ß STRASSE İstanbul Σίσυφος ΟΔΟΣ Москва 北京 東京タワー العربية ﬁne ｆｕｌｌ "
        "１２３ e\u0301 ñ n\u0303o ø Å ſ ŉ ﬀ œ ǅ ª º µ ⅷ ٣ ४ שלום ไทย हिन्दी",
    ),
    "emoji": (2, "😀 🌊 👨‍👩‍👧 🇺🇸 👍🏽 1️⃣ ✈ ✈️ ☀ ♻️ © ™ ® → ★ № ℃ ‼ ⁉ 🅰 ⭐"),
}
BLANKS = [*"\t\n\r\x00\x07\x0b\x0c\x1b\x1c\x7f\x85\u00a0\u2028\u2009\u200b\u200d\u3000\ufeff", "\r\n", "  "]

OUTSIDE = re.compile(
    r"""
      <.*>                                  # markup tags
    | &\w+;\S*@ | @\S*&\w+;                 # entities within an e-mail address
    | \d\S*\.[chx](?!\w)                    # file names
    | [-=<>~^'x]_[-=<>~^'x] | o['’`‘]o      # smileys
    | \([-=<>~^'x][-_.]?[-=<>~^'x]\)
    | \.(?:com|net|org)                    # web addresses
    | (?<=\w)(?-i:Σ)(?=[-\w'’]) | 'tİ      # case folding of Java's own
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""What captions do not hold and `random_caption` makes; the tokeniser's docstring names these classes."""


def random_caption(rng: random.Random) -> str:
    """Up to a dozen pieces, some glued together; one in five has characters at random."""
    if rng.random() < 0.2:
        alphabet = "aeinstdmlrvykoAESTDM0159'’-.. ,/&:" if rng.random() < 0.5 else string.printable + "’“”é½–"
        return "".join(rng.choices(alphabet, k=rng.randint(1, 14)))
    kinds = [(weight, pieces.split()) for weight, pieces in PIECES.values()] + [(3, BLANKS)]
    chosen = rng.choices(
        [pieces for _, pieces in kinds], [weight for weight, _ in kinds], k=rng.randint(1, 12)
    )
    glue = rng.choice((0.1, 0.3, 0.5, 0.8))
    return "".join(rng.choice(pieces) + ("" if rng.random() < glue else " ") for pieces in chosen)


def java_tokens(captions: list[str]) -> list[str]:
    """Java's answers, each as if the caption stood alone, from one process."""
    answers = ptb_tokenize([line for caption in captions for line in (caption, NEUTRAL)])
    assert set(answers[1::2]) == {"x"}, "a caption reached into the next line"
    return answers[::2]


def assert_equal_to_java(captions: list[str], answers: list[str]) -> None:
    inside = [(c, answer) for c, answer in zip(captions, answers, strict=True) if not OUTSIDE.search(c)]
    assert len(inside) > 0.95 * len(captions)
    different = [
        (c, answer, " ".join(tokenize(c))) for c, answer in inside if " ".join(tokenize(c)) != answer
    ]
    assert not different, different[:20]


@pytest.fixture
def java():
    if shutil.which("java") is None:
        pytest.skip("there is no Java")


@pytest.mark.parametrize(("caption", "expected"), GOLDEN, ids=[caption for caption, _ in GOLDEN])
def test_golden(caption, expected):
    assert " ".join(tokenize(caption)) == expected


def test_random_captions_equal_the_stored_answers():
    stored = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert len(stored["captions"]) == 3000
    assert_equal_to_java(stored["captions"], stored["tokens"])


@pytest.mark.slow
def test_random_captions_equal_java(java):
    rng = random.Random(20)
    captions = [random_caption(rng) for _ in range(10_000)]
    assert_equal_to_java(captions, java_tokens(captions))


def test_golden_equals_java(java):
    captions, expected = zip(*GOLDEN, strict=True)
    assert java_tokens(list(captions)) == list(expected)


@pytest.mark.slow
def test_java_answers_are_independent_of_their_neighbours(java):
    rng = random.Random(21)
    captions = [random_caption(rng) for _ in range(1000)]
    assert java_tokens(captions[::-1]) == java_tokens(captions)[::-1]


@pytest.mark.slow
def test_every_real_caption_equals_java(shared_data, java):
    files = sorted((shared_data / "captions").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    captions = sorted({caption for line in lines for caption in json.loads(line)["captions"]})
    assert len(captions) > 10_000
    different = [
        c
        for c, answer in zip(captions, java_tokens(captions), strict=True)
        if " ".join(tokenize(c)) != answer
    ]
    assert different == []


def test_the_fast_path_is_the_slow_path():
    rng = random.Random(22)
    words = [*WORDS.split(), "cannot", "Gonna", "lemme", "st", "no", "co", "U", "ma", ","]
    ends = ("", ".", " .", " . ", ", .", ",.", " ", ",")
    captions = [" ".join(rng.choices(words, k=rng.randint(0, 8))) + rng.choice(ends) for _ in range(5000)]
    plain = [c for c in captions if tokenizer._PLAIN.fullmatch(c)]
    assert len(plain) > 2000
    assert [tokenize(c) for c in plain] == [tokenizer._tokenize_by_rules(c) for c in plain]


@pytest.mark.parametrize(
    "caption", ["one\ntwo", "one\r\ntwo", "one \n\n two\n", "one\ttwo", "one\u2028two"], ids=repr
)
def test_line_breaks_are_blanks(caption):
    assert tokenize(caption) == ("one", "two")


def test_any_text_gives_clean_tokens():
    """No error (lone surrogates included), no token with blanks, no punctuation of pycocoevalcap."""
    rng = random.Random(23)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x2000, 0x2BFF), (0xD800, 0xDFFF), (0, 0xFFFF), (0x1F000, 0x1FAFF)]
    for _ in range(5000):
        caption = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 20)))
        for token in tokenize(caption):
            assert token not in PUNCTUATIONS, caption
            assert token.split() == [token], caption


def test_plain_words_stay_what_they_are():
    rng = random.Random(24)
    for _ in range(200):
        words = tuple("".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(9))
        assert tokenize(" ".join(words)) == words
        assert tokenize(" ".join(tokenize(" ".join(words)))) == words


def test_tokens_never_look_like_the_end_of_sequence_word():
    """A caption that says "<eos>" must not be paid for it."""
    assert tokenize("a road <eos>") == ("a", "road", "<", "eos", ">")


def test_the_end_of_a_caption_does_not_depend_on_the_next_one():
    """Java takes the point of "farm b." for a sentence's end when the next line begins with "The"."""
    assert tokenize("a farm b.") == ("a", "farm", "b.")


# What the rules look for, piece by piece; captions that are nothing but two or three of them, over and over.
HOSTILE = [*"aAn09é٣\u0301.,:;!?'’`“\"-_‐/⁄\\@#&*+$%^~=<>()[{| \t\0†°Z"]
HOSTILE += ["n't", "cannot", "st.", "co.", "US", "...", "--", "<<", "'s", "no. ", "&amp;", "o'", ". . "]
SLOW_ONCE = [
    "a'",
    "n,",
    ",A",
    "a,",
    "<a'",
    "@a,",
    "a.,",
    "a!",
    "é'",
    " ",
    "  é",
    "a-",
    "1/",
    "’0",
    "a@ ",
    "a.b@",
]
"""Some of them took quadratic time."""


def both_ways(caption: str) -> None:
    """As it is called, and by the rules, which the fast path spares plain captions."""
    tokenize(caption)
    tokenizer._tokenize_by_rules(caption)


@pytest.mark.parametrize("piece", SLOW_ONCE)
def test_time_grows_as_the_caption_does(piece):
    assert growth(both_ways, piece, 2000) < LINEAR
    assert growth(both_ways, piece, 2000, end="é@-") < LINEAR


def test_fifty_thousand_characters_take_seconds():
    assert cpu_seconds(lambda: tokenize("a'" * 25_000)) < 10


def cost_of_early_words(piece: str, size: int) -> float:
    """Seconds for the slowest of the words 2 to 4 of a text of ``size`` characters, long words left out.

    The first word pays for what is looked up once for a run; a word as long as the text may take as long.
    """
    shape = piece.translate(tokenizer._SHAPES) * (size // len(piece))
    runs: dict = {}
    place, slowest = tokenizer._end_of_word(shape, 0, runs), 0.0
    for _ in range(3):
        if place >= len(shape):
            break
        end = tokenizer._end_of_word(shape, place, runs)
        if end - place < size / 2:
            slowest = max(slowest, cpu_seconds(partial(tokenizer._end_of_word, shape, place, runs), 2))
        place = max(end, place + 1)
    return slowest


def reads_far(piece: str, size: int = 20_000) -> bool:
    """Whether a word takes longer in a text of ``size`` characters than in one of 200."""
    return all(
        cost_of_early_words(piece, size) > 3 * cost_of_early_words(piece, 200) + 1e-5 for _ in range(5)
    )


@pytest.mark.slow
def test_no_word_reads_on_to_the_end_of_the_caption():
    """The cause of quadratic time, looked for directly: in all pairs of pieces, and in some triples."""
    rng = random.Random(25)
    texts = ["".join(pair) for pair in product(HOSTILE, repeat=2)]
    texts += ["".join(rng.choices(HOSTILE, k=3)) for _ in range(300)]
    assert [piece for piece in texts if reads_far(piece)] == []


def test_that_is_found_where_rules_are_tried_everywhere(monkeypatch):
    """The control: without the look ahead some rules read on from every word."""
    monkeypatch.setattr(tokenizer, "_needed_place", lambda ahead, shape, place, runs: len(shape))
    assert all(reads_far(piece, 100_000) for piece in ("a'", "n,", ",A"))


def test_long_texts_are_not_kept():
    kept = tokenize.__wrapped__.cache_info
    before = kept().currsize
    tokenize("é" * 5000)
    assert kept().currsize == before


def write_reference(seed: int = 2, count: int = 3000) -> None:
    """Ask Java about random captions and store its answers."""
    rng = random.Random(seed)
    captions = [random_caption(rng) for _ in range(count)]
    version = subprocess.run([find_java(), "-version"], capture_output=True, text=True).stderr.splitlines()[0]
    stored = {
        "provenance": {
            "tokenizer": f"pycocoevalcap 1.2, {PTB_JAR.name}: PTBTokenizer -preserveLines -lowerCase, then "
            f"without pycocoevalcap's PUNCTUATIONS; the line {NEUTRAL} stood between the captions",
            "java": version,
            "command": "python -m tests.rewards.scorers.test_tokenizer",
            "seed": seed,
        },
        "captions": captions,
        "tokens": java_tokens(captions),
    }
    REFERENCE.write_text(json.dumps(stored, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_reference()
