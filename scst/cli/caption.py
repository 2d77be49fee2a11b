"""Caption pictures.

    scst caption --adapter DIR IMAGE_OR_FOLDER...
    python launch/caption.py --adapter DIR IMAGE_OR_FOLDER...    (from a clone)

Base model, prompt and length limits are those of the run that made the adapter. Prints a JSON line per
picture (image, caption, ended_by_eos) on standard output, or writes to --output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scst.cli.arguments import Arguments
from scst.cli.command import run_command
from scst.cli.dry_run import print_dry_run
from scst.config.recipes import CaptionRecipe


def run(arguments: Arguments[CaptionRecipe]) -> None:
    """Caption every picture that the arguments name."""
    recipe = arguments.recipe
    from scst.data.pictures import find_pictures, open_picture

    pictures = find_pictures(arguments.positional)
    if arguments.dry_run:
        print_dry_run(recipe, {"pictures": len(pictures)})
        return
    from scst.config import build
    from scst.config.checks import base_model_of
    from scst.data.files import write_jsonl
    from scst.distributed.sharded_loader import map_across_ranks
    from scst.evaluation.captioning import caption_images
    from scst.evaluation.decoding import get_decoding

    build.prepare_libraries()
    decoding = get_decoding(recipe.decoding)
    images = [open_picture(path) for path in pictures]
    policy = build.build_policy(recipe, base_model_of(recipe), trainable=False)

    def caption(rows: range) -> list:
        with build.progress_to_stderr("captioning", len(rows)) as advance:
            return caption_images(
                policy.model,
                policy.encoder,
                images[rows.start : rows.stop],
                recipe.prompt,
                decoding,
                max_new_tokens=recipe.max_new_tokens,
                min_new_tokens=recipe.min_new_tokens,
                batch_size=recipe.eval_batch_size,
                seed=recipe.seed,
                progress=advance,
            )

    rows = [
        {"image": str(path), "caption": c.text, "ended_by_eos": c.ended_by_eos}
        for path, c in zip(pictures, map_across_ranks(caption, len(pictures)), strict=True)
    ]
    if build.is_main_process():
        write_jsonl(rows, recipe.output)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    return run_command(CaptionRecipe, run, usage=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
