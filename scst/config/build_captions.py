"""Builds a table of document frequencies from its recipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from scst.config.recipes import DocumentFrequenciesRecipe, required_dataset
from scst.data.load_splits import load_splits
from scst.data.reference_columns import ReferenceColumns


def write_document_frequencies(recipe: DocumentFrequenciesRecipe) -> None:
    """Count the references of a recipe's training split and write the table to ``output``."""
    console = Console()
    rows = load_splits(
        required_dataset(recipe.dataset),
        [recipe.train_split],
        fractions=recipe.split_fractions,
        split_seed=recipe.split_seed,
        resplit=recipe.resplit,
        on_bad_example=recipe.on_bad_example,
        console=console,
    ).splits[recipe.train_split]
    table = ReferenceColumns(rows).document_frequencies(recipe.eos, recipe.train_split)
    Path(recipe.output).parent.mkdir(parents=True, exist_ok=True)
    table.save(recipe.output)
    console.print(
        f"{recipe.output}: {len(table.counts)} n-grams of {table.num_images} images, split {table.split}, "
        f"end of sequence {table.eos}, fingerprint {table.fingerprint[:6]}"
    )
