"""Two-stage fine-tuning of image captioners: supervised QLoRA, then self-critical sequence training.

    import scst

    data = scst.load_dataset("data/RISC")
    policy = scst.load_policy("google/paligemma-3b-mix-224", adapter=scst.LoRA(rank=16))
    scst.finetune(policy, data, "runs/sft", epochs=2)                               # stage 1
    scst.refine(policy, data, "runs/scst", rewards=["cider_d"], num_samples=5)      # stage 2
    scores = scst.evaluate(policy, data["test"], metrics=["cider_d", "meteor"])
    policy.caption("photo.jpg")

One level down are the trainers and their parts. Names are loaded when they are used: importing this takes no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rewards.mixture import RewardMixture
    from scst.adapters.kinds import Bottleneck, LoRA, PrefixTuning, PromptTuning
    from scst.data.collate import SCSTCollator, SFTCollator
    from scst.data.load_splits import load_dataset
    from scst.data.supervision import CaptionChoice
    from scst.errors import DataError, RecipeError, ScstError
    from scst.evaluation.captioner import Captioner, evaluate, load_policy
    from scst.rl.policy_loss import Objective, PolicyLoss, ScoringSettings
    from scst.rl.refine import refine, scst_trainer
    from scst.rl.rewarder import Rewarder
    from scst.rl.sampler import Sampler
    from scst.rl.trainer import SCSTTrainer
    from scst.sft.finetune import finetune, sft_trainer
    from scst.sft.trainer import CaptionSFTTrainer
    from scst.training.arguments.training_arguments import training_arguments
    from scst.training.validation import CaptionValidation, ValidationSettings
    from scst.types import PromptBatch, Rollout, Sampling

_MODULES = {
    "rewards.mixture": ("RewardMixture",),
    "scst.adapters.kinds": ("Bottleneck", "LoRA", "PrefixTuning", "PromptTuning"),
    "scst.data.collate": ("SCSTCollator", "SFTCollator"),
    "scst.data.load_splits": ("load_dataset",),
    "scst.data.supervision": ("CaptionChoice",),
    "scst.errors": ("DataError", "RecipeError", "ScstError"),
    "scst.evaluation.captioner": ("Captioner", "evaluate", "load_policy"),
    "scst.rl.policy_loss": ("Objective", "PolicyLoss", "ScoringSettings"),
    "scst.rl.refine": ("refine", "scst_trainer"),
    "scst.rl.rewarder": ("Rewarder",),
    "scst.rl.sampler": ("Sampler",),
    "scst.rl.trainer": ("SCSTTrainer",),
    "scst.sft.finetune": ("finetune", "sft_trainer"),
    "scst.sft.trainer": ("CaptionSFTTrainer",),
    "scst.training.arguments.training_arguments": ("training_arguments",),
    "scst.training.validation": ("CaptionValidation", "ValidationSettings"),
    "scst.types": ("PromptBatch", "Rollout", "Sampling"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Bottleneck",
    "CaptionChoice",
    "CaptionSFTTrainer",
    "CaptionValidation",
    "Captioner",
    "DataError",
    "LoRA",
    "Objective",
    "PolicyLoss",
    "PrefixTuning",
    "PromptBatch",
    "PromptTuning",
    "RecipeError",
    "RewardMixture",
    "Rewarder",
    "Rollout",
    "SCSTCollator",
    "SCSTTrainer",
    "SFTCollator",
    "Sampler",
    "Sampling",
    "ScoringSettings",
    "ScstError",
    "ValidationSettings",
    "evaluate",
    "finetune",
    "load_dataset",
    "load_policy",
    "refine",
    "scst_trainer",
    "sft_trainer",
    "training_arguments",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scst' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
