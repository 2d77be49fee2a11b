"""Every family against its own implementation in transformers: rollout, scores and gradients are the same."""

from __future__ import annotations

import dataclasses

import torch
from transformers import GenerationConfig

from scst.models.prompts import forbidden_token_ids
from scst.rollout.cache import prompt_cache
from scst.scoring.score_captions import score
from tests.support.families import STEPS, own_logprobs, sampled


def watched_matrices(world):
    """Of the decoder, the projector and the first layer of the vision tower."""
    names = world.encoder.family.names
    parts = (f"{names.decoder}.layers", *names.projector)
    world.model.requires_grad_(False)
    watched = [
        parameter.requires_grad_(True)
        for name, parameter in world.model.named_parameters()
        if parameter.ndim == 2 and (name.startswith(parts) or (names.vision in name and ".0." in name))
    ]
    assert len(watched) > 15
    return watched


@torch.no_grad()
def test_the_greedy_caption_is_that_of_generate(world):
    result, sampling = sampled(world)
    inputs = world.encoder.generation_inputs(world.prompts)
    forbidden = forbidden_token_ids(world.encoder, world.model.config.get_text_config().vocab_size)
    config = GenerationConfig(
        max_new_tokens=STEPS,
        min_new_tokens=sampling.min_new_tokens,
        do_sample=False,
        suppress_tokens=forbidden,
        eos_token_id=world.encoder.eos_token_id,
        pad_token_id=world.encoder.pad_token_id,
        bos_token_id=world.encoder.tokenizer.bos_token_id,
    )
    ids = world.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
    width = min(ids.shape[1], result.greedy_ids.shape[1])
    expected = (
        ids.masked_fill(~result.greedy_mask, world.encoder.pad_token_id) if width == ids.shape[1] else ids
    )
    assert torch.equal(result.greedy_ids[:, :width], expected[:, :width])
    assert len({tuple(row.tolist()) for row in result.completion_ids.flatten(0, 1)}) > 3, "they say little"


def test_sampled_scored_and_own_logprobs_are_the_same(world):
    result, sampling = sampled(world)
    ids, mask = result.completion_ids, result.completion_mask
    with torch.no_grad():
        expected = own_logprobs(world, ids, mask, sampling)
        cache = prompt_cache(world.policy, world.prompts, world.policy.image_features(world.prompts))
        packed, plain, constant = (
            score(world.policy, world.prompts, ids, mask, sampling, **way).logprobs
            for way in ({"layout": "packed"}, {"layout": "plain"}, {"prompt_cache": cache})
        )
    for found in (result.sampled_logprobs, packed, plain, constant):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_gradients_are_the_models_own(world):
    result, sampling = sampled(world)
    ids, mask = result.completion_ids, result.completion_mask
    weights = torch.randn(*ids.shape[:2], 1, generator=torch.Generator().manual_seed(7))
    watched = watched_matrices(world)
    try:
        gradients = []
        for logprobs in (
            own_logprobs(world, ids, mask, sampling),
            score(world.policy, world.prompts, ids, mask, sampling, head_chunk=4).logprobs,
            score(world.policy, world.prompts, ids, mask, sampling, layout="plain").logprobs,
        ):
            parts = torch.autograd.grad((weights * logprobs).sum(), watched)
            assert all(part.norm() > 0 for part in parts)
            gradients.append(torch.cat([part.flatten() for part in parts]))
    finally:
        world.model.requires_grad_(False)
    own, packed, plain = gradients
    assert (packed - own).norm() / own.norm() < 1e-5
    assert (plain - own).norm() / own.norm() < 1e-5


@torch.no_grad()
def test_a_later_token_changes_nothing_earlier(world):
    """Bit for bit, in both layouts."""
    result, sampling = sampled(world)
    ids, mask = result.completion_ids, torch.ones_like(result.completion_mask)
    other = ids.clone()
    other[0, 1, 4] = ids[0, 1, 4] % 100 + 80
    assert other[0, 1, 4] != ids[0, 1, 4]
    for layout in ("packed", "plain"):
        one, two = (
            score(
                world.policy, world.prompts, each, mask, sampling, layout=layout, unique_index=None
            ).logprobs
            for each in (ids, other)
        )
        assert torch.equal(one[0, 1, :4], two[0, 1, :4])
        assert torch.equal(one[0, 0], two[0, 0])
        assert torch.equal(one[0, 2], two[0, 2])
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0, 1, 4:], two[0, 1, 4:])


@torch.no_grad()
def test_the_pixels_of_another_image_change_nothing(world):
    result, sampling = sampled(world)
    prompts = world.prompts
    pixels = prompts.vision[0]["pixel_values"]
    changed = dataclasses.replace(
        prompts, vision=[{**prompts.vision[0], "pixel_values": pixels.flip(-1) * 0.5}, prompts.vision[1]]
    )
    ids, mask = result.completion_ids, result.completion_mask
    one, two = (score(world.policy, each, ids, mask, sampling).logprobs for each in (prompts, changed))
    assert (one[0] - two[0]).abs().max() > 1e-4, "the image is seen"
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=1e-6)
