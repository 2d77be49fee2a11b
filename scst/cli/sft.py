"""Stage 1: train an adapter (QLoRA by default) on human captions.

    scst sft --config rsicd/sft
    scst sft --config rsicd/sft --plan                                (a few steps; how long it will take)
    scst sft --config RECIPE.yaml --accelerate_config ddp --num_processes 4
    accelerate launch launch/sft.py --config recipes/rsicd/sft.yaml   (from a clone)

Leaves a PEFT adapter, the processor, trainer_state.json and run.json in output_dir.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import SFTRecipe

if TYPE_CHECKING:
    from scst.sft.trainer import CaptionSFTTrainer


def run(arguments: Arguments[SFTRecipe]) -> CaptionSFTTrainer | None:
    """Build the supervised stage from its recipe and run it; returns its trainer, None without a run."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return None
    started = time.time()
    from trl import SFTConfig

    from scst.config import build, build_sft
    from scst.config.build_training import run_recipe

    build.prepare_libraries()
    build_sft.check_training_arguments(recipe)
    return run_recipe(recipe, build_sft.build_trainer, SFTConfig, plan=arguments.plan, started=started)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(SFTRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
