"""Examples that cannot be trained on, found and named before a model is loaded."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image
from rich.console import Console

from rewards.scorers.text import MAX_CAPTION_CHARACTERS
from scst.data.columns import TEXTS, text_batches
from scst.data.content_hashes import ContentHashes
from scst.data.image_files import ImageFiles
from scst.data.images import probe_image
from scst.data.remembered_checks import Probes, RememberedChecks
from scst.data.terminal import progress_bar
from scst.errors import DataError, RecipeError

POLICIES = ("error", "skip")
CHECK_MODES = ("remembered", "sampled", "full")
SHOWN_EXAMPLES = 5
PROGRESS_FROM = 500  # images; fewer are checked before a bar could be read
BATCH = 256  # images in memory at once
KEPT_EVERY = 20_000  # images whose checks are written to the memory at once


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
        kept: numbers of the good rows.
    """

    rows: Dataset
    content_hashes: ContentHashes
    bad: list[BadExample]
    blank_captions: int
    kept: np.ndarray


@dataclass(frozen=True)
class ImageMemory:
    """What is known of the images of rows before they are read.

    Attributes:
        checks: where what is learnt is kept.
        images: of the rows.
        recall: whether what was learnt before counts.
        sample: numbers of the rows whose images are read; None: all.
    """

    checks: RememberedChecks
    images: ImageFiles
    recall: bool = True
    sample: np.ndarray | None = None


def check_policy(on_bad_example: str) -> None:
    """Raise RecipeError unless the value is ``error`` or ``skip``."""
    if on_bad_example not in POLICIES:
        raise RecipeError(f"on_bad_example should be one of {', '.join(POLICIES)}; got {on_bad_example!r}.")


def check_mode(check: str, fractions: str | None) -> None:
    """Raise RecipeError unless images can be checked that way."""
    if check not in CHECK_MODES:
        raise RecipeError(f"check should be one of {', '.join(CHECK_MODES)}; got {check!r}.")
    if check == "sampled" and fractions is not None:
        raise RecipeError(
            "check: sampled cannot be used with split_fractions, which read every image to keep equal ones "
            "in one split: use check: remembered, or a dataset with splits of its own (scst prepare)."
        )


def refuse_bad(bad: Sequence[BadExample]) -> None:
    """Raise DataError listing the first five bad examples and their number; return when there are none."""
    if bad:
        shown = "\n  ".join(f"{example.image_id}: {example.reason}" for example in bad[:SHOWN_EXAMPLES])
        raise DataError(
            f"{len(bad)} examples cannot be used; the first ones:\n  {shown}\n"
            "Repair or remove them, or leave them out with --on_bad_example skip."
        )


def inspect_examples(
    rows: Dataset, console: Console | None = None, *, memory: ImageMemory | None = None
) -> Inspection:
    """Check every row. Images are decoded in threads, once, and only where the text is good.

    A bad example has a missing, damaged, empty or oversized image, an empty caption list or only blank
    captions, a caption that is not text or absurdly long, no id, or an id seen before. Blank captions among
    others are removed; degenerate ones (``" ."``) stay.

    Args:
        rows: rows of :func:`scst.data.sources.read_rows`.
        console: where to draw the progress bar; standard error when not given.
        memory: of earlier checks; None: every image is read, and nothing kept.
    """
    reasons = _text_problems(rows)
    probes = _probed(rows, reasons, memory, console)
    for row, problem in probes.problems.items():
        reasons.setdefault(row, problem)
    bad = [BadExample(_name_of(rows, row), reasons[row]) for row in sorted(reasons)]
    is_good = np.ones(len(rows), bool)
    is_good[list(reasons)] = False
    kept = np.flatnonzero(is_good)
    good, blank = without_blank_captions(rows if not bad else rows.select(kept))
    return Inspection(good, ContentHashes(probes.hashes[kept]), bad, blank, kept)


