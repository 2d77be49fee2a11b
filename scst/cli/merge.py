"""Write an adapter into its base model: a checkpoint that needs no adapter.

    scst merge --adapter DIR --output_dir OUT [--precision bf16]
    scst caption --model_name_or_path OUT IMAGE_OR_FOLDER...
    python launch/merge.py --adapter DIR --output_dir OUT         (from a clone)

LoRA (rsLoRA, DoRA) and prompt tuning can be merged. Prefix tuning and bottleneck adapters cannot: the base
model has no weights that could hold them. Prints the prompt to use with the new checkpoint; after prompt
tuning it contains the virtual tokens.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scst.cli.arguments import Arguments, refuse_positional
from scst.cli.command import run_command
from scst.cli.dry_run import print_dry_run
from scst.config.recipes import MergeRecipe
from scst.errors import RecipeError


def run(arguments: Arguments[MergeRecipe]) -> None:
    """Check everything, then merge and write."""
    recipe = arguments.recipe
    refuse_positional(arguments)
    if (Path(recipe.output_dir) / "config.json").exists() and not recipe.overwrite:
        raise RecipeError(
            f"output_dir: {recipe.output_dir!r} holds a model; give another folder, or --overwrite true"
        )
    if arguments.dry_run:
        print_dry_run(recipe, {})
        return
    from scst.adapters.merging import write_merged
    from scst.config import build
    from scst.config.checks import base_model_of
    from scst.data.terminal import plain

    build.prepare_libraries()
    base = base_model_of(recipe)
    adapter, precision = str(recipe.adapter), recipe.precision
    tokens = write_merged(
        base, adapter, recipe.output_dir, precision=precision, image_tokens=recipe.image_tokens
    )
    prompt = "".join(tokens) + recipe.prompt
    flags = shlex.join(["--model_name_or_path", recipe.output_dir, "--prompt", prompt])
    build.make_console().print(plain(f"merged; use it with {flags}"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(MergeRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
