"""What the log says about sampled captions."""

from __future__ import annotations

from rewards.scorers.text import bad_ending_rate, mean_length, repetition_rate
from scst.training.step_metrics import Mean, MostCommon, Statistic
from scst.types import Rollout


def rollout_metrics(rollout: Rollout, step: int) -> dict[str, Statistic]:
    """Statistics of the sampled captions of B images.

    ``entropy`` is the mean of -log p over all sampled tokens, each with the probability it was drawn with: an
    unbiased estimate of the entropy of the sampling distribution, in nats per token. It is over all captions,
    those without an advantage included, and costs nothing.

    Args:
        rollout: of some images of an optimizer step.
        step: its number.
    """
    texts = [text for group in rollout.captions for text in group]
    count = len(texts)
    return {
        "entropy": Mean.of(-rollout.sampled_logprobs, rollout.completion_mask),
        "ended_by_eos": Mean.of(rollout.ended_by_eos.float()),
        "caption_length": Mean(mean_length(texts) * count, count),
        "distinct_samples": Mean.of([len(set(group)) / len(group) for group in rollout.captions]),
        "most_common_caption": MostCommon.of(texts, step),
        "bad_ending_rate": Mean(bad_ending_rate(texts) * count, count),
        "repetition_rate": Mean(repetition_rate(texts) * count, count),
    }
