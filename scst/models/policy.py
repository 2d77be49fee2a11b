"""The policy: a PaliGemma model, bare or with an adapter, and the forward passes of rollout and scoring.

Every pass hands the language model embeddings, explicit positions and an explicit mask, so that nothing
depends on what a library version infers from missing arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from scst.distributed.sharded_weights import is_shard, unsharded_weights
from scst.models import masks
from scst.models.prompts import forbidden_token_mask
from scst.types import PromptBatch


def base_model(model: nn.Module) -> Any:
    """The PaliGemma model inside DistributedDataParallel, DeepSpeed and PEFT wrappers."""
    inner: Any = model  # torch types every attribute of a module as a tensor or a module
    while hasattr(inner, "module"):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def trains_vision(model: nn.Module) -> bool:
    """Whether anything is trained in the vision tower or the projector."""
    inner = base_model(model).model
    parts = (inner.vision_tower, inner.multi_modal_projector)
    return any(p.requires_grad for part in parts for p in part.parameters())


def trains_prompt(model: nn.Module) -> bool:
    """Whether embeddings of prompt tokens are trained; their gradient flows through the prompt alone."""
    return any(p.requires_grad for p in base_model(model).get_input_embeddings().parameters())


class Policy:
    """Forward passes of one model, for rollouts (:meth:`forward`) and for scoring (:meth:`hidden_states`).

    A policy holds no weights: it reads those that the model has at the time of the call. Build one with
    :func:`policy_for`.

    Args:
        model: the model, possibly wrapped for adapters and devices. Scoring calls it through its wrappers.
        forbidden: (V,) bool, tokens whose probability in a caption is zero.
        eos_token_id: the end-of-sequence token.
        pad_token_id: written after the end of a completion.
        cuda_graphs: decode with steps of one shape (:mod:`scst.rollout.static`).
        lockstep: all processes run every decode step together, because each step gathers sharded weights.
    """

    def __init__(
        self,
        model: nn.Module,
        forbidden: torch.Tensor,
        eos_token_id: int,
        pad_token_id: int,
        *,
        cuda_graphs: bool = False,
        lockstep: bool = False,
    ):
        self.model = model
        self.inner = base_model(model)  # without wrappers: decoding must not start their gradient hooks
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.forbidden = forbidden.to(self.inner.device)
        self.text_config = self.inner.config.get_text_config()
        self.vision_is_trainable = trains_vision(model)
        self.cuda_graphs = cuda_graphs
        self.lockstep = lockstep
        self.static_steps: dict[Any, Any] = {}
        # found once: a walk through all modules at every decode step would take milliseconds
        self._can_checkpoint = [m for m in self.inner.modules() if hasattr(m, "gradient_checkpointing")]
        self._softcapping = _final_softcapping(self.inner)

    def any_active(self, active: bool) -> bool:
        """Whether any caption is unfinished: on this process, or in lockstep, on any process (collective)."""
        if not self.lockstep:
            return active
        anywhere = torch.tensor(float(active), device=self.device)
        torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
        return bool(anywhere)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.inner.device

    @property
    def head_is_trainable(self) -> bool:
        """Whether gradients are wanted for the language-model head; adapters never reach it."""
        return any(parameter.requires_grad for parameter in self.inner.lm_head.parameters())

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, N, D) projected image features."""
        return self.inner.get_image_features(pixel_values.to(self._vision_dtype())).pooler_output

    def prompt_embeddings(self, prompts: PromptBatch, image_features: torch.Tensor) -> torch.Tensor:
        """(B, P, D) token embeddings with the image features in place of the image tokens."""
        is_image = prompts.input_ids == self.inner.config.image_token_id
        # The image token's id may lie beyond the embedding matrix; its embedding is replaced anyway.
        embeddings = self.caption_embeddings(prompts.input_ids.masked_fill(is_image, self.pad_token_id))
        features = image_features.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(is_image.unsqueeze(-1), features)

    def caption_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings of text (..., D)."""
        embeddings = self.inner.get_input_embeddings()
        with unsharded_weights(self.model, [embeddings]):
            return embeddings.forward(ids)

    def check_length(self, length: int) -> None:
        """Refuse sequences that a sliding attention window would cut (PaliGemma 2 at 896 px).

        Raises:
            ValueError: when ``length`` tokens do not fit into the window.
        """
        window = getattr(self.text_config, "sliding_window", None)
        if window is not None and length > window:
            raise ValueError(
                f"prompt and caption together take {length} tokens, but this model's sliding attention "
                f"window holds {window}: use a checkpoint of a smaller resolution (224 or 448 px) or a "
                "shorter caption limit"
            )

    def forward(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        keep: int,
        cache: Any | None = None,
    ) -> torch.Tensor:
        """Logits of a sequence of embeddings, for decoding: wrappers are left out.

        Args:
            embeddings: (B, L, D).
            mask: (B, 1, L, L_keys) bool, True = attend.
            position_ids: (B, L).
            keep: logits of the last ``keep`` positions.
            cache: key-value cache to read and extend.

        Returns:
            (B, kept, V) logits.
        """
        # An index tensor and not a slice: of a sliced (non-contiguous) tensor the head makes one product per
        # image, and in bf16 on a CPU copies its weights for each.
        length = embeddings.shape[1]
        last = torch.arange(length - keep, length, device=embeddings.device)
        return self._call(self.inner, embeddings, mask, position_ids, keep=last, cache=cache).logits

    def hidden_states(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        cache: Any | None = None,
    ) -> torch.Tensor:
        """The inputs of :meth:`logits`, for scoring, with gradients.

        The model is called through its wrappers, because data-parallel wrappers set up gradient
        synchronisation in their ``forward``. It computes logits of no position, which costs nothing, and a
        hook captures the decoder's output. The empty logits belong to the same graph, so that
        DistributedDataParallel finds the head used when it looks for unused parameters.

        Args:
            embeddings: (B, L, D).
            mask: (B, 1, L, L_keys) bool, True = attend.
            position_ids: (B, L).
            cache: constant keys and values before these positions.

        Returns:
            (B, L, D) normalised output of the last decoder layer.
        """
        states: list[torch.Tensor] = []
        hook = self.inner.model.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
        try:
            nowhere = torch.empty(0, dtype=torch.long, device=embeddings.device)
            self._call(self.model, embeddings, mask, position_ids, keep=nowhere, cache=cache)
        finally:
            hook.remove()
        return states[0]

    @property
    def head_is_sharded(self) -> bool:
        """Whether this process holds only a shard of the language-model head at this moment."""
        return any(is_shard(parameter) for parameter in self.inner.lm_head.parameters())

    def unsharded_head(self) -> AbstractContextManager[None]:
        """Gather the head once; inside, :meth:`logits` is not collective.

        Processes score different numbers of tokens, so they call :meth:`logits` differently often.
        """
        return unsharded_weights(self.model, [self.inner.lm_head])

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., V) logits of hidden states (..., D), as the model itself makes them."""
        logits = self.inner.lm_head.forward(hidden_states)
        if self._softcapping is None:
            return logits
        return torch.tanh(logits / self._softcapping) * self._softcapping

    def _call(
        self,
        module: nn.Module,
        embeddings: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        keep: torch.Tensor,
        cache: Any | None = None,
    ) -> Any:
        kind = self.text_config._attn_implementation
        # Under gradient checkpointing transformers ignores the cache, with a warning at most.
        with nullcontext() if cache is None else _checkpointing_off(self._can_checkpoint):
            return module(
                inputs_embeds=embeddings,
                attention_mask=masks.for_attention(mask, kind, embeddings.dtype),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
            )

    def _vision_dtype(self) -> torch.dtype:
        return next(self.inner.model.vision_tower.parameters()).dtype


@contextmanager
def _checkpointing_off(modules: Iterable[Any]) -> Iterator[None]:
    """Switch gradient checkpointing off inside, where it is on."""
    layers = [module for module in modules if module.gradient_checkpointing]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def _final_softcapping(model: Any) -> float | None:
    """The bound of Gemma 2's logits where the installed transformers applies it to PaliGemma 2.

    Not every version does. Sampling runs the model's own ``forward`` and scoring must use the same
    distribution, so the source of that function decides.
    """
    bound = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return bound if "final_logit_softcapping" in inspect.getsource(type(model).forward) else None


def policy_for(
    model: nn.Module, processor: Any, *, cuda_graphs: bool = False, lockstep: bool = False
) -> Policy:
    """The policy of a model, with the token ids of its processor (or prompt encoder)."""
    forbidden = forbidden_token_mask(processor, base_model(model).config.get_text_config().vocab_size)
    ids = (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id)
    return Policy(model, forbidden, *ids, cuda_graphs=cuda_graphs, lockstep=lockstep)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
