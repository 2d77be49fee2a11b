"""The decode loop against decoding without cache, sharing or compaction: the same captions, bit for bit."""

from __future__ import annotations

import pytest
import torch

from scst.models import masks
from scst.models.prompts import PromptEncoder
from scst.rollout import decode_state, distribution
from scst.rollout.cache import RolloutCache
from scst.rollout.decode import rollout
from scst.types import PromptBatch, Sampling
from tests.support.rollouts import PROMPTS, make_policy, uniforms
from tests.support.tiny import build_model, noise_images


def plain_rollout(policy, prompts: PromptBatch, sampling: Sampling, uniforms: torch.Tensor):
    """Ids, mask and logprobs (B, K + 1, T) of rows that share nothing: a step runs every whole sequence."""
    num_rows = sampling.num_samples + 1
    every = prompts.select(torch.arange(len(prompts)).repeat_interleave(num_rows))
    features = policy.image_features(every)
    draws = torch.cat([torch.zeros_like(uniforms[:, :1]), uniforms], 1).flatten(0, 1)
    greedy = torch.arange(len(every)) % num_rows == 0
    ids = torch.zeros(len(every), 0, dtype=torch.long)
    mask, logprobs = ids.bool(), ids.float()
    ended = torch.zeros(len(every), dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        distances = torch.arange(1, step + 1).expand_as(ids)
        allowed = masks.suffix_mask(every, torch.ones_like(ids).bool())
        logits = policy.forward(policy.from_prompts(every, features, allowed, ids, distances), keep=1)[:, -1]
        shaped = distribution.policy_logits(
            logits,
            positions=torch.full((len(every),), step),
            sampling=sampling,
            forbidden=policy.forbidden,
            eos_token_id=policy.eos_token_id,
        )
        tokens = torch.where(greedy, shaped.argmax(-1), distribution.draw(shaped, draws[:, step]))
        chosen = distribution.token_logprobs(shaped, tokens).masked_fill(ended, 0.0)
        tokens = tokens.masked_fill(ended, policy.pad_token_id)
        ids = torch.cat([ids, tokens[:, None]], 1)
        mask, logprobs = torch.cat([mask, ~ended[:, None]], 1), torch.cat([logprobs, chosen[:, None]], 1)
        ended = ended | (tokens == policy.eos_token_id)
    return tuple(x.unflatten(0, (len(prompts), num_rows)) for x in (ids, mask, logprobs))


def assert_equal_to_plain(result, plain):
    ids, mask, logprobs = plain
    steps = result.completion_ids.shape[-1]
    drawn = torch.cat([result.greedy_ids[:, None], result.completion_ids], 1)
    counted = torch.cat([result.greedy_mask[:, None], result.completion_mask], 1)
    assert torch.equal(drawn, ids[:, :, :steps])
    assert torch.equal(counted, mask[:, :, :steps])
    assert not mask[:, :, steps:].any(), "the rollout stopped before every row had ended"
    torch.testing.assert_close(result.sampled_logprobs, logprobs[:, 1:, :steps], rtol=0, atol=1e-5)


@pytest.fixture
def ends_early(policy):
    """The policy likes to end: caption lengths differ within and between images."""
    is_eos = torch.arange(policy.text_config.vocab_size) == policy.eos_token_id
    handle = policy.inner.lm_head.register_forward_hook(lambda m, i, out: out + 4.0 * is_eos)
    yield policy
    handle.remove()


@pytest.fixture
def passes(monkeypatch):
    """(batch, positions) of every forward pass, the prompts' first."""
    from scst.models.policy import Policy

    seen, forward = [], Policy.forward

    def recording(self, inputs, **kwargs):
        seen.append(tuple(inputs.embeddings.shape[:2]))
        return forward(self, inputs, **kwargs)

    monkeypatch.setattr(Policy, "forward", recording)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [["caption en"] * 4, PROMPTS], ids=["unpadded", "padded"])
@pytest.mark.parametrize("num_samples", [1, 8])
@torch.no_grad()
def test_same_captions_as_without_sharing(ends_early, tiny_processor, images, prompts, num_samples):
    sampling = Sampling(num_samples=num_samples, max_new_tokens=12, min_new_tokens=2)
    batch, noise = PromptEncoder.of(tiny_processor).prompt_batch(images, prompts), uniforms(sampling, 4)
    result = rollout(ends_early, tiny_processor, batch, sampling, noise)
    assert_equal_to_plain(result, plain_rollout(ends_early, batch, sampling, noise))
    lengths = result.completion_mask.sum(-1)
    assert lengths.unique().numel() > 1, "rows must end at different steps, or nothing leaves"


@pytest.mark.slow
@torch.no_grad()
def test_rows_that_agree_share_a_slot(policy, tiny_processor, images, passes):
    """Nearly greedy rows agree: their common beginnings are computed once, and the captions stay the same."""
    sampling = Sampling(num_samples=8, max_new_tokens=8, min_new_tokens=8, temperature=0.5, top_k=3)
    batch, noise = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS), uniforms(sampling, 4)
    result = rollout(policy, tiny_processor, batch, sampling, noise)
    shapes = passes[1:]
    ids = torch.cat([result.greedy_ids[:, None], result.completion_ids], 1)
    beginnings = [
        max(len({tuple(row[: step + 1].tolist()) for row in image}) for image in ids) for step in range(7)
    ]
    assert [slots for _, slots in shapes] == beginnings
    assert beginnings[0] < 9, "no two rows of the test agree"
    assert_equal_to_plain(result, plain_rollout(policy, batch, sampling, noise))


