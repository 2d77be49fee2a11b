"""Scene entities and counts: examples by hand, and sanity on real captions."""

from __future__ import annotations

import json
import math
import random

import pytest

from rewards.count_accuracy import CountAccuracyReward
from rewards.entity_recall import EntityRecallReward
from rewards.errors import RewardError
from rewards.scorers.scene import (
    MANY,
    compatible,
    count_accuracy,
    entities,
    entity,
    entity_recall,
    scene_facts,
    singular,
    stated_counts,
)

# What a reader would call the nouns of these RSICD, UCM- and Sydney-Captions.
ENTITIES = [
    ("many planes are parked next to a long building in an airport .", "plane building airport"),
    ("several boats are on a river with trees at two sides .", "boat river tree"),
    ("it is a large piece of yellow desert .", "desert"),
    ("a church is near a road with people on it .", "church road person"),
    ("some storage tanks are near a curved railway .", "storage tank railway"),
    ("a baseball diamond and two swimming pools .", "baseball diamond swimming pool"),
    ("a lot of cars in the parking lot", "car parking lot"),
    ("lots of houses with red roofs arranged neatly in a dense residential area", "house roof residential"),
    (
        "green grasses, bushes and beaches; factories, waves and viaducts",
        "grass bush beach factory wave viaduct",
    ),
    ("this is a yellow-brown bed of weeds surrounded by a fan-shaped building", "bed weed building"),
]
COUNTS = [
    ("two white planes and some cars", {"plane": {2}, "car": {MANY}}),
    ("there are 4 storage tanks near a road", {"tank": {4}, "road": {1}}),
    ("three crossed roads divide the land", {"road": {3}}),
    (
        "lots of boats, a large number of ships and plenty of water",
        {"boat": {MANY}, "ship": {MANY}, "water": {MANY}},
    ),
    ("a pair of tennis courts and a couple of pools", {"court": {2}, "pool": {2}}),
    ("a dozen planes, 1,000 houses and one bridge", {"plane": {12}, "house": {1000}, "bridge": {1}}),
    ("a few planes with both runways", {"plane": {MANY}, "runway": {2}}),
    ("planes are parked in the airport", {}),
    ("two sides of a river", {"river": {1}}),
    ("two rows of houses and many pieces of farmland", {}),
    ("a dense residential area and three baseball areas", {}),
    ("one of the planes", {}),
    ("two planes and three planes", {"plane": {2, 3}}),
    ("two", {}),
    ("0 cars at 12:30", {}),
]
PLANES = ("two planes are near a terminal", "two white planes near a terminal", "planes and many cars")


@pytest.mark.parametrize(
    ("plural", "noun"),
    [
        ("buildings", "building"),
        ("houses", "house"),
        ("courses", "course"),
        ("churches", "church"),
        ("bushes", "bush"),
        ("boxes", "box"),
        ("factories", "factory"),
        ("bridges", "bridge"),
        ("planes", "plane"),
        ("waves", "wave"),
        ("trees", "tree"),
        ("grasses", "grass"),
        ("leaves", "leaf"),
        ("people", "person"),
        ("buses", "bus"),
    ],
)
def test_singular(plural, noun):
    assert singular(plural) == noun
    assert singular(noun) == noun, "a singular stays as it is"


@pytest.mark.parametrize("word", ["tennis", "campus", "gas", "series", "oasis", "is", "s", ""])
def test_words_on_s_that_are_no_plurals(word):
    assert singular(word) == word


@pytest.mark.parametrize(("caption", "expected"), ENTITIES)
def test_entities(caption, expected):
    assert sorted(entities(caption)) == sorted(expected.split())


@pytest.mark.parametrize(
    "word", ["the", "many", "two", "2", "green", "parked", "neatly", "running", "'s", "%", "side", "x"]
)
def test_words_that_are_no_entities(word):
    assert entity(word) is None


@pytest.mark.parametrize(("caption", "expected"), COUNTS)
def test_stated_counts(caption, expected):
    assert stated_counts(caption) == expected


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(2, 2, True), (2, 3, False), (MANY, 3, True), (MANY, 2, False), (MANY, 1, False), (MANY, MANY, True)],
)
def test_compatible_counts(first, second, both):
    assert compatible(first, second) is compatible(second, first) is both


def test_facts_are_what_references_agree_on():
    """Cars and their number stand in one reference only; two of two counts say two planes."""
    facts = scene_facts(PLANES)
    assert facts.weights == {"plane": 3, "terminal": 2}
    assert facts.counts == {"plane": 2, "terminal": 1}


