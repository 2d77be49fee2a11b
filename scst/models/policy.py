"""The policy: a captioning model, bare or with an adapter, and the forward passes of rollout and scoring.

Every pass hands the decoder embeddings, explicit positions and an explicit mask, so that nothing depends on
what a library version infers from missing arguments, and one code serves all families of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from scst.distributed.sharded_weights import is_shard, unsharded_weights
from scst.models import masks
from scst.models.families.table import family_of
from scst.models.masks import AttentionMask
from scst.models.prompts import PromptEncoder, forbidden_token_mask
from scst.types import ImageFeatures, PromptBatch


def base_model(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel, DeepSpeed and PEFT wrappers."""
    inner: Any = model  # torch types every attribute of a module as a tensor or a module
    while hasattr(inner, "module"):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def trains_vision(model: nn.Module) -> bool:
    """Whether anything is trained in the vision tower or the projector."""
    inner = base_model(model)
    return any(p.requires_grad for part in family_of(inner).vision_parts(inner) for p in part.parameters())


def trains_prompt(model: nn.Module) -> bool:
    """Whether embeddings of prompt tokens are trained; their gradient flows through the prompt alone."""
    return any(p.requires_grad for p in base_model(model).get_input_embeddings().parameters())


@dataclass(frozen=True)
class DecoderInputs:
    """A sequence of L tokens for the decoder.

    Attributes:
        embeddings: (B, L, D).
        mask: who sees whom, (B, 1, L, L_keys).
        position_ids: (B, A, L); A as of the prompts.
        arguments: further arguments of the decoder, by name (:meth:`Family.decoder_arguments`).
    """

    embeddings: torch.Tensor
    mask: AttentionMask
    position_ids: torch.Tensor
    arguments: dict[str, Any] = field(default_factory=dict)


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
        self.family = family_of(self.inner)
        self.decoder = self.family.decoder(self.inner)
        self.head = self.family.head(self.inner)
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.forbidden = forbidden.to(self.inner.device)
        self.text_config = self.inner.config.get_text_config()
        self.vision_is_trainable = trains_vision(model)
        self.cuda_graphs = cuda_graphs
        self.lockstep = lockstep
        self.static_steps: dict[Any, Any] = {}
        # found once: at 3B a walk through all modules takes 30 ms, and every decode step would make one
        self._can_checkpoint = [m for m in self.inner.modules() if hasattr(m, "gradient_checkpointing")]

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
        return any(parameter.requires_grad for parameter in self.head.parameters())

    def image_features(self, prompts: PromptBatch) -> ImageFeatures:
        """Projected features of B images."""
        return self.family.image_features(self.inner, prompts)

    def prompt_embeddings(self, prompts: PromptBatch, features: ImageFeatures) -> torch.Tensor:
        """(B, P, D) token embeddings with the image features in place of the image tokens."""
        # The image token's id may lie beyond the embedding matrix; its embedding is replaced anyway.
        embeddings = self.caption_embeddings(
            prompts.input_ids.masked_fill(prompts.image_mask, self.pad_token_id)
        )
        rows = torch.cat([image[0] for image in features]).to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(prompts.image_mask.unsqueeze(-1), rows)

    def caption_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings of text (..., D)."""
        embeddings = self.inner.get_input_embeddings()
        with unsharded_weights(self.model, [embeddings]):
            return embeddings.forward(ids)

    def from_prompts(
        self,
        prompts: PromptBatch,
        features: ImageFeatures,
        mask: AttentionMask,
        ids: torch.Tensor | None = None,
        distances: torch.Tensor | None = None,
    ) -> DecoderInputs:
        """Prompts, with caption tokens behind them.

        Args:
            prompts: B prompts.
            features: of their images.
            mask: (B, 1, P + S, P + S).
            ids: (B, S) caption tokens; None: the prompts alone.
            distances: (B, S) of each caption token from the last prompt token, 1 for the first.
        """
        embeddings, positions = self.prompt_embeddings(prompts, features), prompts.position_ids
        if ids is not None:
            behind = self.behind(prompts.last_positions, mask, ids, distances)
            embeddings = torch.cat([embeddings, behind.embeddings], 1)
            positions = torch.cat([positions, behind.position_ids], 2)
        arguments = self.family.decoder_arguments(prompts, features, embeddings.shape[1])
        return DecoderInputs(embeddings, mask, positions, arguments)

    def behind(
        self, last_positions: torch.Tensor, mask: AttentionMask, ids: torch.Tensor, distances: Any
    ) -> DecoderInputs:
        """Caption tokens alone, behind prompts whose keys and values are in a cache.

        Args:
            last_positions: (B, A) of the last prompt tokens.
            mask: (B, 1, S, L_keys).
            ids: (B, S) caption tokens.
            distances: (B, S), or one number for all: their distance from the last prompt token.
        """
        distances = torch.as_tensor(distances, device=ids.device).expand(ids.shape)
        positions = last_positions.unsqueeze(2) + distances.unsqueeze(1)
        return DecoderInputs(self.caption_embeddings(ids), mask, positions)

    def forward(self, inputs: DecoderInputs, *, keep: int, cache: Any | None = None) -> torch.Tensor:
        """Logits of a sequence, for decoding: wrappers are left out.

        Args:
            inputs: the sequence.
            keep: logits of the last ``keep`` positions.
            cache: key-value cache to read and extend.

        Returns:
            (B, kept, V) logits.
        """
        # An index tensor and not a slice: of a sliced (non-contiguous) tensor the head makes one product per
        # image, and in bf16 on a CPU copies its weights for each.
        length = inputs.embeddings.shape[1]
        last = torch.arange(length - keep, length, device=inputs.embeddings.device)
        return self._call(self.inner, inputs, keep=last, cache=cache)[1]

    def hidden_states(self, inputs: DecoderInputs, *, cache: Any | None = None) -> torch.Tensor:
        """The inputs of :meth:`logits`, for scoring, with gradients.

        The model is called through its wrappers, because data-parallel wrappers set up gradient
        synchronisation in their ``forward``. It computes logits of no position, which costs nothing. The
        empty logits belong to the same graph, so that DistributedDataParallel finds the head used when it
        looks for unused parameters.

        Args:
            inputs: the sequence.
            cache: constant keys and values before these positions.

        Returns:
            (B, L, D) normalised output of the last decoder layer.
        """
        nowhere = torch.empty(0, dtype=torch.long, device=inputs.embeddings.device)
        return self._call(self.model, inputs, keep=nowhere, cache=cache)[0]

    @property
    def head_is_sharded(self) -> bool:
        """Whether this process holds only a shard of the language-model head at this moment."""
        return any(is_shard(parameter) for parameter in self.head.parameters())

    def unsharded_head(self) -> AbstractContextManager[None]:
        """Gather the head once; inside, :meth:`logits` is not collective.

        Processes score different numbers of tokens, so they call :meth:`logits` differently often.
        """
        return unsharded_weights(self.model, [self.head])

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., V) logits of hidden states (..., D), as the model itself makes them."""
        # not through the head's hooks: processes score different numbers of tokens (:meth:`unsharded_head`)
        return self.family.final_logits(self.inner, self.head.forward(hidden_states))

    def _call(
        self, module: nn.Module, inputs: DecoderInputs, *, keep: torch.Tensor, cache: Any | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, L, D) and logits (B, kept, V), computed within a call of ``module``."""
        states: list[torch.Tensor] = []  # beside the return value: wrappers convert that to float32

        def decode(**arguments: Any) -> torch.Tensor:
            names = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")
            given = {name: arguments[name] for name in names} | inputs.arguments
            states.append(self.decoder(**given).last_hidden_state)
            return self.family.final_logits(self.inner, self.head(states[0][:, keep]))

        positions = inputs.position_ids
        # Under gradient checkpointing transformers ignores the cache, with a warning at most.
        checkpointing = nullcontext() if cache is None else _checkpointing_off(self._can_checkpoint)
        with checkpointing, _forward_replaced(self.inner, decode):
            logits = module(
                inputs_embeds=inputs.embeddings,
                attention_mask=masks.for_decoder(
                    inputs.mask,
                    self.text_config,
                    inputs.embeddings.dtype,
                    cuts_blocks=self.family.window_cuts_blocks,
                ),
                position_ids=positions[:, 0] if positions.shape[1] == 1 else positions.transpose(0, 1),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return states[0], logits


@contextmanager
def _forward_replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a call of ``module`` runs another function: the same one for every family, which needs the
    decoder's states, and within whatever wraps the module for adapters and devices."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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


def policy_for(
    model: nn.Module, processor: Any, *, cuda_graphs: bool = False, lockstep: bool = False
) -> Policy:
    """The policy of a model, with the token ids of its processor (or prompt encoder)."""
    encoder = PromptEncoder.of(processor)
    forbidden = forbidden_token_mask(encoder, base_model(model).config.get_text_config().vocab_size)
    ids = (encoder.eos_token_id, encoder.pad_token_id)
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
