"""Named records that travel between the rooms, with their shapes.

The shape alphabet of the whole project: ``B`` images, ``K`` sampled captions per image, ``P`` prompt tokens
(image tokens and instruction), ``T`` caption tokens, ``V`` vocabulary, ``D`` width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

IGNORED_LABEL = -100
"""Of tokens that no cross-entropy is computed for, as in torch and transformers."""


@dataclass(frozen=True)
class PromptBatch:
    """What the policy conditions on: images and instructions, left-padded. Never scored.

    Everything that differs between model families is in the values (:mod:`scst.models.families`): rollout and
    scoring read these fields and know no family.

    Attributes:
        input_ids: (B, P) token ids, image placeholders included.
        attention_mask: (B, P) bool, True on real tokens.
        image_mask: (B, P) bool, True where an image feature takes the place of a token.
        position_ids: (B, A, P) positions along A axes: one, or time, height and width (M-RoPE). The last
            token is text: its positions are equal, and captions go on from there.
        block_ids: (B, P) tokens of one block (a number from 0) see each other both ways; -1 is causal.
        vision: B times what the vision tower takes for that image, by the names of the model's arguments.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_mask: torch.Tensor
    position_ids: torch.Tensor
    block_ids: torch.Tensor
    vision: Sequence[Mapping[str, torch.Tensor]]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def last_positions(self) -> torch.Tensor:
        """(B, A) positions of the last tokens."""
        return self.position_ids[:, :, -1]

    def to(self, device: torch.device | str) -> PromptBatch:
        """The same batch on another device."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        vision = [{name: tensor.to(device) for name, tensor in image.items()} for image in self.vision]
        return PromptBatch(**moved, vision=vision)

    def select(self, rows: slice | torch.Tensor) -> PromptBatch:
        """Some images of this batch, or some of them several times."""
        chosen = {name: tensor[rows] for name, tensor in self._tensors().items()}
        return PromptBatch(**chosen, vision=select_images(self.vision, rows))

    def padded(self, columns: int, pad_token_id: int) -> PromptBatch:
        """The same prompts behind so many more columns of padding."""
        values = {"input_ids": pad_token_id, "block_ids": -1}
        padded = {
            name: torch.nn.functional.pad(tensor, (columns, 0), value=values.get(name, 0))
            for name, tensor in self._tensors().items()
        }
        return PromptBatch(**padded, vision=self.vision)

    @classmethod
    def join(cls, batches: Sequence[PromptBatch]) -> PromptBatch:
        """One batch of all images; prompts are padded alike."""
        columns = [batch._tensors() for batch in batches]
        tensors = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
        return cls(**tensors, vision=[image for batch in batches for image in batch.vision])

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "vision"}


ImageFeatures = Sequence[torch.Tensor]
"""B tensors (G, N, D): the N projected features of an image, which take the place of its image tokens, and
behind them those that are added in the first G - 1 decoder layers (DeepStack; G is 1 without)."""


def select_images(values: Sequence[Any], rows: slice | torch.Tensor) -> Sequence[Any]:
    """A value per image, of some images; ``rows`` is what selects them in a tensor of B rows."""
    return [
        values[i] for i in torch.arange(len(values))[rows if isinstance(rows, slice) else rows.cpu()].tolist()
    ]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Scoring uses the very same distribution.

    Attributes:
        num_samples: K, sampled completions per image beside the greedy one.
        temperature: divides the logits; 1 is the policy itself.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this probability mass; 1 keeps all.
        max_new_tokens: length limit T, end-of-sequence token included.
        min_new_tokens: the end-of-sequence token is impossible before this many tokens.
    """

    num_samples: int = 5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 32
    min_new_tokens: int = 1

    def __post_init__(self) -> None:
        rules = (
            (self.num_samples >= 1, "num_samples must be at least 1", self.num_samples),
            (self.temperature > 0, "temperature must be above 0", self.temperature),
            (self.top_k >= 0, "top_k must be 0 (off) or more", self.top_k),
            (0 < self.top_p <= 1, "top_p must lie in (0, 1]", self.top_p),
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1", self.max_new_tokens),
            (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                "min_new_tokens must lie in [0, max_new_tokens]",
                self.min_new_tokens,
            ),
        )
        for holds, rule, value in rules:
            if not holds:
                raise ValueError(f"{rule}, got {value}")


