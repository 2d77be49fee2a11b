"""Show which parts of a picture a caption rests on.

    scst explain IMAGE --adapter DIR --output_dir OUT
    scst explain IMAGE --adapter DIR --word planes
    scst explain IMAGE --adapter SCST --compare_adapters SFT,base
    python launch/explain.py IMAGE --adapter DIR      (from a clone)

Base model, prompt and length limits are those of the run that made the adapter. Leaves explanation.html (open
it in a browser), a PNG per model, method and word, and explanation.json with all numbers (written last) in
output_dir. Needs captum and scikit-image: pip install 'scst[explain]'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments
from scst.cli.command import run_command
from scst.cli.dry_run import print_dry_run
from scst.config.recipes import ExplainRecipe


def run(arguments: Arguments[ExplainRecipe]) -> None:
    """Explain one picture under one or more models."""
    recipe = arguments.recipe
    from scst.config import build_explain
    from scst.data.pictures import open_picture

    path = build_explain.one_picture(arguments.positional)
    image = open_picture(path)
    models = build_explain.models_to_explain(recipe)
    build_explain.check_explain_installed()
    if arguments.dry_run:
        print_dry_run(recipe, {"picture": str(path), "size": f"{image.width} x {image.height}"})
        return
    from scst.config import build

    build.prepare_libraries()
    if not build.PartialState().is_main_process:
        return  # one picture is work for one process
    settings = build_explain.explanation_settings(recipe)
    console = build.make_console()
    explanations = [
        build_explain.explain_model(label, each, image, settings, console) for label, each in models.items()
    ]
    build_explain.write_outputs(recipe, path, image, explanations, console)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(ExplainRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
