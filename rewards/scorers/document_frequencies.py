"""Document frequencies: in how many images' references each n-gram stands. CIDEr weighs n-grams with them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rewards.scorers import tokenizer

Ngram = tuple[str, ...]
MAX_ORDER = 4
EOS_WORD = "<EOS>"  # words are lower-case: no caption can spell it
EOS_POLICIES = ("emitted", "omitted")
FILE_NAME = "document_frequencies.json"


def ngrams(words: Sequence[str]) -> list[Ngram]:
    """All n-grams of order 1 to 4 (``MAX_ORDER``) in ``words``, by order, as often as they stand there."""
    second, third, fourth = words[1:], words[2:], words[3:]  # written out: this is most of what CIDEr costs
    return [*zip(words), *zip(words, second), *zip(words, second, third), *zip(words, second, third, fourth)]  # noqa: B905


@dataclass(frozen=True)
class DocumentFrequencies:
    """The table, with what must match between building and using it.

    A look-up never changes the table (a ``defaultdict`` would grow with every unknown n-gram).

    Attributes:
        counts: n-gram -> number of images with it in at least one reference.
        num_images: number of images, the documents of the table.
        split: the split whose references were counted.
        eos: "emitted" when every reference was counted with an end-of-sequence word, else "omitted".
        tokenizer: name of the caption tokeniser.
    """

    counts: dict[Ngram, int] = field(repr=False)
    num_images: int
    split: str
    eos: str
    tokenizer: str = tokenizer.NAME

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
        counts: Counter[Ngram] = Counter()
        num_images = 0
        for captions in references:
            num_images += 1
            counts.update({ngram for c in captions for ngram in ngrams(tokenizer.tokenize(c) + ending)})
        if num_images == 0:
            raise ValueError("document frequencies need the references of at least one image, got none")
        return cls(dict(counts), num_images, split, eos)

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
        for ngram in sorted(self.counts):
            digest.update(f"{' '.join(ngram)}\t{self.counts[ngram]}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the table as JSON; the file is complete or absent."""
        path = Path(path)
        table = {" ".join(ngram): count for ngram, count in self.counts.items()}
        content = self._header() | {"fingerprint": self.fingerprint, "counts": table}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read a saved table.

        Raises:
            ValueError: when the file is no such table, or its content does not have the fingerprint that it
                was saved with.
        """
        content = _read(Path(path))
        keys = ("num_images", "split", "eos", "tokenizer")
        if not isinstance(content, dict) or not {*keys, "counts", "fingerprint"} <= set(content):
            raise ValueError(
                f"{path} is no table of document frequencies: save one with DocumentFrequencies.save"
            )
        counts = content["counts"]
        numbers = [content["num_images"], *(counts.values() if isinstance(counts, dict) else [None])]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"{path}: expected whole numbers above 0 as `num_images` and in `counts`")
        counts = {tuple(ngram.split(" ")): count for ngram, count in counts.items()}
        table = cls(counts, **{key: content[key] for key in keys})
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
