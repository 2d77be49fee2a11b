"""Decode steps of one shape: the captions of the shared steps; recording on a stand-in for a GPU."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from scst.config.reader import build_recipe
from scst.errors import RecipeError
from scst.models.prompts import PromptEncoder
from scst.rollout import static
from scst.rollout.decode import rollout
from scst.rollout.static import StaticSteps
from scst.types import Rollout, Sampling
from tests.support.rollouts import PROMPTS, make_policy, uniforms
from tests.support.tiny import build_model, noise_images

SAMPLING = Sampling(num_samples=3, max_new_tokens=6)


@pytest.fixture(params=[1, 2], ids=["paligemma1", "paligemma2"])
def policy(request, tiny_processor):
    """Ends captions often, so that rows and images end at different steps."""
    policy = make_policy(build_model(tiny_processor, version=request.param), tiny_processor)
    policy.inner.lm_head.register_forward_hook(lambda module, inputs, output: _likely_end(output))
    return policy


def _likely_end(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone()
    logits[..., 1] = logits.amax(-1) + 4.0
    return logits


def captions(policy, processor, images, seed=0, prompts=PROMPTS, **keys) -> Rollout:
    batch = PromptEncoder.of(processor).prompt_batch(images, prompts[: len(images)])
    draws = uniforms(SAMPLING, len(images), seed=seed)
    return rollout(policy, processor, batch, SAMPLING, draws, **keys)


def assert_same(actual: Rollout, expected: Rollout) -> None:
    assert torch.equal(actual.completion_ids, expected.completion_ids)
    assert torch.equal(actual.completion_mask, expected.completion_mask)
    assert torch.equal(actual.greedy_ids, expected.greedy_ids)
    assert actual.captions == expected.captions
    torch.testing.assert_close(actual.sampled_logprobs, expected.sampled_logprobs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_same_captions_and_the_buffers_serve_again(policy, tiny_processor, images):
    """Three rollouts of other images and draws in the same buffers; what was left there changes nothing."""
    for seed in range(3):
        pictures = noise_images(4, seed=seed)
        policy.cuda_graphs = False
        expected = captions(policy, tiny_processor, pictures, seed, keep_prompt_cache=True)
        lengths = expected.completion_mask.sum(-1)
        assert lengths.min() < lengths.max(), "rows must end at different steps"
        policy.cuda_graphs = True
        found = captions(policy, tiny_processor, pictures, seed, keep_prompt_cache=True)
        assert_same(found, expected)
        assert torch.equal(found.prompt_cache, expected.prompt_cache)
    assert len(policy.static_steps) == 1


def test_what_an_older_rollout_left_in_the_buffers_is_gone(policy, tiny_processor, images):
    """A masked column has weight 0, and 0 * NaN is NaN."""
    policy.cuda_graphs = True
    expected = captions(policy, tiny_processor, images)
    (steps,) = policy.static_steps.values()
    for layer in steps.cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    found = captions(policy, tiny_processor, images)
    assert found.sampled_logprobs.isfinite().all()
    assert_same(found, expected)


@pytest.mark.slow
def test_a_bounded_number_of_shapes_is_kept(policy, tiny_processor, images):
    policy.cuda_graphs = True
    for count in (4, 3, 2, 4):
        captions(policy, tiny_processor, images[:count])
        assert len(policy.static_steps) <= static.KEPT_SHAPES
    assert [shape[0] for shape, _ in policy.static_steps] == [2, 4]


class Replay:
    """What a CUDA graph does, by running the step again: results appear in the same tensor."""

    def __init__(self, steps: StaticSteps, error: float = 0.0):
        self.steps, self.error, self.replays = steps, error, 0
        steps.logits = steps._forward()

    def replay(self) -> None:
        self.replays += 1
        self.steps.logits.copy_(self.steps._forward() + self.error)


@pytest.fixture
def recording(policy, monkeypatch):
    """Pretend that steps are recorded; returns the graphs that were made."""
    graphs = []

    def start(make):
        init = StaticSteps.__init__

        def recording_init(self, *args):
            init(self, *args)
            self.records = True

        monkeypatch.setattr(StaticSteps, "__init__", recording_init)
        monkeypatch.setattr(StaticSteps, "_record", lambda self: graphs.append(make(self)) or graphs[-1])
        policy.cuda_graphs = True
        return graphs

    return start


def test_recorded_steps_are_replayed(policy, tiny_processor, images, recording):
    expected = captions(policy, tiny_processor, images)
    graphs = recording(Replay)
    for _ in range(2):
        assert_same(captions(policy, tiny_processor, images), expected)
    (graph,) = graphs
    steps = max(expected.completion_mask.sum(-1).max(), expected.greedy_mask.sum(-1).max()) - 1
    assert graph.replays == 1 + 2 * steps, "once to compare, then at every step of two rollouts"


def cannot_record(steps: StaticSteps) -> None:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cannot_record, "operation not permitted when stream is capturing$"),
        (lambda steps: Replay(steps, error=0.1), "the logits of a replayed step differ by 0.1$"),
    ],
    ids=["refused", "wrong"],
)
def test_what_cannot_be_recorded_is_decoded_without(
    policy, tiny_processor, images, recording, caplog, make, message
):
    expected = captions(policy, tiny_processor, images)
    recording(make)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(captions(policy, tiny_processor, images), expected)
    (record,) = [r for r in caplog.records if r.name == static.__name__]
    assert record.getMessage().startswith("cuda_graphs: decoding goes on without: ")
    assert re.search(message, record.getMessage())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_recipe_cannot_ask_for_it_without_a_gpu():
    from scst.config.checks import check_recipe

    keys = {"adapter": "somewhere", "dataset": "embedded:scenes", "cuda_graphs": True}
    recipe = build_recipe("scst", keys)
    with pytest.raises(RecipeError, match="cuda_graphs: there is no CUDA device here"):
        check_recipe(recipe)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tiny_processor, images):
    """Real recording: the captions of the shared steps, and a graph that was kept."""
    policy = make_policy(build_model(tiny_processor), tiny_processor)
    policy.model.cuda()
    policy.forbidden = policy.forbidden.cuda()
    expected = captions(policy, tiny_processor, images)
    policy.cuda_graphs = True
    assert_same(captions(policy, tiny_processor, images), expected)
    (steps,) = policy.static_steps.values()
    assert steps.graph is not None
