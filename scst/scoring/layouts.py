"""The sequences that captions are scored in: prompt and captions, laid out for one forward pass.

Two layouts behind one signature, proven equal by test. ``plain`` repeats the prompt for every caption.
``packed`` runs the prompt once per image with its captions beside it (a shared prefix with a block mask),
which saves most of the arithmetic. With a cached prompt the captions alone are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scst.models import masks
from scst.models.policy import Policy
from scst.rollout.cache import ConstantPrompt
from scst.types import ImageFeatures, PromptBatch, select_images


@dataclass(frozen=True)
class Captions:
    """R captions to score, in the order of their images.

    Attributes:
        image: (R,) index of the image, counted over the images that have captions to score.
        ids: (R, T) token ids, without trailing columns of padding.
        mask: (R, T) bool.
        positions: (R, T) index within the caption, 0 for the first token.
    """

    image: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def flatten_captions(
    ids: torch.Tensor, mask: torch.Tensor, is_scored: torch.Tensor
) -> tuple[Captions, torch.Tensor]:
    """The captions where ``is_scored`` (B, K), and the indices (b,) of the images that have any.

    Args:
        ids: (B, K, T) token ids.
        mask: (B, K, T) bool.
        is_scored: (B, K) bool, True at least once.
    """
    # Images without captions to score leave the batch: their prompt would be computed for nothing.
    images, image = is_scored.nonzero()[:, 0].unique(return_inverse=True)
    length = mask[is_scored].sum(-1).max()
    ids, mask = ids[is_scored][:, :length], mask[is_scored][:, :length]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Captions(image, ids, mask, positions), images


def plain_states(
    policy: Policy, prompts: PromptBatch, image_features: ImageFeatures, captions: Captions
) -> torch.Tensor:
    """(N, D) hidden states that predict the N tokens, the prompt repeated for each of the R captions."""
    repeated = prompts.select(captions.image)
    features = select_images(image_features, captions.image)
    # Position t predicts token t + 1: the last prompt token predicts the first caption token, and the last
    # caption token is no input at all. So T tokens are predicted from T positions starting at P - 1.
    mask = masks.suffix_mask(repeated, captions.mask[:, :-1])
    inputs = policy.from_prompts(repeated, features, mask, captions.ids[:, :-1], captions.positions[:, 1:])
    states = policy.hidden_states(inputs)
    return states[:, prompts.input_ids.shape[1] - 1 :][captions.mask]


def packed_states(
    policy: Policy, prompts: PromptBatch, image_features: ImageFeatures, captions: Captions
) -> torch.Tensor:
    """(N, D) hidden states that predict the N tokens, from one sequence per image.

    The sequence is the prompt, then the tokens of all captions without padding between them; a caption sees
    the prompt and itself. Sequences are padded to the image with most caption tokens.
    """
    packed = pack(captions, len(prompts), policy.pad_token_id)
    mask = masks.shared_prefix_mask(prompts, packed.caption)
    states = policy.hidden_states(
        policy.from_prompts(prompts, image_features, mask, packed.ids, packed.positions)
    )
    return packed.predicting(states[:, prompts.input_ids.shape[1] - 1 :], captions)


def constant_prompt_states(
    policy: Policy, prompts: PromptBatch, prompt_cache: torch.Tensor, captions: Captions
) -> torch.Tensor:
    """(N, D) the same states, without the gradient that flows through keys and values of the prompt."""
    packed = pack(captions, len(prompts), policy.pad_token_id)
    # The last prompt token is computed again, with gradients: its output predicts the first token of every
    # caption. Its own keys and values are masked out, because the cache already holds them.
    ids = torch.cat([prompts.input_ids[:, -1:], packed.ids], 1)
    distances = torch.nn.functional.pad(packed.positions, (1, 0))
    inputs = policy.behind(
        prompts.last_positions, masks.continuation_mask(prompts, packed.caption), ids, distances
    )
    states = policy.hidden_states(inputs, cache=ConstantPrompt(prompt_cache))
    return packed.predicting(states, captions)


@dataclass(frozen=True)
class PackedCaptions:
    """The input tokens of all captions, concatenated into one sequence per image.

    Attributes:
        ids: (b, S) token ids; the last token of a caption predicts nothing and is left out.
        positions: (b, S) distance from the last prompt token. Every caption starts at 1 again.
        caption: (b, S) index of the caption a token belongs to, -1 on padding.
        columns: (R, T - 1) column of each caption token in its image's sequence.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    caption: torch.Tensor
    columns: torch.Tensor

    def predicting(self, states: torch.Tensor, captions: Captions) -> torch.Tensor:
        """(N, D) the states that predict the N caption tokens.

        Args:
            states: (b, 1 + S, D) of the last prompt token, then of the sequence.
            captions: that were packed.
        """
        # The first token of every caption is predicted by column 0, the last prompt token.
        columns = torch.nn.functional.pad(self.columns + 1, (1, 0), value=0)
        image = captions.image.unsqueeze(1).expand_as(columns)
        return states[image[captions.mask], columns[captions.mask]]


def pack(captions: Captions, num_images: int, pad_token_id: int) -> PackedCaptions:
    """Concatenate the captions of every image."""
    is_input = captions.mask[:, 1:]
    columns = _columns(captions.image, is_input, num_images)
    width = int(columns.masked_fill(~is_input, -1).max()) + 1 if columns.numel() else 0
    place = (captions.image.unsqueeze(1).expand_as(columns)[is_input], columns[is_input])

    def laid_out(values: torch.Tensor, fill: int) -> torch.Tensor:
        out = values.new_full((num_images, width), fill)
        return out.index_put(place, values.expand_as(columns)[is_input])

    caption = torch.arange(len(captions.ids), device=columns.device).unsqueeze(1)
    return PackedCaptions(
        laid_out(captions.ids[:, :-1], pad_token_id),
        laid_out(captions.positions[:, 1:], 0),
        laid_out(caption, -1),
        columns,
    )


def _columns(image: torch.Tensor, is_input: torch.Tensor, num_images: int) -> torch.Tensor:
    """(R, T - 1) column of each caption token in its image's sequence: its caption's start plus its index."""
    lengths = is_input.sum(1)
    per_image = lengths.new_zeros(num_images).index_add(0, image, lengths)
    before_image = per_image.cumsum(0) - per_image
    start = lengths.cumsum(0) - lengths - before_image[image]
    return start.unsqueeze(1) + torch.arange(is_input.shape[1], device=image.device)


LAYOUTS: dict[str, Callable[..., torch.Tensor]] = {"packed": packed_states, "plain": plain_states}
