"""Examples that cannot be trained on, found and named before a model is loaded."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from scst.data.columns import TEXTS
from scst.data.images import ImageProbe, probe_image
from scst.errors import DataError, RecipeError

POLICIES = ("error", "skip")
SHOWN_EXAMPLES = 5
PROGRESS_FROM = 500  # images; fewer are checked before a bar could be read
BATCH = 256  # images in memory at once
MAX_CAPTION_CHARACTERS = 20_000  # a sentence has a hundred; a whole book would stall the tokenizer


@dataclass(frozen=True)
class BadExample:
    """An example that cannot be used, and why."""

    image_id: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The outcome of checking rows.

    Attributes:
        rows: the good rows, blank captions removed.
        content_hashes: sha256 of the encoded image of each good row.
        bad: the others, in row order.
        blank_captions: how many blank captions were removed from good rows.
    """

    rows: Dataset
    content_hashes: list[str]
    bad: list[BadExample]
    blank_captions: int


def check_policy(on_bad_example: str) -> None:
    """Raise RecipeError unless the value is ``error`` or ``skip``."""
    if on_bad_example not in POLICIES:
        raise RecipeError(f"on_bad_example should be one of {', '.join(POLICIES)}; got {on_bad_example!r}.")


def refuse_bad(bad: Sequence[BadExample]) -> None:
    """Raise DataError listing the first five bad examples and their number; return when there are none."""
    if bad:
        shown = "\n  ".join(f"{example.image_id}: {example.reason}" for example in bad[:SHOWN_EXAMPLES])
        raise DataError(
            f"{len(bad)} examples cannot be used; the first ones:\n  {shown}\n"
            "Repair or remove them, or leave them out with --on_bad_example skip."
        )


def inspect_examples(rows: Dataset, console: Console | None = None) -> Inspection:
    """Check every row. Images are decoded in threads, once, and only where the text is good.

    A bad example has a missing, damaged, empty or oversized image, an empty caption list or only blank
    captions, a caption that is not text or absurdly long, no id, or an id seen before. Blank captions among
    others are removed; degenerate ones (``" ."``) stay.

    Args:
        rows: rows of :func:`scst.data.sources.read_rows`.
        console: where to draw the progress bar; standard error when not given.
    """
    reasons = _text_problems(rows)
    candidates = [row for row, reason in enumerate(reasons) if reason is None]
    probes = dict(zip(candidates, _probe_images(rows.select(candidates), console), strict=True))
    for row, probe in probes.items():
        reasons[row] = probe.problem
    good = [row for row in candidates if reasons[row] is None]
    ids = rows["image_id"]
    bad = [BadExample(str(ids[row] or f"row {row}"), reason) for row, reason in enumerate(reasons) if reason]
    kept, blank = _without_blank_captions(rows.select(good))
    return Inspection(kept, [probes[row].content_hash for row in good], bad, blank)


def caption_problem(references: Any) -> str | None:
    """Return why a caption list cannot be used, ``None`` when it can."""
    if not references:
        return "empty caption list"
    wrong = [caption for caption in references if not isinstance(caption, str)]
    if wrong:
        return f"caption is not text: {wrong[0]!r}"
    if not any(caption.strip() for caption in references):
        return "all captions are blank"
    longest = max(map(len, references))
    if longest > MAX_CAPTION_CHARACTERS:
        return f"a caption has {longest} characters, more than {MAX_CAPTION_CHARACTERS}"
    return None


def text_problem(row: int, image_id: object, references: Any, first_row: dict[str, int]) -> str | None:
    """Return why a row's id or captions cannot be used, ``None`` when they can.

    ``first_row`` remembers in which row an id was seen first; pass the same one for all rows.
    """
    if not str(image_id or "").strip():
        return "image_id is empty"
    if first_row.setdefault(str(image_id), row) != row:
        return f"duplicate image_id: rows {first_row[str(image_id)]} and {row}"
    return caption_problem(references)


def _text_problems(rows: Dataset) -> list[str | None]:
    first_row: dict[str, int] = {}
    texts = zip(rows["image_id"][:], rows["references"][:], strict=True)
    return [text_problem(row, *text, first_row) for row, text in enumerate(texts)]


def _probe_images(rows: Dataset, console: Console | None) -> list[ImageProbe]:
    probes: list[ImageProbe] = []
    threads = min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    console = console or Console(stderr=True)  # stdout may be captions or JSON
    hidden = len(rows) <= PROGRESS_FROM or not console.is_terminal
    bar = Progress(console=console, transient=True, disable=hidden)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, bar:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported by probe_image
        task = bar.add_task("checking images", total=len(rows))
        for batch in rows.select_columns("image").iter(batch_size=BATCH):
            probes += pool.map(probe_image, batch["image"])
            bar.update(task, completed=len(probes))
    return probes


def _without_blank_captions(rows: Dataset) -> tuple[Dataset, int]:
    references = rows["references"][:]
    kept = [[caption for caption in captions if caption.strip()] for captions in references]
    blank = sum(map(len, references)) - sum(map(len, kept))
    if blank:
        rows = rows.remove_columns("references").add_column("references", kept, feature=TEXTS)
    return rows, blank
