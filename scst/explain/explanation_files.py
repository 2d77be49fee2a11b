"""Explanations as files: overlays and numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scst.explain.explain import Explanation
from scst.explain.explanation_page import map_picture, subject_name


def write_overlays(folder: Path, image: Image.Image, explanation: Explanation) -> list[Path]:
    """Write ``METHOD-PLACE-WORD.png`` per method and subject (0: the whole caption), and the segments."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for method in explanation.heat:
        for which in explanation.subjects:
            word = re.sub(r"[^\w-]+", "", subject_name(explanation, which).replace(" ", "-")) or "word"
            paths.append(folder / f"{method}-{which:02d}-{word[:40]}.png")
            map_picture(image, explanation, method, which).save(paths[-1], compress_level=3)
    paths.append(folder / "segments.png")  # the pixel value is the number that explanation.json counts by
    Image.fromarray(explanation.segments.astype(np.uint16)).save(paths[-1])
    return paths


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """All numbers of an explanation but the pixels, for JSON."""
    subjects = [
        {
            "text": subject_name(explanation, which),
            "place": which,
            "logprob": round(float(explanation.logprobs[which]), 6),
            "logprob_hidden": round(float(explanation.hidden_logprobs[which]), 6),
            "main_region_share": round(float(explanation.main_region(which).mean()), 4),
            "segments": {
                method: [float(f"{value:.6g}") for value in found[which]]
                for method, found in explanation.importance.items()
            },
        }
        for which in explanation.subjects
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
        "faithfulness_of": subject_name(explanation, explanation.focus),
        "completeness": {
            subject_name(explanation, which): {"sum": total, "expected": expected}
            for which, (total, expected) in explanation.completeness.items()
        },
        "subjects": subjects,
    }
