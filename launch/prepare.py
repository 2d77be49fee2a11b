"""Prepare what training and scoring read.

    python launch/prepare.py document-frequencies --dataset D --train_split train --output df.json

document-frequencies: in how many images' references each n-gram stands, which CIDEr weighs n-grams with.
Counted once, the table serves every run (rewards: [{name: cider_d, kwargs: {frequencies: df.json}}]) and,
with --eos omitted, reported metrics (--frequencies of launch/evaluate.py and launch/score.py).
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from launch.arguments import Arguments, answer_dry_run, main, refuse_positional
from scst.errors import RecipeError


def document_frequencies(arguments: Arguments) -> None:
    """Count the references of a split, checked as training checks them, and write the table."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if recipe.dataset is None:
        raise RecipeError("dataset: missing; give the dataset whose references are counted")
    if answer_dry_run(arguments):
        return
    from rich.console import Console

    from rewards.document_frequencies import DocumentFrequencies
    from scst.data.loading import load_splits

    console = Console()
    rows = load_splits(
        recipe.dataset,
        [recipe.train_split],
        fractions=recipe.split_fractions,
        split_seed=recipe.split_seed,
        on_bad_example=recipe.on_bad_example,
        console=console,
    ).splits[recipe.train_split]
    table = DocumentFrequencies.from_references(rows["references"], eos=recipe.eos, split=recipe.train_split)
    Path(recipe.output).parent.mkdir(parents=True, exist_ok=True)
    table.save(recipe.output)
    console.print(
        f"{recipe.output}: {len(table.counts)} n-grams of {table.num_images} images, split {table.split}, "
        f"end of sequence {table.eos}, fingerprint {table.fingerprint[:6]}"
    )


COMMANDS = {"document-frequencies": document_frequencies}

if __name__ == "__main__":
    command = next((argument for argument in sys.argv[1:2] if argument in COMMANDS), None)
    if command is None and not {"-h", "--help"} & set(sys.argv[1:]):
        print(
            f"error: expected a command: {', '.join(COMMANDS)}; see launch/prepare.py --help", file=sys.stderr
        )
        sys.exit(2)
    command, argv = command or next(iter(COMMANDS)), sys.argv[2:] if command else sys.argv[1:]
    sys.exit(main(command, COMMANDS[command], usage=__doc__, argv=argv))
