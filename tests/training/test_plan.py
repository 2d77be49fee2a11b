"""`--plan`: what it measures, what it projects, and that it leaves nothing behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scst.cli.arguments import parse
from scst.config.measured_plan import alternatives, with_settings
from scst.config.reader import build_recipe
from scst.config.recipes import RECIPES, SCSTRecipe
from scst.errors import RecipeError
from scst.training.plan import EvaluationCost, Schedule, StepCost, measure_steps, project
from scst.training.plan_tables import duration
from tests.support.commands import command_of
from tests.support.memory import make_scarce
from tests.support.tiny import build_model

STAGES = ("sft", "scst")


def call(stage: str, *flags: str, **keys) -> int:
    """A command in this process: its exit code."""
    settings = [part for name, value in keys.items() for part in (f"--{name}", str(value))]
    return command_of(stage).main(["--config", f"quickstart/{stage}", *flags, *settings])


@pytest.fixture
def keys(world, sft_adapter, tmp_path):
    """Settings of a run on the small world, by stage."""

    def of(stage):
        shared = {
            "model_name_or_path": world / "model",
            "dataset": world / "data",
            "output_dir": tmp_path / "out",
            "quantization": "none",
            "precision": "fp32",
            "max_new_tokens": 12,
            "per_device_train_batch_size": 4,
            "seed": 3,
        }
        own = {"lora_rank": 4} if stage == "sft" else {"num_samples": 3, "adapter": sft_adapter}
        return shared | own

    return of


def planned(stage, file: Path, **settings) -> dict:
    assert call(stage, "--plan", str(file), **settings) == 0
    return json.loads(file.read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_plan_says_what_a_run_does_and_leaves_nothing(stage, keys, run_stage, tmp_path, capsys, sft_adapter):
    """Evaluations and checkpoints are counted as in the real run; tables are shown, numbers written."""
    settings = {"num_train_epochs": 3, "max_steps": -1, "logging_steps": 2, "save_strategy": "steps"}
    settings |= {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "validation_images": 3}
    settings |= {"validation_batch_size": 2}
    plan = planned(stage, tmp_path / "plans" / "plan.json", **keys(stage), **settings)
    assert not (tmp_path / "out").exists()

    more = {"adapter": str(sft_adapter)} if stage == "scst" else {}
    run = run_stage(stage, output_dir=str(tmp_path / "run"), **settings, **more)
    evaluated = [entry["step"] for entry in run.state.log_history if "eval_cider_d" in entry]
    saved = list((tmp_path / "run").glob("checkpoint-*"))
    expected = {"steps": run.state.global_step, "evaluations": len(evaluated), "checkpoints": len(saved)}
    assert plan["schedule"] == expected
    assert plan["schedule"]["steps"] == 9

    assert plan["fits"] is True
    assert 0 < plan["peak_gb"] < plan["device_gb"]
    assert plan["evaluation"]["images"] == 2
    step = plan["step"]
    assert set(step["phases"]) == ({"rollout", "reward"} if stage == "scst" else set()) | {"loss", "other"}
    assert sum(step["shares"].values()) == pytest.approx(1, abs=0.01)
    assert plan["images_per_s"] == pytest.approx(4 / step["seconds"])
    parts = plan["projection"]
    assert parts["training"] == pytest.approx(parts["steps"] + parts["evaluations"] + parts["checkpoints"])
    assert plan["projected_seconds"] == pytest.approx(parts["training"] + parts["startup"])
    tried = [set(other["settings"]) for other in plan["alternatives"]]
    assert {"per_device_train_batch_size"} in tried
    assert {"gradient_checkpointing"} in tried
    assert ({"num_samples"} in tried) == (stage == "scst")
    shown = capsys.readouterr().err
    for text in ("one step of 4 images", "the whole run", "9 steps", "other settings", "peak memory"):
        assert text in shown


def test_an_earlier_run_is_neither_in_the_way_nor_touched(keys, tmp_path, capsys):
    """Without a file the numbers go to standard output."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    assert call("sft", "--plan", **keys("sft"), max_steps=2, report_to="tensorboard") == 0
    assert json.loads(capsys.readouterr().out)["schedule"]["steps"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    assert (tmp_path / "out" / "run.json").read_text() == "{}"


PAUSE = 0.3


class Clock:
    """Time passes in the reward alone, but for a microsecond at every look."""

    now = 1e9

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


CLOCK = Clock()


def pausing(completions, **columns):
    """A reward that takes its time."""
    CLOCK.now += PAUSE
    return [float(len(text)) for text in completions]


def test_projection_is_what_the_run_takes(keys, tmp_path, monkeypatch):
    for name in ("time", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, CLOCK)
    settings = keys("scst") | {"max_steps": 10, "num_samples": 2, "table_steps": 0}
    settings |= {"rewards": '[{"import_path": "tests.training.test_plan:pausing"}]'}
    plan = planned("scst", tmp_path / "plan.json", **settings)
    assert plan["step"]["phases"]["reward"] == pytest.approx(PAUSE, rel=0.01)
    assert call("scst", **settings) == 0
    took = json.loads((tmp_path / "out" / "run.json").read_text())["train_seconds"]
    assert took >= 10 * PAUSE
    assert plan["projection"]["training"] == pytest.approx(took, rel=0.05)


def test_out_of_memory_is_an_answer(keys, tmp_path, monkeypatch, capsys):
    """The supervised step has no parts: 4 images do not fit, the plan says which setting does."""
    from scst.sft.trainer import CaptionSFTTrainer

    original = CaptionSFTTrainer.compute_loss

    def limited(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CaptionSFTTrainer, "compute_loss", limited)
    plan = planned("sft", tmp_path / "plan.json", **keys("sft"), max_steps=2)
    assert plan["fits"] is False
    assert plan["step"] is plan["projected_seconds"] is plan["images_per_s"] is None
    fits = {str(other["settings"]): other["fits"] for other in plan["alternatives"]}
    assert list(fits.values()) == [False, True, False]
    assert "per_device_train_batch_size: 2, gradient_accumulation_steps: 2 fits" in plan["advice"]
    assert "does not fit" in capsys.readouterr().err


def test_smaller_parts_are_reported(keys, tmp_path, monkeypatch):
    make_scarce("scoring", 2, monkeypatch.setattr)
    plan = planned("scst", tmp_path / "plan.json", **keys("scst"), max_steps=2)
    assert plan["fits"] is True
    assert plan["step"]["micro_batches"] == {"loss": 2}


@pytest.mark.parametrize("stage", STAGES)
def test_measuring_does_not_train(keys, sft_adapter, monkeypatch, stage):
    """The adapter is bit for bit what it was, so every setting is measured on the same policy."""
    built = []
    monkeypatch.setattr(
        "scst.config.build_training.run_training", lambda trainer, *args: built.append(trainer)
    )
    assert call(stage, **keys(stage) | {"adapter": sft_adapter}, max_steps=50, learning_rate=0.1) == 0
    (trainer,) = built
    assert measure_steps(trainer, steps=2).images == 4
    assert trainer.state.global_step == 3
    saved = load_file(sft_adapter / "adapter_model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, saved[name.replace(".default", "")]), name


def test_projection_by_hand():
    """3 s until the first step, 9 s for it, 9 x 2 s; 2 evaluations of 100 images at 0.1 s and 5 s once;
    3 checkpoints and the output at 0.5 s: 3 + 27 + 25 + 2 = 57 s.
    """
    step = StepCost(8, 2.0, 2.0, 9.0, {"loss": 1.5, "other": 0.5}, {"loss": 1.0})
    evaluation = EvaluationCost(20, 2.0, 5.0, 1.5)
    projection = project(
        Schedule(10, 2, 3),
        step,
        evaluation,
        evaluation_images=100,
        checkpoint_seconds=0.5,
        startup_seconds=3.0,
    )
    assert (projection.steps, projection.evaluations, projection.checkpoints) == (27.0, 25.0, 2.0)
    assert projection.total == 57.0


def test_alternatives_of_a_recipe(tiny_processor):
    model = build_model(tiny_processor).requires_grad_(False)
    recipe = build_recipe("scst", {"per_device_train_batch_size": 8, "gradient_checkpointing": True})
    assert alternatives(recipe, 100, model) == [
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": False},
        {"num_samples": 2},
        {"prompt_gradient": False},
    ]
    few = alternatives(recipe, 15, model)
    assert {"per_device_train_batch_size": 16} not in few, "more than there are images"
    model.model.multi_modal_projector.requires_grad_(True)
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_samples": 2}
    assert alternatives(build_recipe("scst", one | {"baseline": "group"}), 100, model) == [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
    ]
    changed = with_settings(recipe, {"num_samples": 2, "gradient_checkpointing": False})
    assert changed.num_samples == 2
    assert changed.training == {"per_device_train_batch_size": 8, "gradient_checkpointing": False}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.14, "3.1 s"), (125.0, "2 min 5 s"), (3599.9, "59 min 59 s"), (7380.0, "2 h 3 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("argv", "plan"),
    [
        ([], False),
        (["--plan"], True),
        (["--plan", "--seed", "7"], True),
        (["--plan", "a.json", "--seed", "7"], "a.json"),
        (["--plan=a.json"], "a.json"),
        (["--plan", "false"], False),
    ],
)
def test_flag(argv, plan):
    assert parse(SCSTRecipe, ["--config", "quickstart/scst", *argv]).plan == plan


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("scst", ["--plan", "--dry_run"], "--plan and --dry_run exclude each other"),
        ("sft", ["--dry_run", "--plan", "a.json"], "--plan and --dry_run exclude each other"),
        ("scst", ["--plan", "5"], "expected nothing or a file to write, FILE.json; got 5"),
        ("scst", ["--plan", "plan.yaml"], "got 'plan.yaml'"),
        ("scst", ["--plan", "a.json", "--plan", "b.json"], "got ['a.json', 'b.json']"),
        ("evaluate", ["--plan"], "plan: unknown key"),
        ("caption", ["--plan"], "plan: unknown key"),
    ],
)
def test_wrong_flag(stage, argv, message):
    with pytest.raises(RecipeError) as caught:
        parse(RECIPES[stage], argv)
    assert message in str(caught.value)
