"""CIDEr-D: equal to pycocoevalcap, complete captions at the maximum, broken ones below it."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
from pycocoevalcap.cider.cider import Cider as PycocoCider

from rewards.cider_d import CiderDReward
from rewards.errors import RewardError
from rewards.scorers.cider import MAXIMUM, Cider, CiderD
from rewards.scorers.document_frequencies import DocumentFrequencies
from rewards.scorers.tokenizer import tokenize

CORPUS = [
    [
        "many planes are parked next to a long building in an airport .",
        "some planes are parked near a terminal .",
    ],
    ["a river goes through the green forest .", "several boats are on a river with trees at two sides ."],
    ["two tennis courts are surrounded by green trees .", "a road is next to four tennis courts ."],
    ["it is a piece of yellow desert .", "a desert with many ripples ."],
]
FRAGMENT = "a river goes through the green forest with a"


def scorer(eos: str = "omitted", corpus: list[list[str]] = CORPUS) -> CiderD:
    return CiderD(DocumentFrequencies.from_references(corpus, eos=eos))


def pycocoevalcap_scores(captions: list[str], references: list[list[str]]) -> list[float]:
    """Cider of pycocoevalcap on the tokens of our tokeniser; the corpus is the batch."""
    words = [" ".join(tokenize(caption)) for caption in captions]
    reference_words = [[" ".join(tokenize(r)) for r in group] for group in references]
    _, scores = PycocoCider().compute_score(
        dict(enumerate(reference_words)), {i: [caption] for i, caption in enumerate(words)}
    )
    return list(scores)


def assert_equal_to_pycocoevalcap(captions: list[str], references: list[list[str]]) -> None:
    ours = scorer(corpus=references)
    for caption, group, expected in zip(
        captions, references, pycocoevalcap_scores(captions, references), strict=True
    ):
        assert ours.score(caption, group) == pytest.approx(expected, abs=1e-9), caption


def varied(rng: random.Random, own: list[str], other: list[str]) -> str:
    """A candidate: a reference, shuffled, cut, doubled, mixed with another image's, or another image's."""
    words = rng.choice(own).split()
    foreign = rng.choice(other).split()
    kind = rng.randrange(6)
    if kind == 0:
        return " ".join(words)
    if kind == 1:
        return " ".join(rng.sample(words, len(words)))
    if kind == 2:
        return " ".join(words[: rng.randrange(len(words) + 1)])
    if kind == 3:
        return " ".join(words + words)
    if kind == 4:
        return " ".join(words[: len(words) // 2] + foreign[len(foreign) // 2 :])
    return " ".join(foreign)


def test_equal_to_pycocoevalcap_on_random_captions():
    rng = random.Random(0)
    vocabulary = ["a", "the", "road", "river", "tree", "house", "near", "two", "green", "with"]
    references = [
        [" ".join(rng.choices(vocabulary, k=rng.randrange(1, 16))) for _ in range(rng.randrange(1, 6))]
        for _ in range(200)
    ]
    captions = [" ".join(rng.choices([*vocabulary, "zebra"], k=rng.randrange(0, 20))) for _ in references]
    assert_equal_to_pycocoevalcap(captions, references)


def test_equal_to_pycocoevalcap_on_real_captions(shared_data):
    rng = random.Random(0)
    with open(shared_data / "captions" / "rsicd_val.jsonl", encoding="utf-8") as file:
        references = [json.loads(line)["captions"] for line in file][:300]
    assert len(references) == 300
    captions = [varied(rng, own, rng.choice(references)) for own in references]
    assert_equal_to_pycocoevalcap(captions, references)
    assert sum(score > 0.1 for score in pycocoevalcap_scores(captions, references)) > 150


@pytest.mark.parametrize("eos", ["emitted", "omitted"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_caption_equal_to_all_its_references_reaches_the_maximum(eos, count):
    for caption in (caption for group in CORPUS for caption in group):
        assert scorer(eos).score(caption, [caption] * count) == pytest.approx(MAXIMUM, abs=1e-9)


@pytest.mark.parametrize("eos", ["emitted", "omitted"])
def test_nothing_scores_above_the_maximum(eos):
    rng = random.Random(1)
    for group in CORPUS:
        for _ in range(50):
            assert 0 <= scorer(eos).score(varied(rng, group, rng.choice(CORPUS)), group) <= MAXIMUM + 1e-9


def test_a_fragment_costs_more_when_the_end_of_sequence_counts():
    """The reward must not pay for "... with a", which human captions never end with."""
    complete, references = "a river goes through the green forest", CORPUS[1]
    losses = {
        eos: scorer(eos).score(complete, references) - scorer(eos).score(FRAGMENT, references)
        for eos in ("emitted", "omitted")
    }
    assert losses["emitted"] > losses["omitted"] > 0


def test_a_caption_cut_by_the_length_limit_gets_no_end_of_sequence_word():
    caption, references = CORPUS[1][0], CORPUS[1]
    emitted = scorer("emitted")
    assert emitted.score(caption, references, ended_by_eos=False) < emitted.score(caption, references)
    omitted = scorer("omitted")
    assert omitted.score(caption, references, ended_by_eos=False) == omitted.score(caption, references)


def test_the_order_of_references_changes_nothing():
    for group in CORPUS:
        forwards, backwards = (scorer().score(FRAGMENT, refs) for refs in (group, group[::-1]))
        assert forwards == pytest.approx(backwards, abs=1e-12)


def test_the_order_of_images_changes_nothing():
    for group in CORPUS:
        backwards = scorer(corpus=CORPUS[::-1]).score(FRAGMENT, group)
        assert backwards == pytest.approx(scorer().score(FRAGMENT, group), abs=1e-14)


@pytest.mark.parametrize("eos", ["emitted", "omitted"])
@pytest.mark.parametrize("word", ["zebra", "a", "river", "desert"])
def test_a_word_added_to_a_perfect_caption_never_raises_its_score(eos, word):
    for caption in (caption for group in CORPUS for caption in group):
        words = caption.removesuffix(" .").split()
        for place in range(len(words) + 1):
            changed = " ".join([*words[:place], word, *words[place:]])
            assert scorer(eos).score(changed, [caption]) < MAXIMUM


def test_repeated_words_are_clipped():
    """CIDEr-D, not CIDEr: each further repetition of a rare word lowers the score."""
    scores = [scorer().score("desert " * n, CORPUS[3]) for n in range(2, 8)]
    assert all(later < earlier for earlier, later in pairwise(scores))


@pytest.mark.parametrize("eos", ["emitted", "omitted"])
@pytest.mark.parametrize("caption", ["", " .", "🌊🌊", "river " * 400, "x", "<eos>", "\n"], ids=repr)
@pytest.mark.parametrize(
    "references",
    [["a river ."], ["a river ."] * 5, [" ."], ["1 ."], [""], ["🌊"], ["river " * 400]],
    ids=lambda references: f"{len(references)}x{references[0][:10]!r}",
)
def test_degenerate_captions_and_references_score_a_finite_number(eos, caption, references):
    value = scorer(eos).score(caption, references, ended_by_eos=False)
    assert math.isfinite(value)
    assert 0 <= value <= MAXIMUM + 1e-9


@pytest.mark.parametrize("caption", ["", " .", "🌊"])
def test_a_caption_without_words_scores_zero(caption):
    assert scorer().score(caption, CORPUS[0]) == 0


def test_a_corpus_of_one_image_scores_zero():
    """idf = log(1 / 1) = 0 for every n-gram of its references; it must not divide by zero."""
    assert scorer(corpus=CORPUS[:1]).score(CORPUS[0][0], CORPUS[0]) == 0


def test_no_reference_is_refused():
    with pytest.raises(ValueError, match="at least one reference per image"):
        scorer().score("a river", [])


def test_references_are_counted_once(monkeypatch):
    cider = scorer()
    counted = []
    original = cider._reference_counts
    monkeypatch.setattr(cider, "_reference_counts", lambda group: counted.append(group) or original(group))
    first = [cider.score("a river", list(CORPUS[1])) for _ in range(3)]
    cider.scores(["a river", "a road", "a lake"], [CORPUS[1], CORPUS[2], CORPUS[1]])
    assert counted == [tuple(CORPUS[1]), tuple(CORPUS[2])]
    assert len(set(first)) == 1


def test_a_batch_scores_like_its_captions_one_by_one():
    """Captions of one image, of others, other numbers of references, unknown words, nothing at all."""
    groups = [CORPUS[1], CORPUS[0], CORPUS[1], [*CORPUS[2], "two courts"], ["a lake"], CORPUS[3]]
    captions = ["a river river", "planes", "a zebra zebra drinks", "two tennis courts", "", "a zebra desert"]
    ended = [True, False, True, False, True, True]
    for eos in ("emitted", "omitted"):
        alone = [
            scorer(eos).score(caption, group, ended_by_eos=end)
            for caption, group, end in zip(captions, groups, ended, strict=True)
        ]
        assert scorer(eos).scores(captions, groups, ended) == pytest.approx(alone, abs=1e-12)
        together = scorer(eos)
        shuffled = together.scores(captions[::-1], groups[::-1], ended[::-1])[::-1]
        assert shuffled == pytest.approx(alone, abs=1e-12)
        assert together.scores(captions, groups, ended) == pytest.approx(alone, abs=1e-12)  # a second time
    assert scorer().scores([], []) == []


def test_a_wrong_word_never_raises_the_score_of_a_perfect_caption():
    rng = random.Random(3)
    cider = scorer()
    vocabulary = [*{word for group in CORPUS for text in group for word in tokenize(text)}, "zebra"]
    for group in CORPUS:
        for perfect in group:
            words, others = perfect.split(), [perfect] * 5
            best = cider.score(perfect, others)
            for _ in range(50):
                position = rng.randrange(len(words) + 1)
                worse = [*words[:position], rng.choice(vocabulary), *words[position:]]
                assert cider.score(" ".join(worse), others) < best


def test_unclipped_cider_is_the_formula_of_the_paper():
    """Equation 2 and 3 of arXiv:1411.5726 written out with dictionaries, times 10 as in its code."""
    table = DocumentFrequencies.from_references(CORPUS, eos="omitted")

    def vector(text: str, order: int) -> dict[tuple[str, ...], float]:
        words = tokenize(text)
        found = list(zip(*(words[i:] for i in range(order)), strict=False))
        return {ngram: found.count(ngram) * table.idf(ngram) for ngram in found}

    def cosine(left: dict, right: dict) -> float:
        norms = math.hypot(*left.values()) * math.hypot(*right.values())
        return sum(weight * right.get(ngram, 0) for ngram, weight in left.items()) / norms if norms else 0.0

    for caption in ("a river a river a river with boats", FRAGMENT, "trees", ""):
        for group in CORPUS:
            terms = [cosine(vector(caption, n), vector(r, n)) for n in (1, 2, 3, 4) for r in group]
            expected = 10 * sum(terms) / 4 / len(group)
            assert Cider(table).score(caption, group) == pytest.approx(expected, abs=1e-12)
    assert Cider(table).signature == CiderD(table).signature.replace("-D", "").replace("sigma:6|", "")


def test_without_clipping_repetition_pays_and_with_it_less():
    """What the D of CIDEr-D is for (section 4 of the paper): repeated rare words and any length."""
    table = DocumentFrequencies.from_references(CORPUS, eos="omitted")
    gamed = "desert " * 12
    assert Cider(table).score(gamed, CORPUS[3]) > 5 * CiderD(table).score(gamed, CORPUS[3])


def test_a_table_of_another_tokenizer_is_refused():
    table = DocumentFrequencies({("a",): 1}, 2, "train", "omitted", tokenizer="whitespace")
    with pytest.raises(ValueError, match=r"counted with tokenizer 'whitespace'.*'ptb'"):
        CiderD(table)


def test_the_signature_names_what_must_match():
    emitted = scorer("emitted")
    digits = emitted.frequencies.fingerprint[:6]
    assert emitted.signature == f"CIDEr-D|df:train,image,{digits}|tok:ptb|eos:yes|sigma:6|n:4"
    assert "|eos:no|" in scorer("omitted").signature


def reward(**kwargs) -> CiderDReward:
    function = CiderDReward(**kwargs)
    function.setup({"references": CORPUS})
    return function


def test_the_reward_scores_every_completion():
    captions = ["a river", FRAGMENT, CORPUS[3][1]]
    references = [CORPUS[1], CORPUS[1], CORPUS[3]]
    values = reward()(completions=captions, references=references, ended_by_eos=[True, False, True])
    cider = scorer("emitted")
    assert values == [
        cider.score("a river", CORPUS[1]),
        cider.score(FRAGMENT, CORPUS[1], ended_by_eos=False),
        cider.score(CORPUS[3][1], CORPUS[3]),
    ]


def test_the_reward_takes_what_trl_passes():
    """All by keyword, columns that it does not know included, no ``ended_by_eos``."""
    values = reward()(
        prompts=["caption en"] * 2,
        completions=["a river", "a road"],
        completion_ids=[[5, 6, 1], [5, 7, 1]],
        references=[CORPUS[1], CORPUS[2]],
        image_id=["b", "c"],
        trainer_state=None,
        log_metric=None,
        log_extra=None,
        source=["RSICD", "RSICD"],
    )
    assert len(values) == 2
    assert all(isinstance(value, float) and value > 0 for value in values)


def test_the_reward_counts_the_training_references_once(tmp_path):
    function = reward()
    fingerprint = function.scorer.frequencies.fingerprint
    function.setup({"references": CORPUS[:2]})
    assert function.scorer.frequencies.fingerprint == fingerprint
    function.write_tables(tmp_path)
    loaded = CiderDReward(frequencies=str(tmp_path / "document_frequencies.json"))
    assert loaded.scorer.frequencies.fingerprint == fingerprint
    with pytest.raises(ValueError, match="eos='emitted', but the reward wants eos='omitted'"):
        CiderDReward(eos="omitted", frequencies=str(tmp_path / "document_frequencies.json"))


def test_the_reward_wants_setup_first():
    with pytest.raises(RewardError, match=r"call setup\(dataset\)"):
        CiderDReward()(completions=["a road"], references=[["a road"]])


def test_an_unknown_eos_policy_is_refused_at_once():
    with pytest.raises(ValueError, match="emitted, omitted, got 'always'"):
        CiderDReward(eos="always")


def test_unequal_columns_are_refused():
    with pytest.raises(ValueError, match="got 2 captions, 1 lists and 2 ends"):
        reward()(completions=["a", "b"], references=[CORPUS[0]])


@pytest.mark.parametrize("table", ["of these references", "of others"])
def test_scores_are_the_same_bit_for_bit_however_much_is_kept(monkeypatch, table):
    rng = random.Random(2)
    words = ["a", "road", "river", "tree", "house", "near", "two", "green"]

    def caption() -> str:
        return " ".join(rng.choices(words, k=9))

    groups = [[caption() for _ in range(3)] for _ in range(40)]
    corpus = groups if table == "of these references" else CORPUS
    batches = [
        (chosen := rng.sample(groups, 4), [rng.choice([*chosen[i], caption()]) for i in range(4)])
        for _ in range(60)
    ]
    whole, bounded = scorer(corpus=corpus), scorer(corpus=corpus)
    expected = [whole.scores(captions, groups) for groups, captions in batches]
    monkeypatch.setattr("rewards.scorers.cider.KEPT_IMAGES", 2)
    assert [bounded.scores(captions, groups) for groups, captions in batches] == expected
    assert len(bounded._references) <= 2 + 4
    assert len(whole._references) == len({tuple(g) for groups, _ in batches for g in groups})
