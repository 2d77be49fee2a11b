"""Rollout and scoring: parity with `generate`, with each other, and no leak from future tokens."""

from __future__ import annotations

import pytest
import torch

from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.scoring.score_captions import LAYOUTS, score
from scst.types import Sampling
from tests.support.rollouts import PROMPTS, make_policy, uniforms


@pytest.mark.parametrize("prompts", [PROMPTS[:2], PROMPTS], ids=["unpadded", "padded"])
def test_greedy_row_equals_generate(policy, tiny_processor, images, prompts):
    sampling = Sampling(num_samples=2, max_new_tokens=10, min_new_tokens=3)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images[: len(prompts)], prompts)
    result = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, len(prompts)))
    inputs = PromptEncoder.of(tiny_processor).encode_prompts(images[: len(prompts)], prompts)
    expected = policy.inner.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=10,
        min_new_tokens=3,
        suppress_tokens=policy.forbidden.nonzero().flatten().tolist(),
    )[:, inputs["input_ids"].shape[1] :]
    length = expected.shape[1]
    assert torch.equal(
        result.greedy_ids[:, :length].masked_fill(~result.greedy_mask[:, :length], 0), expected
    )
    assert len(set(expected.flatten().tolist())) > 2, "the test model decodes a constant"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [1, 8])
@pytest.mark.parametrize(
    "shape", [{}, {"temperature": 1.3}, {"top_k": 7, "temperature": 0.8}, {"top_p": 0.9}], ids=str
)
def test_rollout_logprobs_equal_scored_logprobs(policy, tiny_processor, images, layout, num_samples, shape):
    sampling = Sampling(num_samples=num_samples, max_new_tokens=9, **shape)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)
    result = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    with torch.no_grad():
        scores = score(
            policy, result.prompts, result.completion_ids, result.completion_mask, sampling, layout=layout
        )
    torch.testing.assert_close(scores.logprobs, result.sampled_logprobs, rtol=0, atol=1e-5)


def test_packed_gradients_equal_plain_gradients(policy, tiny_processor, images):
    sampling = Sampling(num_samples=3, max_new_tokens=9)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)
    result = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    weights = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for layout in LAYOUTS:
        policy.inner.zero_grad()
        captions = result.completion_ids, result.completion_mask
        scores = score(policy, result.prompts, *captions, sampling, layout=layout, with_entropy=True)
        ((weights * scores.logprobs).sum() + scores.entropy.sum()).backward()
        layer = policy.inner.model.language_model.layers[0]
        gradients[layout] = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
    difference = (gradients["packed"] - gradients["plain"]).norm() / gradients["plain"].norm()
    assert difference < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompts", [["caption en"] * 4, PROMPTS], ids=["unpadded", "padded"])
def test_future_tokens_change_no_earlier_logprob(policy, tiny_processor, images, layout, prompts):
    """Bit for bit: the mask hides the future, it does not merely shrink it."""
    sampling = Sampling(num_samples=2, max_new_tokens=8)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, prompts)
    ids = torch.randint(300, 380, (4, 2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    changed = ids.clone()
    changed[:, 0, 5] = 301 + (changed[:, 0, 5] - 300) % 70
    with torch.no_grad():
        before = score(policy, batch, ids, mask, sampling, layout=layout).logprobs
        after = score(policy, batch, changed, mask, sampling, layout=layout).logprobs
    assert torch.equal(before[:, 0, :5], after[:, 0, :5])
    assert torch.equal(before[:, 1], after[:, 1]), "captions of one image see each other"
    assert not torch.equal(before[:, 0, 6:], after[:, 0, 6:]), "the change had no effect at all"


def test_padding_and_neighbours_change_no_caption(policy, tiny_processor, images):
    """A caption's draws depend on its own image alone, not on the batch it was sampled in."""
    sampling = Sampling(num_samples=3, max_new_tokens=8)
    noise = uniforms(sampling, 4)
    together = rollout(
        policy,
        tiny_processor,
        PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS),
        sampling,
        noise,
    )
    for i in range(4):
        batch = PromptEncoder.of(tiny_processor).prompt_batch(images[i : i + 1], PROMPTS[i : i + 1])
        alone = rollout(policy, tiny_processor, batch, sampling, noise[i : i + 1])
        assert alone.captions[0] == together.captions[i]
        assert alone.greedy_captions[0] == together.greedy_captions[i]


def test_forbidden_tokens_are_never_sampled(tiny_processor, images):
    """A model that puts nearly all its mass on <image>, <loc> and padding still writes words."""
    from tests.support.tiny import build_model

    policy = make_policy(build_model(tiny_processor), tiny_processor)
    head = policy.inner.lm_head

    def favour_forbidden(module, inputs, output):
        return output + 40.0 * policy.forbidden

    handle = head.register_forward_hook(favour_forbidden)
    sampling = Sampling(num_samples=6, max_new_tokens=8)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, ["caption en"] * 4)
    result = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    scores = score(policy, result.prompts, result.completion_ids, result.completion_mask, sampling)
    handle.remove()
    drawn = set(result.completion_ids[result.completion_mask].tolist())
    assert not drawn & set(policy.forbidden.nonzero().flatten().tolist())
    assert torch.isfinite(scores.logprobs).all()
    torch.testing.assert_close(scores.logprobs, result.sampled_logprobs, rtol=0, atol=1e-5)


