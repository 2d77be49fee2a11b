"""Nothing that lies in a checkpoint, an adapter or a model folder is executed."""

from __future__ import annotations

import json
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import RewardError
from rewards.scorers.bertscore import BertScorer
from rewards.scorers.clipscore import ClipScorer
from rewards.scorers.sentence_similarity import SentenceSimilarity
from scst.adapters.loading import load_adapter
from scst.adapters.saved_adapter import check_adapter_exists
from scst.cli.arguments import parse
from scst.config.recipes import RECIPES
from scst.errors import RecipeError
from scst.models.base_checkpoint import check_model_exists
from scst.models.pretrained import allow_deepspeed_states, load_model
from scst.models.processors import load_processor
from scst.training.run_folder.manifest import read_manifest, write_manifest
from tests.support.stages import run_recipe
from tests.support.tiny_clip import save_bert, save_clip


def train(world, output_dir, **keys) -> None:
    """The supervised stage, in this process."""
    settings = {
        "model_name_or_path": str(world / "model"),
        "dataset": str(world / "data"),
        "output_dir": str(output_dir),
        "max_new_tokens": 12,
        "precision": "fp32",
        "quantization": "none",
        "lora_rank": 2,
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "save_steps": 1,
    }
    run_recipe("sft", settings | keys)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run of one step with its checkpoint; copy before changing."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(world, folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def hide_in_checkpoint(trap, path) -> None:
    """An armed file whose sum is right: who can write a checkpoint can also write its manifest."""
    trap.hide_in(path)
    write_manifest(path.parent, step=read_manifest(path.parent)["step"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resuming_refuses_a_pickle_with_code(world, run, trap, name):
    assert (run / "checkpoint-1" / name).is_file(), "the file is part of a checkpoint"
    hide_in_checkpoint(trap, run / "checkpoint-1" / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(world, run, resume=True, max_steps=2)
    assert not trap.sprang()


def test_resuming_never_opens_the_pickled_arguments(world, run, trap):
    hide_in_checkpoint(trap, run / "checkpoint-1" / "training_args.bin")
    train(world, run, resume=str(run / "checkpoint-1"), max_steps=2)
    assert not trap.sprang()


def test_weights_are_written_as_safetensors(finished):
    assert load_file(finished / "adapter_model.safetensors")
    pickles = {path.name for path in finished.rglob("*.bin")}
    assert pickles <= {"training_args.bin"}, "which nothing reads"


def test_pickled_weights_of_a_model_are_refused(world, trap, tmp_path):
    model = shutil.copytree(world / "model", tmp_path / "model")
    (model / "model.safetensors").unlink()
    trap.hide_in(model / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_model(str(model), quantization="none", precision="fp32")
    assert not trap.sprang()


def test_pickled_weights_of_an_adapter_are_refused(run, trap, tiny_model):
    (run / "adapter_model.safetensors").unlink()
    trap.hide_in(run / "adapter_model.bin")
    with pytest.raises(RecipeError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(tiny_model, run, trainable=False)
    assert not trap.sprang()


def test_code_beside_a_model_is_never_run(world, trap, tmp_path):
    """``auto_map`` names classes of files beside the checkpoint; transformers would ask on the terminal."""
    model = shutil.copytree(world / "model", tmp_path / "model")
    (model / "evil.py").write_text(f"from pathlib import Path\nPath({str(trap.marker)!r}).touch()\n")
    classes = {
        "AutoConfig": "evil.Config",
        "AutoProcessor": "evil.P",
        "AutoModelForImageTextToText": "evil.M",
    }
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text()) | {"auto_map": classes}
        (model / name).write_text(json.dumps(content))
    load_processor(str(model))
    load_model(str(model), quantization="none", precision="fp32")
    content = json.loads((model / "config.json").read_text()) | {"model_type": "unheard-of"}
    (model / "config.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="model_name_or_path"):
        check_model_exists(str(model))
    assert not trap.sprang()


ENCODERS = {
    "clipscore": (save_clip, lambda model: ClipScorer(model).encoder),
    "bertscore": (save_bert, lambda model: BertScorer(model, num_layers=1).encoder),
    "sentence_similarity": (save_bert, lambda model: SentenceSimilarity(model).encoder),
}


@pytest.mark.parametrize("known_type", [True, False])
@pytest.mark.parametrize("name", ENCODERS)
def test_code_beside_an_encoder_is_never_run(name, known_type, trap, tmp_path, monkeypatch):
    """Models of metrics and rewards: none runs code of its own, and none asks on the terminal to do so."""
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    save, load = ENCODERS[name]
    model = save(tmp_path / "model")
    (model / "evil.py").write_text(f"from pathlib import Path\nPath({str(trap.marker)!r}).touch()\n")
    names = ("Config", "Model", "Tokenizer", "ImageProcessor")
    classes = {"auto_map": {f"Auto{kind}": f"evil.{kind}" for kind in names}}
    if not known_type:
        classes["model_type"] = "unheard-of"
    for file in model.glob("*config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | classes))
    if known_type:
        load(str(model))
    else:
        with pytest.raises(RewardError, match="cannot be loaded"):
            load(str(model))
    assert not trap.sprang()


def test_an_encoder_cannot_name_a_class_to_import(trap, tmp_path, monkeypatch):
    """``modules.json`` of sentence-transformers names the classes that a model is made of."""
    (tmp_path / "evil_module.py").write_text(
        f"from pathlib import Path\nPath({str(trap.marker)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = save_bert(tmp_path / "model")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil_module.Model"}]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RewardError, match="cannot be loaded"):
        _ = SentenceSimilarity(str(model)).encoder
    assert not trap.sprang()


def test_an_adapter_cannot_name_a_module_to_import(run, trap, tmp_path, monkeypatch):
    (tmp_path / "evil_core.py").write_text(f"from pathlib import Path\nPath({str(trap.marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = run / "adapter_config.json"
    changes = {"megatron_config": {"a": 1}, "megatron_core": "evil_core"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(RecipeError, match=r"adapter: .* sets megatron_config"):
        check_adapter_exists(run)
    assert not trap.sprang()
    assert "evil_core" not in sys.modules


@pytest.mark.parametrize("stage", ["caption", "evaluate"])
def test_an_adapter_cannot_say_where_to_write(run, stage):
    record = json.loads((run / "run.json").read_text())
    record["recipe"] |= {"output": "/etc/passwd", "output_dir": "/etc", "prompt": "from the record"}
    (run / "run.json").write_text(json.dumps(record))
    recipe = parse(RECIPES[stage], ["--adapter", str(run)]).recipe
    assert recipe.prompt == "from the record"
    assert recipe.output_dir == "outputs/run"
    assert getattr(recipe, "output", None) is None


def test_zero_states_load_in_the_safe_mode_and_code_does_not(trap, tmp_path, monkeypatch):
    """The classes are those that ``get_unsafe_globals_in_checkpoint`` names in ZeRO-2 optimizer states."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    trap.hide_in(tmp_path / "evil.pt")
    states = {"scaler": LossScaler(2.0), "stage": ZeroStageEnum(2), "slice": fragment_address(3, 4)}
    torch.save(states, tmp_path / "states.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # as scst/cli/__init__.py sets it
    monkeypatch.setattr(torch._weights_only_unpickler, "_marked_safe_globals_set", set())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "states.pt", weights_only=False)
    allow_deepspeed_states()
    loaded = torch.load(tmp_path / "states.pt", weights_only=False)  # as DeepSpeed asks
    assert loaded["scaler"].loss_scale == 2.0
    assert (loaded["stage"], loaded["slice"]) == (ZeroStageEnum(2), fragment_address(3, 4))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert not trap.sprang()
