"""CLIPScore as a reward; it needs the dataset's images and no references."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from rewards.errors import RewardError
from rewards.scorers.clipscore import FORMS, PROMPT_PREFIX, ClipScorer
from rewards.scorers.text import caption_texts


class ClipScoreReward:
    """CLIPScore as a reward function; it needs the dataset's ``image`` column and no references.

    Args:
        model_name_or_path, device, batch_size, prompt_prefix, dtype: as of :class:`ClipScorer`.
        form: "raw", the cosine, or "scaled", 2.5 * max(cosine, 0).

    Raises:
        RewardError: an argument is wrong, or there can be no such model.
    """

    __name__ = "clipscore"  # TRL names a reward by it

    def __init__(
        self,
        model_name_or_path: str | None = None,
        form: str = "raw",
        device: str | None = None,
        batch_size: int = 64,
        prompt_prefix: str = PROMPT_PREFIX,
        dtype: str = "float32",
    ):
        if form not in FORMS:
            raise RewardError(f"clipscore: form must be one of {', '.join(FORMS)}, got {form!r}")
        self.form = form
        self.scorer = ClipScorer(
            model_name_or_path,
            device=device,
            batch_size=batch_size,
            prompt_prefix=prompt_prefix,
            dtype=dtype,
        )

    def setup(self, dataset: Any) -> None:
        """Load the model, so that a broken one stops the run before it trains."""
        _ = self.scorer.encoder

    def __call__(
        self,
        completions: Sequence[str],
        image: Sequence[Any] | None = None,
        image_id: Sequence[Hashable] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Cosine or CLIPScore of every completion with its image; logs the share of truncated captions.

        Raises:
            RewardError: there is no column ``image``, or it holds something else than PIL images.
        """
        if image is None:
            raise RewardError(f"clipscore: the dataset has no column `image`; found {sorted(columns)}")
        score = self.scorer.cosines if self.form == "raw" else self.scorer.scores
        values = score(caption_texts(completions), image, image_id)
        if log_metric is not None and values:
            log_metric("clipscore_truncated", self.scorer.truncated / len(values))
        return values
