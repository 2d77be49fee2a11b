"""The contract of a model family, with what most of them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from scst.errors import RecipeError
from scst.types import ImageFeatures, PromptBatch

_LARGE_PICTURES = ((1024, 1024), (2048, 2048), (2048, 1024), (1024, 2048), (3072, 1024), (1024, 3072))

Vision = Mapping[str, torch.Tensor]
"""What the vision tower takes for one image, by the names of ``get_image_features``' arguments."""


@dataclass(frozen=True)
class ModuleNames:
    """Full names of a model's parts, and regular expressions of the linear layers within them.

    Attributes:
        decoder: the language model without its head.
        head: the language-model head.
        vision: the vision tower.
        projector: parts between vision tower and decoder; they may lie within the tower.
        attention, mlp: ends of the names of the decoder's linear layers.
        vision_linear: the same of the vision tower, without the projector.
        vision_qv: of the vision tower's projections to queries and values.
        projector_linear: the same of the projector, from its own name on; None where it has none.
        projector_parameters: matrices of the projector that are no linear layers.
    """

    decoder: str = "model.language_model"
    head: str = "lm_head"
    vision: str = "model.vision_tower"
    projector: tuple[str, ...] = ("model.multi_modal_projector",)
    attention: str = r"self_attn\.(q|k|v|o)_proj"
    mlp: str = r"mlp\.(gate|up|down)_proj"
    vision_linear: str = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"
    vision_qv: str = r"self_attn\.(q|v)_proj"
    projector_linear: str | None = r"linear_[12]"
    projector_parameters: tuple[str, ...] = ()

    def within(self, part: str, ends: str) -> str:
        """The expression of all names with these ends below a part's own name."""
        return rf".*{part.rpartition('.')[2]}.*\.({ends})"

    @property
    def unquantised(self) -> list[str]:
        """Names of the modules that keep the compute precision when the decoder is quantised."""
        return [self.vision, *self.projector, self.head]


