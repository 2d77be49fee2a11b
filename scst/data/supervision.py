"""Which of an image's captions supervised training uses, and which instruction the prompt has."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from scst.data.columns import TEXTS
from scst.errors import DataError, RecipeError

WORD = re.compile(r"[^\W_]+")

CaptionPolicy = Callable[[Sequence[str], str, int, int], str]
"""``(references, image_id, epoch, seed) -> caption``; must be a pure function of its arguments."""


def words(text: str) -> list[str]:
    """Return the lower-cased runs of letters and digits of a text."""
    return WORD.findall(text.lower())


def first_caption(references: Sequence[str], image_id: str, epoch: int, seed: int) -> str:
    """The first caption, always."""
    return references[0]


def random_caption(references: Sequence[str], image_id: str, epoch: int, seed: int) -> str:
    """A uniformly drawn caption, another draw every epoch; the same for the same (seed, epoch, image_id)."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{image_id}".encode()).digest()
    return references[int.from_bytes(digest[:8], "big") % len(references)]


def longest_caption(references: Sequence[str], image_id: str, epoch: int, seed: int) -> str:
    """The caption with the most words, the first of them on a tie."""
    return max(references, key=lambda caption: len(words(caption)))


POLICIES: dict[str, CaptionPolicy] = {
    "first": first_caption,
    "random": random_caption,
    "longest": longest_caption,
    "consensus": first_caption,  # selection.consensus_first has put it there
    "all": first_caption,  # CaptionChoice.expand has left each row a single caption
}


@dataclass(frozen=True)
class CaptionChoice:
    """One caption per training row.

    Args:
        policy: a name in :data:`POLICIES`.
        seed: of random draws.

    Raises:
        RecipeError: the policy is not known.
    """

    policy: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise RecipeError(f"unknown caption policy {self.policy!r}; known are {', '.join(POLICIES)}.")

    def choose(self, references: Sequence[str], image_id: str, epoch: int) -> str:
        """Return the caption to train on.

        Args:
            references: the row's captions, at least one.
            image_id: the row's id.
            epoch: 0-based epoch; a resumed run that passes the same epoch draws the same.

        Raises:
            DataError: there are no captions.
        """
        if not references:
            raise DataError(f"image {image_id!r} has no captions to choose from.")
        return POLICIES[self.policy](references, image_id, int(epoch), self.seed)

    def expand(self, dataset: Dataset) -> Dataset:
        """Return the rows to train on: for ``all`` one row per (image, caption), otherwise the dataset
        unchanged.

        An expanded row's ``references`` holds its one caption, so that :meth:`choose` serves every policy
        alike; rewards and evaluation take the dataset that was not expanded. First come the first captions of
        all images, then the second ones, and so on: shuffle. Image bytes are shared between the copies.
        """
        return expand_captions(dataset) if self.policy == "all" else dataset


def expand_captions(dataset: Dataset) -> Dataset:
    """Return one row per (image, caption), without copying images; see :meth:`CaptionChoice.expand`."""
    references = dataset.select_columns("references").with_format("arrow")["references"][:]
    lengths = pc.list_value_length(references).to_numpy()
    # one copy of the selected images at most, here, instead of one per caption below
    bare = dataset.remove_columns("references").flatten_indices()
    parts = []
    for number in range(lengths.max(initial=0)):
        column = pa.table({"references": pc.list_slice(references, number, number + 1)})
        whole = concatenate_datasets([bare, Dataset(column).cast_column("references", TEXTS)], axis=1)
        parts.append(whole.select(np.flatnonzero(lengths > number)))
    return concatenate_datasets(parts) if parts else dataset


@dataclass(frozen=True)
class PromptChoice:
    """One instruction per example, drawn anew every epoch.

    A draw is a function of (seed, epoch, example) alone: a resumed run draws the same, and so does any number
    of processes, however the images are cut into batches.

    Args:
        prompts: the instructions, at least one; with one there is nothing to draw.
        seed: of the draws.

    Raises:
        RecipeError: there are none.
    """

    prompts: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise RecipeError("prompts: expected at least one instruction to draw from, got none.")

    def choose(self, example: str, epoch: int) -> str:
        """Return the instruction of an example.

        Args:
            example: names it, e.g. its image id.
            epoch: 0-based epoch.
        """
        digest = hashlib.sha256(f"prompt:{self.seed}:{int(epoch)}:{example}".encode()).digest()
        return self.prompts[int.from_bytes(digest[:8], "big") % len(self.prompts)]