def test_completion_mask_counts_eos_and_nothing_after(tiny_processor, images):
    from tests.support.tiny import build_model

    policy = make_policy(build_model(tiny_processor), tiny_processor)
    handle = policy.inner.lm_head.register_forward_hook(
        lambda module, inputs, output: output + 6.0 * (torch.arange(output.shape[-1]) == policy.eos_token_id)
    )
    sampling = Sampling(num_samples=6, max_new_tokens=12, min_new_tokens=2)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, ["caption en"] * 4)
    result = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    handle.remove()
    ids, mask = result.completion_ids, result.completion_mask
    assert result.ended_by_eos.any()
    for row, keep, ended in zip(
        ids.flatten(0, 1), mask.flatten(0, 1), result.ended_by_eos.flatten(), strict=True
    ):
        kept = row[keep].tolist()
        assert len(kept) >= 2
        assert policy.eos_token_id not in kept[:-1]
        assert (kept[-1] == policy.eos_token_id) == bool(ended)
        assert set(row[~keep].tolist()) <= {policy.pad_token_id}


def test_bad_shapes_are_refused(policy, tiny_processor, images):
    sampling = Sampling(num_samples=2, max_new_tokens=4)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images[:1], ["caption en"])
    with pytest.raises(ValueError, match=r"\(B, K, T\) = \(1, 2, 4\)"):
        rollout(policy, tiny_processor, batch, sampling, torch.zeros(1, 3, 4))
    ids = torch.zeros(1, 2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="known: packed, plain"):
        score(policy, batch, ids, ids.bool(), sampling, layout="fast")


def test_an_evaluation_preset_of_the_same_numbers_is_the_same_distribution(policy, tiny_processor, images):
    """Every token that ``generate`` draws has the probability that scoring gives it."""
    from scst.evaluation.decoding import Decoding, to_generation_config

    sampling = Sampling(1, temperature=1.2, top_k=12, top_p=0.8, max_new_tokens=6, min_new_tokens=2)
    decoding = Decoding("as training", do_sample=True, temperature=1.2, top_k=12, top_p=0.8)
    config = to_generation_config(
        decoding,
        max_new_tokens=6,
        min_new_tokens=2,
        eos_token_id=1,
        pad_token_id=0,
        suppress_tokens=policy.forbidden.nonzero().flatten().tolist(),
    )
    config.update(output_scores=True, return_dict_in_generate=True)
    encoder = PromptEncoder(tiny_processor)
    torch.manual_seed(0)
    done = policy.inner.generate(**encoder.encode_prompts(images, PROMPTS), generation_config=config)
    ids = done.sequences[:, -len(done.scores) :].unsqueeze(1)
    is_eos = (ids == 1).int()
    mask = is_eos.cumsum(-1) - is_eos == 0
    chosen = torch.stack(done.scores, 1).log_softmax(-1).gather(-1, ids[:, 0].unsqueeze(-1)).transpose(1, 2)
    scores = score(policy, encoder.prompt_batch(images, PROMPTS), ids, mask, sampling)
    torch.testing.assert_close(scores.logprobs, chosen.masked_fill(~mask, 0.0), rtol=0, atol=1e-5)
