"""What a training command imports, imported once: a process forked afterwards saves ten seconds."""

from __future__ import annotations

import importlib

PRELOADED = (
    "scst.cli.sft",
    "scst.cli.rl",
    "scst.config.build_sft",
    "scst.config.build_rl",
    "scst.config.measured_plan",
    "transformers.models.paligemma.processing_paligemma",
    "accelerate.commands.launch",
    "trl.trainer.sft_trainer",
    "deepspeed",
    "tests.support.jobs",
)


def preload() -> None:
    """Import them; nothing may be computed before the fork, because torch's threads do not survive it."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