class Family:
    """A decoder-only family: a causal prompt, one-dimensional positions, features in place of image tokens.

    Attributes:
        processors: names of transformers' processor classes.
        names: of the model's modules.
        first_position: of a prompt's first token.
        vision_arguments: what the processor makes for ``get_image_features``.
        varies_image_tokens: whether pictures of different shapes have different numbers of features.
        several_rows_per_image: whether an image has several rows of ``pixel_values``, and the model does not
            say how ``generate`` repeats them for beams.
        tokens_are_grid: whether the image tokens are one square grid over the picture, and ``pixel_values``
            (1, 3, H, W) all that the vision tower takes.
        tokens_are_patches: whether each of them is one patch of the vision tower.
        window_cuts_blocks: whether a sliding window also hides the beginning of a token's own block.
        reserved_tokens: those that prompt tuning may take, in this order.
    """

    processors: ClassVar[tuple[str, ...]]
    names: ClassVar[ModuleNames] = ModuleNames()
    first_position: ClassVar[int] = 0
    vision_arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    varies_image_tokens: ClassVar[bool] = False
    several_rows_per_image: ClassVar[bool] = False
    tokens_are_grid: ClassVar[bool] = False
    tokens_are_patches: ClassVar[bool] = False
    window_cuts_blocks: ClassVar[bool] = False
    reserved_tokens: ClassVar[tuple[str, ...]] = ()

    # ---- from images and instructions to prompts

    def prompt_text(self, processor: Any, instruction: str) -> str:
        """The prompt as the processor takes it: one image, the instruction, and what opens the answer."""
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        return chat(processor, [{"role": "user", "content": content}], add_generation_prompt=True)

    def answer_frame(self, processor: Any) -> tuple[str, int]:
        """What stands between a prompt and its caption, and the id of the token that ends a caption.

        Both are read from the chat template, with an answer written into it: many a processor's
        ``eos_token`` ends a document and not a turn.
        """
        prompt, answer = self.prompt_text(processor, "x"), "ANSWER"
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}
        assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        before, _, after = chat(processor, [user, assistant]).rpartition(answer)
        separator = before[len(prompt) :] if before.startswith(prompt) else ""
        tokenizer = processor.tokenizer
        special = special_token_ids(tokenizer)
        ends = [i for i in tokenizer(after, add_special_tokens=False)["input_ids"] if i in special]
        return separator or " " * prompt.endswith(":"), ends[0] if ends else tokenizer.eos_token_id

    def encode_prompt(self, processor: Any, image: Image.Image, text: str) -> tuple[list[int], Vision]:
        """Token ids of a prompt whose image token is repeated as often as the image has features, and the
        inputs of the vision tower."""
        bos = processor.tokenizer.bos_token
        special = not (bos and text.startswith(bos))  # templates that write it themselves would get two
        made = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=special)
        vision = {name: made[name] for name in self.vision_arguments if name in made}
        return made["input_ids"][0].tolist(), vision

    def max_image_tokens(self, processor: Any) -> int:
        """Features of a large picture, the most of several shapes where the shape matters."""
        shapes = _LARGE_PICTURES if self.varies_image_tokens else _LARGE_PICTURES[:1]
        text, token = self.prompt_text(processor, "x"), self.image_token_id(processor)
        pictures = [Image.new("RGB", shape) for shape in shapes]
        return max(self.encode_prompt(processor, picture, text)[0].count(token) for picture in pictures)

    def image_token_id(self, processor: Any) -> int:
        """Id of the token that stands for an image feature."""
        return processor.image_token_id

    def limit_image_tokens(self, processor: Any, count: int) -> None:
        """Change a processor so that no image takes more than ``count`` tokens.

        Raises:
            RecipeError: when the family has no choice, or not so few.
        """
        raise RecipeError(
            f"image_tokens: images of this family always have {self.max_image_tokens(processor)} tokens; "
            "leave the key out"
        )

    def take_image_sizes(self, model: nn.Module, processor: Any) -> None:
        """Give a model the settings of its processor that it needs to place image features."""
        return

    def position_ids(
        self, processor: Any, ids: torch.Tensor, is_image: torch.Tensor, vision: Vision
    ) -> torch.Tensor:
        """(A, n) positions of a prompt (n,) along A axes; see :class:`scst.types.PromptBatch`."""
        return torch.arange(len(ids))[None] + self.first_position

    def block_ids(self, is_image: torch.Tensor) -> torch.Tensor:
        """(n,) tokens with the same number from 0 see each other both ways; -1 is causal."""
        return torch.full(is_image.shape, -1)

    # ---- the model

    def decoder(self, model: nn.Module) -> Any:
        """The decoder, which returns normalised hidden states."""
        return model.get_submodule(self.names.decoder)

    def head(self, model: nn.Module) -> Any:
        """The language-model head."""
        return model.get_submodule(self.names.head)

    def vision_parts(self, model: nn.Module) -> list[nn.Module]:
        """Vision tower and projector."""
        return [model.get_submodule(name) for name in (self.names.vision, *self.names.projector)]

    def image_features(self, model: Any, prompts: PromptBatch) -> ImageFeatures:
        """Projected features of B images, whatever form a library version gives them in.

        They come per batch, tile, image or patch, but always in the order of the prompts' image tokens, which
        tell whose is whose.
        """
        dtype = next(model.get_submodule(self.names.vision).parameters()).dtype
        made = model.get_image_features(**batched(prompts.vision, dtype))
        counts = prompts.image_mask.sum(1).tolist()
        levels = [self._per_image(level, counts) for level in self._levels(made)]
        return [torch.stack(features) for features in zip(*levels, strict=True)]

    def decoder_arguments(self, prompts: PromptBatch, features: ImageFeatures, length: int) -> dict[str, Any]:
        """What the decoder needs beside embeddings, mask and positions where a sequence of ``length`` tokens
        begins with prompts."""
        return {}

    def final_logits(self, model: Any, logits: torch.Tensor) -> torch.Tensor:
        """What the model's own ``forward`` makes of the head's output (..., V)."""
        return logits

    def forward_arguments(self, prompts: PromptBatch, length: int) -> dict[str, torch.Tensor]:
        """What the model's own ``forward`` and ``generate`` take beside ids, mask and vision inputs, so that
        their masks are right for sequences of ``length`` tokens that begin with prompts."""
        return {}

    # ---- details that a family may replace

    def _levels(self, made: Any) -> list[Any]:
        """The features of the decoder's input, then those of its first layers."""
        return [made.pooler_output]

    def _per_image(self, features: Any, counts: Sequence[int]) -> list[torch.Tensor]:
        if isinstance(features, torch.Tensor) and features.shape[:2] == (len(counts), counts[0]):
            return list(features.unbind())
        parts = features if isinstance(features, list | tuple) else [features]
        rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        if len(rows) != sum(counts):
            raise ValueError(f"the model made {len(rows)} image features for {sum(counts)} image tokens")
        return list(rows.split(list(counts)))


def chat(processor: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
    """A conversation in the format that a model was trained with.

    Raises:
        RecipeError: when the checkpoint has no chat template.
    """
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if not template:
        raise RecipeError(
            "model_name_or_path: the checkpoint has no chat template, which says how its prompts are "
            "written: take its instruction-tuned variant"
        )
    return processor.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of tokens that a tokenizer marks as special, under a name of its own or without one."""
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def at_least(count: int, least: int) -> None:
    """Refuse fewer image tokens than an image must have.

    Raises:
        RecipeError: naming the smallest number.
    """
    if count < least:
        raise RecipeError(f"image_tokens: expected 0 or at least {least} for this checkpoint, got {count}")


def batched(vision: Sequence[Vision], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the vision tower for all images: joined along the first axis, the others padded with zeros.

    Args:
        vision: of every image.
        dtype: of floating-point inputs; None: as they are.
    """
    joined = {}
    for name in vision[0]:
        tensors = [image[name] for image in vision]
        sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        joined[name] = torch.cat([_padded(tensor, sizes) for tensor in tensors])
        if dtype is not None and joined[name].is_floating_point():
            joined[name] = joined[name].to(dtype)
    return joined


def _padded(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = [size - there for size, there in zip(sizes, tensor.shape[1:], strict=True)]
    if not any(missing):
        return tensor
    return nn.functional.pad(tensor, [amount for gap in reversed(missing) for amount in (0, gap)])
