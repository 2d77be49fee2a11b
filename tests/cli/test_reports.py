"""The recipes of five published reports say what the reports say.

Golden values: the tables and texts of the reports that recipes/reports/README.md names; what one leaves
open is not asserted.
"""

from __future__ import annotations

import pytest
import yaml

from scst.config.reader import build_recipe, read_recipe_file, resolved
from scst.data.preparation.cleaning import parse_steps
from scst.evaluation.decoding import DECODINGS
from tests.support.recipes import REPORTS, name_of, stage_of

RECIPES = sorted(path for path in REPORTS.rglob("*.yaml") if not path.name.startswith("_"))
RSICD = [path for path in RECIPES if "rsicd" in path.stem]
README = (REPORTS / "README.md").read_text(encoding="utf-8")

OF_000 = {
    "model_name_or_path": "google/paligemma-3b-pt-224",
    "prompt": "Describe this image in detail:",
    "quantization": "nf4",
    "precision": "bf16",
    "lora_targets": "decoder-attention",
    "train_split": "train+val",
    "caption_policy": "first",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "weight_decay": 1e-6,
    "adam_beta2": 0.999,
}
CONF2 = {"learning_rate": 1e-6, "warmup_steps": 1000, "optim": "adamw_torch", "dataloader_num_workers": 2}
OF_001 = {
    "model_name_or_path": "google/paligemma-3b-mix-224",
    "prompt": "describe this image.",
    "quantization": "nf4",
    "precision": "bf16",
    "lora_targets": "decoder-attention-mlp+projector",
    "caption_policy": "random",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 2,
    "optim": "adamw_8bit",
    "learning_rate": 2e-5,
    "warmup_steps": 2,
    "weight_decay": 1e-6,
    "adam_beta2": 0.999,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "tensorboard",
}
OF_002 = {
    "prompt": "caption en",
    "split_fractions": "60/20/20",
    "quantization": "nf4",
    "precision": "bf16",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 2,
    "weight_decay": 1e-6,
    "optim": "adamw_torch",
}
SFT_002 = OF_002 | {
    "caption_policy": "first",
    "learning_rate": 2e-5,
    "lora_targets": "decoder-attention",
    "lora_rank": 16,
}
SCST_002 = OF_002 | {
    "learning_rate": 5e-6,
    "baseline": "greedy",
    "rewards": [{"name": "cider_d", "weight": 1.0}],
}
PT, MIX = {"model_name_or_path": "google/paligemma-3b-pt-224"}, OF_001["model_name_or_path"]
OF_003 = {"prompt": "explain the layout of the terrain and infrastructure.", "max_new_tokens": 30} | PT
SFT_003 = OF_003 | {"quantization": "nf4", "caption_policy": "first", "early_stopping_patience": 3}
OF_004 = {
    "model_name_or_path": "google/paligemma2-3b-pt-224",
    "prompt": "",
    "quantization": "none",
    "precision": "fp16",
    "lora_targets": "vision+decoder-qv",
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "caption_policy": "all",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 1,
    "learning_rate": 5e-5,
}

