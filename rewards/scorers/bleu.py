"""BLEU-1 to 4 per caption and of a corpus, through the n-gram counts of pycocoevalcap.

Papineni et al. 2002 (ACL), as in pycocoevalcap's ``BleuScorer`` with ``option="closest"``: clipped matches,
the brevity penalty against the reference of closest length, no smoothing; equal to it to 1e-12. Without
smoothing a caption that shares no n-gram of the highest order with its references scores below 0.001,
whatever else it got right. For a reward there is the smoothing of Lin and Och 2004 (ORANGE, COLING): one more
match and one more guess at every order above 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

from rewards.scorers.encoders import check_references

MAX_ORDER = 4
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's: keep 0/0 at 0


def bleu_statistics(
    candidate_tokens: Sequence[str], reference_tokens: Sequence[Sequence[str]], order: int = MAX_ORDER
) -> np.ndarray:
    """Counts per caption, from which BLEU of any subset follows by :func:`corpus_bleu_from_sums`.

    Args:
        candidate_tokens: N captions as tokens joined by spaces.
        reference_tokens: N lists of one or more references, likewise.
        order: longest n-grams to count, n.

    Returns:
        (N, 2 + 2n): length, closest reference length, n matches, n guesses.

    Raises:
        RewardError: a caption has no references, or the numbers differ.
    """
    check_references("bleu", candidate_tokens, reference_tokens)
    pairs = zip(candidate_tokens, reference_tokens, strict=True)
    rows = [_row(caption, tuple(group), order) for caption, group in pairs]
    return np.array(rows, dtype=float).reshape(len(rows), 2 + 2 * order)


def corpus_bleu_from_sums(sums: np.ndarray, *, smooth: bool = False) -> np.ndarray:
    """BLEU of S corpora, or of S captions.

    Args:
        sums: (S, 2 + 2n) rows of :func:`bleu_statistics`, summed over the captions of each corpus; n is the
            order: for a lower one than was counted, leave columns out.
        smooth: one more match and guess at every order above 1, for single captions (Lin and Och 2004).

    Returns:
        (S,) values of 0 to 1.
    """
    order = (sums.shape[1] - 2) // 2
    added = np.array([0.0, *[float(smooth)] * (order - 1)])
    correct, guess = sums[:, 2 : 2 + order] + added, sums[:, 2 + order :] + added
    precision = ((correct + _TINY) / (guess + _SMALL)).prod(1) ** (1 / order)
    ratio = (sums[:, 0] + _TINY) / (sums[:, 1] + _SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def _row(caption: str, references: tuple[str, ...], order: int) -> list[int]:
    counts = cook_test(caption, _reference_counts(references, order), n=order)
    length = counts["testlen"]
    closest = min(counts["reflen"], key=lambda reference: (abs(reference - length), reference))
    return [length, closest, *counts["correct"], *counts["guess"]]


@lru_cache(maxsize=512)  # the K samples of an image come together; 6 kB an entry on RSICD
def _reference_counts(references: tuple[str, ...], order: int) -> tuple[list[int], dict]:
    """Lengths, and how often each n-gram stands in the reference that has it most often."""
    return cook_refs(references, n=order)
