"""The metric suite: every caption metric by name, what it needs, and how its corpus value is resampled.

To add a metric, write a function ``Corpus -> Scores`` and give it a line in ``METRICS``. All text metrics
cut captions with ``rewards.scorers.tokenizer``, the one tokeniser of rewards and evaluation; those that count
words count :func:`rewards.scorers.text.words`, as training logs do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rewards.errors import RewardError
from rewards.scorers import bleu, diversity, meteor, rouge, scene, text
from rewards.scorers.bertscore import BertScorer
from rewards.scorers.cider import Cider, CiderD
from rewards.scorers.clipscore import ClipScorer
from rewards.scorers.java import find_java
from rewards.scorers.sentence_similarity import SentenceSimilarity
from rewards.scorers.tokenizer import NAME as TOKENIZER
from scst.metrics.corpus import Corpus, MetricSettings, Resampler, Scores, load_reported_frequencies

TOK = f"tok:{TOKENIZER}"


def _sums(
    value: float,
    per_caption: Sequence[float | None],
    statistics: np.ndarray,
    from_sums: Callable[[np.ndarray], np.ndarray],
    details: str,
) -> Scores:
    """Scores whose corpus value is a function of (N, M) statistics summed over captions."""

    def resampler(rows: np.ndarray) -> Resampler:
        return lambda drawn: from_sums(drawn @ rows)

    return Scores(float(value), list(per_caption), statistics, resampler, details)


def _mean(per_caption: Sequence[float | None], details: str) -> Scores:
    """The mean over the captions that can be judged; NaN when none can."""
    judged = np.array([value is not None for value in per_caption], dtype=float)
    values = np.array([value or 0.0 for value in per_caption], dtype=float)

    def ratio(sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1], otherwise=np.nan)

    statistics = np.stack([values, judged], 1)
    return _sums(float(ratio(statistics.sum(0))), per_caption, statistics, ratio, details)


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), otherwise), where=below > 0)


def _bleu(corpus: Corpus, *, order: int) -> Scores:
    columns = [0, 1, *range(2, 2 + order), *range(6, 6 + order)]
    rows = corpus.bleu[:, columns]
    value = bleu.corpus_bleu_from_sums(rows.sum(0, keepdims=True))[0]
    per_caption = bleu.corpus_bleu_from_sums(rows).tolist()
    return _sums(value, per_caption, rows, bleu.corpus_bleu_from_sums, f"{corpus.refs}|{TOK}|smooth:none")


def _rouge_l(corpus: Corpus) -> Scores:
    return _mean(
        rouge.rouge_l_scores(corpus.tokens, corpus.reference_tokens), f"{corpus.refs}|{TOK}|beta:1.2"
    )


def _cider(corpus: Corpus, *, scorer: type[Cider]) -> Scores:
    cider = scorer(corpus.frequencies)
    details = cider.signature.partition("|")[2]  # without the title
    return _mean(cider.scores(corpus.captions, corpus.references), f"{corpus.refs}|{details}")


def _meteor(corpus: Corpus) -> Scores:
    found = meteor.meteor_scores(corpus.captions, corpus.references)
    details = f"{corpus.refs}|{TOK}"
    return _sums(found.value, found.per_caption, found.statistics, meteor.meteor_value, details)


def _spice(corpus: Corpus) -> Scores:
    from rewards.scorers import spice

    return _mean(spice.spice_scores(corpus.captions, corpus.references), f"{corpus.refs}|{TOK}")


def _bertscore(corpus: Corpus) -> Scores:
    scorer = _bert_scorer(corpus.settings)
    f1 = scorer.scores(corpus.captions, corpus.references)
    return _mean(f1, f"{corpus.refs}|{scorer.signature}")


def _bert_scorer(settings: MetricSettings) -> BertScorer:
    return BertScorer(settings.bertscore_model, num_layers=settings.bertscore_layers)


def _clip(corpus: Corpus, *, form: str) -> Scores:
    scores = getattr(corpus.clip, form)(corpus.captions, corpus.images, corpus.image_ids)
    return _mean(scores, corpus.clip.signature)


def _reference_clip(corpus: Corpus) -> Scores:
    ids = corpus.image_ids
    scores = corpus.clip.reference_scores(corpus.captions, corpus.references, corpus.images or (), ids)
    return _mean(scores, f"{corpus.refs}|{corpus.clip.signature}")


def _sentence_similarity(corpus: Corpus) -> Scores:
    scorer = SentenceSimilarity(corpus.settings.sentence_model)
    return _mean(scorer.scores(corpus.captions, corpus.references), f"{corpus.refs}|{scorer.signature}")


def _each(corpus: Corpus, *, of: Callable[[str], float]) -> Scores:
    """The mean of a number that each caption has on its own."""
    return _mean([float(of(caption)) for caption in corpus.captions], TOK)


def _truncation(corpus: Corpus) -> Scores:
    return _mean([float(not ended) for ended in corpus.ended_by_eos or ()], "")


def _of_set(
    items: Sequence[Sequence[Any]], sizes: Sequence[float] | None = None, details: str = TOK
) -> Scores:
    """Distinct items of all captions, over the sum of sizes where there are any.

    Args:
        items: N lists of what is counted once: words, n-grams, whole captions.
        sizes: N numbers.
    """
    weights = np.zeros(len(items)) if sizes is None else np.array(sizes, dtype=float)
    rows = list(zip(items, weights.tolist(), strict=True))
    resampler = partial(_set_resampler, counted=sizes is None)
    value = float(resampler(rows)(np.ones((1, len(items))))[0])
    return Scores(value, [], rows, resampler, details, centred=True)


def _set_resampler(rows: Sequence[tuple[Sequence[Any], float]], *, counted: bool) -> Resampler:
    """Distinct items of the captions drawn, as they are (``counted``) or over the sum of their sizes."""
    index: dict[Any, int] = {}
    ids = [np.array([index.setdefault(item, len(index)) for item in own], dtype=int) for own, _ in rows]
    sizes = np.array([size for _, size in rows])

    def value(drawn: np.ndarray) -> float:
        there = np.zeros(len(index), dtype=bool)
        there[np.concatenate([ids[i] for i in np.flatnonzero(drawn)])] = True
        total = 1.0 if counted else drawn @ sizes
        return float(there.sum() / total) if total else 0.0

    return lambda drawn: np.array([value(row) for row in drawn])


def _distinct_n(corpus: Corpus, *, n: int) -> Scores:
    ngrams = [diversity.caption_ngrams(caption, n) for caption in corpus.captions]
    return _of_set(ngrams, [len(own) for own in ngrams])


def _distinct_captions(corpus: Corpus) -> Scores:
    return _of_set([[text.words(caption)] for caption in corpus.captions], [1.0] * len(corpus.captions))


def _vocabulary(corpus: Corpus) -> Scores:
    return _of_set([text.words(caption) for caption in corpus.captions])


def _novel_words(corpus: Corpus) -> Scores:
    counts = corpus.training_text.novel_word_counts(corpus.captions).astype(float)  # (N, 2): novel, all

    def ratio(sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])

    return _sums(float(ratio(counts.sum(0))), _ratio(counts[:, 0], counts[:, 1]).tolist(), counts, ratio, TOK)


def _novel_captions(corpus: Corpus) -> Scores:
    return _mean([float(novel) for novel in corpus.training_text.is_novel(corpus.captions)], TOK)


def _entity_recall(corpus: Corpus) -> Scores:
    return _mean(scene.entity_recall(corpus.captions, corpus.references).per_caption, f"{corpus.refs}|{TOK}")


def _count_accuracy(corpus: Corpus) -> Scores:
    return _mean(scene.count_accuracy(corpus.captions, corpus.references).per_caption, f"{corpus.refs}|{TOK}")


def _needs_java(settings: MetricSettings) -> None:
    find_java()


def _needs_spice(settings: MetricSettings) -> None:
    from rewards.scorers import spice

    spice.find_spice()


def _needs_clip(settings: MetricSettings) -> None:
    ClipScorer(settings.clip_model)


def _needs_training_captions(settings: MetricSettings) -> None:
    if settings.training_captions is None:
        raise RewardError("needs the captions that were trained on: give --training_captions FILE")


def _needs_frequencies(settings: MetricSettings) -> None:
    if isinstance(settings.frequencies, str):
        load_reported_frequencies(settings.frequencies)


def _nothing(settings: MetricSettings) -> None:
    """No check."""


@dataclass(frozen=True)
class Metric:
    """One metric of the suite.

    Attributes:
        title: as the field writes it; begins the signature.
        score: computes it.
        help: what it is or needs, in a line.
        needs: columns of the corpus that may be missing.
        check: raises RewardError when it cannot be computed, before anything is loaded.
        direction: 1 when higher is better, -1 when lower is, 0 when neither.
    """

    title: str
    score: Callable[[Corpus], Scores]
    help: str
    needs: tuple[str, ...] = ()
    check: Callable[[MetricSettings], Any] = _nothing
    direction: int = 1


NOVELTY = ("novel_words", "novel_captions")
_clip_metric = partial(Metric, needs=("images",), check=_needs_clip)
METRICS: dict[str, Metric] = {
    **{
        f"bleu_{n}": Metric(f"BLEU-{n}", partial(_bleu, order=n), "Papineni et al. 2002")
        for n in (1, 2, 3, 4)
    },
    "rouge_l": Metric("ROUGE-L", _rouge_l, "Lin 2004, F with beta 1.2"),
    "cider_d": Metric(
        "CIDEr-D",
        partial(_cider, scorer=CiderD),
        "what everybody reports as CIDEr; 0 to 10",
        check=_needs_frequencies,
    ),
    "cider": Metric(
        "CIDEr",
        partial(_cider, scorer=Cider),
        "without clipping and length penalty; 0 to 10",
        check=_needs_frequencies,
    ),
    "meteor": Metric("METEOR-1.5", _meteor, "Denkowski and Lavie 2014; needs Java", check=_needs_java),
    "spice": Metric(
        "SPICE", _spice, "Anderson et al. 2016; needs Java 8 to 14 and Stanford's models", check=_needs_spice
    ),
    "bertscore": Metric("BERTScore-F1", _bertscore, "needs --bertscore_model", check=_bert_scorer),
    "clip_cosine": _clip_metric("CLIP-cosine", partial(_clip, form="cosines"), "needs --clip_model, images"),
    "clipscore": _clip_metric(
        "CLIPScore", partial(_clip, form="scores"), "2.5 * cosine; needs --clip_model, images"
    ),
    "ref_clipscore": _clip_metric("RefCLIPScore", _reference_clip, "needs --clip_model, images"),
    "sentence_similarity": Metric(
        "sentence-similarity",
        _sentence_similarity,
        "cosine of sentence embeddings (Geo-Sim)",
        check=lambda settings: SentenceSimilarity(settings.sentence_model),
    ),
    "entity_recall": Metric("entity-recall", _entity_recall, "things the references agree on, named"),
    "count_accuracy": Metric(
        "count-accuracy", _count_accuracy, "stated counts that agree with the references"
    ),
    "length": Metric(
        "words", partial(_each, of=lambda c: len(text.words(c))), "words per caption", direction=0
    ),
    "repetition_rate": Metric(
        "repetition", partial(_each, of=text.has_repetition), "captions that repeat themselves", direction=-1
    ),
    "bad_ending_rate": Metric(
        "bad-endings",
        partial(_each, of=text.has_bad_ending),
        "captions that stop on 'a', 'with', ...",
        direction=-1,
    ),
    "empty_rate": Metric(
        "empty", partial(_each, of=lambda c: not text.words(c)), "captions without words", direction=-1
    ),
    "truncation_rate": Metric(
        "truncated", _truncation, "captions cut by the length limit", needs=("ended_by_eos",), direction=-1
    ),
    "distinct_1": Metric(
        "distinct-1", partial(_distinct_n, n=1), "distinct words over words (Li et al. 2016)"
    ),
    "distinct_2": Metric("distinct-2", partial(_distinct_n, n=2), "distinct bigrams over bigrams"),
    "distinct_captions": Metric("distinct-captions", _distinct_captions, "distinct captions over captions"),
    "vocabulary": Metric("vocabulary", _vocabulary, "distinct words"),
    "novel_words": Metric(
        "novel-words",
        _novel_words,
        "words never trained on; needs --training_captions",
        check=_needs_training_captions,
        direction=0,
    ),
    "novel_captions": Metric(
        "novel-captions",
        _novel_captions,
        "captions never trained on; needs --training_captions",
        check=_needs_training_captions,
        direction=0,
    ),
}
"""Name -> metric."""
