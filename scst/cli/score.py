"""Score caption files, as sacrebleu does for translations: no captioning model, no dataset.

    scst score --predictions P.jsonl --references R.jsonl --metrics cider_d,bleu_4
    scst score --predictions P.txt --references first.txt second.txt
    scst score --predictions outputs/run --metrics meteor         (a folder of scst evaluate)
    ... | scst score --predictions - --references R.jsonl | jq .cider_d.value
    scst score --list
    python launch/score.py --predictions P.jsonl ...              (from a clone)

Predictions: JSONL (image_id, caption), COCO JSON or plain text. References: JSONL (image_id, captions), COCO
JSON or plain text, one file per reference. Prints JSON: value, 95 % interval and signature of every metric.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments
from scst.cli.command import run_command
from scst.cli.dry_run import print_dry_run
from scst.config.recipes import ScoreRecipe
from scst.data.visible import json_text
from scst.errors import RecipeError


def run(arguments: Arguments[ScoreRecipe]) -> None:
    """Read, check, score, print."""
    recipe = arguments.recipe
    if recipe.predictions is None:
        raise RecipeError("predictions: missing; give a caption file, an evaluation's folder, or - for stdin")
    from rich.console import Console

    from scst.config.build_metrics import metric_settings
    from scst.evaluation.score_files import read_corpus, write_per_caption
    from scst.metrics.bootstrap import check_corpus, metrics_json, score_captions

    files = recipe.predictions, [*recipe.references, *arguments.positional]
    settings = metric_settings(recipe)
    corpus = read_corpus(*files, settings=settings, images=recipe.images, subset=recipe.subset)
    check_corpus(corpus, recipe.metrics)
    if arguments.dry_run:
        print_dry_run(recipe, {"captions": len(corpus.captions), "references": corpus.refs})
        return
    with Console(stderr=True).status(f"scoring {len(corpus.captions)} captions"):
        results = score_captions(
            corpus, recipe.metrics, bootstrap_samples=recipe.bootstrap_samples, seed=recipe.seed
        )
    if recipe.per_caption:
        write_per_caption(recipe.per_caption, corpus, results)
    print(json_text(metrics_json(results), indent=2))


def list_metrics(arguments: Arguments[ScoreRecipe]) -> None:
    """Name every metric and what it needs."""
    from scst.config.build_metrics import metric_list

    print(metric_list())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--list" in argv:
        return run_command(ScoreRecipe, list_metrics, usage=__doc__, argv=[])
    return run_command(ScoreRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
