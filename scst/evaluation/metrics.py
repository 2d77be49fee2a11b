"""Caption metrics with a confidence interval and a signature: BLEU, ROUGE-L, CIDEr-D and METEOR.

All scores are pycocoevalcap's, on its raw scale (CIDEr-D 0-10, the others 0-1), over tokens of the Stanford
PTB tokenizer. To add one, write a function ``Corpus -> Scores`` and give it a line in ``METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from rewards.document_frequencies import DocumentFrequencies
from rewards.java import find_java, ptb_tokenize
from rewards.meteor import meteor_scores, meteor_value
from scst import __version__
from scst.errors import DataError, RecipeError


@dataclass(frozen=True)
class MetricResult:
    """One metric of N captions.

    Attributes:
        value: of the corpus.
        ci95: bounds of its 95 % bootstrap interval over images.
        signature: everything that must agree before two values may be compared.
        per_caption: N scores; for BLEU and METEOR their mean is not ``value``.
    """

    value: float
    ci95: tuple[float, float]
    signature: str
    per_caption: list[float]


@dataclass(frozen=True)
class Scores:
    """What a metric function returns.

    Attributes:
        value: of the corpus.
        per_caption: N scores.
        statistics: (N, M) numbers per caption.
        from_sums: maps their sums over N captions, (S, M), and N to S corpus values.
    """

    value: float
    per_caption: list[float]
    statistics: np.ndarray
    from_sums: Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Corpus:
    """PTB-tokenised captions: N candidates, N lists of references."""

    candidates: list[str]
    references: list[list[str]]

    @cached_property
    def refs(self) -> str:
        """References per image for the signature: ``5`` or ``1-5``."""
        low, high = min(map(len, self.references)), max(map(len, self.references))
        return str(low) if low == high else f"{low}-{high}"

    @cached_property
    def bleu(self) -> tuple[BleuScorer, list[float], list[list[float]]]:
        """The scorer with its n-gram matches, corpus BLEU-1 to 4, and theirs per caption."""
        scorer = self._fill(BleuScorer(n=4))
        return scorer, *scorer.compute_score(option="closest")

    @cached_property
    def cider(self) -> CiderScorer:
        """n-grams of all captions, and the document frequencies of the references (unit: image)."""
        scorer = self._fill(CiderScorer(n=4, sigma=6.0))
        scorer.compute_doc_freq()
        return scorer

    @cached_property
    def df(self) -> str:
        """Six hex digits of the document frequencies and the number of images."""
        counts = self.cider.document_frequency.items()  # looking n-grams up has left zeros in it
        table = {ngram: int(count) for ngram, count in counts if count}
        frequencies = DocumentFrequencies(table, len(self.references), split="corpus", eos="omitted")
        return frequencies.fingerprint[:6]

    def _fill(self, scorer: Any) -> Any:
        for candidate, references in zip(self.candidates, self.references, strict=True):
            scorer += (candidate, references)
        return scorer


def _mean(per_caption: Sequence[float]) -> Scores:
    column = np.array(per_caption, dtype=float)
    return Scores(float(column.mean()), column.tolist(), column[:, None], lambda sums, n: sums[:, 0] / n)


def _bleu(corpus: Corpus, *, order: int) -> Scores:
    scorer, values, per_caption = corpus.bleu
    rows = [
        [row["testlen"], _closest(row), *row["correct"][:order], *row["guess"][:order]]
        for row in scorer.ctest
    ]
    return Scores(values[order - 1], per_caption[order - 1], np.array(rows, dtype=float), bleu_from_sums)


def _closest(row: dict[str, Any]) -> int:
    return min((abs(length - row["testlen"]), length) for length in row["reflen"])[1]


def bleu_from_sums(sums: np.ndarray, _: int = 0) -> np.ndarray:
    """Corpus BLEU (Papineni et al. 2002) of (S, 2 + 2n) sums: both lengths, n matches, n guesses.

    The tiny numbers are those of pycocoevalcap's ``BleuScorer``: the result equals its own.
    """
    small, tiny = 1e-9, 1e-15
    order = (sums.shape[1] - 2) // 2
    correct, guess = sums[:, 2 : 2 + order], sums[:, 2 + order :]
    precision = ((correct + tiny) / (guess + small)).prod(1) ** (1 / order)
    ratio = (sums[:, 0] + tiny) / (sums[:, 1] + small)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def _rouge_l(corpus: Corpus) -> Scores:
    rouge = Rouge()
    pairs = zip(corpus.candidates, corpus.references, strict=True)
    # Two empty texts would share one empty word there, and score 1.
    return _mean([rouge.calc_score([text], references) if text else 0.0 for text, references in pairs])


def _cider_d(corpus: Corpus) -> Scores:
    if not any(corpus.cider.document_frequency.values()):  # only empty references
        return _mean([0.0] * len(corpus.candidates))
    return _mean(corpus.cider.compute_cider())


def _meteor(corpus: Corpus) -> Scores:
    scores = meteor_scores(corpus.candidates, corpus.references)
    return Scores(scores.value, scores.per_caption, scores.statistics, lambda sums, n: meteor_value(sums))


@dataclass(frozen=True)
class Metric:
    """A metric function and its signature, to be filled in with ``refs``, ``df`` and ``v``."""

    score: Callable[[Corpus], Scores]
    signature: str

    @property
    def title(self) -> str:
        """E.g. ``CIDEr-D``."""
        return self.signature.split("|")[0]


METRICS: dict[str, Metric] = {
    "bleu_1": Metric(partial(_bleu, order=1), "BLEU-1|refs:{refs}|tok:ptb|smooth:none|v:{v}"),
    "bleu_2": Metric(partial(_bleu, order=2), "BLEU-2|refs:{refs}|tok:ptb|smooth:none|v:{v}"),
    "bleu_3": Metric(partial(_bleu, order=3), "BLEU-3|refs:{refs}|tok:ptb|smooth:none|v:{v}"),
    "bleu_4": Metric(partial(_bleu, order=4), "BLEU-4|refs:{refs}|tok:ptb|smooth:none|v:{v}"),
    "rouge_l": Metric(_rouge_l, "ROUGE-L|refs:{refs}|tok:ptb|beta:1.2|v:{v}"),
    "cider_d": Metric(_cider_d, "CIDEr-D|refs:{refs}|df:corpus,image,{df}|tok:ptb|eos:no|sigma:6|n:4|v:{v}"),
    "meteor": Metric(_meteor, "METEOR-1.5|refs:{refs}|tok:ptb|v:{v}"),
}


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse, before any work, what cannot be scored.

    Raises:
        RecipeError: an unknown metric, or none.
        ScstError: there is no Java.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise RecipeError(f"metrics: unknown {unknown}; expected one or more of {', '.join(METRICS)}")
    find_java()


def score_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricResult]:
    """Score captions against their references.

    Args:
        candidates: N captions as they were generated; an empty one scores 0.
        references: N lists of one or more references, aligned with the candidates.
        metrics: names in ``METRICS``.
        bootstrap_samples: resamples of the images for the interval.
        seed: of the resamples; the same for every metric, so that differences are paired.

    Returns:
        A result per metric, in the order asked for.

    Raises:
        DataError: no captions, unequal numbers, or an image without references.
        RecipeError: an unknown metric.
        ScstError: Java is missing or fails.
    """
    check_metrics(metrics)
    corpus = tokenized_corpus(candidates, references)
    return {name: _result(METRICS[name], corpus, bootstrap_samples, seed) for name in metrics}


def tokenized_corpus(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Check and tokenise, in one call of Java; arguments and errors as in :func:`score_captions`."""
    _check_captions(candidates, references)
    flat = [text for group in references for text in group]
    tokens = iter(ptb_tokenize([*candidates, *flat]))
    tokenized = [next(tokens) for _ in candidates]
    return Corpus(tokenized, [[next(tokens) for _ in group] for group in references])


