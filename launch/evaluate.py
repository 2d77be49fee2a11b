"""Caption a split and score it.

    python launch/evaluate.py --adapter DIR --dataset D --eval_split val --output_dir OUT
    python launch/evaluate.py --model_name_or_path MODEL --dataset D --output_dir OUT     (zero-shot)
    python launch/evaluate.py --compare OUT_A OUT_B       (paired bootstrap of two evaluations)

Without --config the recipe recorded with the adapter is used. Leaves metrics.json (values, signatures,
confidence intervals; written last), predictions.jsonl and report.html in output_dir. --compare_with OTHER
adds what changed since an earlier evaluation to the report.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, answer_dry_run, main, refuse_positional


def run(arguments: Arguments) -> None:
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


if __name__ == "__main__":
    sys.exit(main("evaluate", run, usage=__doc__))
