"""The check of the first step tells bugs from rounding, in every precision, on a model that was trained."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from scst.adapters.kinds import LoRA
from scst.adapters.loaded import LoadedPolicy
from scst.data.load_splits import load_splits
from scst.data.supervision import CaptionChoice
from scst.errors import ScstError
from scst.models.masks import AttentionMask
from scst.models.policy import Policy, policy_for
from scst.rl.logprob_check import check_logprobs
from scst.rl.policy_loss import Objective, PolicyLoss, ScoringSettings
from scst.rl.sampler import Sampler
from scst.scoring import layouts
from scst.scoring.agreement import CEILING, logprob_gap
from scst.types import Sampling

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_IMAGES = 4


@pytest.fixture(scope="module")
def loaded():
    """The embedded model, with prompts of two lengths: one of them is padded."""
    captioner = LoadedPolicy.load(
        "embedded:scenes-paligemma", LoRA(rank=4), quantization="none", precision="fp32"
    )
    captioner.model.eval()
    rows = load_splits("embedded:scenes", ["val"], limit=NUM_IMAGES).splits["val"]
    prompts = ["caption en", "scene en"] * (NUM_IMAGES // 2)
    return captioner, captioner.encoder.prompt_batch(rows["image"][:], prompts), rows["image_id"][:]


def autocast(precision: str):
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, "cpu", dtype=PRECISIONS[precision])


def gap(loaded, precision: str, temperature: float = 1.0):
    """What the check measures, on captions that were sampled at temperature 1."""
    captioner, prompts, image_ids = loaded
    policy = policy_for(captioner.model, captioner.encoder)
    context = autocast(precision)
    with context(), torch.no_grad():
        rollout = Sampler(captioner.encoder, Sampling(max_new_tokens=24)).sample(
            policy, prompts, image_ids, 0
        )
    loss = PolicyLoss(
        captioner.model,
        captioner.encoder,
        Sampling(max_new_tokens=24, temperature=temperature),
        Objective(),
        ScoringSettings(skip_zero_advantages=False),
        choice=CaptionChoice(),
        autocast=context,
    )
    measured = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("scst.rl.policy_loss.check_logprobs", measured.append)
        loss(policy, rollout, torch.ones(rollout.ended_by_eos.shape), {})
    return measured[0]


def shift_captions(monkeypatch):
    """Captions begin one position too late."""
    pack = layouts.pack

    def shifted(*args):
        packed = pack(*args)
        return dataclasses.replace(packed, positions=packed.positions + 1)

    monkeypatch.setattr(layouts, "pack", shifted)


def make_prompts_causal(monkeypatch):
    """A prompt token sees its own past only."""
    forward = Policy.hidden_states

    def causal(policy, inputs, **kwargs):
        return forward(policy, dataclasses.replace(inputs, mask=AttentionMask(inputs.mask.causal)), **kwargs)

    monkeypatch.setattr(Policy, "hidden_states", causal)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_honest_passes_agree(loaded, precision):
    found = gap(loaded, precision)
    check_logprobs(found)
    assert found.relative < found.limit / 3, "the limit leaves room"


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("inject", [shift_captions, make_prompts_causal])
def test_bugs_of_the_scoring_pass_are_found(loaded, monkeypatch, precision, inject):
    inject(monkeypatch)
    with pytest.raises(ScstError, match="do not see the same policy"):
        check_logprobs(gap(loaded, precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("temperature", [0.8, 1.2])
def test_another_temperature_is_found(loaded, precision, temperature):
    with pytest.raises(ScstError, match="do not see the same policy"):
        check_logprobs(gap(loaded, precision, temperature))


def test_the_limit_follows_the_rounding_of_the_model_and_has_a_ceiling():
    sampled, known = -torch.ones(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool)
    for rounding, limit in ((0.0, 1e-3), (1e-3, 8e-3), (1.0, CEILING)):
        found = logprob_gap(sampled, sampled + rounding, sampled, known, torch.float32)
        assert found.limit == pytest.approx(limit, rel=1e-3)


def test_a_policy_that_is_certain_of_its_tokens_is_no_reason_to_stop():
    """A relative gap of nothing says nothing."""
    sampled, known = torch.full((1, 1, 4), -1e-8), torch.ones(1, 1, 4, dtype=torch.bool)
    gap = logprob_gap(sampled * 2, sampled, sampled, known, torch.float32)
    assert gap.relative > gap.limit
    check_logprobs(gap)


def test_no_number_is_no_agreement():
    sampled, known = torch.zeros(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool)
    with pytest.raises(ScstError, match="differ by nan"):
        check_logprobs(logprob_gap(sampled * torch.nan, sampled, sampled, known, torch.float32))
