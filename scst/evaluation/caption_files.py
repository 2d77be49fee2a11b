"""Caption files in the forms people have: JSONL, COCO JSON, plain text; candidates paired with references.

| form | predictions | references |
|---|---|---|
| JSONL | ``{"image_id": ..., "caption": ...}`` a line | ``{"image_id": ..., "captions": [...]}`` a line |
| COCO JSON | list of ``{"image_id", "caption"}`` | ``{"annotations": [{"image_id", "caption"}, ...]}`` |
| plain text | one caption a line | one a line; a file per reference |

Captions with ids are paired by id, plain text by line.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.scorers.text import MAX_CAPTION_CHARACTERS
from scst.errors import DataError, shown
from scst.files.json_reader import NoJson, parse_json
from scst.files.reading import read_text

STDIN = "-"
PREDICTIONS = "predictions.jsonl"  # in the output folder of an evaluation
_LARGEST = 4 << 30
"""Bytes of the largest caption file that is read."""
_KINDS = {"image_id": (str, int), "image": (str,), "ended_by_eos": (bool,)}
_CAPTION_KEYS = ("caption", "captions", "references")


@dataclass(frozen=True)
class CaptionPairs:
    """N captions with their references, aligned by image.

    Attributes:
        captions: N texts.
        references: N lists of human captions.
        image_ids: N ids; line numbers for plain text.
        image_paths: N paths where the predictions name one (``image``), else None.
        ended_by_eos: N flags where the predictions have them, else None.
    """

    captions: list[str]
    references: list[list[str]]
    image_ids: list[str]
    image_paths: list[str] | None = None
    ended_by_eos: list[bool] | None = None


@dataclass(frozen=True)
class _Rows:
    """Content of one file: rows with ``image_id`` and texts, or lines without ids."""

    path: str
    rows: list[dict[str, Any]]
    has_ids: bool


def read_pairs(predictions: str, references: Sequence[str] = (), *, subset: bool = False) -> CaptionPairs:
    """Read and pair candidates and references.

    Args:
        predictions: path, output folder of an evaluation, or ``-`` for standard input.
        references: paths; none when the predictions bring their own (``predictions.jsonl`` of an evaluation).
        subset: score the predicted images only, instead of refusing images without prediction.

    Raises:
        DataError: a file that is missing, empty or of another form; duplicate, unknown or missing ids; an
            unequal number of lines. It names the file, what was expected and what came.
    """
    candidates = _read(predictions)
    for row in candidates.rows:
        if not isinstance(row.get("caption"), str):
            raise DataError(
                f"{candidates.path}: expected predictions with a text `caption`, got {shown(row)}"
            )
    if not references:
        return _own_references(candidates)
    files = [_read(path) for path in references]
    if len({file.has_ids for file in (candidates, *files)}) > 1:
        kinds = ", ".join(
            f"{file.path}: {'ids' if file.has_ids else 'plain lines'}" for file in (candidates, *files)
        )
        raise DataError(
            f"captions with ids and plain lines cannot be paired ({kinds}): give both in one form"
        )
    if not candidates.has_ids:
        return _by_line(candidates, files)
    return _by_id(candidates, files, subset)


def read_captions(path: str) -> list[str]:
    """Read all captions of a file, candidates and references alike, in any of the formats.

    Raises:
        DataError: as :func:`read_pairs`.
    """
    file = _read(path)
    return [text for row in file.rows for text in _texts(file, row, "captions", "references", "caption")]


def _own_references(candidates: _Rows) -> CaptionPairs:
    """Pairs of a file that holds candidates and references."""
    if not all(row.get("references") for row in candidates.rows):
        raise DataError(f"references: missing; {candidates.path} does not hold any: give --references FILE")
    _unique_ids(candidates)
    return _pairs(candidates.rows, [_texts(candidates, row, "references") for row in candidates.rows])


def _by_line(candidates: _Rows, files: Sequence[_Rows]) -> CaptionPairs:
    for file in files:
        if len(file.rows) != len(candidates.rows):
            raise DataError(
                f"{file.path} has {len(file.rows)} lines, but {candidates.path} has {len(candidates.rows)}: "
                "line i of every reference file must belong to caption i"
            )
    groups = [[row["caption"] for row in rows] for rows in zip(*(file.rows for file in files), strict=True)]
    return _pairs(candidates.rows, groups)


def _by_id(candidates: _Rows, files: Sequence[_Rows], subset: bool) -> CaptionPairs:
    _unique_ids(candidates)
    groups: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for row in file.rows:
            groups[str(row["image_id"])] += _texts(file, row, "captions", "references", "caption")
    predicted = [str(row["image_id"]) for row in candidates.rows]
    missing = [image_id for image_id in predicted if not groups.get(image_id)]
    if missing:
        raise DataError(f"references: none for {_some(missing)} of {candidates.path}")
    left = set(groups) - set(predicted)
    if left and not subset:
        raise DataError(
            f"{candidates.path} has no caption for {_some(sorted(left))} of the references; "
            "give --subset true to score the predicted images only"
        )
    return _pairs(candidates.rows, [groups[image_id] for image_id in predicted])


def _pairs(rows: list[dict[str, Any]], references: list[list[str]]) -> CaptionPairs:
    def column(name: str) -> list[Any] | None:
        return [row[name] for row in rows] if all(name in row for row in rows) else None

    ids = [str(row["image_id"]) for row in rows]
    for image_id, row, texts in zip(ids, rows, references, strict=True):
        longest = max(map(len, (row["caption"], *texts)))
        if longest > MAX_CAPTION_CHARACTERS:
            raise DataError(
                f"image {shown(image_id)}: a caption has {longest} characters, more than "
                f"{MAX_CAPTION_CHARACTERS}: is it the right file?"
            )
    return CaptionPairs(
        [row["caption"] for row in rows], references, ids, column("image"), column("ended_by_eos")
    )


def _unique_ids(file: _Rows) -> None:
    counts = Counter(str(row["image_id"]) for row in file.rows)
    twice = [image_id for image_id, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{file.path} has more than one caption for {_some(twice)}")


def _some(ids: Sequence[str], limit: int = 3) -> str:
    """``image 'a'``, or ``7 images ('a', 'b', 'c', ...)``."""
    if len(ids) == 1:
        return f"image {shown(ids[0])}"
    return f"{len(ids)} images ({', '.join(map(shown, ids[:limit]))}{', ...' if len(ids) > limit else ''})"


def _texts(file: _Rows, row: dict[str, Any], *keys: str) -> list[str]:
    """The captions of a row under the first of some keys that it has."""
    key = next((key for key in keys if key in row), None)
    texts = row.get(key) if key else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        wanted = " or ".join(f"`{key}`" for key in keys)
        raise DataError(
            f"{file.path}: image {shown(row['image_id'])}: expected texts under {wanted}, got {shown(row)}"
        )
    return texts


def _read(path: str) -> _Rows:
    path = str(Path(path) / PREDICTIONS) if Path(path).is_dir() else path
    name = "standard input" if path == STDIN else path
    text = _content(path)
    if not text.strip():
        raise DataError(f"{name} is empty: expected captions")
    rows = _json_rows(text, name)
    if rows is None:
        lines = text.removesuffix("\n").split("\n")
        plain = [{"image_id": i, "caption": line.rstrip("\r")} for i, line in enumerate(lines, 1)]
        return _Rows(name, plain, has_ids=False)
    for row in rows:
        if not isinstance(row, dict) or "image_id" not in row or not set(_CAPTION_KEYS) & set(row):
            raise DataError(
                f"{name}: expected entries with `image_id` and `caption` or `captions`, got {shown(row)}"
            )
        for key, kinds in _KINDS.items():
            if key in row and type(row[key]) not in kinds:
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise DataError(f"{name}: expected {wanted} as `{key}`, got {shown(row[key])}")
    return _Rows(name, rows, has_ids=True)


def _content(path: str) -> str:
    try:
        if path == STDIN:
            return sys.stdin.buffer.read().decode("utf-8-sig")
        return read_text(path, limit=_LARGEST)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text: {error}") from error


def _json_rows(text: str, name: str) -> list[Any] | None:
    """Entries of COCO JSON or JSONL; None for plain text."""
    if text.lstrip()[0] not in "[{":
        return None
    try:
        content = parse_json(text, name)
    except NoJson:
        return _jsonl_rows(text, name)
    if isinstance(content, dict) and "annotations" in content:
        content = content["annotations"]
        if not isinstance(content, list):
            raise DataError(f"{name}: expected a list under `annotations`, got {shown(content)}")
        return content
    return [content] if isinstance(content, dict) else content


def _jsonl_rows(text: str, name: str) -> list[Any] | None:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [parse_json(line, f"{name}, line {number}")] if line.strip() else []
        except NoJson:
            if not rows and not line.lstrip().startswith('{"'):
                return None  # plain captions may begin with a bracket
            raise
    return rows
