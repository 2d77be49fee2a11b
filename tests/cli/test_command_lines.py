"""The launch scripts as users start them: by path, with -m, under accelerate; help, dry runs, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scst.cli.arguments import parse
from scst.config.recipes import RECIPES, EvaluateRecipe
from tests.support.adapter_folders import write_adapter
from tests.support.commands import call, start, start_warm
from tests.support.paths import ROOT
from tests.support.worlds import write_recipe, write_risc

SCRIPTS = ("sft", "scst", "evaluate", "caption", "explain")
TOY = ("--model_name_or_path", "embedded:scenes-paligemma")
NEEDED = {
    "sft": ("--config", "quickstart/sft"),
    "scst": ("--config", "quickstart/scst"),
    "evaluate": (*TOY, "--dataset", "embedded:scenes"),
    "caption": TOY,
    "explain": TOY,
}
"""Flags without which a stage refuses to start."""


@pytest.mark.slow
@pytest.mark.parametrize("script", [*SCRIPTS, "matrix", "merge"])
def test_help_imports_no_torch(script):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path('launch/{script}.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = start("-c", code)
    assert done.returncode == 0, done.stderr
    assert "--config RECIPE.yaml" in done.stdout
    assert "output_dir" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["launch/sft.py"], ["-m", "launch.sft"], ["launch/scst.py"], ["-m", "launch.scst"]]
)
def test_by_path_and_by_module(how, tmp_path):
    """`python launch/scst.py` puts launch/ first on the path, where scst.py shadows the package."""
    stage = "scst" if "scst" in how[-1] else "sft"
    adapter = ["--adapter", str(write_adapter(tmp_path))] if stage == "scst" else []
    done = start(*how, *NEEDED[stage], *adapter, "--dry_run", "--seed", "7")
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["seed"] == 7
    assert resolved["model_name_or_path"] == "embedded:scenes-paligemma"


@pytest.mark.slow
def test_by_path_from_another_folder(tmp_path):
    write_adapter(tmp_path / "outputs" / "quickstart" / "sft")  # as the recipe names it
    done = start(str(ROOT / "launch" / "scst.py"), "--config", "quickstart/scst", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_whole_job_under_accelerate(world, tmp_path):
    """accelerate launch sft, accelerate launch scst on its adapter, evaluate, caption: as the README says."""
    shared = {
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "quantization": "none",
        "max_new_tokens": 12,
    }
    sft = write_recipe(tmp_path / "sft.yaml", **shared, output_dir=str(tmp_path / "sft"), lora_rank=4)
    scst = write_recipe(tmp_path / "scst.yaml", **shared, output_dir=str(tmp_path / "scst"), table_steps=1)
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    for arguments in (
        [*accelerate, "launch/sft.py", "--config", str(sft)],
        [*accelerate, "launch/scst.py", "--config", str(scst), "--adapter", str(tmp_path / "sft")],
        [
            "launch/evaluate.py",
            "--adapter",
            str(tmp_path / "scst"),
            "--output_dir",
            str(tmp_path / "evaluation"),
        ],
    ):
        done = start_warm(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert set(metrics) == set(EvaluateRecipe().metrics)
    assert set(metrics) >= {"bleu_1", "bleu_4", "rouge_l", "cider_d", "meteor", "bad_ending_rate"}
    assert all(set(entry) >= {"value", "ci95", "signature"} for entry in metrics.values())
    rows = [
        json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["image_id"] for row in rows] == [f"tile_{i}" for i in range(12, 16)], (
        "the adapter's own dataset"
    )

    picture = tmp_path / "a picture.png"
    Image.new("L", (50, 40), 128).save(picture)
    done = start_warm(
        "launch/caption.py",
        "--adapter",
        str(tmp_path / "scst"),
        str(picture),
        str(world / "data" / "resized"),
    )
    assert done.returncode == 0, done.stderr
    captions = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(captions) == 17
    assert captions[0]["image"] == str(picture)


@pytest.mark.slow
def test_zero_shot_evaluation_needs_no_adapter(world, tmp_path, capsys):
    code = call(
        "evaluate",
        *(
            "--model_name_or_path",
            str(world / "model"),
            "--dataset",
            str(world / "data"),
            "--eval_split",
            "val",
        ),
        *("--quantization", "none", "--metrics", "[cider_d]", "--max_new_tokens", "8", "--decoding", "beam"),
        *("--output_dir", str(tmp_path)),
    )
    assert code == 0, capsys.readouterr().err
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"cider_d"}


def test_a_training_recipe_serves_evaluation(world, tmp_path):
    """Keys of the training stages are passed over; a key that no stage knows is not."""
    assert call("evaluate", "--config", "recipes/quickstart/sft.yaml", "--dry_run") == 0
    assert (
        call(
            "caption",
            "--config",
            "recipes/quickstart/scst.yaml",
            "--adapter",
            str(write_adapter(tmp_path)),
            "--dry_run",
            str(world / "data" / "resized"),
        )
        == 0
    )
    assert call("evaluate", "--config", "recipes/quickstart/sft.yaml", "--lora_rnk", "3", "--dry_run") == 2


def test_dry_run_checks_settings_too(tmp_path, capsys):
    flags = (*NEEDED["scst"], "--adapter", str(write_adapter(tmp_path)), "--dry_run")
    assert call("scst", *flags) == 0
    assert call("scst", *flags, "--temperature", "0") == 2
    assert "temperature: expected a number above 0" in capsys.readouterr().err
    assert call("scst", *flags, "--rewards", "[{name: spice_girls}]") == 2


WRONG = {
    "unknown key": ("sft", ["--lora_rnk", "8"], "did you mean lora_rank"),
    "key of another stage": ("sft", ["--num_samples", "8"], "a key of `scst rl`"),
    "value of another type": ("sft", ["--lora_rank", "many"], "lora_rank: expected int, got 'many'"),
    "value outside the choices": (
        "scst",
        ["--baseline", "beam"],
        "must be one of greedy, leave_one_out, group",
    ),
    "owned by the project": ("sft", ["--bf16", "true"], "use `precision`"),
    "training argument": ("sft", ["--save_strategy", "sometimes"], "save_strategy: must be one of"),
    "stray argument": ("sft", ["lora_rank", "8"], "unexpected argument 'lora_rank'"),
    "missing config": ("sft", ["--config", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
    "no dataset": ("sft", ["--dataset", "/nowhere", "--dry_run"], "/nowhere"),
    "no model": ("sft", ["--model_name_or_path", "/nowhere"], "no model configuration found at '/nowhere'"),
    "no adapter": ("scst", ["--adapter", "/nowhere"], "holds no adapter_config.json"),
    "adapter left out": ("scst", ["--adapter", "null"], "adapter: missing"),
    "too few samples": ("scst", ["--baseline", "group", "--num_samples", "1"], "needs at least 2"),
    "temperature": ("scst", ["--temperature", "0"], "temperature: expected a number above 0"),
    "unknown reward": (
        "scst",
        ["--rewards", "[{name: spice_girls}]"],
        "unknown reward 'spice_girls'; known: bad_ending, bleu, cider_d",
    ),
    "reward import": ("scst", ["--rewards", "[{import_path: 'no.such:thing'}]"], "cannot be imported"),
    "unknown metric": ("evaluate", ["--metrics", "[cider_e]"], "cider_e"),
    "unknown decoding": ("evaluate", ["--decoding", "lucky"], "lucky"),
    "unknown split": ("evaluate", ["--eval_split", "tset"], "tset"),
    "no picture": ("caption", [], "no picture given"),
    "missing picture": ("caption", ["/nowhere.png"], "'/nowhere.png' does not exist"),
    "unwritable output": ("sft", ["--output_dir", "/proc/nowhere"], "cannot be written"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_2_and_names_what_is_wrong(case, capsys, monkeypatch, tmp_path):
    """Before any model is loaded."""
    script, flags, message = WRONG[case]
    monkeypatch.setattr("scst.adapters.loaded.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    if script == "scst" and "--adapter" not in flags:
        flags = ["--adapter", str(write_adapter(tmp_path / "adapter")), *flags]
    if "--output_dir" not in flags:
        flags = [*flags, "--output_dir", str(tmp_path / "out")]
    needed = [] if "--config" in flags else NEEDED[script]
    assert call(script, *needed, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


BAD_DATA = {
    "missing image": lambda d: (d / "resized" / "tile_3.png").unlink(),
    "corrupt image": lambda d: (d / "resized" / "tile_3.png").write_bytes(b"not an image"),
    "truncated image": lambda d: (d / "resized" / "tile_3.png").write_bytes(
        (d / "resized" / "tile_3.png").read_bytes()[:200]
    ),
    "empty captions": lambda d: rewrite(d, "tile_3.png", ["", "", "", "", ""]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_example_is_refused_or_skipped(case, world, tmp_path, capsys):
    write_risc(tmp_path / "data")
    BAD_DATA[case](tmp_path / "data")
    flags = [
        *NEEDED["sft"],
        "--model_name_or_path",
        str(world / "model"),
        "--dataset",
        str(tmp_path / "data"),
        "--quantization",
        "none",
    ]
    flags += [
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
        "--output_dir",
        str(tmp_path / "out"),
        "--max_new_tokens",
        "8",
    ]
    assert call("sft", *flags) == 2
    assert "tile_3" in capsys.readouterr().err
    assert call("sft", *flags, "--on_bad_example", "skip") == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["images"] == {"train": 11}


def rewrite(folder: Path, image: str, captions: list[str]) -> None:
    """Replace the captions of one image."""
    lines = (folder / "captions.csv").read_text().splitlines()
    lines = [",".join([*line.split(",")[:3], *captions]) if f",{image}," in line else line for line in lines]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def test_not_utf8_and_wrong_header(tmp_path, capsys):
    write_risc(tmp_path / "data")
    table = tmp_path / "data" / "captions.csv"
    good = table.read_bytes()
    table.write_bytes(good.replace(b"airport", b"a\xe9roport", 1))
    assert (
        call(
            "sft", *NEEDED["sft"], "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")
        )
        == 2
    )
    assert "UTF-8" in capsys.readouterr().err
    table.write_bytes(good.replace(b"source,split,image", b"source,split,picture", 1))
    assert call("sft", *NEEDED["sft"], "--dataset", str(tmp_path / "data"), "--dry_run") == 2
    assert "picture" in capsys.readouterr().err


def test_empty_folder_says_what_is_accepted(tmp_path, capsys):
    assert call("sft", *NEEDED["sft"], "--dataset", str(tmp_path), "--dry_run") == 2
    assert "captions.csv" in capsys.readouterr().err


# --- nothing is trained or evaluated by accident


@pytest.mark.parametrize("stage", ["sft", "scst", "matrix"])
def test_a_training_command_without_a_recipe_names_one(stage, capsys):
    flags = ["--dataset", "d", "--adapter", "a"] if stage != "matrix" else []
    assert call(stage, *flags, "--dry_run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --config: missing")
    assert "--config quickstart " in error


@pytest.mark.parametrize("stage", ["evaluate", "caption", "explain"])
def test_other_commands_need_a_model(stage, capsys):
    assert call(stage, "--dataset", "d", "--dry_run") == 2
    assert capsys.readouterr().err.startswith("error: model_name_or_path: missing; give a checkpoint, or")


@pytest.mark.parametrize("stage", ["sft", "scst", "evaluate", "prepare", "document-frequencies"])
def test_there_is_no_dataset_by_default(stage, tmp_path, capsys):
    recipe = (
        write_recipe(tmp_path / "r.yaml", adapter="a")
        if stage in NEEDED
        else write_recipe(tmp_path / "r.yaml")
    )
    argv = ["document-frequencies"] if stage == "document-frequencies" else []
    assert call(stage, *argv, "--config", str(recipe), "--dry_run") == 2
    assert capsys.readouterr().err.startswith("error: dataset: missing")


@pytest.mark.parametrize("stage", ["evaluate", "caption", "explain"])
def test_keys_come_from_the_run_that_made_the_adapter(stage, tmp_path):
    """Base model, prompt, limits and dataset from run.json beside it; a flag overrides them."""
    trained = {
        "model_name_or_path": "base",
        "prompt": "its prompt",
        "max_new_tokens": 9,
        "dataset": "its data",
    }
    (tmp_path / "run.json").write_text(
        json.dumps({"recipe": trained | {"learning_rate": 1.0, "lora_rank": 3}})
    )
    recipe = parse(RECIPES[stage], ["--adapter", str(tmp_path)]).recipe
    assert (recipe.model_name_or_path, recipe.prompt, recipe.max_new_tokens) == ("base", "its prompt", 9)
    assert getattr(recipe, "dataset", "its data") == "its data"
    assert parse(RECIPES[stage], ["--adapter", str(tmp_path), "--prompt", "mine"]).recipe.prompt == "mine"


@pytest.mark.parametrize("stage", ["evaluate", "caption", "explain"])
@pytest.mark.parametrize("record", ["run.json", "settings.json", "../run.json", None])
def test_the_base_model_is_the_one_that_the_adapter_names(stage, record, tmp_path):
    """`adapter_config.json` first; the prompt from the record of the run, of the checkpoint, or above it."""
    adapter = tmp_path / "checkpoint-4"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "its base"}))
    if record:
        trained = {"model_name_or_path": "another", "prompt": "its prompt", "output_dir": "elsewhere"}
        (adapter / record).write_text(json.dumps({"recipe": trained}))
    flags = ["--adapter", str(adapter), "--dataset", "d"]
    recipe = parse(RECIPES[stage], flags).recipe
    assert recipe.model_name_or_path == "its base"
    assert recipe.prompt == ("its prompt" if record else "caption en")
    assert recipe.output_dir != "elsewhere"
    mine = parse(RECIPES[stage], [*flags, "--model_name_or_path", "mine"]).recipe
    assert mine.model_name_or_path == "mine"