def _name_of(rows: Dataset, row: int) -> str:
    return str(rows.select_columns("image_id")[row]["image_id"] or f"row {row}")


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


def _text_problems(rows: Dataset) -> dict[int, str]:
    """Row -> why its id or captions cannot be used, for the rows where they cannot."""
    ids = rows.select_columns("image_id").with_format("arrow")["image_id"][:]
    all_differ = pc.count_distinct(ids).as_py() == len(rows)
    problems: dict[int, str] = {}
    first_row: dict[str, int] = {}
    row = 0
    for batch in text_batches(rows, "image_id", "references"):
        if all_differ:
            first_row.clear()  # a million ids would take 150 MB
        for image_id, references in zip(*batch, strict=True):
            if (problem := text_problem(row, image_id, references, first_row)) is not None:
                problems[row] = problem
            row += 1
    return problems


def _probed(
    rows: Dataset, text_problems: Mapping[int, str], memory: ImageMemory | None, console: Console | None
) -> Probes:
    """What is known of the images of rows with good text, after those not known yet were read."""
    if memory is None:
        probes = Probes.of_nothing(len(rows))
    else:
        probes = memory.checks.recall(memory.images) if memory.recall else Probes.of_nothing(len(rows))
    unread = ~probes.known
    unread[list(text_problems)] = False
    if memory is not None and memory.sample is not None:
        outside = np.ones(len(rows), bool)
        outside[memory.sample] = False
        _stand_in(probes, memory.images, rows, outside)
        unread &= ~outside
    if unread.any():
        _probe_images(rows, np.flatnonzero(unread), probes, memory, console)
    return probes


def _stand_in(probes: Probes, images: ImageFiles, rows: Dataset, outside: np.ndarray) -> None:
    """For images that are not read: missing files are found, and a hash of id and size is theirs alone."""
    row = 0
    for (ids,) in text_batches(rows, "image_id"):
        for image_id in ids:
            if outside[row]:
                probes.problems.pop(row, None)
                size = int(images.sizes[row])
                key = f"not read:{image_id}:{size}"
                probes.hashes[row] = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint8)
                if size <= 0:
                    probes.problems[row] = "image file missing or empty: " + images.names[row].as_py()
            row += 1


def _probe_images(
    rows: Dataset,
    unread: np.ndarray,
    probes: Probes,
    memory: ImageMemory | None,
    console: Console | None,
) -> None:
    """Read, hash and decode images; what was learnt is kept every so often, so that a kill loses little."""
    threads = min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    console = console or Console(stderr=True)  # stdout may be captions or JSON
    hidden = len(unread) <= PROGRESS_FROM or not console.is_terminal
    bar = progress_bar(console, transient=True, disable=hidden)
    images = rows.select_columns("image")
    images = images if len(unread) == len(rows) else images.select(unread)
    numbers, done, read_ns = unread.tolist(), 0, time.time_ns()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, bar:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported by probe_image
        task = bar.add_task("checking images", total=len(unread))
        kept = 0
        for batch in images.iter(batch_size=BATCH):
            for probe in pool.map(probe_image, batch["image"]):
                probes.put(numbers[done], probe)
                done += 1
            bar.update(task, completed=done)
            if memory is not None and (done - kept >= KEPT_EVERY or done == len(numbers)):
                memory.checks.remember(memory.images, numbers[kept:done], probes, read_ns)
                kept, read_ns = done, time.time_ns()


def without_blank_captions(rows: Dataset) -> tuple[Dataset, int]:
    """Rows without blank captions, and how many there were; the same object where there were none."""
    blank = sum(
        not caption.strip()
        for (groups,) in text_batches(rows, "references")
        for captions in groups
        for caption in captions
    )
    if blank:
        kept = [[caption for caption in captions if caption.strip()] for captions in rows["references"][:]]
        rows = rows.remove_columns("references").add_column("references", kept, feature=TEXTS)
    return rows, blank
