"""What a training command imports, imported once: a process forked afterwards saves ten seconds."""

from __future__ import annotations

import gc
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

SERVER = "tests.support.preload_server"
"""The module that a server imports before it forks."""


def preload() -> None:
    """Import them; nothing may be computed before the fork, because torch's threads do not survive it."""
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    get_checkpoint_conversion_mapping("llava")  # the first that asks compiles the expressions of all models
    gc.collect()
    gc.freeze()  # what a forked process collects is its own