@dataclass(frozen=True)
class Rollout:
    """One generation for a batch of images: the greedy caption and K sampled ones of each.

    Attributes:
        prompts: what was conditioned on.
        completion_ids: (B, K, T) sampled token ids, padding after the end.
        completion_mask: (B, K, T) bool, True on tokens that count: the end-of-sequence token included.
        sampled_logprobs: (B, K, T) natural log of the probability each token was drawn with; 0 on padding.
        greedy_ids: (B, T) token ids of the argmax completion.
        greedy_mask: (B, T) bool.
        captions: B lists of K decoded strings.
        greedy_captions: B decoded strings.
        ended_by_eos: (B, K) bool; False where the length limit cut the caption.
        greedy_ended_by_eos: (B,) bool.
        image_features: of the B images when they can be reused by scoring, else None.
        prompt_cache: (B, layers, 2, heads, P, D) keys and values of the prompts if they were kept.
    """

    prompts: PromptBatch
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    sampled_logprobs: torch.Tensor
    greedy_ids: torch.Tensor
    greedy_mask: torch.Tensor
    captions: list[list[str]]
    greedy_captions: list[str]
    ended_by_eos: torch.Tensor
    greedy_ended_by_eos: torch.Tensor
    image_features: ImageFeatures | None = None
    prompt_cache: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> Rollout:
        """The same rollout on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: v.to(device) for name, v in values.items() if hasattr(v, "to")}
        if self.image_features is not None:
            moved["image_features"] = [features.to(device) for features in self.image_features]
        return replace(self, **moved)

    def select(self, images: slice) -> Rollout:
        """The rollout of some of its images."""
        return replace(self, **{f.name: _select(getattr(self, f.name), images) for f in fields(self)})

    @classmethod
    def join(cls, rollouts: Sequence[Rollout], pad_token_id: int) -> Rollout:
        """One rollout of all images, as if they had been sampled together.

        Args:
            rollouts: of the same K; completions are padded to the longest of all.
            pad_token_id: what ``completion_ids`` and ``greedy_ids`` are padded with.
        """
        if len(rollouts) == 1:
            return rollouts[0]
        padding = {"completion_ids": pad_token_id, "greedy_ids": pad_token_id}
        columns = {f.name: [getattr(r, f.name) for r in rollouts] for f in fields(cls)}
        return cls(**{name: _join(values, padding.get(name, 0)) for name, values in columns.items()})


def _select(value: Any, images: slice) -> Any:
    if isinstance(value, PromptBatch):
        return value.select(images)
    return None if value is None else value[images]


def _join(values: list[Any], padding: int) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, PromptBatch):
        return PromptBatch.join(values)
    if isinstance(first, list):
        return [item for value in values for item in value]
    if first.ndim > 1:  # tokens are the last axis
        length = max(value.shape[-1] for value in values)
        values = [torch.nn.functional.pad(v, (0, length - v.shape[-1]), value=padding) for v in values]
    return torch.cat(values)


@dataclass(frozen=True)
class TokenScores:
    """What the scoring pass returns for completions.

    Attributes:
        logprobs: (B, K, T) natural log probabilities under the sampling distribution; 0 on padding.
        entropy: (B, K, T) entropy of that distribution in nats; 0 on padding. None unless it was asked for.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor | None = None


@dataclass(frozen=True)
class RewardOutput:
    """Rewards of one rollout.

    Attributes:
        sampled: (B, K) reward of every sampled caption; NaN where no reward function had an opinion.
        greedy: (B,) reward of every greedy caption.
        components: reward name -> (B, K) unweighted values.
    """

    sampled: torch.Tensor
    greedy: torch.Tensor
    components: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: decoded, without special tokens.
        ended_by_eos: False when the length limit cut it.
        num_tokens: tokens generated, the end-of-sequence token included.
    """

    text: str
    ended_by_eos: bool
    num_tokens: int
