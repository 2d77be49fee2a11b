"""A matrix whose scripts are stand-ins: they write what the real ones leave, and note that they ran."""

from __future__ import annotations

import pytest

from tests.support.matrices import Lab
from tests.support.worlds import write_recipe


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


PROMPTS = ["caption en", "Describe this image in detail:"]


@pytest.fixture
def config(world, tmp_path):
    common = {"model_name_or_path": str(world / "model"), "dataset": str(world / "data")}
    common |= {"precision": "fp32", "quantization": "none"}
    sft = {"stage": "sft", "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lora_rank": 4}
    sft |= {"max_steps": 12, "save_steps": 1, "save_total_limit": 2, "max_new_tokens": 12, "prompts": PROMPTS}
    return write_recipe(
        tmp_path / "matrix.yaml",
        models=[{"name": "lora", "stages": [sft]}],
        prompts=PROMPTS,
        max_new_tokens=[8, 2],
        seeds=[3],
        common=common,
        evaluate={"metrics": ["cider_d", "rouge_l"], "bootstrap_samples": 20},
        output_dir=str(tmp_path / "out"),
    )