@torch.no_grad()
def test_the_head_makes_one_product_of_all_images(policy, tiny_processor, images):
    """Of a slice of the prompt it would make one per image, in bf16 on a CPU each with a copy of its weights:
    8 GB and two minutes at 257,216 tokens."""
    inputs_seen = []
    hook = policy.inner.lm_head.register_forward_pre_hook(lambda m, inputs: inputs_seen.append(inputs[0]))
    sampling = Sampling(num_samples=2, max_new_tokens=3)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)
    rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    hook.remove()
    assert inputs_seen[0].shape[:2] == (4, 1), "the last position of every prompt"
    assert all(states.is_contiguous() for states in inputs_seen)


@torch.no_grad()
def test_ended_rows_and_images_cost_nothing(tiny_processor, images, passes):
    """One image ends at once, another after a few tokens: neither is in the batch any more."""
    model_policy = make_policy(build_model(tiny_processor), tiny_processor)
    sampling = Sampling(num_samples=3, max_new_tokens=6)
    batch, noise = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS), uniforms(sampling, 4)
    limits = torch.tensor([[1, 1, 1, 1], [6, 2, 2, 2], [3, 3, 1, 1], [2, 2, 2, 2]])
    choose = decode_state.DecodeState._choose

    def forced(self, *args):
        image, row = self.active.nonzero(as_tuple=True)
        tokens, logprobs = choose(self, *args)
        words = tokens.masked_fill(tokens == self.policy.eos_token_id, 300) + row  # no two rows agree
        return torch.where(limits[image, row] <= self.step + 1, self.policy.eos_token_id, words), logprobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_state.DecodeState, "_choose", forced)
        result = rollout(model_policy, tiny_processor, batch, sampling, noise)
    mask = torch.cat([result.greedy_mask[:, None], result.completion_mask], 1)
    assert torch.equal(mask.sum(-1), limits)
    # after the prompts: images that go on x rows of the fullest one; the last token needs no pass
    assert passes[1:] == [(3, 4), (2, 2), (1, 1), (1, 1), (1, 1)]


@torch.no_grad()
def test_prompt_is_stored_once(policy, tiny_processor, images, monkeypatch):
    kept = []
    original = RolloutCache.keep_images
    monkeypatch.setattr(
        RolloutCache, "keep_images", lambda self, keep: (kept.append(self), original(self, keep))
    )
    sampling = Sampling(num_samples=5, max_new_tokens=4, min_new_tokens=4)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)
    rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 4))
    text = policy.text_config
    columns = batch.input_ids.shape[1] + 6 * 3  # the prompt once; 6 rows of 4 tokens, the last one not fed
    floats = 2 * text.num_hidden_layers * 4 * text.num_key_value_heads * columns * text.head_dim
    assert kept[0].num_bytes == 4 * floats


@torch.no_grad()
def test_drawing_in_chunks_changes_nothing(policy, tiny_processor, images, monkeypatch):
    sampling = Sampling(num_samples=4, max_new_tokens=6, top_p=0.9)
    batch, noise = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS), uniforms(sampling, 4)
    whole = rollout(policy, tiny_processor, batch, sampling, noise)
    monkeypatch.setattr(decode_state, "MAX_DRAWN_LOGITS", 3 * policy.text_config.vocab_size)
    chunked = rollout(policy, tiny_processor, batch, sampling, noise)
    assert torch.equal(whole.completion_ids, chunked.completion_ids)
    assert torch.equal(whole.sampled_logprobs, chunked.sampled_logprobs)


@torch.no_grad()
def test_one_token_and_known_features(policy, tiny_processor, images):
    """A limit of one token needs no decode step; given features are used and the vision tower rests."""
    sampling = Sampling(num_samples=2, max_new_tokens=1)
    batch, noise = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS), uniforms(sampling, 4)
    result = rollout(policy, tiny_processor, batch, sampling, noise)
    assert_equal_to_plain(result, plain_rollout(policy, batch, sampling, noise))
    features = policy.image_features(batch)
    blank = PromptEncoder.of(tiny_processor).prompt_batch(noise_images(4, seed=9), PROMPTS)
    again = rollout(policy, tiny_processor, blank, sampling, noise, image_features=features)
    assert torch.equal(again.sampled_logprobs, result.sampled_logprobs)


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_low_precision(tiny_processor, images, version):
    """bf16 weights: it runs, and lengths and logprobs are sane."""
    low = make_policy(build_model(tiny_processor, version=version).to(torch.bfloat16), tiny_processor)
    sampling = Sampling(num_samples=3, max_new_tokens=5, min_new_tokens=5)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)
    result = rollout(low, tiny_processor, batch, sampling, uniforms(sampling, 4))
    assert result.completion_mask.all()
    assert torch.isfinite(result.sampled_logprobs).all()
    assert (result.sampled_logprobs < 0).all()
