"""A saved adapter that does not fit is refused with one sentence, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scst.adapters.loading import load_adapter
from scst.adapters.lora import add_lora
from scst.adapters.patterns import check_patterns
from scst.adapters.saved_adapter import check_adapter_exists
from scst.errors import RecipeError
from tests.support.adapted import SPECS, adapted
from tests.support.tiny import build_model

CATASTROPHIC = r".*language_model.*(\w+\.?)+!"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(tiny_processor, tmp_path_factory):
    """A folder per type; to be read only."""
    folder = tmp_path_factory.mktemp("adapters")
    for kind in SPECS:
        adapted(kind, build_model(tiny_processor), tiny_processor)[0].save_pretrained(folder / kind)
    return folder


@pytest.fixture
def fails(saved, tiny_processor, tmp_path):
    """Damages a copy, loads it, and returns the sentence with which it was refused."""

    def attempt(kind, *, tensors=None, settings=None, files=None) -> str:
        folder = shutil.copytree(saved / kind, tmp_path / "adapter", dirs_exist_ok=True)
        if tensors is not None:
            save_file(tensors(load_file(folder / WEIGHTS)), folder / WEIGHTS)
        if settings is not None:
            settings = settings(json.loads((folder / CONFIG).read_text()))
            (folder / CONFIG).write_text(json.dumps(settings))
        if files is not None:
            files(folder)
        with pytest.raises(RecipeError) as refusal:
            load_adapter(build_model(tiny_processor), folder, trainable=False)
        text = str(refusal.value)
        assert text.startswith("adapter: ")
        assert len(text) < 1500, "one sentence, not a listing"
        return text

    return attempt


def first(tensors):
    return min(tensors)


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def elsewhere(name):
    return name.replace("layers.0", "layers.7").replace("embed", "other")


TENSOR_DAMAGE = {
    "nothing": lambda t: {},
    "one other": lambda t: {"x": torch.zeros(1)},
    "renamed": lambda t: {f"model.{name}": value for name, value in t.items()},
    "one renamed": lambda t: without(t, first(t)) | {f"{first(t)}s": t[first(t)]},
    "one missing": lambda t: without(t, first(t)),
    "one too many": lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(2, 2)},
    "one of another layer": lambda t: without(t, first(t)) | {elsewhere(first(t)): t[first(t)]},
    "NaN": lambda t: t | {first(t): torch.full_like(t[first(t)], torch.nan)},
    "one infinity": lambda t: (
        t | {first(t): torch.where(t[first(t)] == t[first(t)].max(), torch.inf, t[first(t)])}
    ),
    "transposed": lambda t: {name: value.transpose(0, -1).contiguous() for name, value in t.items()},
    "a dimension more": lambda t: {name: value[None].clone() for name, value in t.items()},
    "cut": lambda t: {name: value[..., :1].clone() for name, value in t.items()},
    "whole numbers": lambda t: {name: value.int() for name, value in t.items()},
}


@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
@pytest.mark.parametrize("kind", SPECS)
def test_tensors_that_are_not_those_of_the_settings(fails, tmp_path, kind, damage):
    if damage == "one missing" and kind == "prompt_tuning":
        damage = "nothing"  # it has one tensor
    assert str(tmp_path / "adapter") in fails(kind, tensors=TENSOR_DAMAGE[damage])


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    ("files", "said"),
    {
        "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter_model.safetensors"),
        "garbage": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 5000), "no readable safetensors"),
        "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "no readable safetensors"),
        "cut": (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
            "no readable safetensors",
        ),
        "no settings": (lambda folder: (folder / CONFIG).unlink(), "holds no adapter_config.json"),
        "deep": (lambda folder: (folder / CONFIG).write_text('{"r":' * 100_000), "nested more than"),
        "a list": (lambda folder: (folder / CONFIG).write_text("[1]"), "expected a JSON object"),
        "not text": (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe"), "expected UTF-8"),
    }.values(),
    ids=["no weights", "garbage", "empty", "cut", "no settings", "deep", "a list", "not text"],
)
def test_files_that_cannot_be_read(fails, kind, files, said):
    assert said in fails(kind, files=files)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lora", {"r": 8}),
        ("lora", {"r": 0}),
        ("lora", {"r": "4"}),
        ("lora", {"r": 10**9}),
        ("lora", {"r": None}),
        ("lora", {"lora_alpha": float("nan")}),
        ("lora", {"lora_alpha": "much"}),
        ("lora", {"lora_dropout": 2}),
        ("lora", {"rank_pattern": {"q_proj": 7}}),
        ("lora", {"rank_pattern": [1]}),
        ("lora", {"alpha_pattern": {"q_proj": "x"}}),
        ("lora", {"target_modules": "[unclosed"}),
        ("lora", {"target_modules": "matches.nothing"}),
        ("lora", {"target_modules": r".*language_model.*\.self_attn\.q_proj"}),
        ("lora", {"target_modules": r".*language_model.*\.mlp\.(gate|up|down)_proj"}),
        ("lora", {"target_modules": ["q_proj", "v_proj"]}),
        ("lora", {"target_modules": []}),
        ("lora", {"target_modules": 3}),
        ("lora", {"target_modules": None}),
        ("lora", {"exclude_modules": ".*"}),
        ("lora", {"layers_to_transform": [0], "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
        ("lora", {"layers_to_transform": "all", "target_modules": ["q_proj"]}),
        ("lora", {"use_dora": True}),
        ("lora", {"task_type": "NOTHING"}),
        ("lora", {"peft_type": "IA3"}),
        ("lora", {"peft_type": ["LORA"]}),
        ("lora", {"modules_to_save": ["lm_head"]}),
        ("lora", {"layer_replication": [[0, 1], [0, 1]]}),
        ("bottleneck", {"bottleneck_size": 9}),
        ("bottleneck", {"bottleneck_size": 10**9, "width": 10**9}),
        ("bottleneck", {"width": 0}),
        ("bottleneck", {"target_modules": r".*language_model.*\.mlp"}),
        ("bottleneck", {"target_modules": "lm_head"}),
        ("prefix_tuning", {"num_virtual_tokens": 6}),
        ("prefix_tuning", {"head_dim": "16"}),
        ("prefix_tuning", {"target_modules": "matches.nothing"}),
        ("prompt_tuning", {"token_ids": [1, 2]}),
        ("prompt_tuning", {"token_ids": [-1] * 5}),
        ("prompt_tuning", {"virtual_tokens": "<seg000>"}),
        ("prompt_tuning", {"width": 32}),
        ("prompt_tuning", {"target_modules": ["nothing"]}),
    ],
    ids=str,
)
def test_settings_that_are_not_those_of_the_tensors(fails, tmp_path, kind, settings):
    assert str(tmp_path / "adapter") in fails(kind, settings=lambda before: before | settings)


def test_an_adapter_of_another_model(saved, tiny_processor):
    wide = build_model(tiny_processor, width=128)
    with pytest.raises(RecipeError, match="does not fit this model: size mismatch"):
        load_adapter(wide, saved / "lora", trainable=True)


@pytest.mark.parametrize("kind", SPECS)
def test_the_sound_one_is_loaded(saved, tiny_processor, kind):
    """The negative control: the same folder without damage, every weight as it was saved."""
    assert check_adapter_exists(saved / kind) == kind
    tensors = load_file(saved / kind / WEIGHTS)
    for trainable in (True, False):
        model = load_adapter(build_model(tiny_processor), saved / kind, trainable=trainable)
        held = {name: p for name, p in model.named_parameters() if ".default" in name}
        assert len(held) == len(tensors)
        assert all(p.requires_grad is trainable for p in held.values())
        total = sum(float(p.detach().double().sum()) for p in held.values())
        assert total == pytest.approx(sum(float(t.double().sum()) for t in tensors.values()))


@pytest.mark.slow
def test_an_expression_that_never_ends_is_stopped(fails, tiny_model, monkeypatch):
    """Of a saved adapter, of a recipe, and of its rank patterns."""
    monkeypatch.setitem(check_patterns.__kwdefaults__, "seconds", 0.5)
    said = "did not end within 0.5 s on the module names of this model"
    assert said in fails("lora", settings=lambda before: before | {"target_modules": CATASTROPHIC})
    assert said in fails("lora", settings=lambda before: before | {"rank_pattern": {CATASTROPHIC: 4}})
    with pytest.raises(RecipeError, match=r"lora_targets: the expression .* did not end"):
        add_lora(tiny_model, targets=CATASTROPHIC, rank=2, alpha=4)


def test_expressions_are_named():
    names = ["model.language_model.layers.0.self_attn.q_proj"]
    check_patterns("key", [], names)
    check_patterns("key", [r".*\.q_proj", "layers.0.q_proj", "(a|b)+"], names)
    with pytest.raises(RecipeError, match=r"key: '\(x' is no regular expression .*unterminated"):
        check_patterns("key", [r".*\.q_proj", "(x", "y+"], names)
    with pytest.raises(RecipeError, match=r"key: the expression '\(\.\+\)\+x' did not end within 0\.3 s"):
        check_patterns("key", [r".*\.q_proj", "(.+)+x", "y+"], names, seconds=0.3)
