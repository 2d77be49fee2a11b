"""Every type of adapter in every pass: scoring, rollout, `generate`; padded or not, checkpointed or not."""

from __future__ import annotations

import pytest
import torch

from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.scoring.score_captions import LAYOUTS, score
from scst.types import Sampling
from tests.support.adapted import KINDS, adapted, policy_of
from tests.support.rollouts import uniforms
from tests.support.scoring import (
    PADDED,
    UNPADDED,
    assert_same_gradient,
    gradient,
    random_captions,
    usual_logits,
    usual_scores,
    weights_of,
)
from tests.support.tiny import build_model


@pytest.fixture(params=[1, 2], ids=["paligemma1", "paligemma2"])
def version(request):
    """Of PaliGemma: sdpa with bool masks, eager with additive ones and softcapping."""
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [UNPADDED[:2], PADDED[1:3]], ids=["unpadded", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_usual_way(tiny_processor, images, version, kind, prompts):
    """Packed and plain, with and without gradient checkpointing, against the library's own forward pass."""
    model, processor = adapted(kind, build_model(tiny_processor, version=version), tiny_processor)
    policy = policy_of(model.train(), processor)
    ids, mask = random_captions(2, num_images=2)
    sampling, weights = Sampling(num_samples=2), weights_of(ids)
    logits = usual_logits(policy, processor, images[:2], prompts, ids)
    logprobs, _ = usual_scores(policy, logits, ids, mask, sampling)
    expected = gradient(policy, (weights * logprobs).sum())
    batch = PromptEncoder.of(processor).prompt_batch(images[:2], prompts)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for layout in LAYOUTS:
            scores = score(policy, batch, ids, mask, sampling, layout=layout)
            torch.testing.assert_close(scores.logprobs, logprobs.detach(), rtol=0, atol=1e-5)
            assert_same_gradient(gradient(policy, (weights * scores.logprobs).sum()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [UNPADDED[:2], PADDED[1:3]], ids=["unpadded", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_those_of_generate_and_are_scored_alike(tiny_processor, images, version, kind, prompts):
    model, processor = adapted(kind, build_model(tiny_processor, version=version), tiny_processor)
    policy = policy_of(model, processor)
    sampling = Sampling(num_samples=2, max_new_tokens=8, min_new_tokens=3)
    batch = PromptEncoder.of(processor).prompt_batch(images[:2], prompts)
    found = rollout(policy, processor, batch, sampling, uniforms(sampling, 2), keep_prompt_cache=True)
    inputs = PromptEncoder.of(processor).encode_prompts(images[:2], prompts)
    generated = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=8,
        min_new_tokens=3,
        suppress_tokens=policy.forbidden.nonzero().flatten().tolist(),
    )[:, inputs["input_ids"].shape[1] :]
    length = generated.shape[1]
    greedy = found.greedy_ids[:, :length].masked_fill(~found.greedy_mask[:, :length], 0)
    assert torch.equal(greedy, generated)
    assert len(set(generated.flatten().tolist())) > 2, "the test model decodes a constant"
    for prompt_cache in (None, found.prompt_cache):  # the cache holds no prefix: it is added at every call
        with torch.no_grad():
            rows = (batch, found.completion_ids, found.completion_mask, sampling)
            scores = score(policy, *rows, prompt_cache=prompt_cache)
        torch.testing.assert_close(scores.logprobs, found.sampled_logprobs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_future_tokens_change_no_earlier_logprob(tiny_processor, images, version, kind, layout):
    """Bit for bit, in scoring and in the supervised forward pass."""
    model, processor = adapted(kind, build_model(tiny_processor, version=version), tiny_processor)
    policy = policy_of(model, processor)
    ids, mask = torch.randint(300, 380, (2, 2, 8)), torch.ones(2, 2, 8, dtype=torch.bool)
    changed = ids.clone()
    changed[:, 0, 5] = 301 + (changed[:, 0, 5] - 300) % 70
    batch, sampling = (
        PromptEncoder.of(processor).prompt_batch(images[:2], PADDED[1:3]),
        Sampling(num_samples=2),
    )
    with torch.no_grad():
        before, after = (
            score(policy, batch, i, mask, sampling, layout=layout).logprobs for i in (ids, changed)
        )
        logits = [usual_logits(policy, processor, images[:2], UNPADDED[:2], i) for i in (ids, changed)]
    assert torch.equal(before[:, 0, :5], after[:, 0, :5])
    assert torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[:, 0, 6:], after[:, 0, 6:]), "the change had no effect at all"
    assert torch.equal(logits[0][:, 0, :6], logits[1][:, 0, :6])
    assert not torch.equal(logits[0][:, 0, 6:], logits[1][:, 0, 6:])
