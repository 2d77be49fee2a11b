"""Sample captions: one vision pass and one prefill per image, then greedy and sampled rows decoded together.

Row 0 of every image is greedy, rows 1..K are sampled. `generate` called twice would encode every image twice,
prefill and store the prompt K + 1 times, and compute every row until the longest has ended. Here the prompt's
keys and values exist once per image (:mod:`scst.rollout.cache`), and a decode step computes *slots*: one for
each different beginning of a caption that still goes on. Rows that have ended take no slot, rows of an image
that agree so far share one, and an image leaves when all its rows have ended. The draws are a function of
(uniform number, distribution) alone, so none of this changes a caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scst import ops
from scst.models import masks
from scst.models.policy import Policy
from scst.models.prompts import decode_captions
from scst.rollout.cache import RolloutCache, prefill
from scst.types import PromptBatch, Rollout, Sampling

MAX_DRAWN_LOGITS = 2**24
"""Logits that are sampled from at a time: drawing takes several times their memory, in double precision."""


@torch.no_grad()
def rollout(
    policy: Policy,
    processor: Any,
    prompts: PromptBatch,
    sampling: Sampling,
    uniforms: torch.Tensor,
    image_features: torch.Tensor | None = None,
    keep_prompt_cache: bool = False,
) -> Rollout:
    """Greedy caption and K sampled captions of every image. Call with the model in eval mode.

    Args:
        policy: the model.
        processor: decodes token ids to text.
        prompts: B prompts.
        sampling: K and the sampling distribution.
        uniforms: (B, K, T) numbers in [0, 1) that decide every draw (:func:`scst.ops.rollout_uniforms`).
        image_features: (B, N, D) when they are known (:mod:`scst.rollout.features`); computed here when None.
        keep_prompt_cache: leave the prompts' keys and values in the rollout, to score with them.

    Returns:
        The rollout; its tensors are on the policy's device.

    Raises:
        ValueError: when ``uniforms`` does not have shape (B, K, max_new_tokens).
    """
    expected = (len(prompts), sampling.num_samples, sampling.max_new_tokens)
    if tuple(uniforms.shape) != expected:
        raise ValueError(f"uniforms must have shape (B, K, T) = {expected}, got {tuple(uniforms.shape)}")
    prompts = prompts.to(policy.device)
    features = policy.image_features(prompts.pixel_values) if image_features is None else image_features
    ids, mask, logprobs, prompt_cache = _decode(
        policy, prompts, features, sampling, uniforms.cpu(), keep_prompt_cache
    )
    is_text = mask & (ids != policy.eos_token_id)
    texts = decode_captions(processor, ids.flatten(0, 1), is_text.flatten(0, 1))
    per_image = sampling.num_samples + 1
    groups = [texts[start : start + per_image] for start in range(0, len(texts), per_image)]
    ended = (ids == policy.eos_token_id).logical_and(mask).any(-1)
    return Rollout(
        prompts=prompts,
        completion_ids=ids[:, 1:],
        completion_mask=mask[:, 1:],
        sampled_logprobs=logprobs[:, 1:],
        greedy_ids=ids[:, 0],
        greedy_mask=mask[:, 0],
        captions=[group[1:] for group in groups],
        greedy_captions=[group[0] for group in groups],
        ended_by_eos=ended[:, 1:],
        greedy_ended_by_eos=ended[:, 0],
        image_features=None if policy.vision_is_trainable else features,
        prompt_cache=prompt_cache,
    )


def _decode(
    policy: Policy,
    prompts: PromptBatch,
    features: torch.Tensor,
    sampling: Sampling,
    uniforms: torch.Tensor,
    keep_prompt_cache: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids, mask and logprobs (B, K + 1, T') of all rows, and the prompt cache; stops when all have ended."""
    policy.check_length(prompts.input_ids.shape[1] + sampling.max_new_tokens)
    rows = _Rows(policy, sampling, uniforms)
    cache = RolloutCache(policy.text_config.num_hidden_layers, rows.count * (sampling.max_new_tokens - 1))
    rows.append_tokens(prefill(policy, prompts, features, cache))
    prompt_cache = cache.prompts() if keep_prompt_cache else None
    last_prompt_position = prompts.position_ids[:, -1:]
    while rows.active.any() and rows.step < sampling.max_new_tokens:
        slots = rows.next_slots()
        cache.keep_images(slots.kept.to(policy.device))
        images, tokens = slots.images.to(policy.device), slots.tokens.to(policy.device)
        logits = policy.forward(
            policy.caption_embeddings(tokens),
            masks.slot_mask(prompts.attention_mask[images], slots.visible.to(policy.device)),
            (last_prompt_position[images] + rows.step).expand(tokens.shape),
            keep=tokens.shape[1],
            cache=cache,
        )
        rows.append_tokens(logits)
    return *rows.results(), prompt_cache


