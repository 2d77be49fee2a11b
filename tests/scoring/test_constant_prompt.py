"""Scoring without the prompt's gradient: the same scores, and a gradient that lacks one path only."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from scst.errors import RecipeError
from scst.models.masks import continuation_mask
from scst.models.prompts import PromptEncoder
from scst.rollout import distribution
from scst.rollout.cache import prompt_cache
from scst.rollout.decode import rollout
from scst.scoring.score_captions import score
from scst.types import Sampling
from tests.support.rollouts import paligemma_prompts
from tests.support.scoring import (
    PADDED,
    UNPADDED,
    assert_same_gradient,
    gradient,
    make_policy,
    random_captions,
    usual_logits,
    usual_scores,
    weights_of,
)


@contextmanager
def detached_prompt(policy, prompt_length):
    """The library's own forward, its keys and values of the prompt cut out of the graph."""

    def cut(module, inputs, output):
        return torch.cat([output[:, :prompt_length].detach(), output[:, prompt_length:]], 1)

    decoder = policy.inner.model.language_model
    hooks = [
        module.register_forward_hook(cut)
        for name, module in decoder.named_modules()
        if name.endswith(("self_attn.k_proj", "self_attn.v_proj"))
    ]
    assert len(hooks) == 2 * policy.text_config.num_hidden_layers
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointing"])
@pytest.mark.parametrize("num_captions", [1, 8])
@pytest.mark.parametrize("prompts", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("version", [1, 2], ids=["paligemma1", "paligemma2"])
def test_gradient_is_that_of_detached_keys_and_values(
    tiny_processor, images, version, prompts, num_captions, checkpointing
):
    ids, mask = random_captions(num_captions)
    sampling, weights = Sampling(num_samples=num_captions, temperature=1.2), weights_of(ids)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, prompts)
    usual = make_policy(tiny_processor, version=version)
    gradients = []
    for cut in (True, False):
        with detached_prompt(usual, batch.input_ids.shape[1] if cut else 0):
            logits = usual_logits(usual, tiny_processor, images, prompts, ids)
        logprobs, _ = usual_scores(usual, logits, ids, mask, sampling)
        gradients.append(gradient(usual, (weights * logprobs).sum()))
    policy = make_policy(tiny_processor, version=version, checkpointing=checkpointing)
    cache = prompt_cache(policy, batch, policy.image_features(batch))
    scores = score(policy, batch, ids, mask, sampling, prompt_cache=cache, head_chunk=16)
    torch.testing.assert_close(scores.logprobs, logprobs.detach(), rtol=0, atol=1e-5)
    found = gradient(policy, (weights * scores.logprobs).sum())
    assert_same_gradient(found, gradients[0])
    assert (found - gradients[1]).norm() / gradients[1].norm() > 1e-3, "it is an approximation"


def test_checkpointing_is_on_again_afterwards(tiny_processor, images):
    policy = make_policy(tiny_processor, checkpointing=True)
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, UNPADDED)
    cache = prompt_cache(policy, batch, policy.image_features(batch))
    score(policy, batch, *random_captions(2), Sampling(), prompt_cache=cache)
    assert policy.inner.is_gradient_checkpointing


def test_the_rollout_keeps_its_prompts(tiny_processor, images):
    """Also of images whose captions end early, and untouched by the tokens that came after."""
    policy = make_policy(tiny_processor)
    policy.model.eval()
    batch = PromptEncoder.of(tiny_processor).prompt_batch(images, PADDED)
    uniforms = distribution.rollout_uniforms(list("abcd"), seed=0, step=0, num_samples=3, length=6)
    sampling = Sampling(3, max_new_tokens=6)
    kept = rollout(policy, tiny_processor, batch, sampling, uniforms, keep_prompt_cache=True)
    expected = prompt_cache(policy, batch, kept.image_features)
    assert kept.prompt_cache.shape[3:] == (1, batch.input_ids.shape[1], policy.text_config.head_dim)
    assert torch.equal(kept.prompt_cache, expected)
    assert rollout(policy, tiny_processor, batch, sampling, uniforms).prompt_cache is None


def test_mask_by_hand():
    """Two prompt tokens (the first is padding), its last one again, captions of two tokens and of one."""
    prompts = paligemma_prompts(torch.zeros(1, 2).long(), torch.tensor([[False, True]]))
    expected = [
        # pad  prompt  again  a0  a1  b0
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 1, 0, 0, 0, 1],
    ]
    mask = continuation_mask(prompts, torch.tensor([[0, 0, 1]]))
    assert mask.full[0, 0].int().tolist() == expected


def test_a_recipe_trains_without_the_prompts_gradient(run_stage, sft_adapter, tmp_path):
    """With the terms that score something else after the same prompts; the first step's numbers agree."""
    logs = {}
    for whole in (True, False):
        keys = {"prompt_gradient": whole, "cross_entropy_weight": 0.5, "kl_weight": 0.1, "max_steps": 2}
        trainer = run_stage("scst", output_dir=str(tmp_path / str(whole)), adapter=str(sft_adapter), **keys)
        logs[whole] = [log for log in trainer.state.log_history if "logprob_gap" in log]
    for name in ("loss", "kl", "entropy", "logprob_gap"):
        assert logs[False][0][name] == pytest.approx(logs[True][0][name], abs=1e-5), name
    assert logs[False][0]["grad_norm"] != pytest.approx(logs[True][0]["grad_norm"], rel=1e-3)
    assert logs[False][1]["logprob_gap"] < 1e-4, "the cache is that of the policy of this step"


def test_an_adapter_on_the_vision_tower_needs_the_prompts_gradient(run_stage, world, tmp_path):
    sft = tmp_path / "sft"
    run_stage("sft", output_dir=str(sft), max_steps=1, lora_targets="full")
    with pytest.raises(RecipeError, match="prompt_gradient: false trains nothing in the vision tower"):
        run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(sft), prompt_gradient=False)
