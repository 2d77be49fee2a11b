"""Show which parts of a picture a caption rests on.

    python launch/explain.py IMAGE --adapter DIR --output_dir OUT
    python launch/explain.py IMAGE --adapter DIR --word planes
    python launch/explain.py IMAGE --adapter SCST --compare_adapters SFT,base

Leaves explanation.html (open it in a browser), a PNG per model, method and word, and explanation.json with
all numbers (written last) in output_dir. Needs captum and scikit-image: pip install 'scst[explain]'.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, main, print_dry_run


def run(arguments: Arguments) -> None:
    """Explain one picture under one or more models."""
    recipe = arguments.recipe
    from scst.config import build_explain
    from scst.data.pictures import open_picture

    path = build_explain.one_picture(arguments.positional)
    image = open_picture(path)
    settings = build_explain.explanation_settings(recipe)
    models = build_explain.models_to_explain(recipe)
    if arguments.dry_run:
        print_dry_run(recipe, {"picture": str(path), "size": f"{image.width} x {image.height}"})
        return
    from scst.config import build

    build.prepare_libraries()
    if not build.PartialState().is_main_process:
        return  # one picture is work for one process
    for each in models.values():
        build.check_inputs(each)  # all of them before the first is loaded
    console = build.make_console()
    explanations = [
        build_explain.explain_model(label, each, image, settings, console) for label, each in models.items()
    ]
    build_explain.write_outputs(recipe, path, image, explanations, console)


if __name__ == "__main__":
    sys.exit(main("explain", run, usage=__doc__))
