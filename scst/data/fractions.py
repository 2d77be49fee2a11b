"""The fractions of ``split_fractions``."""

from __future__ import annotations

from collections.abc import Mapping

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


def refuse_to_resplit(declared: Mapping[str, int]) -> None:
    """Refuse fractions where a dataset declares splits: its held-out images would get into training.

    A dataset whose rows all have one split, or none, declares nothing that fractions could discard.

    Args:
        declared: split ("" for rows without one) -> number of rows.

    Raises:
        RecipeError: naming the splits.
    """
    if len(declared) > 1:
        listing = ", ".join(f"{name or '(none)'} ({count})" for name, count in declared.items())
        raise RecipeError(
            f"split_fractions: the dataset declares the splits {listing}, which fractions would discard; "
            "leave split_fractions out to use them, or insist with resplit: true"
        )
