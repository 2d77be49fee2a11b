"""Steps that are not finite: what is left alone, what is counted, and the dynamic loss scale of fp16."""

from __future__ import annotations

import math

import pytest
import torch

from scst.rl.trainer import SCSTTrainer
from scst.sft.trainer import CaptionSFTTrainer
from scst.training.hooks import TrainerHooks
from scst.training.non_finite import Diverged, NonFiniteGuard
from tests.support.stages import adapter_weights


class Loop:
    """A training loop around the guard, as `transformers` makes it; ``ended`` once the guard ends the run."""

    def __init__(self, guard, scaler=None):
        self.guard, self.scaler, self.ended = guard, scaler, False
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def step(self, factor=1.0, added=0.0):
        """One step on a loss of this factor; gradients of `inf` where it is infinite."""
        loss = self.model(torch.ones(1, 2)).sum() * factor + added
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        self.guard.observe(loss)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not self.guard.step_is_finite(float(norm), 1.0):
            self.ended = self.guard.skip(self.model.parameters(), scaler=self.scaler)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_moments_stay_as_they_are(factor):
    """AdamW would move by its momentum and its weight decay even without a gradient."""
    loop = Loop(NonFiniteGuard())
    loop.step()
    before = loop.weights()
    moments = [state["exp_avg"].clone() for state in loop.optimizer.state.values()]
    loop.step(factor)
    assert torch.equal(loop.weights(), before)
    after = [state["exp_avg"] for state in loop.optimizer.state.values()]
    assert all(torch.equal(*pair) for pair in zip(moments, after, strict=True))
    loop.step()
    assert not torch.equal(loop.weights(), before)
    assert (loop.guard.skipped_steps, loop.guard.skipped_in_a_row) == (1, 0)


def test_an_infinite_loss_with_a_finite_gradient_counts_too():
    """log(0) beside what is learnt."""
    loop = Loop(NonFiniteGuard())
    before = loop.weights()
    loop.step(added=float("inf"))
    assert torch.equal(loop.weights(), before)
    assert loop.guard.skipped_steps == 1


def test_one_micro_batch_of_several_is_enough():
    guard = NonFiniteGuard()
    for loss in (1.0, float("inf"), -float("inf"), 2.0):  # inf - inf is NaN, not 0
        guard.observe(torch.tensor(loss))
    assert not guard.step_is_finite(1.0, None)
    guard.observe(torch.tensor(1.0))
    assert guard.step_is_finite(1.0, None)


def test_so_many_in_a_row_end_the_run():
    loop = Loop(NonFiniteGuard(max_skipped_steps=3))
    for factor in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        loop.step(factor)
        assert not loop.ended
    loop.step(float("nan"))
    assert loop.ended


def test_the_log_counts_and_leaves_out_what_was_skipped():
    loop = Loop(NonFiniteGuard())
    losses = []
    for factor in (0.1, 100.0, float("nan"), 100.0):  # the norm is sqrt(3) * factor; the limit is 1
        losses += [(loop.model(torch.ones(1, 2)).sum() * factor).item()]
        loop.step(factor)
    log = loop.guard.flush()
    assert (log["grad_clipped"], log["skipped_steps"]) == (0.5, 1)  # 2 of 4
    assert log["loss"] == pytest.approx((losses[0] + losses[1] + losses[3]) / 3)
    loop.step(0.1)
    assert loop.guard.flush()["grad_clipped"] == 0.0
    loop.step(float("inf"))
    assert math.isnan(loop.guard.flush()["loss"]), "an infinite loss is not logged as a number"


def test_the_count_is_saved():
    guard, resumed = NonFiniteGuard(), NonFiniteGuard()
    guard.skip([])
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skipped_steps == 1


