"""CLIPScore and RefCLIPScore of captions, with any CLIP, SigLIP or SigLIP 2 checkpoint.

Hessel et al. 2021, arXiv:2104.08718, equations 1 and 2; the implementation to agree with is the authors'
``clipscore.py``. CLIP text and image embeddings, normalised; the caption stands after "A photo depicts ".

Which number is it? Three are in use, and none can be compared with another:

- the cosine itself (about 0.2 to 0.35 for CLIP ViT-B/32): :meth:`ClipScorer.cosines`, form "raw";
- 2.5 * max(cosine, 0), what the paper calls CLIPScore: :meth:`ClipScorer.scores`, form "scaled";
- 100 * cosine without the words before the caption: torchmetrics; ``prompt_prefix=""`` gives its cosine.
  (It serves as the reference of our tests only: 1.9 does not run with transformers 5, cuts the end-of-text
  token off captions that are too long, and encodes an image once per caption.)

As a reward it ignores grammar and repetition and favours vacuous captions: mix it with another reward, and
watch the metrics that are not optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from rewards.errors import RewardError
from rewards.scorers.encoders import (
    EmbeddingCache,
    check_pairs,
    check_references,
    encodable,
    find_model,
    inference,
    loading,
    model_label,
    pick_device,
)

PROMPT_PREFIX = "A photo depicts "
"""What the paper puts before every caption and reference."""
WEIGHT = 2.5
"""w of the paper, which spreads the scores over 0 to 1."""
FORMS = ("raw", "scaled")
DTYPES = ("float32", "bfloat16", "float16")
_SCORER = "clipscore"
_EXAMPLE = "openai/clip-vit-base-patch32"


class DualEncoder:
    """A loaded CLIP or SigLIP: images and texts to unit vectors.

    Args:
        model: folder or hub id.
        device: of the model; None for the GPU, if there is one.
        dtype: of the model; embeddings are normalised in float32.

    Raises:
        RewardError: the checkpoint cannot be loaded or has not both encoders.
    """

    def __init__(self, model: str, device: str | None, dtype: str):
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        with loading(_SCORER, model):
            network = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype), trust_remote_code=False)
            if not (hasattr(network, "get_text_features") and hasattr(network, "get_image_features")):
                raise ValueError(
                    f"{type(network).__name__} does not encode texts and images: want CLIP or SigLIP"
                )
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            # The PIL backend gives the same pixels with and without torchvision.
            self._image_processor = AutoImageProcessor.from_pretrained(
                model, backend="pil", trust_remote_code=False
            )
        self._device = pick_device(device)
        self._network = network.eval().to(self._device)
        # SigLIP was trained on texts padded to the full length, without an attention mask.
        self._pads_fully = network.config.model_type.startswith("siglip")
        self.max_tokens = int(network.config.text_config.max_position_embeddings)

    def images(self, images: Sequence[Any]) -> np.ndarray:
        """(N, D) unit vectors of N PIL images."""
        pixels = self._image_processor([image.convert("RGB") for image in images], return_tensors="pt")
        with inference(self._device):
            return _unit(self._network.get_image_features(**pixels.to(self._device, self._network.dtype)))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) unit vectors of N texts; what is beyond ``max_tokens`` is cut off before the end token."""
        tokens = self._tokenizer(
            list(texts),
            padding="max_length" if self._pads_fully else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        names = ["input_ids"] if self._pads_fully else ["input_ids", "attention_mask"]
        with inference(self._device):
            return _unit(self._network.get_text_features(**{k: tokens[k].to(self._device) for k in names}))

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more than ``max_tokens`` tokens."""
        return [
            len(ids) > self.max_tokens for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]
        ]


def _unit(features: Any) -> np.ndarray:
    from torch.nn.functional import normalize

    return normalize(features.pooler_output.float(), dim=-1).cpu().numpy()


class ClipScorer:
    """CLIPScore with one checkpoint. Building it checks the arguments; the model loads at first use.

    Args:
        model_name_or_path: folder or hub id of a CLIP or SigLIP, with tokeniser and image processor; the
            tokeniser of the first SigLIP needs the package sentencepiece.
        device: such as "cpu" or "cuda:1"; by default the GPU, if there is one.
        batch_size: images or texts that are encoded together.
        prompt_prefix: stands before every caption and reference, with one space between; "" for none.
        dtype: "float32", "bfloat16" or "float16", in which the authors' code runs on a GPU.
        cache_size: image embeddings to keep, those used last; about 2 to 5 kB each.

    Attributes:
        truncated: how many captions of the latest call were longer than the checkpoint reads (with the prefix
            77 tokens for CLIP, 64 for SigLIP).

    Raises:
        RewardError: an argument is wrong, or there can be no such model.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: str | None = None,
        batch_size: int = 64,
        prompt_prefix: str = PROMPT_PREFIX,
        dtype: str = "float32",
        cache_size: int = 1 << 15,
    ):
        if dtype not in DTYPES:
            raise RewardError(f"{_SCORER}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.model_name_or_path = find_model(_SCORER, model_name_or_path, _EXAMPLE)
        self.device, self.batch_size, self.dtype = device, batch_size, dtype
        self.prompt_prefix = f"{prompt_prefix.rstrip()} " if prompt_prefix.strip() else ""
        self.truncated = 0
        self._image_cache = EmbeddingCache(cache_size)

    @cached_property
    def encoder(self) -> DualEncoder:
        """The model, loaded when first asked for."""
        return DualEncoder(self.model_name_or_path, self.device, self.dtype)

    @cached_property
    def signature(self) -> str:
        """What two values must share to be compared, without the form."""
        prefix = self.prompt_prefix.strip() or "none"
        return f"model:{model_label(self.model_name_or_path)}|prefix:{prefix}|dtype:{self.dtype}"

    def cosines(
        self, captions: Sequence[str], images: Sequence[Any], image_ids: Sequence[Hashable] | None = None
    ) -> list[float]:
        """Cosines of N captions with their images, -1 to 1.

        Args:
            captions: N texts; an empty one is scored like any other.
            images: N PIL images.
            image_ids: N names. The embedding of an image is kept under its name: one name must mean one image
                as long as the scorer lives. Without names an object that is repeated is encoded once.

        Raises:
            RewardError: lengths differ, something is no image, or the model cannot be loaded.
        """
        check_pairs(_SCORER, captions, images=images, image_ids=image_ids)
        if not captions:
            return []
        pair = self._captions(captions), self._images(images, image_ids)
        return np.einsum("nd,nd->n", *pair).tolist()

    def scores(
        self, captions: Sequence[str], images: Sequence[Any], image_ids: Sequence[Hashable] | None = None
    ) -> list[float]:
        """CLIPScore, 2.5 * max(cosine, 0) (equation 1); arguments as in :meth:`cosines`."""
        return [scaled(cosine) for cosine in self.cosines(captions, images, image_ids)]

    def reference_scores(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        images: Sequence[Any],
        image_ids: Sequence[Hashable] | None = None,
    ) -> list[float]:
        """RefCLIPScore (equation 2): harmonic mean of CLIPScore and the best cosine with a reference.

        Args:
            captions, images, image_ids: as in :meth:`cosines`.
            references: N lists of one or more texts.
        """
        check_references(_SCORER, captions, references)
        best = self.reference_cosines(captions, references)
        scores = self.scores(captions, images, image_ids)
        return [harmonic_mean(score, max(cosine, 0.0)) for score, cosine in zip(scores, best, strict=True)]

    def reference_cosines(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The highest cosine of each caption's text embedding with one of its references."""
        check_references(_SCORER, captions, references)
        if not captions:
            return []
        flat = [text for group in references for text in group]
        embeddings = self._texts([*captions, *flat])
        ends = accumulate(map(len, references), initial=len(captions))
        pairs = zip(embeddings, pairwise(ends), strict=False)
        return [float((embeddings[start:end] @ caption).max()) for caption, (start, end) in pairs]

    def _captions(self, captions: Sequence[str]) -> np.ndarray:
        prompts = [self._prompt(caption) for caption in captions]
        self.truncated = sum(self.encoder.too_long(prompts))
        return self._texts(captions)

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        prompts = [self._prompt(text) for text in texts]
        return EmbeddingCache(0).embed(prompts, lambda new: self._in_batches(self.encoder.texts, new))

    def _prompt(self, text: str) -> str:
        return self.prompt_prefix + encodable(text)

    def _images(self, images: Sequence[Any], image_ids: Sequence[Hashable] | None) -> np.ndarray:
        for i, image in enumerate(images):
            if not hasattr(image, "convert"):
                raise RewardError(f"{_SCORER}: image {i} must be a PIL image, got {type(image).__name__}")
        cache = EmbeddingCache(0) if image_ids is None else self._image_cache
        keys = [id(image) for image in images] if image_ids is None else image_ids
        by_key = dict(zip(keys, images, strict=True))
        return cache.embed(
            keys, lambda new: self._in_batches(self.encoder.images, [by_key[key] for key in new])
        )

    def _in_batches(self, encode: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any]) -> np.ndarray:
        starts = range(0, len(items), self.batch_size)
        return np.concatenate([encode(items[start : start + self.batch_size]) for start in starts])


def scaled(cosine: float) -> float:
    """CLIPScore of a cosine: 2.5 * max(cosine, 0)."""
    return WEIGHT * max(cosine, 0.0)


def harmonic_mean(a: float, b: float) -> float:
    """Of two numbers that are not negative; 0 when one of them is."""
    return 2 * a * b / (a + b) if a and b else 0.0
