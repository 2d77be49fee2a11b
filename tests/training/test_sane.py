"""Steps that are no numbers: what is left alone, what is counted, and the dynamic loss scale of fp16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scst.training.non_finite import Diverged, SaneStepsMixin


class Loop:
    """What the mixin needs of a trainer: the end of a step as `transformers` makes it."""

    is_deepspeed_enabled = False

    def __init__(self, folder, scaler=None):
        self.args = SimpleNamespace(max_grad_norm=1.0, output_dir=str(folder), fp16=scaler is not None)
        self.accelerator = SimpleNamespace(num_processes=1, scaler=scaler)
        self.state, self.control = SimpleNamespace(global_step=0), None
        self.callback_handler = SimpleNamespace(on_train_end=lambda *args: None)
        self.logged = {}
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def _get_grad_norm(self, model, grad_norm=None):
        return grad_norm

    def training_step(self, loss):
        scaler = self.accelerator.scaler
        (scaler.scale(loss) if scaler else loss).backward()
        return loss

    def log(self, logs, start_time=None):
        self.logged = logs


class SaneLoop(SaneStepsMixin, Loop):
    def step(self, factor=1.0):
        """One step on a loss of this factor; gradients of `inf` where it is infinite."""
        scaler = self.accelerator.scaler
        loss = self.model(torch.ones(1, 2)).sum() * factor
        self.training_step(loss)
        if scaler:
            scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self._get_grad_norm(self.model, norm)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_moments_stay_as_they_are(tmp_path, factor):
    """AdamW would move by its momentum and its weight decay even without a gradient."""
    loop = SaneLoop(tmp_path)
    loop.step()
    before = loop.weights()
    moments = [state["exp_avg"].clone() for state in loop.optimizer.state.values()]
    loop.step(factor)
    assert torch.equal(loop.weights(), before)
    after = [state["exp_avg"] for state in loop.optimizer.state.values()]
    assert all(torch.equal(*pair) for pair in zip(moments, after, strict=True))
    loop.step()
    assert not torch.equal(loop.weights(), before)
    assert (loop.skipped_steps, loop.skipped_in_a_row) == (1, 0)


def test_a_loss_without_gradient_counts_too(tmp_path):
    """Infinite, but its gradient is finite: log(0) beside what is learnt."""
    loop = SaneLoop(tmp_path)
    before = loop.weights()
    loss = loop.model(torch.ones(1, 2)).sum()
    loop.training_step(loss + torch.tensor(float("inf")))
    loop._get_grad_norm(loop.model, torch.tensor(1.0))
    loop.optimizer.step()
    assert torch.equal(loop.weights(), before)
    assert loop.skipped_steps == 1


def test_so_many_in_a_row_end_the_run(tmp_path):
    loop = SaneLoop(tmp_path)
    loop.max_skipped_steps = 3
    for factor in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        loop.step(factor)
    with pytest.raises(Diverged, match=r"in 3 steps in a row, up to step 6\. Last good checkpoint: none yet"):
        loop.step(float("nan"))


def test_the_log_counts(tmp_path):
    loop = SaneLoop(tmp_path)
    for factor in (0.1, 100.0, float("nan"), 100.0):  # the norm is sqrt(3) * factor; the limit is 1
        loop.step(factor)
    loop.log({"loss": 1.0})
    assert (loop.logged["grad_clipped"], loop.logged["skipped_steps"]) == (0.5, 1)  # 2 of 4
    loop.step(0.1)
    loop.log({"loss": 1.0})
    assert (loop.logged["grad_clipped"], loop.logged["skipped_steps"]) == (0.0, 1)


def test_fp16_finds_its_scale(tmp_path):
    """Scaled by 2^127 gradients overflow; each such step is skipped and halves the scale, and ends no run."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    loop = SaneLoop(tmp_path, scaler)
    loop.max_skipped_steps = 2
    before = loop.weights()
    for skipped in range(1, 4):
        loop.step(8.0)
        assert scaler.get_scale() == 2.0 ** (127 - skipped)
        assert torch.equal(loop.weights(), before)
    while loop.skipped_steps < 20 and torch.equal(loop.weights(), before):
        loop.step(8.0)
    assert not torch.equal(loop.weights(), before)
    assert loop.skipped_in_a_row == 0


def test_fp16_that_finds_no_scale_ends_the_run(tmp_path):
    loop = SaneLoop(tmp_path, torch.amp.GradScaler("cpu", init_scale=4.0))
    loop.max_skipped_steps = 2
    for _ in range(3):
        loop.step(float("nan"))
    with pytest.raises(Diverged):
        loop.step(float("nan"))
    assert loop.state.global_step == 3  # scales 4, 2, 1 and 0.5: the last two count
