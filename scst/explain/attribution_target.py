"""The attribution target: log probabilities of a caption's words as a function of the image's pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from scst.adapters.prompt_tuning import encoder_for
from scst.errors import DataError, RecipeError
from scst.models import masks
from scst.models.policy import DecoderInputs, policy_for
from scst.models.prompts import PromptEncoder


@dataclass(frozen=True)
class Word:
    """A word of a caption: its text and the tokens it is made of."""

    text: str
    tokens: tuple[int, ...]


def caption_words(processor: Any, ids: list[int]) -> list[Word]:
    """Words of a tokenised caption; the end-of-sequence token belongs to none of them."""
    encoder = PromptEncoder.of(processor)
    tokenizer = encoder.tokenizer
    groups: list[list[int]] = []
    for place, (token_id, token) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
        if token_id == encoder.eos_token_id:
            break
        # SentencePiece and byte-level BPE mark the beginning of a word so
        if token.startswith(("▁", "Ġ")) or not groups:
            groups.append([])
        groups[-1].append(place)
    texts = [tokenizer.decode([ids[place] for place in group]).strip() for group in groups]
    return [Word(text, tuple(group)) for text, group in zip(texts, groups, strict=True) if text]


class AttributionTarget:
    """The log probabilities of one caption's words under a model, for any pixels of the model's input size.

    The caption is teacher-forced: each word is scored given the image and the words before it. The
    distribution is the one that captions are decoded from, in which forbidden tokens have probability 0. The
    prompt is bidirectional and the caption causal, by explicit masks.

    Args:
        model: with or without adapter, in evaluation mode.
        processor: its processor.
        image: the picture.
        prompt: the instruction.
        caption: the text to explain.
        max_new_tokens: it is cut to so many tokens.
        progress: called at every forward pass with its number of pictures.

    Attributes:
        pixels: (1, 3, H, W) the preprocessed picture.
        words: W words of the caption.
        image_map: where Grad-CAM looks: image features as the language model gets them, (N, D, h, w).

    Raises:
        DataError: when the caption has no words.
        RecipeError: when the model's image tokens are no grid over the picture.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        image: Image.Image,
        prompt: str,
        caption: str,
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ):
        encoder = encoder_for(model, processor)
        if not encoder.family.tokens_are_grid:
            raise RecipeError(
                "explain: the image tokens of this family are tiles or patches of pictures of any shape, not "
                "one square grid over the picture, which the maps are drawn on; explain a model of "
                "PaliGemma, LLaVA 1.5 or Gemma 3"
            )
        self.policy = policy_for(model, processor)
        self.prompts = encoder.prompt_batch([image], [prompt]).to(self.policy.device)
        self.pixels = self.prompts.vision[0]["pixel_values"].float()
        ids = encoder.caption_token_ids(caption, max_new_tokens)
        self.words = caption_words(processor, ids)
        if not self.words:
            raise DataError(f"caption: {caption!r} has no words to explain")
        self.ids = torch.tensor([ids], device=self.policy.device)  # (1, T)
        self.image_map = nn.Identity()
        self._progress = progress or (lambda pictures: None)
        self._image_processor = processor.image_processor
        self._mask = masks.suffix_mask(self.prompts, torch.ones_like(self.ids, dtype=torch.bool))

    @property
    def num_targets(self) -> int:
        """Number of targets: the whole caption, and each of its W words."""
        return 1 + len(self.words)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the image in patches."""
        side = round(int(self.prompts.image_mask.sum()) ** 0.5)
        return side, side

    def token_logprobs(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, T) natural log probabilities of the caption's tokens for N pictures (N, 3, H, W)."""
        count, length = pixels.shape[0], self.ids.shape[1]
        self._progress(count)
        logits = self.policy.forward(self._inputs(pixels), keep=length + 1)
        # position i predicts token i + 1; masked before the softmax, as in sampling
        logits = logits[:, :-1].float().masked_fill(self.policy.forbidden, -torch.inf)
        return logits.log_softmax(-1).gather(2, self.ids.expand(count, -1)[..., None]).squeeze(-1)

    def logprobs(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 1 + W) log probabilities: of the whole caption (its end included), then of each word."""
        tokens = self.token_logprobs(pixels)
        words = [tokens[:, list(word.tokens)].sum(1) for word in self.words]
        return torch.stack([tokens.sum(1), *words], 1)

    def num_tokens(self, target: int) -> int:
        """Tokens of the whole caption (target 0) or of a word (1, 2, ...)."""
        return self.ids.shape[1] if target == 0 else len(self.words[target - 1].tokens)

    def find_word(self, word: str | int) -> int:
        """The target (1 ... W) of a word, named by its text (the first such word) or its place from 1.

        Raises:
            RecipeError: when the caption has no such word.
        """
        texts = [each.text.strip(".,;:!?").lower() for each in self.words]
        if isinstance(word, int) and 1 <= word <= len(texts):
            return word
        if isinstance(word, str) and word.lower() in texts:
            return texts.index(word.lower()) + 1
        raise RecipeError(f"word: the caption has no word {word!r}; it has: {' '.join(texts)}")

    def picture(self) -> np.ndarray:
        """(H, W, 3) the picture at the size the model sees, 0 to 1."""
        return np.clip(self.to_colours(self.pixels)[0].permute(1, 2, 0).cpu().numpy(), 0, 1)

    def to_colours(self, pixels: torch.Tensor) -> torch.Tensor:
        """Preprocessed pixels as colours from 0 to 1."""
        mean, std = self._normalisation(pixels.device)
        return pixels * std + mean

    def to_pixels(self, colours: torch.Tensor) -> torch.Tensor:
        """Colours from 0 to 1 as preprocessed pixels."""
        mean, std = self._normalisation(colours.device)
        return (colours - mean) / std

    def _normalisation(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        values = [self._image_processor.image_mean, self._image_processor.image_std]
        mean, std = torch.tensor(values, device=device).view(2, 1, 3, 1, 1)
        return mean, std

    def _inputs(self, pixels: torch.Tensor) -> DecoderInputs:
        """Prompt and caption for N pictures, differentiable in the pixels."""
        count = pixels.shape[0]
        repeated = self.prompts.select(torch.zeros(count, dtype=torch.long))
        prompts = replace(repeated, vision=[{"pixel_values": picture[None]} for picture in pixels])
        features = torch.cat(list(self.policy.image_features(prompts)))  # (N, h * w, D)
        as_map = features.transpose(1, 2).unflatten(2, self.grid)
        features = self.image_map(as_map).flatten(2).transpose(1, 2)
        ids = self.ids.expand(count, -1)
        distances = torch.arange(1, ids.shape[1] + 1, device=ids.device).expand_as(ids)
        mask = self._mask.expand(count)
        return self.policy.from_prompts(prompts, list(features.unsqueeze(1)), mask, ids, distances)
