"""Stage 2: refine an adapter with self-critical sequence training.

    scst rl --config rsicd/scst --adapter DIR
    scst rl --config rsicd/scst --adapter DIR --plan                  (a few steps; how long it will take)
    scst rl --config RECIPE.yaml --adapter DIR --accelerate_config ddp --num_processes 4
    accelerate launch launch/scst.py --config recipes/rsicd/scst.yaml --adapter DIR   (from a clone)

Leaves the refined adapter, the processor, trainer_state.json, run.json and the document frequencies of the
CIDEr-D reward in output_dir.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import SCSTRecipe


def run(arguments: Arguments[SCSTRecipe]) -> None:
    """Build the self-critical stage from its recipe and run it."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    started = time.time()
    from scst.config import build, build_rl, measured_plan
    from scst.data.collate import SCSTCollator

    build.prepare_libraries()
    build_rl.check_settings(recipe)
    reward = build_rl.build_reward(recipe)
    if answer_dry_run(arguments):
        return
    console = build.make_console(quiet=bool(arguments.plan))
    base = build.check_inputs(recipe)
    with closing(reward), measured_plan.recipe_to_run(arguments) as recipe:
        build.open_output_dir(recipe)
        data = build.load_data(recipe, build.training_splits(recipe), console)
        build_rl.training_arguments(recipe)  # a wrong one is refused before the model is loaded
        model, processor = build.build_policy(recipe, base, trainable=True)
        build_rl.setup_reward(reward, data.splits[recipe.train_split], recipe)
        build.preview(recipe, data, processor, console)
        collator = SCSTCollator(processor, recipe.prompt, recipe.prompts, recipe.seed)

        def trainer_of(recipe: SCSTRecipe) -> Any:
            args = build_rl.training_arguments(recipe)
            return build_rl.build_trainer(recipe, args, model, processor, collator, reward, data, console)

        if not measured_plan.answer_plan(arguments, recipe, trainer_of, data, stage="scst", started=started):
            trainer = trainer_of(recipe)
            build.run_training(trainer, recipe, data, stage="scst", console=console, started=started)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(SCSTRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
