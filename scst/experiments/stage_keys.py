"""What a matrix must know of the keys of a stage, handed in: recipes themselves live in the room above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

STAGES = ("sft", "scst")
EVALUATE = "evaluate"


class StageKeys(Protocol):
    """Keys of the stages ``sft``, ``scst`` and ``evaluate``."""

    def knows(self, stage: str, name: str) -> bool:
        """Whether ``name`` is a key of that stage."""

    def complete(self, stage: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Check and convert the keys, and fill in every default.

        Raises:
            RecipeError: an unknown key, or a wrong value; the message names the key.
        """

    def read_file(self, path: str) -> dict[str, Any]:
        """The keys that a recipe file gives.

        Raises:
            RecipeError: the file cannot be read.
        """

    def trained_with(self, adapter: str) -> dict[str, Any]:
        """The keys that an adapter was trained with; empty without a record."""
