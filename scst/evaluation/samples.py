"""Greedy captions beside sampled ones, with their scores: how much better a policy could do by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.scorers.cider import CiderD
from scst.adapters.prompt_tuning import encoder_for
from scst.errors import RecipeError
from scst.metrics.corpus import Corpus
from scst.models.policy import evaluation_mode, policy_for
from scst.rollout.decode import rollout
from scst.rollout.distribution import rollout_uniforms
from scst.training.micro_batcher import MicroBatcher
from scst.types import Sampling

SAMPLES = 4
"""Sampled captions per image."""
MOST_IMAGES = 64
"""Of the report."""


@dataclass(frozen=True)
class ScoredSamples:
    """The captions of one image.

    Attributes:
        index: place of the image in the dataset.
        greedy, greedy_score: the argmax caption and its CIDEr-D.
        samples, scores: captions drawn from the policy, and their CIDEr-D.
    """

    index: int
    greedy: str
    greedy_score: float
    samples: Sequence[str]
    scores: Sequence[float]


def check_report_samples(count: int) -> None:
    """Refuse an impossible number of images.

    Raises:
        RecipeError: below 0, or more than a page should hold.
    """
    if not 0 <= count <= MOST_IMAGES:
        raise RecipeError(f"report_samples: expected 0 (none) to {MOST_IMAGES} images, got {count}")


def distribution(sampling: Sampling) -> str:
    """E.g. ``4 samples at temperature 0.7, top_p 0.9``."""
    parts = [f"{sampling.num_samples} samples at temperature {sampling.temperature:g}"]
    parts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    return ", ".join(parts)


def spread_indices(size: int, count: int) -> list[int]:
    """At most ``count`` of ``size`` places, evenly spread."""
    count = min(size, count)
    return [i * size // count for i in range(count)]


def training_sampling(recipe: Mapping[str, Any], *, max_new_tokens: int, min_new_tokens: int) -> Sampling:
    """The distribution that a run sampled from; plain sampling for a run that did not sample."""
    keys = {name: recipe[name] for name in ("temperature", "top_k", "top_p") if name in recipe}
    limits = {"max_new_tokens": max_new_tokens, "min_new_tokens": min(min_new_tokens, max_new_tokens)}
    return Sampling(SAMPLES, **keys, **limits)


def sample_captions(
    model: Any,
    processor: Any,
    corpus: Corpus,
    indices: Sequence[int],
    prompt: str,
    sampling: Sampling,
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> list[ScoredSamples]:
    """Sample captions of some images with the engine that training samples with, and score them.

    Args:
        model, processor: a captioning model, with or without adapter, and its processor.
        corpus: the whole evaluation: its pictures and ids, and the document frequencies of its references.
        indices: which images.
        prompt: instruction without the image token.
        sampling: the number of samples and their distribution.
        batch_size: images at a time; fewer when memory runs out.
        seed: of the draws, which depend on it and the image id alone.

    Raises:
        ValueError: the corpus has no images or no image ids.
    """
    images, image_ids = corpus.images, corpus.image_ids
    if images is None or image_ids is None:
        raise ValueError("samples need a corpus with images and image ids")
    policy, encoder = policy_for(model, processor), encoder_for(model, processor)

    def sample(part: slice) -> list[tuple[str, list[str]]]:
        here = indices[part]
        prompts = encoder.prompt_batch([images[i] for i in here], [prompt] * len(here))
        uniforms = rollout_uniforms(
            [str(image_ids[i]) for i in here],
            seed=seed,
            step=0,
            num_samples=sampling.num_samples,
            length=sampling.max_new_tokens,
        )
        drawn = rollout(policy, encoder, prompts, sampling, uniforms)
        return list(zip(drawn.greedy_captions, drawn.captions, strict=True))

    with evaluation_mode(model):
        parts = MicroBatcher("samples of the report", "report_samples: 0", batch_size).map(
            sample, len(indices)
        )
    return _scored(corpus, indices, [[greedy, *samples] for part in parts for greedy, samples in part])


def _scored(corpus: Corpus, indices: Sequence[int], groups: Sequence[Sequence[str]]) -> list[ScoredSamples]:
    """CIDEr-D of every caption, with the document frequencies of the evaluation."""
    captions = [caption for group in groups for caption in group]
    references = [corpus.references[i] for i, group in zip(indices, groups, strict=True) for _ in group]
    scores = iter(CiderD(corpus.frequencies).scores(captions, references))
    result = []
    for index, (greedy, *samples) in zip(indices, groups, strict=True):
        first, *others = (next(scores) for _ in range(len(samples) + 1))
        result.append(ScoredSamples(index, greedy, first, samples, others))
    return result
