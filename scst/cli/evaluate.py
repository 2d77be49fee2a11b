"""Caption a split and score the captions.

    scst evaluate --adapter DIR --dataset D --eval_split val --output_dir OUT
    scst evaluate --model_name_or_path MODEL --dataset D --output_dir OUT     (zero-shot)
    scst evaluate --compare OUT_A OUT_B                                       (paired test)
    python launch/evaluate.py ...                                             (from a clone)

Without --config the keys come from the run that made the adapter: base model, dataset, prompt, length
limits. Leaves metrics.json (values, signatures, confidence intervals; written last), predictions.jsonl and
report.html in output_dir. --compare_with OTHER adds what changed since an earlier evaluation to the report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import answer_dry_run
from scst.config.recipes import EvaluateRecipe


def run(arguments: Arguments[EvaluateRecipe]) -> None:
    """Evaluate the base model or an adapter on one split."""
    recipe = arguments.recipe
    if recipe.compare:
        from scst.config.build_metrics import print_comparison

        print_comparison(recipe, [*recipe.compare, *arguments.positional])
        return
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return
    from scst.config import build
    from scst.config.build_evaluate import Evaluator

    build.prepare_libraries()
    Evaluator(build.make_console()).run(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(EvaluateRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
