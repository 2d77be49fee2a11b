"""Builds a table of document frequencies from its recipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.config.recipes import DocumentFrequenciesRecipe, required_dataset
from scst.data.load_splits import load_splits
from scst.data.open_stream import load_stream
from scst.data.reference_columns import ReferenceColumns
from scst.data.stream_settings import is_tar
from scst.data.terminal import plain


def write_document_frequencies(recipe: DocumentFrequenciesRecipe) -> None:
    """Count the references of a recipe's training split and write the table to ``output``."""
    console, dataset = Console(), required_dataset(recipe.dataset)
    table = _of_stream(dataset, recipe) if is_tar(dataset) else _of_rows(dataset, recipe, console)
    Path(recipe.output).parent.mkdir(parents=True, exist_ok=True)
    table.save(recipe.output)
    line = (
        f"{recipe.output}: {len(table.counts)} n-grams of {table.num_images} images, split {table.split}, "
        f"end of sequence {table.eos}, fingerprint {table.fingerprint[:6]}"
    )
    console.print(plain(line))


def _of_stream(dataset: str, recipe: DocumentFrequenciesRecipe) -> DocumentFrequencies:
    """The table of a split that is read in order; its images are not decoded."""
    data = load_stream(dataset, recipe.train_split, on_bad_example=recipe.on_bad_example)
    references = data.streams[recipe.train_split].references()
    return DocumentFrequencies.from_references(references, eos=recipe.eos, split=recipe.train_split)


def _of_rows(dataset: str, recipe: DocumentFrequenciesRecipe, console: Console) -> DocumentFrequencies:
    rows = load_splits(
        dataset,
        [recipe.train_split],
        fractions=recipe.split_fractions,
        split_seed=recipe.split_seed,
        resplit=recipe.resplit,
        on_bad_example=recipe.on_bad_example,
        console=console,
    ).splits[recipe.train_split]
    return ReferenceColumns(rows).document_frequencies(recipe.eos, recipe.train_split)
