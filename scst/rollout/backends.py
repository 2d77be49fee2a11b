"""Where captions are sampled: here, or - were it able to - by vLLM through TRL's generation backend."""

from __future__ import annotations

import importlib.util

import torch

from scst.errors import RecipeError

BACKENDS = ("local", "vllm")


def check_backend(backend: str, quantization: str) -> None:
    """Refuse a backend that cannot sample from the policy that is scored.

    TRL's ``VLLMGeneration`` merges the adapter into the weights at every step and pushes them to the engine.

    Args:
        backend: a name in :data:`BACKENDS`.
        quantization: of the recipe.

    Raises:
        RecipeError: with every reason that holds here.
    """
    if backend == "vllm":
        reasons = "; ".join(reasons_against_vllm(quantization))
        raise RecipeError(f"rollout_backend: vllm cannot be used: {reasons}. Use rollout_backend: local")


def reasons_against_vllm(quantization: str) -> list[str]:
    """What stands against vLLM on this machine, for this recipe and for PaliGemma."""
    reasons = []
    if importlib.util.find_spec("vllm") is None:
        reasons.append("the package vllm is not installed")
    if not torch.cuda.is_available():
        reasons.append("there is no CUDA device")
    if quantization == "8bit":
        reasons.append("it takes no weights quantised to 8 bits after loading")
    if quantization == "nf4":
        reasons.append("merging the adapter into 4-bit weights rounds it: another policy would be sampled")
    reasons.append(
        "a PaliGemma's prompt attends in both directions, image and instruction alike, but vLLM's attention "
        "does so within the image only: captions would come from another distribution than the one scored"
    )
    return reasons
