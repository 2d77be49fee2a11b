"""The switches of the scoring pass inside the trainer: one gradient, and processes that stay in step."""

from __future__ import annotations

import dataclasses
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from scst.data.supervision import CaptionChoice
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.rl.policy_loss import Objective, PolicyLoss, ScoringSettings
from scst.scoring.score_captions import score
from scst.types import Sampling
from tests.support.processes import run_together
from tests.support.scoring import UNPADDED, duplicates_and_zeros, make_policy, random_captions
from tests.support.tiny import build_processor, noise_images

PLAIN = {"layout": "plain", "merge_captions": False, "skip_zero_advantages": False, "head_chunk": 0}
"""Every optimisation off."""


def with_duplicates(rollout):
    """The rollout with a caption drawn twice and its advantages, zero for one image and one other caption."""
    ids, mask = rollout.completion_ids.clone(), rollout.completion_mask.clone()
    logprobs = rollout.sampled_logprobs.clone()
    for tensor in (ids, mask, logprobs):
        tensor[1, 2] = tensor[1, 0]
    advantages = torch.tensor([[0.3, -0.4, 0.0], [0.5, 0.2, -0.1], [0.0, 0.0, 0.0], [-0.6, 0.1, 0.9]])
    changed = {"completion_ids": ids, "completion_mask": mask, "sampled_logprobs": logprobs}
    return dataclasses.replace(rollout, **changed), advantages


def gradient_and_metrics(trainer, rollout, advantages, *, probes_kl=True, scoring=None, **objective):
    """Gradient of the adapter and what is reported, for the captions of the last step."""
    policy_loss = trainer.policy_loss
    policy_loss.objective, policy_loss.scoring = Objective(**objective), ScoringSettings(**scoring or {})
    trainer.model.zero_grad()
    policy = trainer.policy_of(trainer.model)
    output = policy_loss(policy, rollout, advantages, trainer.last_step.columns, probes_kl=probes_kl)
    assert output.losses.shape == advantages.shape
    output.losses.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
    return gradient, {name: statistic.value for name, statistic in output.metrics.items()}


@pytest.fixture
def trainer(run_stage, sft_adapter, tmp_path):
    """A trainer after two steps, so that the policy is no longer that of the SFT stage."""
    return run_stage("scst", output_dir=str(tmp_path / "out"), adapter=str(sft_adapter), max_steps=2)


WEIGHTS = [{}, {"kl_weight": 0.3}, {"entropy_weight": 0.05}, {"cross_entropy_weight": 0.5}]


def test_no_switch_changes_the_gradient(trainer):
    rollout, advantages = with_duplicates(trainer.last_step.rollout)
    for weights in WEIGHTS:
        expected, usual = gradient_and_metrics(trainer, rollout, advantages, scoring=PLAIN, **weights)
        assert expected.norm() > 0
        for switch in [*PLAIN, None]:
            scoring = {k: v for k, v in PLAIN.items() if k != switch and switch}
            found, metrics = gradient_and_metrics(trainer, rollout, advantages, scoring=scoring, **weights)
            assert (found - expected).norm() / expected.norm() < 1e-5, (weights, switch)
            assert metrics.get("kl") == pytest.approx(usual.get("kl"), abs=1e-6), "over the same captions"
        left_out = not (weights.get("kl_weight") or weights.get("entropy_weight"))
        # 12 captions, 1 a duplicate; without a term on all captions 1 + 3 have no advantage, but the first
        # image stays whole where its KL is logged
        assert metrics["scored_share"] == pytest.approx((8 if left_out else 11) / 12)
        assert usual["scored_share"] == 1.0
        if not left_out:
            assert metrics["logprob_gap"] == pytest.approx(usual["logprob_gap"], abs=1e-5)


