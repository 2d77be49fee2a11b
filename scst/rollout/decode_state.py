"""The rows of a rollout: what they hold, which go on, which agree so far, and what they choose next."""

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


class Rows:
    """All rows (B, R = K + 1) of a rollout: what they hold, which still go on, and which agree so far.

    Bookkeeping lives on the CPU: its tensors are tiny, and the tokens must come there anyway, once a step,
    to know whether to go on.

    Args:
        policy: the model.
        sampling: the distribution.
        uniforms: (B, K, T) numbers that decide the draws.
        fixed: a slot for every row of every image at every step, for decoding that cannot change its shapes.
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

    def next_slots(self) -> Slots:
        """Give every different beginning that goes on a slot, and forget the images that have ended."""
        tokens = self.ids[:, :, self.step - 1]
        agrees = (self.leader[:, :, None] == self.leader[:, None]) & (tokens[:, :, None] == tokens[:, None])
        self.leader = (agrees & self.active[:, None]).int().argmax(-1)  # the first active row that agrees
        leads = self.active & (self.leader == torch.arange(self.count))
        num_slots = leads.sum(1)
        kept = (num_slots[self.images] > 0) | self.fixed
        self.images = self.images[kept]
        most = self.count if self.fixed else num_slots.max()
        rows = leads.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        self.slot.scatter_(1, rows, torch.arange(rows.shape[1]).expand_as(rows))
        self.visible = torch.cat([self.visible, self.leader[:, :, None] == rows[:, None]], 2)
        rows, images = rows[self.images], self.images[:, None]
        return Slots(kept, self.images, tokens[images, rows], self.visible[images, rows])

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
