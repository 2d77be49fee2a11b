"""Training arguments that this stage does not honour, refused by name instead of passed over."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from scst.errors import RecipeError

_NOT_A_LANGUAGE_MODEL_LOSS = "the loss of this stage is computed from sampled captions, not by the model"
_NO_EVALUATION_BATCHES = (
    "evaluations of this stage caption held-out images; they make no batches of predictions"
)

UNSUPPORTED: dict[str, str] = {
    "label_smoothing_factor": _NOT_A_LANGUAGE_MODEL_LOSS,
    "use_liger_kernel": _NOT_A_LANGUAGE_MODEL_LOSS,
    "neftune_noise_alpha": "captions must be scored by the policy that sampled them, without noise",
    "torch_compile": "sampling and scoring call the decoder with many shapes; it was not tested compiled",
    "torch_empty_cache_steps": "memory is given back when it runs out (micro-batches are halved)",
    "auto_find_batch_size": "micro-batches are halved when memory runs out, without starting again",
    "prediction_loss_only": _NO_EVALUATION_BATCHES,
    "eval_accumulation_steps": _NO_EVALUATION_BATCHES,
    "batch_eval_metrics": _NO_EVALUATION_BATCHES,
    "include_for_metrics": _NO_EVALUATION_BATCHES,
    "include_num_input_tokens_seen": "the tokens of a step are those that were sampled; see caption_length",
}
"""Name of a training argument -> why it has no effect here."""

_OPTIMIZERS_WITH_OWN_BACKWARD = ("lomo", "adalomo")


def refuse_unsupported(args: TrainingArguments) -> None:
    """Refuse training arguments that would silently do nothing.

    Raises:
        RecipeError: naming the argument and the reason.
    """
    for name, reason in UNSUPPORTED.items():
        if (value := getattr(args, name, None)) != _default(args, name):
            raise RecipeError(
                f"{name}: {value!r} has no effect on self-critical training: {reason}; leave it out"
            )
    if str(getattr(args.optim, "value", args.optim)) in _OPTIMIZERS_WITH_OWN_BACKWARD:
        raise RecipeError(
            f"optim: {args.optim} makes its updates within the backward pass, before the gradients of all "
            "captions are there; use another one, e.g. adamw_torch or adamw_8bit"
        )


def _default(args: TrainingArguments, name: str) -> Any:
    """What the argument is after ``__post_init__`` of the library when nobody sets it."""
    fields = {f.name: f for f in dataclasses.fields(args)}
    if name not in fields:
        return None
    factory = fields[name].default_factory
    if factory is not dataclasses.MISSING:
        return factory()
    default = fields[name].default
    return "no" if name == "include_num_input_tokens_seen" and default is False else default