@dataclass(frozen=True)
class _Slots:
    """What one decode step computes: S slots for each of the b images that go on.

    Attributes:
        kept: (images of the step before,) bool, those that go on.
        images: (b,) index of the image.
        tokens: (b, S) newest token of each slot. Where an image needs fewer than S slots, the last ones
            repeat rows that have ended or share another slot; nobody reads their logits.
        visible: (b, S, C) bool, the generated columns of the cache that hold the slot's own past.
    """

    kept: torch.Tensor
    images: torch.Tensor
    tokens: torch.Tensor
    visible: torch.Tensor


class _Rows:
    """All rows (B, R = K + 1) of a rollout: what they hold, which still go on, and which agree so far.

    Bookkeeping lives on the CPU: its tensors are tiny, and the tokens must come there anyway, once a step,
    to know whether to go on.

    Args:
        policy: the model.
        sampling: the distribution.
        uniforms: (B, K, T) numbers that decide the draws.
    """

    def __init__(self, policy: Policy, sampling: Sampling, uniforms: torch.Tensor):
        self.policy, self.sampling = policy, sampling
        self.draws = torch.cat([torch.zeros_like(uniforms[:, :1]), uniforms], 1)
        shape = self.draws.shape
        self.count = shape[1]
        self.ids = torch.full(shape, policy.pad_token_id)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self.logprobs = torch.zeros(shape)
        self.step = 0
        self.active = torch.ones(shape[:2], dtype=torch.bool)
        self.images = torch.arange(shape[0])  # those in the cache
        self.leader = torch.zeros(shape[:2], dtype=torch.long)  # the row whose slot serves this row
        self.slot = torch.zeros(shape[:2], dtype=torch.long)  # of leading rows
        self.visible = torch.zeros((*shape[:2], 0), dtype=torch.bool)  # cache columns of the row's past

    def append_tokens(self, logits: torch.Tensor) -> None:
        """Choose the next token of every active row from the logits (b, S, V) of the slots."""
        image, row = self.active.nonzero(as_tuple=True)
        place = torch.zeros(len(self.active), dtype=torch.long)
        place[self.images] = torch.arange(len(self.images))
        slot = self.slot[image, self.leader[image, row]]
        tokens, logprobs = self._choose(logits, place[image], slot, self.draws[image, row, self.step], row)
        self.ids[image, row, self.step] = tokens
        self.logprobs[image, row, self.step] = logprobs
        self.mask[image, row, self.step] = True
        self.active[image, row] = tokens != self.policy.eos_token_id
        self.step += 1

    def next_slots(self) -> _Slots:
        """Give every different beginning that goes on a slot, and forget the images that have ended."""
        tokens = self.ids[:, :, self.step - 1]
        agrees = (self.leader[:, :, None] == self.leader[:, None]) & (tokens[:, :, None] == tokens[:, None])
        self.leader = (agrees & self.active[:, None]).int().argmax(-1)  # the first active row that agrees
        leads = self.active & (self.leader == torch.arange(self.count))
        num_slots = leads.sum(1)
        kept = num_slots[self.images] > 0
        self.images = self.images[kept]
        rows = leads.int().argsort(dim=1, descending=True, stable=True)[:, : num_slots.max()]
        self.slot.scatter_(1, rows, torch.arange(rows.shape[1]).expand_as(rows))
        self.visible = torch.cat([self.visible, self.leader[:, :, None] == rows[:, None]], 2)
        rows, images = rows[self.images], self.images[:, None]
        return _Slots(kept, self.images, tokens[images, rows], self.visible[images, rows])

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and logprobs (B, R, steps) on the policy's device."""
        parts = (self.ids, self.mask, self.logprobs)
        return tuple(part[:, :, : self.step].to(self.policy.device) for part in parts)

    def _choose(
        self,
        logits: torch.Tensor,
        image: torch.Tensor,
        slot: torch.Tensor,
        draws: torch.Tensor,
        row: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and log probabilities (n,) on the CPU, a bounded number of (n, V) logits at a time."""
        per_chunk = max(1, MAX_DRAWN_LOGITS // logits.shape[-1])
        columns = [c.to(logits.device).split(per_chunk) for c in (image, slot, draws, row == 0)]
        chunks = [
            _next_tokens(self.policy, logits[i, s], self.step, self.sampling, d, greedy)
            for i, s, d, greedy in zip(*columns, strict=True)
        ]
        return tuple(torch.cat(parts).cpu() for parts in zip(*chunks, strict=True))


def _next_tokens(
    policy: Policy,
    logits: torch.Tensor,
    step: int,
    sampling: Sampling,
    draws: torch.Tensor,
    greedy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (n,) and their log probabilities under the sampling distribution."""
    positions = torch.full((logits.shape[0],), step, device=logits.device)
    shaped = ops.policy_logits(
        logits,
        positions=positions,
        sampling=sampling,
        forbidden=policy.forbidden,
        eos_token_id=policy.eos_token_id,
    )
    tokens = torch.where(greedy, shaped.argmax(-1), ops.draw(shaped, draws))
    return tokens, ops.token_logprobs(shaped, tokens)
