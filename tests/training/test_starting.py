"""A run that replaces an earlier one: nothing of that is changed before everything is known to be right."""

from __future__ import annotations

import hashlib
import json

import pytest

import scst
from rewards.errors import RewardError
from scst.errors import RecipeError, ScstError
from scst.training.run_folder.run_lock import run_lock
from tests.support.stages import losses
from tests.support.worlds import write_risc

pytestmark = pytest.mark.slow


def content(folder):
    """SHA-256 of every file below a folder, and when it was written."""
    return {
        p.relative_to(folder).as_posix(): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def earlier(run_stage, tmp_path_factory):
    """A complete run with a checkpoint, and files of the user's beside it."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    run_stage("sft", output_dir=str(folder), max_steps=1, save_strategy="steps", save_steps=1)
    (folder / "checkpoint-mynotes").mkdir()
    (folder / "checkpoint-mynotes" / "a.txt").write_text("mine")
    return folder


def test_readme_of_the_user_is_not_written_over(earlier):
    assert (earlier / "README.md").read_text() == "mine"


def setup_that_fails(completions, **columns):
    """A reward that cannot be set up."""
    return [0.0] * len(completions)


def _no_setup(dataset):
    raise RewardError("no references like these")


setup_that_fails.setup = _no_setup


def reward_that_fails(completions, **columns):
    """A reward that raises in the first step."""
    raise ValueError("no opinion")


WRONG = {
    "sft": {
        "a training argument": ({"lr_scheduler_type": "linaer"}, "lr_scheduler_type: "),
        "an optimizer": ({"optim": "adamm"}, "optim: "),
        "a tracker": ({"report_to": "comet_ml"}, "report_to: 'comet_ml' is not installed"),
        "a dataset": ({"dataset": "/nowhere"}, "no such file or folder"),
        "a split": ({"train_split": "trian"}, "there is no split 'trian'"),
        "a model": ({"model_name_or_path": "/nowhere"}, "model_name_or_path: "),
        "modules": ({"lora_targets": r".*nothing.*"}, "lora_targets: "),
        "splits that are there": ({"split_fractions": "60/20/20"}, "the dataset declares the splits train"),
        "early stopping": ({"early_stopping_patience": 2}, "there is no evaluation"),
    },
    "scst": {
        "an adapter": ({"adapter": "/nowhere"}, "adapter: "),
        "a reward": ({"rewards": [{"name": "cidar"}]}, "rewards: "),
        "the setup of a reward": (
            {"rewards": [{"name": "cider_d"}, {"import_path": f"{__name__}:setup_that_fails"}]},
            "no references like these",
        ),
        "an argument of the other stage": ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        "a first step": ({"rewards": [{"import_path": f"{__name__}:reward_that_fails"}]}, "no opinion"),
    },
}


@pytest.mark.parametrize(("stage", "what"), [(stage, what) for stage in WRONG for what in WRONG[stage]])
def test_something_wrong_leaves_the_earlier_run_alone(run_stage, sft_adapter, earlier, stage, what):
    changes, message = WRONG[stage][what]
    keys = {"adapter": str(sft_adapter)} if stage == "scst" else {}
    before = content(earlier)
    with pytest.raises((ScstError, RewardError), match=message):
        run_stage(stage, output_dir=str(earlier), overwrite=True, **keys | changes)
    assert content(earlier) == before


def test_from_python_too(earlier, world):
    data = scst.load_dataset(str(world / "data"))
    policy = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=4), quantization="none")
    before = content(earlier)
    for train, wrong in (
        (scst.finetune, {"lr_scheduler_type": "linaer"}),
        (scst.finetune, {"caption_policy": "longets"}),
        (scst.refine, {"rewards": ["cidar"]}),
        (scst.refine, {"rewards": [setup_that_fails]}),
        (scst.refine, {"baseline": "greedyy"}),
    ):
        with pytest.raises((ScstError, RewardError, ValueError)):
            train(policy, data, str(earlier), overwrite=True, max_steps=1, **wrong)
        assert content(earlier) == before, wrong


def test_it_is_replaced_by_a_run_that_works(run_stage, sft_adapter, earlier, tmp_path):
    """With another stage and without checkpoints; the user's files stay."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_bytes((earlier / "run.json").read_bytes())
    (folder / "notes.md").write_text("mine")
    run_stage("scst", output_dir=str(folder), overwrite=True, adapter=str(sft_adapter), max_steps=1)
    assert json.loads((folder / "run.json").read_text())["stage"] == "scst"
    assert (folder / "notes.md").read_text() == "mine"
    assert (folder / "document_frequencies.json").is_file()
    hidden = {p.name for p in folder.iterdir() if p.name.startswith(".")}
    assert hidden == {".files-of-run.json"}
    assert not (folder / "replaced-run").exists()


def test_one_run_per_folder(run_stage, tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(RecipeError, match="another run is at work"),
    ):
        run_stage("sft", output_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stopped(run_stage, tmp_path_factory):
    """A run of two steps, saved at each, that may be continued."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run_stage("sft", output_dir=str(folder), **STOPPED)
    return folder


STOPPED = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate: 0.01 \(now 0.001\)"),
        ({"seed": 4}, r"seed: 3 \(now 4\)"),
        ({"per_device_train_batch_size": 2}, r"per_device_train_batch_size: 4 \(now 2\)"),
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps: 1 \(now 2\)"),
        ({"caption_policy": "first", "prompt": "describe"}, r"prompt: .*caption en.*now .*describe"),
        ({"lora_rank": 8, "resume_changed": True}, r"lora_rank: 4 \(now 8\): its state does not fit"),
        ({"optim": "sgd", "resume_changed": True}, r"optim: .* \(now .sgd.\): its state does not fit"),
        ({"warmup_steps": 3}, r"warmup_steps: 0 \(now 3\)"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_resuming_with_other_settings_is_refused(run_stage, stopped, monkeypatch, changes, message):
    """Before data and model are loaded, naming both values."""
    monkeypatch.setattr("scst.adapters.loaded.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    before = content(stopped)
    with pytest.raises(RecipeError, match=message):
        run_stage("sft", output_dir=str(stopped), resume=True, **STOPPED | changes)
    assert content(stopped) == before


def test_resuming_with_other_data_is_refused(run_stage, stopped, tmp_path):
    """By what the data are, not by where they lie."""
    same, other = write_risc(tmp_path / "same"), write_risc(tmp_path / "other", train=13)
    run_stage("sft", output_dir=str(stopped), resume=True, **STOPPED, dataset=str(same))
    with pytest.raises(RecipeError, match=r"data \(fingerprint\): "):
        run_stage("sft", output_dir=str(stopped), resume=True, **STOPPED, dataset=str(other))


def test_what_may_change_takes_effect(run_stage, tmp_path, capsys):
    """Steps, intervals, the cut into micro-batches, patience; and what is insisted on."""
    keys = {
        "output_dir": str(tmp_path / "run"),
        "eval_strategy": "steps",
        "eval_steps": 100,
        "validation_images": 2,
        "metric_for_best_model": "cider_d",
        "load_best_model_at_end": True,
        "early_stopping_patience": 1,
        "save_strategy": "steps",
        "save_steps": 100,
    }
    run_stage("sft", **keys, max_steps=1, save_minutes=1e-9)
    changes = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "early_stopping_patience": 50}
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    capsys.readouterr()
    resumed = run_stage("sft", **keys | changes | cut, resume=True, resume_changed=True, weight_decay=0.1)
    said = " ".join(capsys.readouterr().out.split())
    assert "resume: changed are early_stopping_patience: 1 (now 50), eval_steps: 100 (now 2)" in said
    assert "weight_decay: 0 (now 0.1)" in said
    assert "per_device_train_batch_size" not in said
    assert len(losses(resumed)) == 4
    evaluated = [entry["step"] for entry in resumed.state.log_history if "eval_cider_d" in entry]
    assert evaluated == [1, 2, 4], "1: the end of the first part"
    saved = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert saved == {"checkpoint-1", "checkpoint-2", "checkpoint-4"}
    (patience,) = [c.early_stopping_patience for c in resumed._early_stopping()]
    assert patience == 50


def test_a_notebook_that_is_run_again_has_the_trained_policy(world, tmp_path):
    """Nothing is trained twice, and the policy of the second time is that of the first."""
    data = scst.load_dataset(str(world / "data"))
    captions = []
    for _ in range(2):
        policy = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=4), quantization="none")
        trainer = scst.finetune(
            policy, data, str(tmp_path / "run"), resume=True, max_steps=2, save_steps=2, learning_rate=0.1
        )
        captions.append({n: p.detach().clone() for n, p in policy.model.named_parameters() if "lora" in n})
        assert trainer.state.global_step == 2
    assert all(bool((captions[0][name] == captions[1][name]).all()) for name in captions[0])
    other = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=8), quantization="none")
    with pytest.raises(RecipeError, match=r"adapter_config: .*its state does not fit"):
        scst.finetune(other, data, str(tmp_path / "run"), resume=True, max_steps=4, learning_rate=0.1)


def test_a_complete_run_without_checkpoints_is_not_trained_over(run_stage, sft_adapter):
    before = content(sft_adapter)
    with pytest.raises(RecipeError, match="a complete run that left no checkpoint to continue from"):
        run_stage("sft", output_dir=str(sft_adapter), resume=True)
    assert content(sft_adapter) == before


def test_consensus_captions_from_python(world, tmp_path):
    """The trainer orders the captions itself; it took the first one of the file."""
    data = scst.load_dataset(str(world / "data"))
    policy = scst.load_policy(str(world / "model"), adapter=scst.LoRA(rank=4), quantization="none")
    build = {"sft": scst.sft_trainer, "scst": scst.scst_trainer}
    for stage, trainer_of in build.items():
        trainer = trainer_of(policy, data, str(tmp_path / stage), caption_policy="consensus")
        ordered = trainer.train_dataset["references"][:]
        plain = data["train"]["references"][:]
        assert [sorted(row) for row in ordered] == [sorted(row) for row in plain]
        assert ordered != plain
    assert not content(tmp_path), "building a trainer writes nothing"
