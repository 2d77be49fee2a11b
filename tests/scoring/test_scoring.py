"""Scoring against the library's own forward pass: every switch on and off, one gradient."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scst.models.masks import prompt_mask
from scst.models.prompts import PromptEncoder
from scst.rollout import distribution
from scst.scoring.score_captions import LAYOUTS, distinct_captions, score, without_zero_advantages
from scst.types import Sampling
from tests.support.scoring import (
    EOS,
    PADDED,
    UNPADDED,
    assert_same_gradient,
    duplicates_and_zeros,
    gradient,
    make_policy,
    random_captions,
    usual_logits,
    usual_scores,
    weights_of,
)


@pytest.fixture(params=[1, 2], ids=["paligemma1", "paligemma2"])
def policy(request, tiny_processor):
    """A policy of each PaliGemma version."""
    return make_policy(tiny_processor, version=request.param)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("num_captions", [1, 8])
@pytest.mark.parametrize("prompts", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("version", [1, 2], ids=["paligemma1", "paligemma2"])
def test_scores_and_gradients_are_those_of_the_usual_way(
    tiny_processor, images, version, prompts, num_captions, checkpointing, layout
):
    policy = make_policy(tiny_processor, version=version, checkpointing=checkpointing)
    ids, mask = random_captions(num_captions)
    sampling, weights = Sampling(num_samples=num_captions, temperature=1.2), weights_of(ids)
    logits = usual_logits(policy, tiny_processor, images, prompts, ids)
    logprobs, entropy = usual_scores(policy, logits, ids, mask, sampling)
    expected = gradient(policy, (weights * logprobs).sum() + 0.3 * entropy.sum())
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, prompts)
    scores = score(policy, batch, ids, mask, sampling, layout=layout, head_chunk=16, with_entropy=True)
    torch.testing.assert_close(scores.logprobs, logprobs.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropy.detach(), rtol=0, atol=1e-5)
    assert_same_gradient(
        gradient(policy, (weights * scores.logprobs).sum() + 0.3 * scores.entropy.sum()), expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize(
    "shape", [{}, {"top_k": 7, "temperature": 0.8}, {"top_p": 0.9, "min_new_tokens": 3}], ids=str
)
def test_chunks_of_the_head_change_nothing(policy, tiny_processor, images, shape, chunk):
    ids, mask = random_captions(3)
    ids = ids.masked_fill(ids == EOS, 301) if "min_new_tokens" in shape else ids
    sampling, weights = Sampling(num_samples=3, **shape), weights_of(ids)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED)
    results = {}
    for size in (0, chunk):
        scores = score(policy, batch, ids, mask, sampling, head_chunk=size, with_entropy=True)
        loss = (weights * scores.logprobs).sum() + scores.entropy.sum()
        results[size] = scores, gradient(policy, loss)
    torch.testing.assert_close(results[chunk][0].logprobs, results[0][0].logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(results[chunk][0].entropy, results[0][0].entropy, rtol=0, atol=1e-5)
    assert_same_gradient(results[chunk][1], results[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 16])
def test_entropy_is_computed_only_when_asked_for(policy, tiny_processor, images, chunk, monkeypatch):
    """Without it: no pass for it over the vocabulary, and the same log probabilities and gradient."""
    ids, mask = random_captions(3)
    batch, weights = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED), weights_of(ids)
    asked = score(policy, batch, ids, mask, Sampling(), head_chunk=chunk, with_entropy=True)
    expected = gradient(policy, (weights * asked.logprobs).sum())
    monkeypatch.setattr(distribution, "logprobs_and_entropy", None)
    scores = score(policy, batch, ids, mask, Sampling(), head_chunk=chunk)
    assert scores.entropy is None
    torch.testing.assert_close(scores.logprobs, asked.logprobs, rtol=0, atol=1e-6)
    assert_same_gradient(gradient(policy, (weights * scores.logprobs).sum()), expected)


def test_a_trainable_head_gets_its_gradient(tiny_processor, images):
    """The derivatives of a frozen head are taken early; a trainable one must not lose its own."""
    policy = make_policy(tiny_processor)
    policy.inner.lm_head.weight.requires_grad_(True)
    ids, mask = random_captions(2)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    gradients = [
        gradient(policy, score(policy, batch, ids, mask, Sampling(), head_chunk=size).logprobs.sum())
        for size in (0, 5)
    ]
    assert_same_gradient(gradients[1], gradients[0])
    assert policy.inner.lm_head.weight.grad.norm() > 0


def test_head_is_the_models_own(policy, tiny_processor, images):
    """Softcapping included, far into its curve; bit for bit."""
    policy.inner.lm_head.weight.data *= 200
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED)
    features = policy.image_features(batch)
    inputs = policy.from_prompts(batch, features, prompt_mask(batch))
    with torch.no_grad():
        own = policy.inner(**PromptEncoder.of(tiny_processor).encode_prompts(images, PADDED)).logits[:, -5:]
        expected = policy.forward(inputs, keep=5)
        torch.testing.assert_close(expected, own, rtol=0, atol=1e-3)
        states = policy.hidden_states(inputs)
        assert torch.equal(policy.logits(states[:, -5:]), expected)
        assert policy.inner.lm_head(states[:, -5:]).abs().max() > 60, "the cap at 30 was not tested"


def test_a_quantised_head(tiny_processor, images):
    """4-bit weights: chunks are what the head makes of everything at once."""
    import bitsandbytes

    policy = make_policy(tiny_processor)
    weight = policy.inner.lm_head.weight.data
    head = bitsandbytes.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4")
    head.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    policy.inner.lm_head = head.to("cpu")
    ids, mask = random_captions(2)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED)
    results = []
    for size in (0, 16):
        scores = score(policy, batch, ids, mask, Sampling(), head_chunk=size)
        results.append((scores.logprobs.detach(), gradient(policy, scores.logprobs.sum())))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    assert_same_gradient(results[1][1], results[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_half_precision(policy, tiny_processor, images, dtype, tolerance):
    """Under autocast chunks are as near to float32 as everything at once, with small losses too."""
    ids, mask = random_captions(3)
    batch, weights = PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED), weights_of(ids)
    expected = score(policy, batch, ids, mask, Sampling())
    exact = gradient(policy, (weights * expected.logprobs).sum())
    errors = {}
    for size in (0, 16):
        with torch.autocast("cpu", dtype):
            scores = score(policy, batch, ids, mask, Sampling(), head_chunk=size)
        assert scores.logprobs.dtype == torch.float32
        found = gradient(policy, 1024.0 * (weights * scores.logprobs).sum()) / 1024.0
        errors[size] = ((found - exact).norm() / exact.norm()).item()
    assert errors[16] < max(tolerance, 1.2 * errors[0])


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{}, {"top_k": 9, "top_p": 0.9}], ids=str)
def test_no_tensor_of_all_tokens_and_the_whole_vocabulary(tiny_processor, images, shape):
    """Forward and backward; 64 tokens at a time, as many as the weights of this head are wide."""
    vocabulary = 6000
    policy = make_policy(tiny_processor, vocab_size=vocabulary)
    ids, mask = random_captions(8)
    ids, mask = torch.where(mask, ids, 301), torch.ones_like(mask)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    largest = {}
    for chunk in (0, 64):
        with LargestTensor() as mode:
            scores = score(policy, batch, ids, mask, Sampling(**shape), head_chunk=chunk, with_entropy=True)
            gradient(policy, scores.logprobs.sum() + scores.entropy.sum())
        largest[chunk] = mode.numel
    assert largest[0] == ids.numel() * vocabulary
    assert largest[64] == 64 * vocabulary


def test_distinct_captions_by_hand():
    ids, mask, advantages = duplicates_and_zeros()
    first = distinct_captions(ids, mask)
    assert first.tolist() == [[0, 1, 0, 3], [0, 1, 1, 1], [0, 0, 2, 3], [0, 1, 2, 3]]
    # image 2: 0.4 - 0.4 of one caption and two zeros leave nothing to score
    assert without_zero_advantages(first, advantages).tolist() == [
        [0, -1, 0, 3],
        [-1, 1, 1, 1],
        [-1, -1, -1, -1],
        [-1, 1, -1, 3],
    ]


def test_captions_that_differ_in_length_only_are_distinct():
    # "a <eos>" and "a <eos>" of the same ids under another mask: a cut caption and one padded with 0
    ids = torch.tensor([[[5, 0, 0], [5, 0, 0], [5, 0, 0]]])
    mask = torch.tensor([[[True, False, False], [True, True, False], [True, False, False]]])
    assert distinct_captions(ids, mask).tolist() == [[0, 1, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompts", [UNPADDED, PADDED], ids=["unpadded", "padded"])
def test_merging_and_dropping_change_no_gradient(policy, tiny_processor, images, layout, prompts):
    ids, mask, advantages = duplicates_and_zeros()
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, prompts)
    features = policy.image_features(batch)
    first = distinct_captions(ids, mask)
    ways = {"all": None, "merged": first, "dropped": without_zero_advantages(first, advantages)}
    results = {}
    for name, unique_index in ways.items():
        scores = score(
            policy,
            batch,
            ids,
            mask,
            Sampling(),
            image_features=features,
            layout=layout,
            unique_index=unique_index,
            head_chunk=16,
            with_entropy=True,
        )
        results[name] = scores, gradient(policy, (advantages.unsqueeze(-1) * scores.logprobs).sum())
    every, merged, dropped = (results[name][0] for name in ways)
    torch.testing.assert_close(merged.logprobs, every.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(merged.entropy, every.entropy, rtol=0, atol=1e-5)
    known = (ways["dropped"] >= 0).unsqueeze(-1)
    torch.testing.assert_close(dropped.logprobs, every.logprobs * known, rtol=0, atol=1e-5)
    for name in ("merged", "dropped"):
        assert_same_gradient(results[name][1], results["all"][1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_captions_share_the_entropy_gradient(policy, tiny_processor, images, layout):
    ids, mask, _ = duplicates_and_zeros()
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    gradients = []
    for way in (None, distinct_captions(ids, mask)):
        keys = {"layout": layout, "unique_index": way, "with_entropy": True}
        gradients.append(gradient(policy, score(policy, batch, ids, mask, Sampling(), **keys).entropy.sum()))
    assert_same_gradient(gradients[1], gradients[0])


def test_dropped_images_are_not_run(tiny_processor, images):
    """The decoder sees the prompt of the images that are left, and no column more than they need."""
    policy = make_policy(tiny_processor)
    ids, mask, advantages = duplicates_and_zeros()
    unique_index = without_zero_advantages(distinct_captions(ids, mask), advantages)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    shapes = []
    hook = policy.inner.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(output[0].shape[:2])), with_kwargs=True
    )
    score(policy, batch, ids, mask, Sampling(), unique_index=unique_index)
    hook.remove()
    lengths = mask.sum(-1)
    inputs = [sum(int(lengths[b, k]) - 1 for k in ks) for b, ks in ((0, (0, 3)), (1, (1,)), (3, (1, 3)))]
    assert shapes == [(3, batch.input_ids.shape[1] + max(inputs))]


def test_nothing_left_to_score(policy, tiny_processor, images):
    ids, mask = random_captions(2)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    nobody = torch.full((4, 2), -1)
    scores = score(policy, batch, ids, mask, Sampling(), unique_index=nobody, with_entropy=True)
    assert not scores.logprobs.any()
    assert not scores.logprobs.requires_grad
    assert scores.logprobs.shape == scores.entropy.shape == ids.shape


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_of_one_token(policy, tiny_processor, images, layout):
    """Nothing stands beside the prompt then."""
    ids = torch.randint(300, 380, (4, 3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[..., 0] = True
    logits = usual_logits(policy, tiny_processor, images, PADDED, ids)
    expected, _ = usual_scores(policy, logits, ids, mask, Sampling())
    scores = score(
        policy,
        PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED),
        ids,
        mask,
        Sampling(),
        layout=layout,
    )
    torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_caption_scores_nothing(policy, tiny_processor, images, layout):
    ids, mask = random_captions(3)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    expected = score(policy, batch, ids, mask, Sampling(), layout=layout).logprobs
    mask[0, 0] = mask[2, 1] = False
    scores = score(policy, batch, ids, mask, Sampling(), layout=layout)
    torch.testing.assert_close(scores.logprobs, expected.masked_fill(~mask, 0.0), rtol=0, atol=1e-5)
    scores.logprobs.sum().backward()