def test_fp16_finds_its_scale():
    """Scaled by 2^127 gradients overflow; each such step is skipped and halves the scale, and ends no run."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    loop = Loop(NonFiniteGuard(max_skipped_steps=2), scaler)
    before = loop.weights()
    for skipped in range(1, 4):
        loop.step(8.0)
        assert scaler.get_scale() == 2.0 ** (127 - skipped)
        assert torch.equal(loop.weights(), before)
    while loop.guard.skipped_steps < 20 and torch.equal(loop.weights(), before):
        loop.step(8.0)
    assert not torch.equal(loop.weights(), before)
    assert loop.guard.skipped_in_a_row == 0


def test_fp16_that_finds_no_scale_ends_the_run():
    loop = Loop(NonFiniteGuard(max_skipped_steps=2), torch.amp.GradScaler("cpu", init_scale=4.0))
    for _ in range(3):  # scales 4, 2, 1: the last one counts
        loop.step(float("nan"))
        assert not loop.ended
    loop.step(float("nan"))  # and 0.5
    assert loop.ended


# the real trainers


def infinite(original, steps):
    """The loss of the stage, infinite at some steps with the gradient that it has anyway."""

    def micro_step(self, *args):
        loss = original(self, *args)
        return loss + torch.inf if self.state.global_step in steps else loss

    return micro_step


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_both_trainers_skip_an_infinite_loss_with_a_finite_gradient(
    run_stage, sft_adapter, tmp_path, monkeypatch, stage
):
    """transformers would train on it and log 0.0 (`logging_nan_inf_filter`)."""
    trainer_class = {"sft": CaptionSFTTrainer, "scst": SCSTTrainer}[stage]
    honest = trainer_class.micro_step
    keys = {"optim": "sgd", "lr_scheduler_type": "constant"}
    keys |= {"adapter": str(sft_adapter)} if stage == "scst" else {}
    monkeypatch.setattr(trainer_class, "micro_step", infinite(honest, {0}))
    run_stage(stage, output_dir=str(tmp_path / "one"), max_steps=1, **keys)
    monkeypatch.setattr(trainer_class, "micro_step", infinite(honest, {1}))
    trainer = run_stage(stage, output_dir=str(tmp_path / "out"), max_steps=3, **keys)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isnan(loss) for loss in logged] == [False, True, False]
    assert all(not math.isinf(loss) for loss in logged)
    assert [e["train_loss"] for e in trainer.state.log_history if "train_loss" in e] == pytest.approx(
        [(logged[0] + logged[2]) / 2]
    )
    assert trainer.guard.skipped_steps == 1
    if stage == "scst":  # a run of one infinite step leaves the adapter that it began with
        before, after = adapter_weights(sft_adapter), adapter_weights(tmp_path / "one")
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_both_trainers_end_a_run_that_diverges(run_stage, sft_adapter, tmp_path, monkeypatch, stage):
    trainer_class = {"sft": CaptionSFTTrainer, "scst": SCSTTrainer}[stage]
    monkeypatch.setattr(trainer_class, "micro_step", infinite(trainer_class.micro_step, range(1, 9)))
    keys = {"max_skipped_steps": 3, "save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    keys |= {"adapter": str(sft_adapter)} if stage == "scst" else {}
    with pytest.raises(Diverged, match=r"in 3 steps in a row, up to step 4\. Last good checkpoint: .*-1\."):
        run_stage(stage, output_dir=str(tmp_path / "out"), **keys)
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1"]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_no_trainer_writes_an_adapter_that_is_not_finite(
    run_stage, sft_adapter, tmp_path, monkeypatch, stage, value
):
    """Ruined by the optimizer in the last step, whose loss and gradient were finite. One stage would write a
    checkpoint of it, the other only the final adapter."""
    honest, out = TrainerHooks._maybe_log_save_evaluate, tmp_path / "out"

    def ruining(self, *args, **kwargs):
        if self.state.global_step == 3:
            weight = [p for p in self.model.parameters() if p.requires_grad][-1]
            weight.data.view(-1)[0] = value
        honest(self, *args, **kwargs)

    monkeypatch.setattr(TrainerHooks, "_maybe_log_save_evaluate", ruining)
    keys = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 3}
    keys |= {"adapter": str(sft_adapter), "save_steps": 2} if stage == "scst" else {}
    with pytest.raises(Diverged, match=r"NaN or infinity after step 3 and was not written.*checkpoint-2\. "):
        run_stage(stage, output_dir=str(out), **keys)
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not {p.name for p in out.iterdir()} & {"adapter_model.safetensors", "run.json"}
    assert all(torch.isfinite(tensor).all() for tensor in adapter_weights(out / "checkpoint-2").values())
    assert Diverged.exit_code == 1


def test_no_trainer_steps_around_the_guard():
    """`training_step` is final, for the type checker and here: a trainer overrides `micro_step`."""
    assert TrainerHooks.training_step.__final__
    for trainer_class in (SCSTTrainer, CaptionSFTTrainer):
        assert trainer_class.training_step is TrainerHooks.training_step
