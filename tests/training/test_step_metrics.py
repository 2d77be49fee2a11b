"""What a step reports adds up to the same numbers however the step is cut."""

from __future__ import annotations

import math

import pytest
import torch

from scst.training.step_metrics import Deviation, Mean, MostCommon, Peak, StepMetrics, merge

NAN = float("nan")


def metrics() -> StepMetrics:
    return StepMetrics(torch.device("cpu"))


def test_means_of_unequal_parts():
    # (1 + 2 + 3 + 10) / 4 = 4, not the mean of 2 and 10
    step = metrics()
    step.add({"reward": Mean.of([1.0, 2.0, 3.0])})
    step.add({"reward": Mean.of([10.0])})
    assert step.flush()["reward"] == 4.0


def test_a_micro_batch_without_opinions_leaves_the_window_alone():
    step = metrics()
    step.add({"reward": Mean.of([NAN, NAN]), "plain": NAN, "deviation": Deviation.of(torch.tensor([NAN]))})
    step.add(
        {
            "reward": Mean.of([1.0, NAN, 2.0]),
            "plain": 3.0,
            "deviation": Deviation.of(torch.tensor([1.0, 3.0])),
        }
    )
    log = step.flush()
    assert (log["reward"], log["plain"], log["deviation"]) == (1.5, 3.0, 1.0)


def test_what_nobody_had_an_opinion_about_is_not_logged():
    step = metrics()
    step.add({"reward": Mean.of([NAN])})
    assert "reward" not in step.flush()


@pytest.mark.parametrize("cut", [[8], [3, 5], [1] * 8])
def test_no_number_depends_on_the_cut(cut):
    values = torch.arange(8.0)
    texts = ["a", "b", "a", "c", "a", "b", "a", "d"]
    step, start = metrics(), 0
    for size in cut:
        part = slice(start, start + size)
        mask = values[part] > 2
        step.add(
            {
                "mean": Mean.of(values[part], mask),
                "deviation": Deviation.of(values[part]),
                "peak": Peak(values[part].max().item()),
                "most_common": MostCommon.of(texts[part], 1),
            }
        )
        start += size
    log = step.flush()
    assert log["mean"] == pytest.approx((3 + 4 + 5 + 6 + 7) / 5)
    assert log["deviation"] == pytest.approx(values.std(correction=0).item())
    assert log["peak"] == 7.0
    assert log["most_common"] == 0.5  # 4 of 8


def test_the_most_common_caption_is_that_of_a_step_and_not_of_the_window():
    # a of aa, then b of bb: 1 and 1; over the window it would be 2 of 4
    step = metrics()
    step.add({"most_common": MostCommon.of(["a", "a"], 1)})
    step.add({"most_common": MostCommon.of(["b", "b"], 2)})
    assert step.flush()["most_common"] == 1.0


def test_float32_rewards_keep_their_digits():
    values = torch.full((1000,), 1e6) + torch.tensor([0.0, 1.0] * 500)
    assert Deviation.of(values).value == pytest.approx(0.5, abs=1e-3)


def test_images_per_second_leave_out_what_is_between_steps():
    step = metrics()
    step._seconds, step._images = 2.0, 6
    assert step.flush()["images_per_s"] == 3.0
    assert "images_per_s" not in step.flush()


def test_seconds_of_a_phase_are_per_step():
    step = metrics()
    for _ in range(3):
        with step.timed("loss"):
            pass
    step.end_step()
    assert step.flush()["seconds_loss"] == pytest.approx(step.phases.seconds["loss"])


def test_merging_changes_neither_part():
    first, second = {"x": MostCommon.of("a", 1)}, {"x": MostCommon.of("a", 1)}
    merged = merge(merge({}, first), second)
    assert merged["x"].steps[1]["a"] == 2
    assert first["x"].steps[1]["a"] == second["x"].steps[1]["a"] == 1
    assert math.isnan(Mean(0.0, 0.0).value)