def test_a_step_without_any_advantage_changes_nothing(trainer):
    """The backward pass runs all the same, without a forward pass where the KL is not logged."""
    rollout, advantages = with_duplicates(trainer.last_step.rollout)
    nothing = torch.zeros_like(advantages)
    for probes_kl in (True, False):
        gradient, metrics = gradient_and_metrics(trainer, rollout, nothing, probes_kl=probes_kl)
        assert not gradient.any()
        assert metrics["scored_share"] == pytest.approx(3 / 12 if probes_kl else 0.0)
        assert ("logprob_gap" in metrics) == ("kl" in metrics) == probes_kl


def chosen(advantages, *, scores_always: bool, probes_kl: bool = False) -> list[list[int]]:
    """``unique_index`` of the captions of :func:`duplicates_and_zeros`, in a loss without any model."""
    ids, mask, _ = duplicates_and_zeros()
    loss = PolicyLoss(
        torch.nn.Linear(1, 1),
        None,
        Sampling(),
        Objective(),
        ScoringSettings(),
        choice=CaptionChoice(),
        autocast=nullcontext,
        scores_always=scores_always,
    )
    rollout = SimpleNamespace(completion_ids=ids, completion_mask=mask)
    return loss._unique_index(rollout, advantages, probes_kl).tolist()


def test_where_processes_meet_in_the_passes_each_keeps_a_caption():
    opposite = torch.zeros(4, 4)
    opposite[0, 0], opposite[0, 2] = 0.5, -0.5
    nothing = [[-1] * 4] * 3
    assert chosen(opposite, scores_always=False) == [[-1] * 4, *nothing]
    assert chosen(opposite, scores_always=True) == [[0, -1, -1, -1], *nothing]
    assert chosen(opposite, scores_always=True, probes_kl=True) == [[0, 1, 0, 3], *nothing]


def test_captions_that_are_left_are_the_same_on_one_process_and_many():
    _, _, advantages = duplicates_and_zeros()
    assert chosen(advantages, scores_always=False) == chosen(advantages, scores_always=True)


def scenario(rank: int):
    """Captions and advantages of a process: the second one has nothing to learn from."""
    ids, mask = random_captions(2, num_images=2, seed=rank)
    advantages = torch.tensor([[0.5, -1.0], [0.0, 0.3]]) if rank == 0 else torch.zeros(2, 2)
    unique_index = torch.tensor([[0, 1], [-1, 1]]) if rank == 0 else torch.tensor([[0, -1], [-1, -1]])
    return ids, mask, advantages, unique_index


def gradient_of(policy: Policy, processor, rank: int) -> torch.Tensor:
    ids, mask, advantages, unique_index = scenario(rank)
    batch = PromptEncoder.of(processor).prompt_batch(noise_images(2, seed=rank), UNPADDED[:2])
    scores = score(policy, batch, ids, mask, Sampling(), unique_index=unique_index, head_chunk=4)
    (advantages.unsqueeze(-1) * scores.logprobs).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])


KEPT: list[DistributedDataParallel] = []
"""Never freed: with the last of them torch joins gloo's threads, and holds the interpreter's lock meanwhile,
for which one of them may be waiting (seen once in some hundred runs of this test)."""


def gradients_of_one_process() -> list[torch.Tensor]:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    processor, gradients = build_processor(), []
    for find_unused in (False, True):
        policy = make_policy(processor)
        wrapped = DistributedDataParallel(policy.model, find_unused_parameters=find_unused)
        KEPT.append(wrapped)
        policy = Policy(wrapped, policy.forbidden, policy.eos_token_id, policy.pad_token_id)
        for _ in range(2):  # the second step fails where the first left something behind
            wrapped.zero_grad()
            gradients.append(gradient_of(policy, processor, rank))
    torch.distributed.destroy_process_group()
    return gradients


@pytest.mark.slow
def test_gradients_are_synchronised_between_processes(tmp_path, tiny_processor):
    """Through DistributedDataParallel, in either of its modes: the mean of both, on both."""
    both = run_together(gradients_of_one_process, folder=tmp_path)
    expected = sum(gradient_of(make_policy(tiny_processor), tiny_processor, rank) for rank in (0, 1)) / 2
    assert expected.norm() > 0
    for gradient in [*both[0], *both[1]]:
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    assert [len(gradients) for gradients in both] == [4, 4]
