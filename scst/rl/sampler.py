"""Sampling the captions of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.rollout.distribution import rollout_uniforms
from scst.rollout.feature_cache import FeatureCache, KeptFeatures
from scst.types import PromptBatch, Rollout, Sampling


class Sampler:
    """Samples K captions and the greedy one of every image.

    Every draw is a function of (seed, step, image id): it depends neither on the other images of the batch
    nor on the number of processes, and a resumed run repeats it.

    Args:
        encoder: decodes token ids to text.
        sampling: K and the sampling distribution.
        seed: of the draws.
        feature_cache: keeps the image features of the training images over epochs; None to compute them.
        keep_prompt_cache: leave the prompts' keys and values in the rollout, to score with them.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        sampling: Sampling,
        *,
        seed: int = 0,
        feature_cache: FeatureCache | None = None,
        keep_prompt_cache: bool = False,
    ):
        self.encoder = encoder
        self.sampling = sampling
        self.seed = seed
        self.feature_cache = feature_cache
        self.keep_prompt_cache = keep_prompt_cache

    @torch.no_grad()
    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        image_ids: Sequence[str],
        step: int,
        kept: KeptFeatures | None = None,
    ) -> Rollout:
        """The rollout of B images. Call with the model in eval mode.

        Args:
            policy: the model.
            prompts: B prompts.
            image_ids: B ids, which decide the draws.
            step: optimizer steps so far.
            kept: what the feature cache holds of these images.
        """
        uniforms = rollout_uniforms(
            image_ids,
            seed=self.seed,
            step=step,
            num_samples=self.sampling.num_samples,
            length=self.sampling.max_new_tokens,
        )
        features = None
        if self.feature_cache is not None:
            features = self.feature_cache.features(policy, prompts, image_ids, kept)
        return rollout(
            policy,
            self.encoder,
            prompts,
            self.sampling,
            uniforms,
            features,
            keep_prompt_cache=self.keep_prompt_cache,
        )
