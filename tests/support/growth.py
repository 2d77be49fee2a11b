"""How time grows with the length of a text: with four times the text by four, never by sixteen."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

LINEAR = 8
"""Four times the text takes less than this many times as long; quadratic growth is 16."""
_SHORTEST_S = 1e-3  # below it, the clock and the cache of the processor decide


def cpu_seconds(function: Callable[[], object], repetitions: int = 1) -> float:
    """CPU time; the smallest of several is the one that other programs disturbed least."""
    spent = []
    for _ in range(repetitions):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return min(spent)


def growth(function: Callable[[str], object], piece: str, size: int, end: str = "") -> float:
    """Time for four times ``size`` characters over that for ``size``; a surprise is measured again.

    Args:
        function: called with the text.
        piece: the text is nothing but this, over and over, and then ``end``.
        size: characters of the shorter text.
    """
    short, long = (partial(function, piece * (n // len(piece)) + end) for n in (size, 4 * size))
    ratio = 0.0
    for repetitions in (1, 5):
        ratio = cpu_seconds(long, repetitions) / max(cpu_seconds(short, repetitions), _SHORTEST_S)
        if ratio < LINEAR:
            break
    return ratio
