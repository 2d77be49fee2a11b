"""Score caption files, as sacrebleu does for translations: no captioning model, no dataset.

    python launch/score.py --predictions P.jsonl --references R.jsonl --metrics cider_d,bleu_4
    python launch/score.py --predictions P.txt --references first.txt second.txt
    python launch/score.py --predictions outputs/run --metrics meteor      (a folder of launch/evaluate.py)
    ... | python launch/score.py --predictions - --references R.jsonl | jq .cider_d.value
    python launch/score.py --list

Predictions: JSONL (image_id, caption), COCO JSON or plain text. References: JSONL (image_id, captions), COCO
JSON or plain text, one file per reference. Prints JSON: value, 95 % interval and signature of every metric.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, main, print_dry_run
from scst.errors import RecipeError


def run(arguments: Arguments) -> None:
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
    print(json.dumps(metrics_json(results), indent=2, ensure_ascii=False))


def list_metrics(arguments: Arguments) -> None:
    """Name every metric and what it needs."""
    from scst.config.build_metrics import metric_list

    print(metric_list())


if __name__ == "__main__":
    listing = "--list" in sys.argv[1:]
    sys.exit(main("score", list_metrics if listing else run, usage=__doc__, argv=[] if listing else None))
