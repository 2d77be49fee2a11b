"""Whatever a policy writes, every Java-free metric and reward answers with finite numbers, or with None."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rewards.mixture import RewardMixture
from rewards.registry import REWARDS, build_rewards
from scst.metrics.suite import METRICS, Corpus, MetricSettings

WORDS = ["a", "the", "two", "3", "many", "of", "with", "green", "tree", "trees", "river", "1,000", "1/2"]
WORDS += ["'", '"', ".", ",", "-", "--", "(", ")", "'s", "n't"]
ODD = [
    "",
    " ",
    "\n",
    "\t",
    "\x00",
    "\u200d",
    "\u2028",
    "🌊",
    "👩‍🚀",
    "é",
    "Ж",
    "漢字",
    "\udc80",
    "<EOS>",
    "|||",
    "\\",
    "%s",
    "{}",
]
WITH_MODEL = {"meteor", "spice", "bertscore", "sentence_similarity"}
PLAIN_METRICS = [name for name, metric in METRICS.items() if not metric.needs and name not in WITH_MODEL]
PLAIN_REWARDS = [name for name in REWARDS if name not in ("meteor", "clipscore", "sentence_similarity")]


def texts(seed: int, count: int) -> list[str]:
    """Captions of 0 to 30 pieces, now and then of 400."""
    draw = random.Random(seed)
    sizes = [400 if draw.random() < 0.02 else draw.randrange(30) for _ in range(count)]
    return [draw.choice(["", " "]).join(draw.choices(WORDS * 3 + ODD, k=size)) for size in sizes]


def groups(seed: int, count: int) -> list[list[str]]:
    """One to five references per image, some of them equal."""
    draw = random.Random(seed)
    pool = texts(seed, 5 * count)
    return [draw.choices(pool, k=draw.randrange(1, 6)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PLAIN_METRICS)
def test_metrics(name, seed):
    settings = MetricSettings(training_captions=texts(7, 50))
    corpus = Corpus(texts(seed, 200), groups(seed + 100, 200), settings=settings)
    scores = METRICS[name].score(corpus)
    assert math.isfinite(scores.value)
    assert all(value is None or math.isfinite(value) for value in scores.per_caption)
    drawn = np.random.default_rng(seed).multinomial(200, np.full(200, 1 / 200), size=3)
    assert np.isfinite(scores.resampled(drawn)).all()


@pytest.mark.parametrize("name", PLAIN_REWARDS)
def test_rewards(name):
    entry = {"name": name, "kwargs": {"target": 9} if name == "length" else {}}
    captions, references = texts(1, 300), groups(2, 300)
    mixture = RewardMixture(build_rewards([entry]))
    mixture.setup({"references": references})
    columns = {"references": references, "image_id": [str(i) for i in range(300)]}
    rewards = mixture(completions=captions, **columns).total  # refuses infinities and NaN itself
    assert len(rewards) == 300
    order = random.Random(3).sample(range(300), 300)
    shuffled = {column: [values[i] for i in order] for column, values in columns.items()}
    again = mixture(completions=[captions[i] for i in order], **shuffled).total
    assert again == pytest.approx([rewards[i] for i in order], abs=1e-12, nan_ok=True)
    mixture.close()
