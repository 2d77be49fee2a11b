"""What training will see, decoded back from token ids, shown before it starts.

Numbers are computed by :func:`compute_preview` and printed by :func:`print_preview`; :func:`training_preview`
does both and stops a run whose captions and references disagree.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console

from scst.data.load_splits import LoadedData
from scst.data.supervision import CaptionChoice, words
from scst.data.terminal import PlainTable, plain
from scst.data.validate import BadExample
from scst.errors import DataError

IGNORED = -100  # label of tokens that are not trained
LONGEST_RUN = 3  # a token repeated more often is shown once, with its count
SAMPLED_ROWS = 2000
"""Rows whose text is looked at; of more, a sample."""
LEAST_KNOWN = 0.6  # below this share of known words, captions and references are of different data


@dataclass(frozen=True)
class PreviewExample:
    """One example as the model sees it: the prompt, and after it the trained part."""

    image_id: str
    prompt: str
    caption: str


@dataclass(frozen=True)
class Preview:
    """The numbers behind the printed preview.

    Attributes:
        counts: per split: images, captions, ... (empty without loaded data).
        bad_reasons: bad examples by kind of reason.
        duplicates: images with the content of another image of their split.
        examples: a few examples of the batch, decoded.
        captions: how many training captions the shares below are over.
        of: how many rows are trained on; more than ``captions`` where a sample was looked at.
        cut_share: share of captions that with their ``<eos>`` are longer than the limit.
        longest: tokens of the longest caption, ``<eos>`` included.
        known_share: share of the captions' words that occur in the references.
        batch_known_share: the same for the trained part of the batch, decoded from token ids.
        eos_share: share of the batch's examples whose trained part ends in ``<eos>``.
    """

    counts: dict[str, dict[str, int]]
    bad_reasons: dict[str, int]
    duplicates: int
    examples: list[PreviewExample]
    captions: int
    of: int
    cut_share: float
    longest: int
    known_share: float
    batch_known_share: float
    eos_share: float


def training_preview(
    train: Dataset,
    batch: Mapping[str, Any],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    choice: CaptionChoice | None = None,
    data: LoadedData | None = None,
    references_vocabulary_of: Dataset | None = None,
    image_ids: Sequence[str] | None = None,
    max_examples: int = 3,
    eos_token_id: int | None = None,
    console: Console | None = None,
) -> Preview:
    """Print what will be trained on, and refuse captions whose words do not occur in the references.

    Args:
        train: the rows trained on, after ``CaptionChoice.expand``.
        batch: one collated batch: ``input_ids``, ``attention_mask``, ``labels`` of shape ``(B, P + T)``, as
            tensors or lists; ``image_id`` if the collator keeps it.
        tokenizer: with ``__call__``, ``decode``, ``convert_ids_to_tokens`` and ``eos_token_id``.
        max_new_tokens: the length limit of a caption, its ``<eos>`` included.
        choice: how captions are chosen; ``first`` when not given.
        data: where the counts and the bad examples are read; left out of the preview when not given.
        references_vocabulary_of: the rows whose references define the known words; ``train`` when not given.
            Of more than 2,000 rows a fixed random sample is looked at, here and in ``train``.
        image_ids: ids of the batch's examples when the batch does not carry them.
        max_examples: how many examples to show.
        eos_token_id: ends a caption; that of the tokenizer when not given.
        console: where to print; a new console when not given.

    Returns:
        The numbers that were printed.

    Raises:
        DataError: under 60 % of the caption words, in the data or decoded from the batch, are known to the
            references.
    """
    preview = compute_preview(
        train,
        batch,
        tokenizer,
        max_new_tokens=max_new_tokens,
        choice=choice,
        data=data,
        references_vocabulary_of=references_vocabulary_of,
        image_ids=image_ids,
        max_examples=max_examples,
        eos_token_id=eos_token_id,
    )
    print_preview(preview, console or Console(), max_new_tokens)
    refuse_disagreement(preview)
    return preview


def compute_preview(
    train: Dataset,
    batch: Mapping[str, Any],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    choice: CaptionChoice | None = None,
    data: LoadedData | None = None,
    references_vocabulary_of: Dataset | None = None,
    image_ids: Sequence[str] | None = None,
    max_examples: int = 3,
    eos_token_id: int | None = None,
) -> Preview:
    """Compute the preview without printing it or judging it; arguments as in :func:`training_preview`."""
    choice = choice or CaptionChoice("first")
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    sample = _sample(train)
    captions = [
        choice.choose(refs, key, 0)
        for refs, key in zip(sample["references"][:], sample["image_id"][:], strict=True)
    ]
    collapsed = [" ".join(caption.split()) for caption in captions]  # as captions are trained on
    lengths = [len(ids) + 1 for ids in tokenizer(collapsed, add_special_tokens=False)["input_ids"]]
    known = vocabulary(_sample(references_vocabulary_of or train)["references"][:])
    trained = trained_tokens(batch)
    return Preview(
        counts=data.counts if data else {},
        bad_reasons=reasons_by_kind(data.bad_examples) if data else {},
        duplicates=data.duplicates if data else 0,
        examples=decode_examples(batch, tokenizer, image_ids, max_examples),
        captions=len(captions),
        of=len(train),
        cut_share=sum(length > max_new_tokens for length in lengths) / max(len(lengths), 1),
        longest=max(lengths, default=0),
        known_share=known_share(captions, known),
        batch_known_share=known_share([_whole_words(ids, tokenizer, eos) for ids in trained], known),
        eos_share=sum(ids[-1:] == [eos] for ids in trained) / max(len(trained), 1),
    )


def refuse_disagreement(preview: Preview) -> None:
    """Raise DataError when under 60 % of the caption words are known to the references."""
    for share, where in (
        (preview.known_share, "the training captions"),
        (preview.batch_known_share, "the trained part of a batch, decoded from token ids,"),
    ):
        if share < LEAST_KNOWN:
            raise DataError(
                f"captions and references disagree: only {share:.0%} of the words of {where} occur in the "
                f"references, expected about 100 % and at least {LEAST_KNOWN:.0%}. Check that captions and "
                "references come from the same data, and that the tokenizer is the model's own."
            )


def vocabulary(references: Iterable[Sequence[str]]) -> set[str]:
    """Return every word of image-major references."""
    return {word for captions in references for caption in captions for word in words(caption)}


def known_share(captions: Iterable[str], known: set[str]) -> float:
    """Return the share of word occurrences that are known; 1.0 when there are no words."""
    occurrences = [word in known for caption in captions for word in words(caption)]
    return sum(occurrences) / len(occurrences) if occurrences else 1.0


def reasons_by_kind(bad: Iterable[BadExample]) -> dict[str, int]:
    """Count bad examples by reason up to its colon (after it come paths and rows), most frequent first."""
    return dict(Counter(example.reason.split(":")[0] for example in bad).most_common())


def trained_tokens(batch: Mapping[str, Any]) -> list[list[int]]:
    """Return the trained token ids of each example: those whose label is not -100."""
    return [[label for label in labels if label != IGNORED] for labels in _lists(batch["labels"])]


def prompt_tokens(batch: Mapping[str, Any]) -> list[list[int]]:
    """Return the attended but not trained token ids of each example."""
    rows = zip(*(_lists(batch[key]) for key in ("input_ids", "attention_mask", "labels")), strict=True)
    return [
        [token for token, seen, label in zip(*row, strict=True) if seen and label == IGNORED] for row in rows
    ]


def decode_examples(
    batch: Mapping[str, Any], tokenizer: Any, image_ids: Sequence[str] | None = None, max_examples: int = 3
) -> list[PreviewExample]:
    """Decode the first examples; ids come from the argument, the batch's ``image_id``, or are numbers."""
    prompts, trained = prompt_tokens(batch), trained_tokens(batch)
    ids = image_ids or batch.get("image_id") or [f"example {number}" for number in range(len(prompts))]
    shown = list(zip(ids, prompts, trained, strict=True))[:max_examples]
    return [
        PreviewExample(str(key), decode_tokens(prompt, tokenizer), decode_tokens(caption, tokenizer))
        for key, prompt, caption in shown
    ]


