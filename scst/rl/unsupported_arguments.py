"""Training arguments that this stage does not honour, refused by name instead of passed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scst.errors import RecipeError, shown
from scst.training.arguments.argument_table import argument_table

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


def refuse_unsupported(settings: Mapping[str, Any]) -> None:
    """Refuse training arguments that would silently do nothing.

    Args:
        settings: name -> value; what is left out has the library's default.

    Raises:
        RecipeError: naming the argument and the reason.
    """
    for name, reason in UNSUPPORTED.items():
        default = argument_table()[name].default
        if (value := settings.get(name, default)) != default and not (value is False and default == "no"):
            raise RecipeError(
                f"{name}: {shown(value)} has no effect on self-critical training: {reason}; leave it out"
            )
    optimizer = str(getattr(settings.get("optim"), "value", settings.get("optim")))
    if optimizer in _OPTIMIZERS_WITH_OWN_BACKWARD:
        raise RecipeError(
            f"optim: {optimizer} makes its updates within the backward pass, before the gradients of all "
            "captions are there; use another one, e.g. adamw_torch or adamw_8bit"
        )