def _check_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not candidates:
        raise DataError("no captions to score: expected at least one")
    if len(candidates) != len(references):
        raise DataError(f"{len(candidates)} captions, but references for {len(references)}: expected equal")
    for i, (caption, group) in enumerate(zip(candidates, references, strict=True)):
        texts_only = not isinstance(group, str) and all(isinstance(text, str) for text in (caption, *group))
        if not group or not texts_only:
            raise DataError(f"caption {i}: expected text and a list of texts, got {caption!r} and {group!r}")


def _result(metric: Metric, corpus: Corpus, samples: int, seed: int) -> MetricResult:
    scores = metric.score(corpus)
    df = corpus.df if "{df}" in metric.signature else ""
    return MetricResult(
        value=float(scores.value),
        ci95=bootstrap_interval(scores, samples, seed),
        signature=metric.signature.format(refs=corpus.refs, df=df, v=__version__),
        per_caption=[float(score) for score in scores.per_caption],
    )


def bootstrap_interval(scores: Scores, samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the corpus value over resampled images (Koehn 2004)."""
    generator = np.random.default_rng(seed)
    n = len(scores.statistics)
    sums = np.empty((samples, scores.statistics.shape[1]))
    for row in sums:
        drawn = np.bincount(generator.integers(0, n, n), minlength=n)
        row[:] = drawn @ scores.statistics
    low, high = np.percentile(scores.from_sums(sums, n), [2.5, 97.5])
    return float(low), float(high)


def metrics_json(results: Mapping[str, MetricResult]) -> dict[str, dict[str, Any]]:
    """What ``metrics.json`` holds: value, interval and signature of every metric."""
    return {
        name: {"value": result.value, "ci95": list(result.ci95), "signature": result.signature}
        for name, result in results.items()
    }
