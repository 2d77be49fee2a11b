"""Stage 1: train a QLoRA adapter on human captions.

    accelerate launch launch/sft.py --config recipes/rsicd/sft.yaml
    python launch/sft.py --config ... --plan                      (a few steps; how long it will take)
    python launch/sft.py --dataset DATA --output_dir DIR          (the rest from the quickstart recipe)

Leaves a PEFT adapter, the processor, trainer_state.json and run.json in output_dir.
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, answer_dry_run, main, refuse_positional


def run(arguments: Arguments) -> None:
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

        def trainer_of(recipe):
            return build_sft.build_trainer(recipe, model, processor, data, console)

        if not measured_plan.answer_plan(arguments, recipe, trainer_of, data, stage="sft", started=started):
            trainer = trainer_of(recipe)
            build.run_training(trainer, recipe, data, stage="sft", console=console, started=started)


if __name__ == "__main__":
    sys.exit(main("sft", run, usage=__doc__))
