"""Malformed recipes and training arguments: files, keys, values and flags."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scst.config.packaged import RECIPES_FOLDER, recipe_names
from scst.config.recipes import RECIPES
from tests.chaos.malformed import texts
from tests.chaos.malformed.attack import DRY, Case
from tests.support.adapter_folders import SCENES, write_adapter
from tests.support.setting_values import (
    TOO_LONG,
    keys_of,
    right_values,
    training_arguments,
    wrong_values,
)

RECIPE = "recipe.yaml"
DATA = {"dataset": "embedded:scenes"}
MODEL = {"model_name_or_path": SCENES}
BASE: dict[str, dict[str, Any]] = {stage: {} for stage in RECIPES} | {
    "sft": DATA | MODEL,
    "scst": DATA | {"adapter": "adapter"},
    "evaluate": DATA | MODEL | {"metrics": ["cider_d"]},
    "caption": MODEL,
    "explain": MODEL,
    "merge": {"adapter": "adapter"},
    "prepare": DATA,
    "document-frequencies": DATA,
    "score": {"predictions": "p.jsonl", "references": ["r.jsonl"], "metrics": ["length"]},
}
"""Keys without which a stage does not start."""
SLOW = ("matrix",)
"""Stages of which a sample is tried: each value plans a whole matrix."""
NOT_TRIED = {"compare", "categories", "cleaning"}
"""Right values of these keys need other files."""


def folder_for(stage: str, folder: Path) -> None:
    """What the base keys of a stage name."""
    if BASE[stage].get("adapter"):
        write_adapter(folder / "adapter")
    if stage in ("caption", "explain"):
        _picture(folder / "a.png")
    if stage == "score":
        texts.write(folder / "p.jsonl", '{"image_id": 1, "caption": "a plane"}\n')
        texts.write(folder / "r.jsonl", '{"image_id": 1, "captions": ["a plane", "planes"]}\n')


def _picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "gray").save(path)


def arguments_of(stage: str) -> list[str]:
    """Of the command, for a recipe file."""
    return ["--config", RECIPE, DRY, *(["a.png"] if stage in ("caption", "explain") else [])]


def _write_recipe(stage: str, settings: dict[str, Any], folder: Path) -> None:
    folder_for(stage, folder)
    texts.write(folder / RECIPE, yaml.safe_dump(settings, allow_unicode=True))


def _case(kind: str, stage: str, name: str, value: Any, *, is_right: bool | None) -> Case:
    settings = BASE[stage] | {name: value}
    prepare = partial(_write_recipe, stage, settings)
    title = f"{stage} {name}: {value!r:.60}"
    return Case(kind, title, stage, arguments_of(stage), prepare, is_right, "" if is_right else name)


def recipe_values(generator: random.Random) -> Iterator[Case]:
    """Every key of every recipe: right values, and wrong ones."""
    for stage in RECIPES:
        for name, declared in keys_of(stage).items():
            wrong = [value for value in wrong_values(name, declared) if _is_yaml(value)]
            wrong += [TOO_LONG] if name in ("dataset", "adapter", "output_dir") else []
            wrong = generator.sample(wrong, min(2, len(wrong))) if stage in SLOW else wrong
            for value in wrong:
                yield _case("recipes", stage, name, value, is_right=False)
            if stage not in SLOW and name not in NOT_TRIED:
                for value in right_values(stage, name)[:1]:
                    if value is not None and name not in BASE[stage]:
                        yield _case("recipes", stage, name, value, is_right=True)


def argument_values(generator: random.Random) -> Iterator[Case]:
    """Every training argument of both stages with wrong values, and with values that may be right."""
    for stage in ("sft", "scst"):
        for name, declared in training_arguments().items():
            for value in wrong_values(name, declared):
                if _is_yaml(value):
                    yield _case("training arguments", stage, name, value, is_right=False)
            for value in (1, 0.5, True, "no", "steps", 2.0, "1e-3", 10**9, None):
                yield _case("training arguments", stage, name, value, is_right=None)
        for text in texts.VALUES:
            name = generator.choice(list(training_arguments()))
            if "\0" not in text:
                yield _flag_case("training arguments", stage, name, text)


def _is_yaml(value: Any) -> bool:
    """Whether a value can be written into a file as it is."""
    return not (isinstance(value, str) and not value.isprintable())


def _flag_case(kind: str, stage: str, name: str, text: str) -> Case:
    flags = [item for key, value in BASE[stage].items() for item in (f"--{key}", _as_flag(value))]
    config = ["--config", "quickstart/sft"] if stage in ("sft", "scst") else []
    pictures = ["a.png"] if stage in ("caption", "explain") else []
    arguments = [*config, *flags, f"--{name}={text}", DRY, *pictures]
    return Case(kind, f"{stage} --{name}={text!r:.40}", stage, arguments, partial(folder_for, stage))


def _as_flag(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def flags(generator: random.Random) -> Iterator[Case]:
    """Strange texts as values of flags, as names of flags, and as positional arguments."""
    for stage in RECIPES:
        if stage == "matrix":
            continue
        for text in texts.VALUES:
            if "\0" in text:  # no command line holds one
                continue
            name = generator.choice([*keys_of(stage), "config", "plan", "accelerate_config", "num_processes"])
            yield _flag_case("recipes", stage, name, text)
        for text in generator.sample(texts.VALUES, 8):
            arguments = [DRY, f"--{text}", "--seed", text, text, "--seed"]
            yield Case("recipes", f"{stage} --{text!r:.40}", stage, arguments, is_right=False)


def recipe_files(generator: random.Random, rounds: int) -> Iterator[Case]:
    """Broken YAML, what is no file, and packaged recipes with random damage."""
    for name, content in texts.YAML.items():
        for stage in ("sft", "evaluate", "matrix"):
            prepare = partial(_write_text, stage, content)
            arguments = arguments_of(stage)
            yield Case("recipes", f"{stage} {name}", stage, arguments, prepare, is_right=False)
    for kind in texts.NO_FILES:
        for stage in ("sft", "caption", "matrix"):
            prepare = partial(_write_no_file, stage, kind)
            yield Case("recipes", f"{stage} is a {kind}", stage, arguments_of(stage), prepare, is_right=False)
    names = [
        name for name in recipe_names() if name.split("-")[-1].split("/")[-1] in ("sft", "scst", "evaluate")
    ]
    for number in range(rounds):
        name = names[number % len(names)]
        stage = name.split("-")[-1].split("/")[-1]
        content = texts.damaged((RECIPES_FOLDER / f"{name}.yaml").read_bytes(), generator)
        prepare = partial(_write_text, stage, content)
        yield Case("recipes", f"{name}, damaged ({number})", stage, arguments_of(stage), prepare)


def _write_text(stage: str, content: str | bytes, folder: Path) -> None:
    folder_for(stage, folder)
    texts.write(folder / RECIPE, content)


def _write_no_file(stage: str, kind: str, folder: Path) -> None:
    folder_for(stage, folder)
    texts.no_file(folder / RECIPE, kind)
