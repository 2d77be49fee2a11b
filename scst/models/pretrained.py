"""Load a checkpoint: quantisation, precision and attention kernel.

Quantised parts are the decoder's linear layers only. The vision tower, the projector and the language-model
head stay in the compute precision, by the full module paths of the family: other names would silently match
nothing.

Weights are read from safetensors, or from pickles in torch's ``weights_only`` mode, which refuses every
object but tensors and plain containers. Code that a checkpoint brings along is never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from scst.errors import RecipeError, shown
from scst.models.base_checkpoint import check_model_exists, resolve_model_path
from scst.models.families.table import family


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision; ``auto`` is bf16 where the GPU has it, fp16 on older GPUs, fp32 on the CPU.

    Raises:
        RecipeError: on an unknown name.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if precision == "auto":
        if not torch.cuda.is_available():
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision not in dtypes:
        raise RecipeError(f"precision must be auto, {', '.join(dtypes)}; got {precision!r}")
    return dtypes[precision]


def quantization_config(
    quantization: str, dtype: torch.dtype, unquantised: Sequence[str]
) -> BitsAndBytesConfig | None:
    """The bitsandbytes configuration of ``nf4`` (with double quantisation), ``8bit`` or ``none``.

    Args:
        quantization: its name.
        dtype: of computation.
        unquantised: full names of the modules that keep it.

    Raises:
        RecipeError: on an unknown name.
    """
    skipped = list(unquantised)
    if quantization == "none":
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,
            llm_int8_skip_modules=skipped,
        )
    raise RecipeError(f"quantization must be nf4, 8bit or none; got {quantization!r}")


def attention_kernel(config: Any, requested: str) -> str:
    """The attention implementation whose masks are right for this model.

    PaliGemma 2 needs eager attention: its logit softcapping exists there only, and sdpa either refuses it
    or, on some library versions, leaks future tokens.

    Raises:
        RecipeError: when a kernel is requested that this model or project does not work with.
    """
    is_gemma2 = config.get_text_config().model_type == "gemma2"
    if requested == "auto":
        return "eager" if is_gemma2 else "sdpa"
    if requested not in ("eager", "sdpa"):
        raise RecipeError(f"attn_implementation must be auto, eager or sdpa; got {requested!r}")
    if is_gemma2 and requested != "eager":
        raise RecipeError("attn_implementation: PaliGemma 2 needs eager attention; use auto or eager")
    return requested


def load_model(
    name_or_path: str,
    *,
    quantization: str = "nf4",
    precision: str = "auto",
    attn_implementation: str = "auto",
) -> torch.nn.Module:
    """A frozen model on this process's device.

    Args:
        name_or_path: local folder, hub id or ``embedded:scenes-paligemma``.
        quantization: ``nf4``, ``8bit`` or ``none``.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``: of weights that are not quantised, and of
            computation.
        attn_implementation: ``auto``, ``eager`` or ``sdpa``.

    Raises:
        RecipeError: on a checkpoint or setting that cannot work.
    """
    check_model_exists(name_or_path)
    path = resolve_model_path(name_or_path)
    dtype = compute_dtype(precision)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the library raises on settings that it cannot use
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise RecipeError(
            f"model_name_or_path: the configuration of {shown(name_or_path)} cannot be used: {reason}"
        ) from error
    names = family(config.model_type).names
    model: Any = AutoModelForImageTextToText.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        attn_implementation=attention_kernel(config, attn_implementation),
        quantization_config=quantization_config(quantization, dtype, names.unquantised),
        device_map={"": _local_device()},
        weights_only=True,
        trust_remote_code=False,
    )
    _keep_stored_layout(model)
    _name_present_layers(model)
    return model.requires_grad_(False).eval()


def _keep_stored_layout(model: torch.nn.Module) -> None:
    """Keep 4-bit weights in the layout they were loaded in.

    On some CPUs bitsandbytes repacks them at the first inference and drops the double quantisation. Frozen
    weights must stay as they were loaded, on every machine.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def allow_deepspeed_states() -> None:
    """Let torch's ``weights_only`` mode build the four plain classes that ZeRO's optimizer states hold.

    DeepSpeed asks torch for everything that a checkpoint file holds, code included; the launch scripts force
    the safe mode (``TORCH_FORCE_WEIGHTS_ONLY_LOAD``), in which only what is listed here is built.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])


def _name_present_layers(model: Any) -> None:
    """Reduce the layer names that FSDP must not split to those the model has: FSDP refuses others."""
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = [name for name in model._no_split_modules or () if name in present]


def _local_device() -> torch.device:
    """This process's GPU, or the CPU."""
    from accelerate import PartialState

    return PartialState().device