PUBLISHED = {
    "prompts-and-decodings/conf1-sft": OF_000
    | {"lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.1, "optim": "adamw_8bit"}
    | {"learning_rate": 1e-5, "warmup_steps": 500, "dataloader_num_workers": 4},
    "prompts-and-decodings/conf2-sft": OF_000
    | CONF2
    | {"lora_rank": 64, "lora_alpha": 256, "lora_dropout": 0},
    "prompts-and-decodings/phase2-r128-sft": {"lora_rank": 128, "lora_alpha": 512},
    "prompts-and-decodings/prepare": {"selection": "clipscore", "clip_model": "openai/clip-vit-base-patch32"},
    "prompts-and-decodings/greedy-evaluate": {
        "prompt": OF_000["prompt"],
        "decoding": "greedy-16",
        "max_new_tokens": 16,
    },
    "prompts-and-decodings/beam-sample-evaluate": {"prompt": OF_000["prompt"], "decoding": "beam4-sample-16"},
    "rank-and-projector/r8-sft": OF_001 | {"lora_rank": 8, "lora_alpha": 8},
    "rank-and-projector/r16-sft": OF_001 | {"lora_rank": 16, "lora_alpha": 16},
    "rank-and-projector/prepare": {"cleaning": ["lowercase", "nfkc"], "split_fractions": "80/20"},
    "rank-and-projector/nucleus-evaluate": {
        "prompt": OF_001["prompt"],
        "decoding": "nucleus-32",
        "max_new_tokens": 32,
    },
    "qlora-to-scst/base-r4-sft": SFT_002 | PT | {"lora_rank": 4},
    "qlora-to-scst/base-r8-sft": SFT_002 | PT | {"lora_rank": 8},
    "qlora-to-scst/base-r16-sft": SFT_002 | PT,
    "qlora-to-scst/full-r8-sft": SFT_002 | PT | {"lora_rank": 8, "lora_targets": "full"},
    "qlora-to-scst/mix-r16-sft": SFT_002 | {"model_name_or_path": MIX},
    "qlora-to-scst/cococap-r16-sft": SFT_002 | {"model_name_or_path": "google/paligemma-3b-ft-cococap-224"},
    "qlora-to-scst/rsvqa-lr-r16-sft": SFT_002 | {"model_name_or_path": "google/paligemma-3b-ft-rsvqa-lr-224"},
    "qlora-to-scst/base-r16-scst": SCST_002 | PT,
    "qlora-to-scst/mix-r16-scst": SCST_002 | {"model_name_or_path": MIX},
    "qlora-to-scst/greedy-evaluate": {
        "prompt": "caption en",
        "decoding": "greedy",
        "split_fractions": "60/20/20",
    },
    "adapter-kinds/lora-sft": SFT_003 | {"adapter_type": "lora", "lora_targets": "decoder-attention-mlp"},
    "adapter-kinds/prompt-tuning-sft": SFT_003 | {"adapter_type": "prompt_tuning"},
    "adapter-kinds/prefix-tuning-sft": SFT_003 | {"adapter_type": "prefix_tuning"},
    "adapter-kinds/bottleneck-sft": SFT_003 | {"adapter_type": "bottleneck"},
    "adapter-kinds/prepare": {
        "cleaning": ["lowercase", "collapse-spaces"],
        "selection": "longest",
        "split_fractions": "80/10/10",
    },
    "adapter-kinds/terrain-evaluate": OF_003,
    "adapter-kinds/explain": OF_003,
    "cleaning-and-rank/r2-sft": OF_004 | {"lora_rank": 2},
    "cleaning-and-rank/r4-sft": OF_004 | {"lora_rank": 4},
    "cleaning-and-rank/r8-sft": OF_004 | {"lora_rank": 8},
    "cleaning-and-rank/prepare": {
        "cleaning": ["length 5-20", "lowercase", "ascii", "collapse-spaces", "synonyms"],
        "synonym_distance": 0.5,
        "synonym_min_samples": 5,
        "split_fractions": "70/20/10",
    },
    "cleaning-and-rank/beam-evaluate": {"prompt": "", "decoding": "beam5", "eval_split": "val"}
    | {"model_name_or_path": OF_004["model_name_or_path"]},
}
"""Recipe -> keys that its report states."""

ONE_CHECKPOINT = {
    "qlora-to-scst/cococap-r16-sft",
    "qlora-to-scst/rsvqa-lr-r16-sft",
    "qlora-to-scst/mix-r16-scst",
}
"""Configurations that differ from others in the checkpoint alone, of which there is one small one."""

KEPT_ON_RSICD = (
    *("prompt", "caption_policy", "lora_targets", "lora_rank", "lora_alpha", "lora_dropout", "optim"),
    *("weight_decay", "adam_beta2", "adapter_type", "baseline", "num_samples", "decoding", "max_new_tokens"),
    *("cleaning", "methods"),
)


def recipe_of(path):
    return resolved(build_recipe(stage_of(path), read_recipe_file(path)))


def published_of(path):
    """``prompts-and-decodings/conf1-rsicd-sft`` runs ``prompts-and-decodings/conf1-sft`` here."""
    return path.with_name(path.name.replace("-rsicd-", "-").replace("rsicd-", ""))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_what_its_report_says(name):
    settings = recipe_of(REPORTS / f"{name}.yaml")
    assert {key: settings[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert settings.get("decoding", "greedy") in DECODINGS
    parse_steps(settings.get("cleaning", []), synonyms=lambda captions: captions)


def test_every_published_recipe_is_asserted_and_has_a_small_variant():
    published = {str(path.relative_to(REPORTS).with_suffix("")) for path in set(RECIPES) - set(RSICD)}
    assert published == set(PUBLISHED) | {name for name in published if name.endswith("matrix")}
    small = {str(published_of(path).relative_to(REPORTS).with_suffix("")) for path in RSICD}
    assert published - small == ONE_CHECKPOINT


@pytest.mark.parametrize("path", [path for path in RSICD if stage_of(path) != "matrix"], ids=name_of)
def test_the_small_variant_keeps_what_is_compared(path):
    small, published = recipe_of(path), recipe_of(published_of(path))
    kept = [key for key in KEPT_ON_RSICD if key in published]
    assert {key: small[key] for key in kept} == {key: published[key] for key in kept}
    assert "rsicd" in str(yaml.safe_load(path.read_text()).get("output_dir"))


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_readme_names_the_recipe(path):
    assert f"`{path.relative_to(REPORTS)}`" in README


@pytest.mark.parametrize("path", sorted(set(RECIPES) - set(RSICD)), ids=name_of)
def test_what_was_not_run_is_marked(path):
    text = path.read_text(encoding="utf-8")
    assert stage_of(path) == "prepare" or ("published:" in text and "not run here" in text)
