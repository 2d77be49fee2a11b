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
from typing import Any

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import SFTRecipe


def run(arguments: Arguments[SFTRecipe]) -> None:
    """Build the supervised stage from its recipe and run it."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return
    started = time.time()
    from scst.config import build, build_sft, measured_plan

    build.prepare_libraries()
    console = build.make_console(quiet=bool(arguments.plan))
    base = build.check_inputs(recipe)
    with measured_plan.recipe_to_run(arguments) as recipe:
        build.open_output_dir(recipe)
        data = build.load_data(recipe, build.training_splits(recipe), console)
        build_sft.training_arguments(recipe)  # a wrong one is refused before the model is loaded
        model, processor = build.build_policy(recipe, base, trainable=True)
        build.preview(recipe, data, processor, console)

        def trainer_of(recipe: SFTRecipe) -> Any:
            return build_sft.build_trainer(recipe, model, processor, data, console)

        if not measured_plan.answer_plan(arguments, recipe, trainer_of, data, stage="sft", started=started):
            trainer = trainer_of(recipe)
            build.run_training(trainer, recipe, data, stage="sft", console=console, started=started)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(SFTRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
