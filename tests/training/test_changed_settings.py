"""What a resumed run may change: compared without a model, record against record."""

from __future__ import annotations

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest

from scst.config.recipes import SCSTRecipe, SFTRecipe
from scst.errors import RecipeError
from scst.training.arguments.argument_checks import argument_names
from scst.training.run_folder.changed_settings import (
    CANNOT_CHANGE,
    MAY_CHANGE,
    may_change,
    refuse_changes,
    settings_record,
    write_settings,
)
from scst.training.run_folder.run_record import Run

BEFORE = {
    "seed": 3,
    "learning_rate": 1e-3,
    "rewards": [{"name": "cider_d"}],
    "per_device_train_batch_size": 4,
    "dataset": "here",
}


def compare(folder, now, *, before=BEFORE, stage="scst", fingerprints=("a", "a"), insist=False):
    """What a run that resumes with ``now`` is told; raises what it is refused with."""
    write_settings(folder, settings_record("scst", before, fingerprints[0]))
    said: list[str] = []
    refuse_changes(
        folder,
        settings_record(stage, now, fingerprints[1]),
        defaults={"gradient_accumulation_steps": 1, "weight_decay": 0.0, "learning_rate": 5e-5},
        insist=insist,
        say=said.append,
    )
    return said


@pytest.mark.parametrize(
    "now",
    [
        BEFORE,
        BEFORE | {"weight_decay": 0, "gradient_accumulation_steps": 1},
        BEFORE | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        BEFORE | {"resume": True, "resume_changed": True, "overwrite": False},
        BEFORE | {"rewards": ({"name": "cider_d"},), "learning_rate": 0.001},
    ],
    ids=[
        "nothing",
        "a default that is named",
        "the cut of a batch",
        "how it is started",
        "how it is written",
    ],
)
def test_what_is_no_change(tmp_path, now):
    assert compare(tmp_path, now) == []


def test_what_may_change_is_told(tmp_path):
    said = compare(tmp_path, BEFORE | {"max_steps": 9, "save_total_limit": 2, "dataset": "there"})
    (line,) = said
    assert 'dataset: "here" (now "there")' in line
    assert "max_steps: null (now 9)" in line
    assert "save_total_limit: null (now 2)" in line


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (BEFORE | {"seed": 4}, r"seed: 3 \(now 4\)"),
        ({k: v for k, v in BEFORE.items() if k != "learning_rate"}, r"learning_rate: 0.001 \(now 5e-05\)"),
        (BEFORE | {"rewards": [{"name": "bleu_4"}]}, r'rewards: .*cider_d.*\(now .*"bleu_4"'),
        (BEFORE | {"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps: 1 \(now 2\)"),
        (BEFORE | {"prompt": "x" * 500}, r"prompt: null \(now .x{70,76}\.\.\.\)"),
    ],
)
def test_what_may_not_change_is_refused_unless_insisted_on(tmp_path, now, message):
    with pytest.raises(RecipeError, match=rf"was made with {message}.*--resume_changed true"):
        compare(tmp_path, now)
    (line,) = compare(tmp_path, now, insist=True)
    assert "resume: changed are " in line


def test_other_data(tmp_path):
    with pytest.raises(RecipeError, match=r'data \(fingerprint\): "a" \(now "b"\)'):
        compare(tmp_path, BEFORE, fingerprints=("a", "b"))
    assert compare(tmp_path, BEFORE, fingerprints=("a", "")) == [], "before the data are loaded"


def test_the_adapter_to_begin_with_counts_by_content(tmp_path):
    """A moved one is the same, one that was trained anew under the same name is not."""
    for name, content in (("first", b"1"), ("moved", b"1"), ("anew", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(content)
    first, moved = str(tmp_path / "first"), str(tmp_path / "moved")
    assert compare(tmp_path, BEFORE | {"adapter": moved}, before=BEFORE | {"adapter": first}) == []
    write_settings(tmp_path, settings_record("scst", BEFORE | {"adapter": first}, "a"))
    (tmp_path / "first" / "adapter_model.safetensors").write_bytes(b"2")
    now = settings_record("scst", BEFORE | {"adapter": first}, "a")
    with pytest.raises(RecipeError, match=r"adapter \(SHA-256\)"):
        refuse_changes(tmp_path, now, defaults={}, insist=False, say=print)
    gone = BEFORE | {"adapter": "/nowhere"}
    with pytest.raises(RecipeError, match=r'adapter: .*first.*now "/nowhere"'):
        compare(tmp_path, gone, before=BEFORE | {"adapter": first})


@pytest.mark.parametrize(
    ("now", "stage"), [({"lora_rank": 8}, "scst"), ({}, "sft"), ({"optim": "sgd"}, "scst")]
)
def test_what_cannot_change(tmp_path, now, stage):
    with pytest.raises(RecipeError, match="its state does not fit"):
        compare(tmp_path, BEFORE | now, stage=stage, insist=True)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"recipe": 3}', '{"a": 1, "a": 2}'])
def test_a_checkpoint_that_does_not_say(tmp_path, content):
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    said: list[str] = []
    refuse_changes(tmp_path, settings_record("sft", {}, ""), defaults={}, insist=False, say=said.append)
    assert said == [
        f"resume: {tmp_path} does not say what it was made with; settings and data are not compared"
    ]


def test_secrets_are_neither_kept_nor_told(tmp_path):
    said = compare(tmp_path, BEFORE | {"hub_token": "hf_secret"}, before=BEFORE | {"hub_token": "hf_other"})
    assert "hf_" not in (tmp_path / "settings.json").read_text()
    assert not any("hf_" in line for line in said)


def test_a_run_from_python_goes_on_as_a_command_and_back(tmp_path):
    """Only what both name is compared: a recipe has lora_rank, Python the adapter's configuration."""
    from_python = {"seed": 3, "adapter_config": {"r": 4}, "caption_policy": "random"}
    from_recipe = {"seed": 3, "lora_rank": 4, "caption_policy": "random"}
    assert compare(tmp_path, from_recipe, before=from_python) == []
    assert compare(tmp_path, from_python, before=from_recipe) == []
    with pytest.raises(RecipeError, match="seed"):
        compare(tmp_path, from_recipe | {"seed": 4}, before=from_python)


class Brevity:
    """A reward that is an object."""


def test_objects_are_recorded_by_their_classes():
    """An address in memory would make every resumed run another one."""
    policy = SimpleNamespace(
        model=None,
        base="m",
        quantization="none",
        precision="fp32",
        image_tokens=0,
        prompt="p",
        max_new_tokens=3,
        min_new_tokens=1,
    )
    data = SimpleNamespace(splits={}, fingerprint="f")
    records = [
        json.dumps(Run.of("scst", policy, data, {"rewards": ["length", Brevity(), len]}).settings)
        for _ in "ab"
    ]
    assert records[0] == records[1]
    assert '["length", "Brevity", "len"]' in records[0]


def test_every_name_is_a_key():
    """No entry of the lists is a typo, and what decides the weights is in none of them."""
    keys = {f.name for recipe in (SFTRecipe, SCSTRecipe) for f in fields(recipe)} | set(argument_names())
    patterns = {name for names in MAY_CHANGE.values() for name in names}
    unknown = {p for p in patterns if not p.endswith("*") and p not in keys}
    assert unknown <= {"project"}
    assert set(CANNOT_CHANGE) - keys == {"stage", "adapter_config"}
    for name in ("seed", "learning_rate", "lora_rank", "optim", "num_samples", "rewards", "train_split"):
        assert not may_change(name), name
