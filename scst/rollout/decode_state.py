"""The state of a rollout between decode steps: tokens so far, unfinished rows, and their slots.

A *row* is one caption being sampled: row 0 of an image is greedy, rows 1..K are drawn. A *slot* is one query
position of a decode step: the model computes one new token position per slot. Rows of an image with the same
tokens so far (the same prefix) have the same next-token distribution, so they share one slot and differ only
in what they draw from it. Finished rows have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scst.models.policy import Policy
from scst.rollout import distribution
from scst.types import Sampling

MAX_DRAWN_LOGITS = 2**24
"""Logits that are sampled from at a time: drawing takes several times their memory, in double precision."""


@dataclass(frozen=True)
class Slots:
    """Inputs of one decode step: S slots for each of the b images that still have unfinished rows.

    Attributes:
        kept: (images of the step before,) bool, the images that stay in the cache.
        images: (b,) index of each image in the batch.
        tokens: (b, S) newest token of each slot. An image with fewer than S distinct prefixes fills its last
            slots with rows that are finished or share another slot; their logits are never read.
        visible: (b, S, C) bool, the generated columns of the cache that hold the slot's own prefix.
    """

    kept: torch.Tensor
    images: torch.Tensor
    tokens: torch.Tensor
    visible: torch.Tensor


class DecodeState:
    """All rows (B, R = K + 1) of a rollout: their tokens, which are unfinished, which slot serves each.

    The bookkeeping lives on the CPU: its tensors are tiny, and the tokens must be copied there once a step
    anyway, to know whether any row is unfinished.

    Args:
        policy: the model.
        sampling: the distribution.
        uniforms: (B, K, T) numbers that decide the draws.
        fixed: give every row of every image a slot at every step, for decode steps that cannot change shape
            (recorded graphs, processes in lockstep).
    """

    def __init__(self, policy: Policy, sampling: Sampling, uniforms: torch.Tensor, *, fixed: bool = False):
        self.policy, self.sampling, self.fixed = policy, sampling, fixed
        self.draws = torch.cat([uniforms.new_zeros(len(uniforms), 1, uniforms.shape[2]), uniforms], 1)
        shape = self.draws.shape
        self.count = shape[1]
        self.ids = torch.full(shape, policy.pad_token_id)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self.logprobs = torch.zeros(shape)
        self.step = 0
        self.active = torch.ones(shape[:2], dtype=torch.bool)
        self.images = torch.arange(shape[0])  # those in the cache
        self.leader = torch.zeros(shape[:2], dtype=torch.long)  # first unfinished row with the same prefix
        self.slot = torch.zeros(shape[:2], dtype=torch.long)  # slot of each leader; undefined for other rows
        self.visible = torch.zeros((*shape[:2], 0), dtype=torch.bool)  # cache columns of the row's prefix

    def append_tokens(self, logits: torch.Tensor) -> None:
        """Choose the next token of every unfinished row from the logits (b, S, V) of the slots."""
        image, row = self.active.nonzero(as_tuple=True)
        # The cache and the logits hold only images with unfinished rows: index b of the image, not B.
        place = torch.zeros(len(self.active), dtype=torch.long)
        place[self.images] = torch.arange(len(self.images))
        slot = self.slot[image, self.leader[image, row]]
        tokens, logprobs = self._choose(logits, place[image], slot, self.draws[image, row, self.step], row)
        self.ids[image, row, self.step] = tokens
        self.logprobs[image, row, self.step] = logprobs
        self.mask[image, row, self.step] = True
        self.active[image, row] = tokens != self.policy.eos_token_id
        self.step += 1

    def next_slots(self) -> Slots:
        """Assign one decode slot to each distinct unfinished prefix; drop images without unfinished rows."""
        tokens = self.ids[:, :, self.step - 1]
        # Two prefixes agree when they agreed one token ago (same leader) and their newest tokens agree. The
        # leader itself may have finished since: its followers then agree among themselves only.
        agrees = (self.leader[:, :, None] == self.leader[:, None]) & (tokens[:, :, None] == tokens[:, None])
        self.leader = (agrees & self.active[:, None]).int().argmax(-1)  # argmax: the first True
        leads = self.active & (self.leader == torch.arange(self.count))
        num_slots = leads.sum(1)
        kept = (num_slots[self.images] > 0) | self.fixed
        self.images = self.images[kept]
        # Every image gets as many slots as the one with most distinct prefixes: leaders first, then fillers.
        most = self.count if self.fixed else num_slots.max()
        rows = leads.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        self.slot.scatter_(1, rows, torch.arange(rows.shape[1]).expand_as(rows))
        # The step appends one cache column per slot. A row sees the column of its leader, and never another.
        self.visible = torch.cat([self.visible, self.leader[:, :, None] == rows[:, None]], 2)
        rows, images = rows[self.images], self.images[:, None]
        return Slots(kept, self.images, tokens[images, rows], self.visible[images, rows])

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, mask and logprobs (B, R, steps) on the policy's device."""
        ids, mask, logprobs = (
            part[:, :, : self.step].to(self.policy.device) for part in (self.ids, self.mask, self.logprobs)
        )
        return ids, mask, logprobs

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
        tokens, logprobs = zip(*chunks, strict=True)
        return torch.cat(tokens).cpu(), torch.cat(logprobs).cpu()


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
    shaped = distribution.policy_logits(
        logits,
        positions=positions,
        sampling=sampling,
        forbidden=policy.forbidden,
        eos_token_id=policy.eos_token_id,
    )
    tokens = shaped.argmax(-1)
    if not greedy.all():  # drawing takes several times the memory of the logits
        tokens = torch.where(greedy, tokens, distribution.draw(shaped, draws))
    return tokens, distribution.token_logprobs(shaped, tokens)