def decode_tokens(ids: Sequence[int], tokenizer: Any) -> str:
    """Decode, special tokens included; runs of one token become ``<image> x 64``, line ends ``\\n``."""
    pieces: list[str] = []
    plain: list[int] = []
    for token, run in groupby(ids):
        count = len(list(run))
        if count <= LONGEST_RUN:
            plain += [token] * count
            continue
        pieces += [_decode(plain, tokenizer), f"{tokenizer.convert_ids_to_tokens(token)} x {count} "]
        plain = []
    return "".join([*pieces, _decode(plain, tokenizer)]).replace("\n", "\\n").strip()


def print_preview(preview: Preview, console: Console, max_new_tokens: int) -> None:
    """Print a preview: counts, bad examples, decoded examples, shares that should be 0 % and 100 %."""
    if preview.counts:
        console.print(_counts_table(preview))
    for reason, count in preview.bad_reasons.items():
        console.print(plain(f"left out: {count} x {reason}"))
    console.print(_examples_table(preview.examples))
    line = (
        f"{_how_many(preview)}; {preview.cut_share:.1%} are cut by the limit of {max_new_tokens} "
        f"tokens (the longest has {preview.longest}); {preview.known_share:.1%} of their words are known to "
        f"the references (decoded batch: {preview.batch_known_share:.1%}); "
        f"{preview.eos_share:.0%} of the batch ends in <eos>"
    )
    console.print(plain(line))


def _sample(rows: Dataset) -> Dataset:
    """A fixed random sample of rows, in their order; all of them where there are few."""
    if len(rows) <= SAMPLED_ROWS:
        return rows
    return rows.select(np.sort(np.random.default_rng(0).choice(len(rows), SAMPLED_ROWS, replace=False)))


def _how_many(preview: Preview) -> str:
    if preview.of > preview.captions:
        return f"{preview.captions:,} captions, a sample of {preview.of:,}"
    return f"{preview.captions} captions"


def _counts_table(preview: Preview) -> PlainTable:
    columns = list(next(iter(preview.counts.values())))
    table = PlainTable("split", *(name.replace("_", " ") for name in columns), title="data")
    for split, counts in preview.counts.items():
        table.add_row(split, *(f"{counts[name]:,}" for name in columns))
    return table


def _examples_table(examples: Sequence[PreviewExample]) -> PlainTable:
    table = PlainTable("image id", "prompt (not trained)", "caption (trained)", title="as the model sees it")
    for example in examples:
        table.add_row(example.image_id, example.prompt, example.caption)
    return table


def _whole_words(ids: list[int], tokenizer: Any, eos: int) -> str:
    """Decode a trained part; the last word of one that was cut is left out, as it may be half a word."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return text if ids[-1:] == [eos] else text.rpartition(" ")[0]


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False) if ids else ""


def _lists(values: Any) -> list[list[int]]:
    """Return nested lists from a tensor, an array or lists, without importing their library."""
    return values.tolist() if hasattr(values, "tolist") else [list(row) for row in values]
