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
    from scst.config import build, build_sft, measured_plan
    from scst.config.build_validation import run_of
    from scst.config.checks import base_model_of
    from scst.training.run import run_training

    build.prepare_libraries()
    console = build.make_console(quiet=bool(arguments.plan))
    base = base_model_of(recipe)
    build_sft.check_training_arguments(recipe)
    with measured_plan.recipe_to_run(recipe, arguments.plan) as recipe:
        build.open_output_dir(recipe)
        data = build.load_data(recipe, build.training_splits(recipe), console)
        policy = build.build_policy(recipe, base, trainable=True)
        build.preview(recipe, data, policy, console)

        def trainer_of(recipe: SFTRecipe) -> CaptionSFTTrainer:
            return build_sft.build_trainer(recipe, policy, data, console)

        if arguments.plan:
            measured_plan.print_plan_of(
                recipe, arguments.recipe, trainer_of, data, arguments.plan, started=started
            )
            return None
        trainer = trainer_of(recipe)
        run_training(trainer, run_of("sft", recipe, data, started), console)
        return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(SFTRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
