"""Write an adapter into its base model: a checkpoint that needs no adapter.

    python launch/merge.py --adapter DIR --output_dir OUT [--precision bf16]
    python launch/caption.py --model_name_or_path OUT IMAGE_OR_FOLDER...

LoRA (rsLoRA, DoRA) and prompt tuning can be merged; prefix tuning and bottleneck adapters have no place in
the base model's weights and are refused. Prints the prompt to give: that of prompt tuning holds its tokens.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # launch/ itself would shadow the package `scst`

from scst.cli.arguments import Arguments, main, print_dry_run, refuse_positional
from scst.errors import RecipeError


def run(arguments: Arguments) -> None:
    """Check everything, then merge and write."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if recipe.adapter is None:
        raise RecipeError("adapter: missing; give the output folder of launch/sft.py or launch/scst.py")
    from scst.adapters.merging import check_mergeable, write_merged
    from scst.config import build

    build.prepare_libraries()
    check_mergeable(recipe.adapter)
    base = build.check_inputs(recipe)
    if (Path(recipe.output_dir) / "config.json").exists() and not recipe.overwrite:
        raise RecipeError(
            f"output_dir: {recipe.output_dir!r} holds a model; give another folder, or --overwrite true"
        )
    if arguments.dry_run:
        print_dry_run(recipe, {})
        return
    tokens = write_merged(base, recipe.adapter, recipe.output_dir, precision=recipe.precision)
    flags = f"--model_name_or_path {recipe.output_dir} --prompt '{''.join(tokens)}{recipe.prompt}'"
    build.make_console().print(f"merged; use it with {flags}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main("merge", run, usage=__doc__))
