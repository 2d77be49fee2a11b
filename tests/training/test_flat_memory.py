"""Nothing grows from step to step but the log: objects are counted at counted steps."""

from __future__ import annotations

from transformers import TrainerCallback

from scst.training.hooks import TrainerHooks
from tests.chaos.memory import Watcher, log_sizes, slope

STEPS, EVERY = 48, 8
LEAK_PER_STEP = 3.0


class Observer(TrainerCallback):
    """Measures after steps, and leaks when it is told to."""

    def __init__(self, leaks: bool):
        self.watcher, self.leaks, self.kept = Watcher(EVERY), leaks, []

    def on_step_end(self, args, state, control, **kwargs):
        if self.leaks:
            self.kept += [[state.global_step, []] for _ in range(3)]
        self.watcher.observe(state)


def growth(run_stage, sft_adapter, folder, monkeypatch, *, leaks):
    observer, honest = Observer(leaks), TrainerHooks.__init__

    def observed(self, *args, **kwargs):
        honest(self, *args, **kwargs)
        self.add_callback(observer)

    with monkeypatch.context() as patched:
        patched.setattr(TrainerHooks, "__init__", observed)
        keys = {"per_device_train_batch_size": 1, "max_new_tokens": 3, "num_samples": 1, "logging_steps": 1}
        trainer = run_stage("scst", adapter=str(sft_adapter), output_dir=str(folder), max_steps=STEPS, **keys)
    return slope(observer.watcher.found, "objects"), trainer


def test_no_object_stays_behind(run_stage, sft_adapter, tmp_path, monkeypatch):
    sound, trainer = growth(run_stage, sft_adapter, tmp_path / "out", monkeypatch, leaks=False)
    assert sound < LEAK_PER_STEP
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == STEPS
    names = {id(name) for entry in entries for name in entry if name not in ("step", "epoch")}
    assert len(names) < 2 * max(map(len, entries)), "entries share their names"
    assert sum(log_sizes(entries).values()) / STEPS < 8000
    leaking, _ = growth(run_stage, sft_adapter, tmp_path / "leaking", monkeypatch, leaks=True)
    assert leaking > LEAK_PER_STEP, "the negative control: six containers a step"
