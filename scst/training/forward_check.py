"""Before training: this project's forward pass against the model's own, on the first images and captions.

Rollout and scoring hand the decoder embeddings, masks and positions of their own making. Whether those are
what a model was trained with depends on its family and on the version of transformers. The model's own
``forward``, from token ids and pixels, knows: a run begins only where both give the same log probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from scst.data.images import image_bytes, open_encoded
from scst.data.streamed_rows import StreamedRows
from scst.errors import ScstError
from scst.models.policy import Policy, evaluation_mode, policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout import distribution
from scst.scoring.agreement import LogprobGap, logprob_gap
from scst.scoring.score_captions import score
from scst.types import PromptBatch, Sampling

NUM_IMAGES = 2
EXTRA_PADDING = 3
"""Columns of padding before the prompts of the pass that measures rounding."""
_UNSHAPED = Sampling(1, min_new_tokens=0)


def check_forward(model: torch.nn.Module, collator: Any, rows: Any) -> LogprobGap:
    """Refuse a model that this project computes otherwise than the model itself.

    Args:
        model: with or without adapter, not yet wrapped for devices.
        collator: of either stage: the encoder and an instruction of its prompts.
        rows: what is trained on, with ``image`` and ``references``; the first of them are looked at.

    Raises:
        ScstError: naming the gap.
    """
    first = rows.first(NUM_IMAGES) if isinstance(rows, StreamedRows) else rows
    examples = [first[i] for i in range(min(NUM_IMAGES, len(first)))]
    policy = policy_for(model, collator.encoder)
    with evaluation_mode(model), torch.no_grad():
        gap = forward_gap(
            policy,
            collator.encoder,
            [_picture(row["image"]) for row in examples],
            [collator.prompts.prompts[0]] * len(examples),
            [row["references"][0] for row in examples],
        )
    if not gap.is_rounding:
        raise ScstError(
            f"model_name_or_path: the forward pass of this project and the model's own differ by {gap}. This "
            f"model (model_type {policy.inner.config.model_type!r}) is not computed right with the installed "
            "version of transformers; nothing was trained. Please report both"
        )
    return gap


def _picture(image: Any) -> Image.Image:
    """An image of a row, decoded or not."""
    return image if isinstance(image, Image.Image) else open_encoded(image_bytes(image))


def forward_gap(
    policy: Policy,
    encoder: PromptEncoder,
    images: Sequence[Any],
    prompts: Sequence[str],
    captions: Sequence[str],
    max_new_tokens: int = 32,
) -> LogprobGap:
    """How far apart the log probabilities of captions are, by this project and by the model itself."""
    batch = encoder.encode_captions(images, prompts, captions, max_new_tokens=max_new_tokens)
    prompt_batch = encoder.prompt_batch(images, prompts).to(policy.device)
    labels = batch.pop("labels").to(policy.device)[:, prompt_batch.input_ids.shape[1] :]
    mask = labels >= 0
    ids = labels.masked_fill(~mask, policy.pad_token_id)
    own = own_logprobs(policy, {name: each.to(policy.device) for name, each in batch.items()}, ids)
    ours = _scored(policy, prompt_batch, ids, mask)
    backwards = torch.arange(len(ids)).flip(0)
    other = prompt_batch.select(backwards).padded(EXTRA_PADDING, policy.pad_token_id)
    again = _scored(policy, other, ids.flip(0), mask.flip(0)).flip(0)
    dtype = next(parameter.dtype for parameter in policy.head.parameters())
    if torch.is_autocast_enabled(policy.device.type):
        dtype = torch.get_autocast_dtype(policy.device.type)
    return logprob_gap(ours, again, own.masked_fill(~mask, 0.0), mask, dtype)


def own_logprobs(policy: Policy, batch: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """(B, T) log probabilities of caption tokens by the model's own ``forward``.

    Args:
        policy: the model.
        batch: its inputs, without labels; positions are left to the model.
        ids: (B, T) the last tokens of the sequences.
    """
    own = {name: tensor for name, tensor in batch.items() if name != "position_ids"}
    length = ids.shape[1]
    logits = policy.inner(**own, use_cache=False, logits_to_keep=length + 1).logits[:, -length - 1 : -1]
    tokens = ids.flatten()
    shaped = distribution.policy_logits(
        logits.flatten(0, 1),
        positions=torch.arange(length, device=ids.device).repeat(len(ids)),
        sampling=_UNSHAPED,
        forbidden=policy.forbidden,
        eos_token_id=policy.eos_token_id,
        keep_ids=tokens,
    )
    return distribution.token_logprobs(shaped, tokens).view_as(ids)


def _scored(policy: Policy, prompts: PromptBatch, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return score(policy, prompts, ids.unsqueeze(1), mask.unsqueeze(1), _UNSHAPED).logprobs.squeeze(1)
