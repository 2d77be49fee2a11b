"""Cleaning steps: what each does, what is counted, and what is refused."""

import random
import sys
import types

import numpy as np
import pytest

from scst.data.preparation import cleaning
from scst.data.preparation.cleaning import Step, clean_captions, degenerate_kind, parse_steps, vocabulary
from scst.data.preparation.synonyms import replace_words, synonym_map, synonym_step, wordnet_related
from scst.errors import DataError, RecipeError


def cleaned(captions, *names, **keywords):
    return clean_captions(captions, parse_steps(names, **keywords))


LITERAL = {
    "lowercase": ("Two  Planes .", "two  planes ."),
    "nfkc": ("ﬁve ²  planes…", "five 2  planes..."),
    "ascii": ("the café’s “roof” – 平 red", 'the cafe\'s "roof" -  red'),
    "collapse-spaces": ("  two \t planes\n .", "two planes ."),
}


@pytest.mark.parametrize("name", LITERAL)
def test_rewriting_steps_literally(name):
    before, after = LITERAL[name]
    assert cleaned([[before]], name)[0] == [[after]]


def test_length_counts_words_without_punctuation():
    group = ["one two three four .", "one two three four five .", " ".join(["w"] * 20), " ".join(["w"] * 21)]
    assert cleaned([group], "length 5-20")[0] == [group[1:3]]


def test_dedupe_is_within_an_image():
    assert cleaned([["a b", "a b", "A b"], ["a b"]], "dedupe")[0] == [["a b", "A b"], ["a b"]]
    assert cleaned([["a b", "a b", "A b"], ["a b"]], "lowercase", "dedupe")[0] == [["a b"], ["a b"]]


DEGENERATE = {
    " .": "no letters",
    "1 .": "no letters",
    "planes .": "a single word",
    "many many many trees": "a word three times in a row",
    "Plis, plis plis": "a word three times in a row",
    "w x " * 51: "over 100 words",
    "many many trees are green": None,
    "river ships .": None,
    "an old one": None,
}


@pytest.mark.parametrize("caption", DEGENERATE, ids=lambda caption: caption[:24].strip())
def test_degenerate_captions(caption):
    assert degenerate_kind(caption) == DEGENERATE[caption]


def test_every_step_is_counted():
    captions = [["Two planes .", "two planes .", " ."], ["1 ."]]
    after, reports = cleaned(captions, "lowercase", "dedupe", "drop-degenerate")
    assert after == [["two planes ."], []]
    assert [(r.captions, r.changed, r.dropped, r.vocabulary) for r in reports] == [
        (4, 1, 0, 3),  # two, planes, 1
        (3, 0, 1, 3),
        (1, 0, 2, 2),
    ]
    assert reports[0].examples == [("Two planes .", "two planes .")]
    assert reports[2].examples == [(" .", ""), ("1 .", "")]


def test_order_is_as_declared():
    # 6 words with the repeated "roof" cut to ASCII nothing: 5 after, and then within 5-5
    caption = "the café has one 屋 roof"
    assert cleaned([[caption]], "ascii", "length 5-5")[0] == [["the cafe has one  roof"]]
    with pytest.raises(DataError, match="'length 5-5' leaves no caption"):
        cleaned([[caption]], "length 5-5", "ascii")


WRONG = {
    "lower": "unknown step 'lower'; known are lowercase, nfkc",
    "length 20-5": "expected `length MIN-MAX`",
    "length": "expected `length MIN-MAX`",
    "synonyms": "unknown step 'synonyms'",
    "no.such.module:function": "cannot be imported",
    "os:nothing": "cannot be imported",
    "os:sep": "is no function but a str",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_declarations(name):
    with pytest.raises(RecipeError, match=WRONG[name]):
        parse_steps([name])


# --- the guard


CORPUS = [[f"the {thing} is near the {other} ." for other in ("road", "river", "field")] for thing in
          ("bridge", "church", "school", "airport", "stadium", "pond", "forest", "desert", "port", "park",
           "square", "station", "resort", "meadow", "mountain", "beach", "viaduct", "farmland")]  # fmt: skip


def ids_of(captions):
    """What the published step did: the number of its cluster in place of every word."""
    numbers = {word: str(i % 7) for i, word in enumerate(sorted(vocabulary(captions)))}
    return [[" ".join(numbers[word] for word in caption.split() if word in numbers) for caption in group]
            for group in captions]  # fmt: skip


def test_cluster_ids_are_refused():
    with pytest.raises(DataError, match=r"'synonyms' writes words that no caption had: 0% .* or their ids\?"):
        cleaned(CORPUS, "synonyms", synonyms=ids_of)


def test_cluster_ids_are_refused_even_where_captions_have_digits():
    corpus = [*CORPUS, ["0 1 2 3 4 5 6 planes are parked"]]
    with pytest.raises(DataError, match="leaves 7 of 34 distinct words, under 30%"):
        cleaned(corpus, "synonyms", synonyms=ids_of)


def test_a_synonym_step_may_not_coin_a_single_word():
    def plural(captions):
        return [[caption.replace("desert", "deserts") for caption in group] for group in captions]

    with pytest.raises(DataError, match="New are deserts"):
        cleaned(CORPUS, "synonyms", synonyms=plural)
    assert cleaned(CORPUS, "synonyms", synonyms=lambda captions: captions)[0] == CORPUS


def test_somebody_elses_step(monkeypatch):
    module = types.ModuleType("their_cleaning")
    module.no_desert = lambda caption: None if "desert" in caption else caption.replace(" is ", " ")
    module.ids = lambda caption: " ".join(str(hash(word) % 9) for word in caption.split())
    monkeypatch.setitem(sys.modules, "their_cleaning", module)
    after, (report,) = cleaned(CORPUS, "their_cleaning:no_desert")
    assert (report.dropped, report.changed) == (3, 51)
    assert after[0][0] == "the bridge near the road ."
    with pytest.raises(DataError, match="'their_cleaning:ids' writes words that no caption had"):
        cleaned(CORPUS, "their_cleaning:ids")


def test_case_and_accents_are_no_new_words():
    captions = [["CAFÉ ŒUVRE", "ÉCOLE ÉTÉ"]]
    assert cleaned(captions, "lowercase", "ascii")[1][1].captions == 2


def test_text_steps_on_random_unicode_change_nothing_the_second_time():
    draw = random.Random(5)
    alphabet = "aZé ﬁ²\t\n.’屋\u0301\u200b😀"
    for _ in range(300):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(12)))
        for rewrite in cleaning.REWRITES.values():
            assert rewrite(rewrite(text)) == rewrite(text)


