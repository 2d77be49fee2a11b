"""Inspect a dataset, clean it, choose captions, split it, and write a new one.

    scst prepare --dataset D --output_dir OUT --cleaning lowercase,nfkc,collapse-spaces,dedupe
    scst prepare --dataset D --output_dir OUT --selection consensus --split_fractions 80/10/10
    scst prepare --dataset D --output_dir OUT --layout none                  (look at the data only)
    scst prepare document-frequencies --dataset D --train_split train --output df.json
    python launch/prepare.py ...                                             (from a clone)

Checks every image, cleans and chooses captions of the training split, and leaves a dataset that every command
reads, with data_report.html (and .json), document_frequencies.json and run.json.

document-frequencies counts for each n-gram the images whose references contain it; CIDEr weighs n-grams with
this table. It can serve many runs (rewards: [{name: cider_d, kwargs: {frequencies: df.json}}]) and, with
--eos omitted, reported metrics (--frequencies of evaluate and score).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import DocumentFrequenciesRecipe, PrepareRecipe


def run(arguments: Arguments[PrepareRecipe]) -> None:
    """Inspect, clean, choose, split, write, report."""
    refuse_positional(arguments)
    from scst.config import build_prepare

    build_prepare.check_settings(arguments.recipe)
    if not answer_dry_run(arguments):
        build_prepare.prepare_dataset(arguments.recipe)


def document_frequencies(arguments: Arguments[DocumentFrequenciesRecipe]) -> None:
    """Count the references of a split, checked as training checks them, and write the table."""
    refuse_positional(arguments)
    if not answer_dry_run(arguments):
        from scst.config.build_captions import write_document_frequencies

        write_document_frequencies(arguments.recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["document-frequencies"]:
        return run_command(DocumentFrequenciesRecipe, document_frequencies, usage=__doc__, argv=argv[1:])
    return run_command(PrepareRecipe, run, usage=__doc__, argv=argv[1:] if argv[:1] == ["prepare"] else argv)


if __name__ == "__main__":
    sys.exit(main())
