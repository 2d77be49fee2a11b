"""Caption a split and score it.

    python launch/evaluate.py --adapter DIR --dataset D --eval_split val --output_dir OUT
    python launch/evaluate.py --model_name_or_path MODEL --dataset D --output_dir OUT     (zero-shot)
    python launch/evaluate.py --compare OUT_A OUT_B       (paired bootstrap of two evaluations)

Without --config the recipe recorded with the adapter is used. Leaves metrics.json (values, signatures,
confidence intervals; written last), predictions.jsonl and report.html in output_dir.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from launch.arguments import Arguments, answer_dry_run, main, refuse_positional


def run(arguments: Arguments) -> None:
    """Evaluate the base model or an adapter on one split."""
    recipe = arguments.recipe
    if recipe.compare:
        from launch.build_metrics import print_comparison

        print_comparison(recipe, [*recipe.compare, *arguments.positional])
        return
    refuse_positional(arguments)
    if answer_dry_run(arguments):
        return
    from launch import build
    from launch.build_metrics import checked_settings
    from scst.evaluation.evaluate import evaluate

    build.prepare_libraries()
    console = build.make_console()
    settings = checked_settings(recipe)
    base = build.check_inputs(recipe)
    data = build.load_data(recipe, [recipe.eval_split], console)
    model, processor = build.build_policy(recipe, base, trainable=False)
    evaluate(
        model,
        processor,
        data.splits[recipe.eval_split],
        prompt=recipe.prompt,
        output_dir=recipe.output_dir,
        decoding=recipe.decoding,
        max_new_tokens=recipe.max_new_tokens,
        min_new_tokens=recipe.min_new_tokens,
        batch_size=recipe.eval_batch_size,
        metrics=recipe.metrics,
        settings=settings,
        bootstrap_samples=recipe.bootstrap_samples,
        seed=recipe.seed,
        title=f"{recipe.adapter or base} on {recipe.dataset} {recipe.eval_split}",
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main("evaluate", run, usage=__doc__))
