"""Stage 1: train a QLoRA adapter on human captions.

    accelerate launch launch/sft.py --config recipes/rsicd/sft.yaml
    python launch/sft.py --config ... --plan                      (a few steps; how long it will take)
    python launch/sft.py --dataset DATA --output_dir DIR          (the rest from the quickstart recipe)

Leaves a PEFT adapter, the processor, trainer_state.json and run.json in output_dir.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, answer_dry_run, main, refuse_positional

if TYPE_CHECKING:
    from scst.config.recipes import SFTRecipe
    from scst.sft.trainer import CaptionSFTTrainer


def run(arguments: Arguments) -> CaptionSFTTrainer | None:
    """Build the supervised stage from its recipe and run it; returns its trainer, None where none was run."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return None
    started = time.time()
    from scst.config import build, build_sft, measured_plan
    from scst.config.build_validation import run_of
    from scst.training.run import run_training

    build.prepare_libraries()
    console = build.make_console(quiet=bool(arguments.plan))
    base = build.check_inputs(recipe)
    build_sft.check_settings(recipe)
    with measured_plan.recipe_to_run(arguments) as recipe:
        build.open_output_dir(recipe)
        data = build.load_data(recipe, build.training_splits(recipe), console)
        policy = build.build_policy(recipe, base, trainable=True)
        build.preview(recipe, data, policy, console)

        def trainer_of(recipe: SFTRecipe) -> CaptionSFTTrainer:
            return build_sft.build_trainer(recipe, policy, data, console)

        if measured_plan.answer_plan(arguments, recipe, trainer_of, data, stage="sft", started=started):
            return None
        trainer = trainer_of(recipe)
        run_training(trainer, run_of("sft", recipe, data, started), console)
        return trainer


if __name__ == "__main__":
    sys.exit(main("sft", run, usage=__doc__))
