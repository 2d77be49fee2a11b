"""Prepare what training and scoring read.

    python launch/prepare.py --dataset D --output_dir OUT --cleaning lowercase,nfkc,collapse-spaces,dedupe
    python launch/prepare.py --dataset D --output_dir OUT --selection consensus --split_fractions 80/10/10
    python launch/prepare.py --dataset D --output_dir OUT --layout none            (look at the data only)
    python launch/prepare.py document-frequencies --dataset D --train_split train --output df.json

Checks every image, cleans and chooses captions of the training split, and leaves a dataset that every
command reads, with data_report.html (and .json), document_frequencies.json and run.json.

document-frequencies: in how many images' references each n-gram stands, which CIDEr weighs n-grams with.
Counted once, the table serves every run (rewards: [{name: cider_d, kwargs: {frequencies: df.json}}]) and,
with --eos omitted, reported metrics (--frequencies of launch/evaluate.py and launch/score.py).
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, answer_dry_run, main, refuse_positional
from scst.errors import RecipeError


def run(arguments: Arguments) -> None:
    """Inspect, clean, choose, split, write, report."""
    refuse_positional(arguments)
    from scst.config import build_prepare

    build_prepare.check_settings(arguments.recipe)
    if not answer_dry_run(arguments):
        build_prepare.prepare_dataset(arguments.recipe)


def document_frequencies(arguments: Arguments) -> None:
    """Count the references of a split, checked as training checks them, and write the table."""
    refuse_positional(arguments)
    if arguments.recipe.dataset is None:
        raise RecipeError("dataset: missing; give the dataset whose references are counted")
    if not answer_dry_run(arguments):
        from scst.config.build_captions import write_document_frequencies

        write_document_frequencies(arguments.recipe)


COMMANDS = {"prepare": run, "document-frequencies": document_frequencies}

if __name__ == "__main__":
    named = next((argument for argument in sys.argv[1:2] if argument in COMMANDS), None)
    command, argv = named or "prepare", sys.argv[2:] if named else sys.argv[1:]
    sys.exit(main(command, COMMANDS[command], usage=__doc__, argv=argv))
