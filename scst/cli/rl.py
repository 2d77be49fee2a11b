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
from functools import partial
from typing import TYPE_CHECKING

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import SCSTRecipe

if TYPE_CHECKING:
    from scst.rl.trainer import SCSTTrainer


def run(arguments: Arguments[SCSTRecipe]) -> SCSTTrainer | None:
    """Build the self-critical stage from its recipe and run it; returns its trainer, None without a run."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return None
    started = time.time()
    from transformers import TrainingArguments

    from scst.config import build, build_rl
    from scst.config.build_rewards import build_reward
    from scst.config.build_training import run_recipe
    from scst.rl.reward_setup import set_up_rewards

    build.prepare_libraries()
    build_rl.check_training_arguments(recipe)
    mixture = build_reward(recipe)
    with closing(mixture):
        return run_recipe(
            recipe,
            partial(build_rl.build_trainer, mixture),
            TrainingArguments,
            plan=arguments.plan,
            started=started,
            prepare=lambda data: set_up_rewards(mixture, data.training_rows(recipe.train_split)),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(SCSTRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
