"""Stage 2: refine an adapter with self-critical sequence training.

    accelerate launch launch/scst.py --config recipes/rsicd/scst.yaml --adapter DIR
    python launch/scst.py --config ... --adapter DIR --plan        (a few steps; how long it will take)
    python launch/scst.py --adapter DIR                            (the rest from the quickstart recipe)

Leaves the refined adapter, the processor, trainer_state.json, run.json and the document frequencies of the
CIDEr-D reward in output_dir.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, answer_dry_run, main, refuse_positional

if TYPE_CHECKING:
    from scst.config.recipes import SCSTRecipe
    from scst.rl.trainer import SCSTTrainer


def run(arguments: Arguments) -> SCSTTrainer | None:
    """Build the self-critical stage from its recipe and run it; returns its trainer, None where none was run."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    started = time.time()
    from scst.config import build, build_rl, measured_plan
    from scst.config.build_validation import run_of
    from scst.rl.refine import set_up_rewards
    from scst.training.run import run_training

    build.prepare_libraries()
    build_rl.check_settings(recipe)
    mixture = build_rl.build_reward(recipe)
    if answer_dry_run(arguments):
        return None
    console = build.make_console(quiet=bool(arguments.plan))
    base = build.check_inputs(recipe)
    with closing(mixture), measured_plan.recipe_to_run(arguments) as recipe:
        build.open_output_dir(recipe)
        data = build.load_data(recipe, build.training_splits(recipe), console)
        policy = build.build_policy(recipe, base, trainable=True)
        set_up_rewards(mixture, data.splits[recipe.train_split], recipe.output_dir)
        build.preview(recipe, data, policy, console)

        def trainer_of(recipe: SCSTRecipe) -> SCSTTrainer:
            return build_rl.build_trainer(recipe, policy, data, mixture, console)

        if measured_plan.answer_plan(arguments, recipe, trainer_of, data, stage="scst", started=started):
            return None
        trainer = trainer_of(recipe)
        run_training(trainer, run_of("scst", recipe, data, started), console)
        return trainer


if __name__ == "__main__":
    sys.exit(main("scst", run, usage=__doc__))
