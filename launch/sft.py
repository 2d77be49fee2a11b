"""Stage 1: train a QLoRA adapter on human captions.

    accelerate launch launch/sft.py --config recipes/rsicd/sft.yaml
    python launch/sft.py --dataset DATA --output_dir DIR          (the rest from the quickstart recipe)

Leaves a PEFT adapter, the processor, trainer_state.json and run.json in output_dir.
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from launch.arguments import Arguments, answer_dry_run, main, refuse_positional


def run(arguments: Arguments) -> None:
    """Build the supervised stage from its recipe and run it."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return
    started = time.time()
    from launch import build
    from scst.callbacks import RichProgress
    from scst.data.collate import SFTCollator
    from scst.data.supervision import CaptionChoice
    from scst.sft import SFT_ARGUMENTS, CaptionSFTTrainer, SFTConfig

    build.quiet_libraries()
    console = build.make_console()
    base = build.check_inputs(recipe)
    build.open_output_dir(recipe)
    data = build.load_data(recipe, build.training_splits(recipe), console)
    args = build.build_training_arguments(recipe, SFTConfig, **SFT_ARGUMENTS)
    model, processor = build.build_policy(recipe, base, trainable=True)
    choice = CaptionChoice(recipe.caption_policy, recipe.seed)
    collator = SFTCollator(processor, recipe.prompt, choice, recipe.max_new_tokens)
    build.preview(recipe, data, processor, console)
    trainer = CaptionSFTTrainer(
        model,
        args,
        train_dataset=choice.expand(data.splits[recipe.train_split]),
        data_collator=collator,
        processor=processor,
        validation=build.build_validation(recipe, data, processor, args),
        callbacks=[RichProgress(console, "SFT"), *build.stopping_callbacks(recipe)],
    )
    build.run_training(trainer, recipe, data, stage="sft", console=console, started=started)


if __name__ == "__main__":
    sys.exit(main("sft", run, usage=__doc__))