# --- synonyms


VECTORS = {  # 2-D directions in degrees: DBSCAN at 0.3 (17 degrees) chains plane - jet - rocket
    "plane": 0, "aircraft": 10, "jet": 15, "rocket": 30,
    "red": 100, "reddish": 101, "tree": 200, "shrub": 206,
}  # fmt: skip
COUNTS = {"plane": 90, "aircraft": 3, "jet": 50, "rocket": 2, "red": 70, "reddish": 2, "tree": 5, "shrub": 4}


def embed(words):
    angles = np.radians([VECTORS[word] for word in words])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_rare_word_goes_to_the_most_frequent_word_near_itself():
    # rocket: its cluster reaches to plane, but 30 degrees are 2 sin 15 = 0.52 > 0.3; jet: 0.26
    # red is protected; tree and shrub are both rare
    mapping = synonym_map(COUNTS, embed, distance=0.3, min_samples=2, rare=10)
    assert mapping == {"aircraft": "plane", "rocket": "jet"}


def test_a_second_opinion():
    mapping = synonym_map(
        COUNTS,
        embed,
        distance=0.3,
        min_samples=2,
        rare=10,
        related=lambda a, b: (a, b) == ("aircraft", "jet"),
    )
    assert mapping == {"aircraft": "jet"}


def test_synonyms_are_words_in_whole_captions():
    captions = [["Aircraft, and an (aircraft) carrier ."], *[["a plane"]] * 9]
    found = {}
    step = synonym_step(
        lambda words: embed([w if w in VECTORS else "tree" for w in words]), distance=0.3, rare=2, found=found
    )
    after, (report,) = cleaned(captions, "synonyms", synonyms=step)
    assert after[0] == ["Plane, and an (plane) carrier ."]
    assert found == {"aircraft": "plane"}
    assert report.changed == 1


def test_replacing_leaves_what_is_between_words():
    assert replace_words("a  b, (b) 'B' b-c", {"b": "xy"}) == "a  xy, (xy) 'Xy' b-c", "`b-c` is one word"


def test_nothing_to_map():
    assert synonym_map({"of": 3, "42": 1}, embed, distance=0.5, min_samples=2, rare=1) == {}


@pytest.mark.parametrize(
    "wrong", [{"distance": 0}, {"distance": 2}, {"min_samples": 0}, {"rare": 0}], ids=str
)
def test_synonym_settings_out_of_range(wrong):
    with pytest.raises(RecipeError, match="synonyms: expected 0 < distance"):
        synonym_step(embed, **wrong)


def test_wordnet_asks_for_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="nltk is not installed; install both: pip install nltk"):
        wordnet_related()
    monkeypatch.undo()
    corpus = types.ModuleType("nltk.corpus")
    corpus.wordnet = types.SimpleNamespace(
        synsets=lambda word: {"aircraft": [1, 2], "plane": [2]}.get(word, [])
    )
    package = types.ModuleType("nltk")
    package.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    assert wordnet_related()("aircraft", "plane")
    assert not wordnet_related()("aircraft", "tree")

    def no_data(word):
        raise LookupError(word)

    corpus.wordnet.synsets = no_data
    with pytest.raises(RecipeError, match="nltk has no WordNet on this machine"):
        wordnet_related()


def test_a_step_that_only_leaves_out_is_not_judged_by_its_vocabulary():
    def one(captions):
        return [[None if number else group[0], None, None] for number, group in enumerate(captions)]

    step = Step("one", one, rewrites=False)
    assert sum(map(len, clean_captions(CORPUS, [step])[0])) == 1
