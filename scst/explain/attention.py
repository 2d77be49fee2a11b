"""Attention rollout: how much of the image reaches a word through the attention of all layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from scst.explain.attribution_target import AttributionTarget
from scst.explain.gradients import enlarge


def attention_rollout(target: AttributionTarget) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, eq. 1) from words to patches.

    In every layer the attention weights are averaged over heads, mixed half and half with the identity (the
    residual path) and multiplied with those of the layers below: through the decoder from the position that
    predicts a token to the image tokens, then through the vision tower to the patches. It knows no gradient:
    it tells where information could come from, not what it did.

    Returns:
        (1 + W, H, W') maps that sum to the share of attention that reaches the image at all; the whole
        caption's is the mean over its tokens.
    """
    policy = target.policy
    inner: Any = policy.inner  # transformers' class, whose parts have no types
    with eager_attention(inner), torch.no_grad():
        tower, decoder = policy.family.vision_parts(inner)[0], policy.decoder
        with recorded_attention(tower) as seen, recorded_attention(decoder) as read:
            target.token_logprobs(target.pixels)
    to_patches = _rollout(seen)  # (h * w, h * w)
    through_decoder = _rollout(read)  # (P + T, P + T)
    is_image = target.prompts.image_mask[0]
    first = len(is_image) - 1  # this position predicts the first token
    rows = through_decoder[first : first + target.ids.shape[1], : len(is_image)][:, is_image.cpu()]
    tokens = (rows @ to_patches).unflatten(1, target.grid)  # (T, h, w)
    maps = [tokens.mean(0), *(tokens[list(word.tokens)].mean(0) for word in target.words)]
    area = target.pixels.shape[-2] * target.pixels.shape[-1] / tokens[0].numel()
    return np.stack([enlarge(each, target.pixels.shape[-2:]) / area for each in maps])


def _rollout(layers: list[torch.Tensor]) -> torch.Tensor:
    """(L, L) product over layers, the last one on the left, of (weights + identity) / 2."""
    result = torch.eye(layers[0].shape[-1], dtype=torch.float64)
    for weights in layers:
        mean = weights[0].double().mean(0).cpu()
        result = (mean + torch.eye(len(mean), dtype=torch.float64)) / 2 @ result
    return result


@contextmanager
def recorded_attention(part: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The attention weights (N, heads, L, L) of every layer of a part, in the order they are computed."""
    found: list[torch.Tensor] = []
    layers = [module for name, module in part.named_modules() if name.endswith("self_attn")]
    hooks = [layer.register_forward_hook(lambda module, args, out: found.append(out[1])) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Inside, attention weights exist: other kernels never write them down."""
    before = {id(c): (c, c._attn_implementation) for c in _configurations(model)}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, implementation in before.values():
            config._attn_implementation = implementation


def _configurations(model: nn.Module) -> list:
    return [module.config for module in model.modules() if hasattr(module, "config")]
