"""What runs, what does not run again, what a failure touches: with stand-ins for the scripts."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading

import pytest
from rich.console import Console

from scst.errors import Interrupted, RunStopped
from scst.experiments import runner
from tests.support.matrices import SCST, SFT
from tests.support.waiting import wait_until

TWO_CHAINS = [
    {"name": "sft", "stages": [SFT]},
    {"name": "rl", "stages": [SFT, SCST], "vary": {"baseline": ["greedy", "group"]}},
]


def test_everything_once_and_never_again(lab):
    outcome, started = lab.run(models=TWO_CHAINS)
    assert not outcome.errors
    trained = [line for line in started if not line.startswith("evaluate")]
    assert trained == ["sft sft-sft", "scst rl-baseline=greedy-scst", "scst rl-baseline=group-scst"]
    assert len(started) == 3 + 3 * 2
    assert lab.run(models=TWO_CHAINS)[1] == []


@pytest.mark.slow
def test_a_changed_key_runs_what_it_touches(lab):
    lab.run(models=TWO_CHAINS)
    hotter = {"name": "rl", "stages": [SFT, SCST | {"temperature": 0.5}], "vary": {"baseline": ["group"]}}
    changed = [TWO_CHAINS[0], hotter]
    assert lab.run(models=changed)[1] == [
        "scst rl-baseline=group-scst",
        "evaluate rl-baseline=group-caption-en-greedy-32",
        "evaluate rl-baseline=group-what-is-it-greedy-32",
    ]
    assert lab.run(models=TWO_CHAINS)[1] == [], "and back again"
    assert lab.run(models=TWO_CHAINS[:1], prompts=["caption en", "new"])[1] == ["evaluate sft-new-greedy-32"]


@pytest.mark.slow
def test_a_failure_touches_what_builds_upon_it_only(lab):
    grid = {"lora_rank": [13, 4]}
    models = [{"name": "m", "stages": [SFT, SCST], "vary": grid}, {"name": "base"}]
    outcome, _ = lab.run(models=models, max_new_tokens=[13, 8])
    errors = {folder.name.rpartition("-")[0]: error for folder, error in outcome.errors.items()}
    assert errors["m-lora_rank=13-sft"] == "thirteen brings bad luck"
    blamed = errors["m-lora_rank=13-scst"]
    assert blamed.startswith("not run: m-lora_rank=13-sft-")
    assert blamed.endswith("thirteen brings bad luck")
    assert errors["m-lora_rank=13-caption-en-greedy-8"] == blamed
    assert (
        errors["base-caption-en-greedy-13"]
        == errors["m-lora_rank=4-what-is-it-greedy-13"]
        == "thirteen tokens"
    )
    complete = [
        cell for cell in lab.plan(models=models, max_new_tokens=[13, 8]).cells if cell.run.is_complete
    ]
    assert [cell.max_new_tokens for cell in complete] == [8] * 4
    again = lab.run(models=models, max_new_tokens=[13, 8])[1]
    assert "sft m-lora_rank=13-sft" in again, "what failed is tried again"
    assert "sft m-lora_rank=4-sft" not in again


def test_a_signal_goes_to_the_run_and_ends_the_matrix(lab):
    models = [{"name": "slow", "stages": [SFT], "lora_rank": 60}, {"name": "base"}]
    folder = lab.plan(models=models).trainings[0].folder

    def interrupt():
        wait_until((folder / "checkpoint-1").is_dir)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        lab.run(models=models)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert lab.plan(models=models).trainings[0].state == "begun"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_matrix_at_a_time(lab, monkeypatch):
    monkeypatch.setattr(runner, "_LOCK_PATIENCE_S", 0.1)
    (lab.folder / "out").mkdir()
    with (lab.folder / "out" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunStopped, match="another matrix is at work"):
            lab.run()
    assert lab.run()[1]


def test_the_launcher_is_used(lab):
    lab.calls.write_text("")
    plan = lab.plan(models=[{"name": "base"}], prompts=["p"])
    launcher = ["sh", "-c", f'touch {lab.folder}/launched; exec "$0" "$@"', sys.executable]
    runner.Runner(lab.scripts, launcher, Console(quiet=True)).run(
        plan, lab.folder / "out", lambda outcome: None
    )
    assert (lab.folder / "launched").exists()
    assert plan.cells[0].run.is_complete