def test_the_only_reference_is_believed():
    facts = scene_facts(("two planes near some cars",))
    assert facts.weights == {"plane": 1, "car": 1}
    assert facts.counts == {"plane": 2, "car": MANY}


def test_a_count_needs_more_than_half_of_the_votes():
    assert scene_facts(("two planes", "three planes")).counts == {}
    assert scene_facts(("two planes", "three planes", "two planes")).counts == {"plane": 2}
    assert scene_facts(("two planes", "four planes and three planes")).counts == {"plane": 2}, "no vote"


def test_recall_is_weighted_by_the_references():
    captions = ["a plane at the terminal", "planes", "terminals", "a lake", "", " ."]
    assert entity_recall(captions, [PLANES] * 6).per_caption == [1, 3 / 5, 2 / 5, 0, 0, 0]


@pytest.mark.parametrize(
    ("caption", "accuracy"),
    [
        ("two planes near a terminal", 1),
        ("2 planes", 1),
        ("three planes near a terminal", 1 / 2),
        ("many planes", 0),
        ("two planes and three planes", 0),
        ("planes near the terminal", None),
        ("many cars", None),
        ("", None),
    ],
)
def test_count_accuracy(caption, accuracy):
    assert count_accuracy([caption], [PLANES]).per_caption == [accuracy]


def test_the_corpus_value_is_over_the_judged_captions():
    scores = count_accuracy(["two planes", "three planes", "planes", ""], [PLANES] * 4)
    assert scores.value == 1 / 2
    assert scores.per_caption == [1, 0, None, None]
    nothing = count_accuracy([""], [PLANES])
    assert math.isnan(nothing.value)
    assert math.isnan(entity_recall([], []).value)


@pytest.mark.parametrize(
    "references", [[" ."], ["1 .", "", " ."], ["a road", "a lake"], ["🌊 |||\n"]], ids=str
)
def test_references_that_agree_on_nothing_judge_nothing(references):
    assert entity_recall(["a road"], [references]).per_caption == [None]
    assert count_accuracy(["a road"], [references]).per_caption == [None]


@pytest.mark.parametrize(
    "caption", ["plane " * 400, "two " * 400, "9" * 5000 + " planes", "🌊 two\nplanes ||| %"]
)
def test_odd_captions_are_judged(caption):
    for scores in (entity_recall([caption], [PLANES]), count_accuracy([caption], [PLANES])):
        assert all(value is None or 0 <= value <= 1 for value in scores.per_caption)


def test_rewards_give_the_scores_and_take_any_column():
    columns = {
        "completions": ["two planes", "a lake"],
        "references": [list(PLANES)] * 2,
        "image_id": ["x", "y"],
    }
    assert EntityRecallReward()(**columns) == [3 / 5, 0]
    assert CountAccuracyReward()(**columns) == [1, None]


def test_missing_references_are_refused():
    for reward in (EntityRecallReward(), CountAccuracyReward()):
        with pytest.raises(RewardError, match="references"):
            reward(["a road"], [[]])


@pytest.fixture(scope="module")
def rsicd(shared_data):
    """First captions, and the other four of each image."""
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line)["captions"] for line in lines]
    return [group[0] for group in groups], [group[1:] for group in groups]


def test_human_captions_name_and_count_what_other_humans_do(rsicd):
    """Measured: recall 0.63 against 0.09 of another image's caption; counts 0.96 right against 0.82."""
    captions, references = rsicd
    others = random.Random(0).sample(captions, len(captions))
    recall, chance = entity_recall(captions, references), entity_recall(others, references)
    assert recall.per_caption.count(None) < 0.01 * len(captions)
    assert recall.value > 0.55
    assert chance.value < 0.15
    counts, chance = count_accuracy(captions, references), count_accuracy(others, references)
    assert counts.value > 0.93
    assert counts.value > chance.value + 0.1
    assert counts.per_caption.count(None) < 0.65 * len(captions)


def test_a_caption_that_says_all_references_reaches_the_maximum(rsicd):
    _, references = rsicd
    everything = entity_recall([" ".join(group) for group in references], references)
    assert {value for value in everything.per_caption if value is not None} == {1.0}


def test_shuffled_words_name_the_same(rsicd):
    captions, references = rsicd
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(words, len(words))) for words in (text.split() for text in captions)]
    same, order = entity_recall(captions, references), entity_recall(shuffled, references)
    assert order.value == pytest.approx(same.value, abs=0.02), "lots of is the only phrase that order makes"
