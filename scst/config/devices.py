"""Checks that a recipe can run under the launcher's kind of parallelism (DDP, ZeRO, FSDP2)."""

from __future__ import annotations

import os

from scst.adapters.saved_adapter import check_adapter_exists
from scst.config.recipes import SCSTRecipe, SFTRecipe
from scst.distributed.launcher_environment import uses_fsdp, uses_zero3
from scst.errors import RecipeError


def check_devices(recipe: SFTRecipe | SCSTRecipe) -> None:
    """Refuse settings that do not work with the parallelism that the launcher asks for.

    Raises:
        RecipeError: the message names a setting or launcher configuration that works.
    """
    if uses_fsdp() or uses_zero3():
        _check_adapter_type(recipe)
    if isinstance(recipe, SCSTRecipe):
        _check_sampling(recipe)
    if uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("FSDP 1 is not supported: launch with recipes/accelerate/fsdp2.yaml")
    if uses_fsdp() and recipe.quantization != "none":
        raise RecipeError(
            f"quantization: {recipe.quantization} weights are not divided by FSDP2; give --quantization "
            "none, or launch with recipes/accelerate/ddp.yaml or zero3.yaml"
        )


def _check_adapter_type(recipe: SFTRecipe | SCSTRecipe) -> None:
    """Refuse adapters other than LoRA with sharded weights.

    Trained parameters must lie in layers that DeepSpeed and FSDP gather when they are called. Only LoRA was
    tested for this.
    """
    new = recipe.adapter_type if isinstance(recipe, SFTRecipe) else "lora"
    kind = check_adapter_exists(recipe.adapter) if recipe.adapter else new
    if kind != "lora":
        raise RecipeError(
            f"adapter_type: {kind} was not tested with divided weights: launch with "
            "recipes/accelerate/ddp.yaml or zero2.yaml"
        )


def _check_sampling(recipe: SCSTRecipe) -> None:
    if (uses_fsdp() or uses_zero3()) and recipe.cuda_graphs:
        raise RecipeError(
            "cuda_graphs: a recorded step would read the weights where they were gathered the last time: "
            "leave it out under ZeRO-3 and FSDP2"
        )
    if recipe.rollout_weights == "streamed":
        _check_streaming(recipe)


def _check_streaming(recipe: SCSTRecipe) -> None:
    """Refuse what would make processes run different passes while weights are gathered layer by layer."""
    if not uses_zero3():
        raise RecipeError("rollout_weights: streamed needs recipes/accelerate/zero3.yaml; leave it out")
    if recipe.training.get("eval_strategy", "no") != "no":
        raise RecipeError(
            "rollout_weights: streamed leaves no unsharded weights to caption held-out images with: use "
            "eval_strategy: no, and launch/evaluate.py afterwards"
        )
    if recipe.feature_cache not in (False, "off"):
        raise RecipeError(
            "rollout_weights: streamed runs the vision tower in lockstep: use feature_cache: off"
        )
