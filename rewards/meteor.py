"""METEOR 1.5 as a reward; it needs Java."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rewards.scorers.java import find_java
from rewards.scorers.meteor import MeteorService
from rewards.scorers.text import caption_texts


class MeteorReward:
    """METEOR as a reward function, asynchronous: it runs beside the others.

    Java starts in ``setup``, or else at the first call; copies of this object in other processes start their
    own. 384 captions take about half a second.

    Args:
        timeout_s: as of :class:`MeteorService`.

    Raises:
        RewardError: there is no Java.
    """

    __name__ = "meteor"  # TRL names a reward by it

    def __init__(self, timeout_s: float = 120.0):
        self.java = (
            find_java()
        )  # no argument: `kwargs` of a recipe from somebody else must not name a program
        self.timeout_s = timeout_s
        self._service: MeteorService | None = None

    def setup(self, dataset: Any) -> None:
        """Start Java, and do not wait for it."""
        self._started()

    async def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """Segment METEOR of every completion, 0 to 1.

        Raises:
            RewardError: as :meth:`MeteorService.submit`.
        """
        scores = await asyncio.wrap_future(self._started().submit(caption_texts(completions), references))
        return scores.per_caption

    def close(self) -> None:
        """End Java; a later call starts it again."""
        service, self._service = self._service, None
        if service is not None:
            service.close()

    def _started(self) -> MeteorService:
        if self._service is None:
            self._service = MeteorService(self.java, timeout_s=self.timeout_s)
        return self._service

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_service": None}
