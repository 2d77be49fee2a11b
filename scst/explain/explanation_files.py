"""Explanations as files: overlays and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scst.data.files import write_json, write_text
from scst.explain.explanation import Explanation
from scst.explain.explanation_page import explanation_page, map_picture, target_name

RECORD, PAGE = "explanation.json", "explanation.html"


def write_explanations(
    output_dir: str | Path,
    image: Image.Image,
    explanations: Sequence[Explanation],
    *,
    title: str,
    subtitle: str = "",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write overlays (a folder per model), ``explanation.html`` and, last, ``explanation.json``.

    Args:
        output_dir: made if it does not exist. Where ``explanation.json`` is, everything is complete.
        image: the picture in its own size.
        explanations: one per model, each with a label of its own.
        title, subtitle: of the page.
        about: further entries of ``explanation.json``, before the explanations.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(output_dir)
    (folder / RECORD).unlink(missing_ok=True)
    for explanation in explanations:
        write_overlays(folder / explanation.label, image, explanation)
    write_text(folder / PAGE, explanation_page(title, subtitle, image, explanations))
    records = [explanation_record(each) for each in explanations]
    write_json(folder / RECORD, dict(about or {}) | {"explanations": records})


def write_overlays(folder: Path, image: Image.Image, explanation: Explanation) -> list[Path]:
    """Write ``METHOD-PLACE-WORD.png`` per method and target (0: the whole caption), and the segments."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for method in explanation.heat:
        for which in explanation.targets:
            word = re.sub(r"[^\w-]+", "", target_name(explanation, which).replace(" ", "-")) or "word"
            paths.append(folder / f"{method}-{which:02d}-{word[:40]}.png")
            map_picture(image, explanation, method, which).save(paths[-1], compress_level=3)
    paths.append(folder / "segments.png")  # the pixel value is the number that explanation.json counts by
    Image.fromarray(explanation.segments.astype(np.uint16)).save(paths[-1])
    return paths


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """All numbers of an explanation but the pixels, for JSON."""
    targets: list[dict[str, Any]] = [
        {
            "text": target_name(explanation, which),
            "place": which,
            "logprob": round(float(explanation.logprobs[which]), 6),
            "logprob_hidden": round(float(explanation.hidden_logprobs[which]), 6),
            "main_region_share": round(float(explanation.main_region(which).mean()), 4),
            "segments": {
                method: [float(f"{value:.6g}") for value in found[which]]
                for method, found in explanation.importance.items()
            },
        }
        for which in explanation.targets
    ]
    return {
        "model": explanation.label,
        "caption": explanation.caption,
        "faithfulness": {
            method: {
                "value": curve.faithfulness,
                "insertion_area": curve.insertion_area,
                "deletion_area": curve.deletion_area,
                "shares": curve.shares.tolist(),
                "insertion": curve.insertion.tolist(),
                "deletion": curve.deletion.tolist(),
            }
            for method, curve in explanation.curves.items()
        },
        "faithfulness_of": target_name(explanation, explanation.focus),
        "completeness": {
            target_name(explanation, which): {"sum": total, "expected": expected}
            for which, (total, expected) in explanation.completeness.items()
        },
        "subjects": targets,
    }
