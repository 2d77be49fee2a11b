"""The fractions of ``split_fractions``."""

from __future__ import annotations

from scst.errors import RecipeError, shown


def parse_fractions(fractions: str) -> list[int]:
    """Parse ``"60/20/20"`` into ``[60, 20, 20]``.

    Raises:
        RecipeError: it is not two or three positive whole numbers with the sum 100.
    """
    parts = fractions.split("/")
    shares = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 10]
    if len(shares) != len(parts) or len(parts) not in (2, 3) or min(shares) < 1 or sum(shares) != 100:
        raise RecipeError(
            "split_fractions: expected two or three positive whole numbers with the sum 100, for "
            f"train/val/test, such as 80/10/10; got {shown(fractions)}."
        )
    return shares
