"""Which types of adapters can be written into the base model; needs no torch."""

from __future__ import annotations

from scst.adapters.saved_adapter import check_adapter_exists
from scst.errors import RecipeError

UNMERGEABLE = {
    "prefix_tuning": "no weight of the base model holds keys and values that belong to no token",
    "bottleneck": "the nonlinear network behind a layer cannot be part of that layer's weights",
}
"""Adapter type -> why it cannot be merged."""


def check_mergeable(adapter: str) -> None:
    """Refuse what cannot be merged before any model is loaded.

    Raises:
        RecipeError: when the folder holds no adapter, or one of a type in :data:`UNMERGEABLE`.
    """
    kind = check_adapter_exists(adapter)
    if kind in UNMERGEABLE:
        raise RecipeError(
            f"adapter: {kind} cannot be merged: {UNMERGEABLE[kind]}. Deploy it as it is (--adapter "
            f"{adapter}): it is small and costs little"
        )
