"""Document frequencies: in how many images' references each n-gram stands. CIDEr weighs n-grams with them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from rewards.scorers import tokenizer
from rewards.scorers.ngram_counts import Ngram, NgramCounts

EOS_WORD = "<EOS>"  # words are lower-case: no caption can spell it
EOS_POLICIES = ("emitted", "omitted")
FILE_NAME = "document_frequencies.json"
_MOST_IMAGES = 2**31 - 1
_HEADER = ("num_images", "split", "eos", "tokenizer")


@dataclass(frozen=True)
class DocumentFrequencies:
    """The table, with what must match between building and using it.

    A look-up never changes the table (a ``defaultdict`` would grow with every unknown n-gram).

    Attributes:
        counts: n-gram -> number of images with it in at least one reference; any mapping is made one of
            arrays.
        num_images: number of images, the documents of the table.
        split: the split whose references were counted.
        eos: "emitted" when every reference was counted with an end-of-sequence word, else "omitted".
        tokenizer: name of the caption tokeniser.
    """

    counts: Mapping[Ngram, int] = field(repr=False)
    num_images: int
    split: str
    eos: str
    tokenizer: str = tokenizer.NAME

    def __post_init__(self) -> None:
        """Keep the counts as arrays."""
        if not isinstance(self.counts, NgramCounts):
            object.__setattr__(self, "counts", NgramCounts.of_mapping(self.counts))

    @property
    def ngram_counts(self) -> NgramCounts:
        """The counts as they are kept."""
        assert isinstance(self.counts, NgramCounts)  # since __post_init__
        return self.counts

    @classmethod
    def from_references(
        cls, references: Iterable[Sequence[str]], *, eos: str, split: str = "train"
    ) -> DocumentFrequencies:
        """Count the references of a corpus.

        Args:
            references: one list of human captions per image.
            eos: "emitted" or "omitted".
            split: name of the split, kept in the fingerprint.

        Raises:
            ValueError: on an unknown ``eos`` policy or a corpus without images.
        """
        if eos not in EOS_POLICIES:
            raise ValueError(f"eos must be one of {', '.join(EOS_POLICIES)}, got {eos!r}")
        ending = (EOS_WORD,) if eos == "emitted" else ()
        images = ([tokenizer.tokenize(c) + ending for c in captions] for captions in references)
        counts, num_images = NgramCounts.of_documents(images)
        if num_images == 0:
            raise ValueError("document frequencies need the references of at least one image, got none")
        return cls(counts, num_images, split, eos)

    def idf(self, ngram: Ngram) -> float:
        """log(number of images / document frequency), an unseen n-gram counting as seen once."""
        return self.max_idf - math.log(max(1, self.counts.get(ngram, 0)))

    @property
    def max_idf(self) -> float:
        """Inverse document frequency of an n-gram that the corpus does not have."""
        return math.log(self.num_images)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the table and all that must match; its first six digits stand in signatures."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for ngram, count in self.ngram_counts.sorted_items():
            digest.update(f"{' '.join(ngram)}\t{count}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the table as JSON; the file is complete or absent."""
        path = Path(path)
        beginning = json.dumps(self._header() | {"fingerprint": self.fingerprint, "counts": {}})
        partial = path.with_name(path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:  # piece by piece: it may have millions of n-grams
            file.write(beginning.removesuffix("}}"))
            for i, (ngram, count) in enumerate(self.ngram_counts.sorted_items()):
                file.write(f"{', ' if i else ''}{json.dumps(' '.join(ngram))}: {count}")
            file.write("}}")
        os.replace(partial, path)

    def save_arrays(self, path: Path) -> None:
        """Write the table in a form that is read at once, for a cache; :meth:`save` is for exchange."""
        header = json.dumps(self._header() | {"fingerprint": self.fingerprint}).encode()
        with path.open("wb") as file:
            np.savez(file, header=np.frombuffer(header, np.uint8), **self.ngram_counts.state())

    @classmethod
    def load_arrays(cls, path: Path) -> DocumentFrequencies:
        """What :meth:`save_arrays` wrote; the fingerprint is believed.

        Raises:
            ValueError: the file is damaged. OSError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as state:
                header = json.loads(state["header"].tobytes())
                table = cls(NgramCounts.from_state(state), **{key: header[key] for key in _HEADER})
        except (KeyError, IndexError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no table of document frequencies: {error}") from error
        table.__dict__["fingerprint"] = header["fingerprint"]
        return table

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read a saved table.

        Raises:
            ValueError: when the file is no such table, or its content does not have the fingerprint that it
                was saved with.
        """
        content = _read(Path(path))
        if not isinstance(content, dict) or not {*_HEADER, "counts", "fingerprint"} <= set(content):
            raise ValueError(
                f"{path} is no table of document frequencies: save one with DocumentFrequencies.save"
            )
        counts = content["counts"]
        numbers = [content["num_images"], *(counts.values() if isinstance(counts, dict) else [None])]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"{path}: expected whole numbers above 0 as `num_images` and in `counts`")
        if max(numbers) > min(content["num_images"], _MOST_IMAGES):
            raise ValueError(f"{path}: an n-gram is counted in more images than `num_images` says there are")
        counts = {tuple(ngram.split(" ")): count for ngram, count in counts.items()}
        table = cls(counts, **{key: content[key] for key in _HEADER})
        if table.fingerprint != content["fingerprint"]:
            raise ValueError(
                f"{path} was changed after it was written: its fingerprint does not fit its content"
            )
        return table

    def _header(self) -> dict:
        return {
            "unit": "image",
            "num_images": self.num_images,
            "split": self.split,
            "eos": self.eos,
            "tokenizer": self.tokenizer,
        }


def _read(path: Path) -> Any:
    """The content of a JSON file; a pipe is refused, because reading it would wait for ever.

    Raises:
        ValueError: it is no file, or no JSON. OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
