"""The scoring pass written as the library would do it, and captions to compare on."""

from __future__ import annotations

import torch

from scst.adapters.lora import add_lora
from scst.models.policy import Policy, policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout import distribution
from tests.support.tiny import build_model

UNPADDED = ["caption en"] * 4


PADDED = ["caption en", "caption en", "describe this image in detail", "caption en"]


EOS, PAD = 1, 0


def make_policy(processor, *, version: int = 1, checkpointing: bool = False, **config) -> Policy:
    """A policy with a LoRA that does something, ready for training."""
    model = build_model(processor, version=version, **config)
    model = add_lora(model, targets="decoder-attention-mlp", rank=4, alpha=8.0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy_for(model.train(), processor)


def random_captions(num_captions: int, num_images: int = 4, length: int = 8, seed: int = 0):
    """Ids and mask (B, K, T): captions of 1 to T tokens, the shorter ones with <eos> at their end."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, num_captions, length)
    ids = torch.randint(300, 380, shape, generator=generator)
    lengths = torch.randint(1, length + 1, shape[:2], generator=generator).unsqueeze(-1)
    lengths[0, 0] = length
    place = torch.arange(length)
    ids = ids.masked_fill((place == lengths - 1) & (lengths < length) & (lengths > 1), EOS)
    mask = place < lengths
    return ids.masked_fill(~mask, PAD), mask


def usual_logits(policy: Policy, processor, images, prompts, ids) -> torch.Tensor:
    """(B, K, T, V) logits by the library's own forward from pixels, the prompt repeated for every caption."""
    inputs = PromptEncoder.of(processor).encode_prompts(images, prompts)
    num_captions, length = ids.shape[1:]
    rows = {name: tensor.repeat_interleave(num_captions, 0) for name, tensor in inputs.items()}
    captions = ids.flatten(0, 1)
    attention = torch.cat([rows["attention_mask"], torch.ones_like(captions)], 1)
    logits = policy.inner(
        input_ids=torch.cat([rows["input_ids"], captions], 1),
        attention_mask=attention,
        token_type_ids=torch.cat([rows["token_type_ids"], torch.ones_like(captions)], 1),
        position_ids=attention.cumsum(1).clamp(min=1),
        pixel_values=rows["pixel_values"],
    ).logits
    return logits[:, -length - 1 : -1].unflatten(0, ids.shape[:2])


def usual_scores(policy, logits, ids, mask, sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and entropy (B, K, T) of full logits, all at once."""
    shaped = distribution.policy_logits(
        logits,
        positions=torch.arange(ids.shape[-1]).expand_as(ids),
        sampling=sampling,
        forbidden=policy.forbidden,
        eos_token_id=EOS,
        keep_ids=ids,
    )
    shaped = torch.where(mask.unsqueeze(-1), shaped, 0.0)
    return (
        distribution.token_logprobs(shaped, ids).masked_fill(~mask, 0.0),
        distribution.logprobs_and_entropy(shaped, ids)[1].masked_fill(~mask, 0.0),
    )


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of all trainable weights in one vector."""
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])


def assert_same_gradient(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert expected.norm() > 0
    assert (actual - expected).norm() / expected.norm() < tolerance


def weights_of(ids: torch.Tensor) -> torch.Tensor:
    """(B, K, 1) weights that no accident makes equal."""
    return torch.randn(*ids.shape[:2], 1, generator=torch.Generator().manual_seed(7))


def duplicates_and_zeros():
    """Four images of four captions: duplicates in three, a pair with opposite advantages, zeros."""
    ids, mask = random_captions(4, seed=3)
    for image, source, copy in ((0, 0, 2), (1, 1, 3), (1, 1, 2), (2, 0, 1)):
        ids[image, copy], mask[image, copy] = ids[image, source], mask[image, source]
    advantages = torch.tensor(
        [[0.5, 0.0, 0.7, -0.2], [0.0, 0.3, 0.3, 0.3], [0.4, -0.4, 0.0, 0.0], [0.0, -1.0, 0.0, 0.2]]
    )
    return ids, mask, advantages
