"""Folders of saved adapters that pass every check which needs no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SCENES = "embedded:scenes-paligemma"


def write_adapter(folder: Path, *, base: str = SCENES, rank: int = 2) -> Path:
    """A LoRA of one layer."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {
        name.format("A"): np.ones((rank, 8), np.float32),
        name.format("B"): np.ones((8, rank), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
