"""Caption files in all their forms, and everything that can be wrong with them."""

from __future__ import annotations

import io
import json

import pytest

from scst.errors import DataError
from scst.evaluation.caption_files import read_captions, read_pairs

CAPTIONS = {"a": "many planes", "7": "a river with a"}
REFERENCES = {"7": ["a river", "a green river"], "a": ["some planes", "planes near a terminal"]}


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path):
    """The same captions and references in every form, by name."""
    predicted = [{"image_id": int(i) if i == "7" else i, "caption": text} for i, text in CAPTIONS.items()]
    groups = [{"image_id": i, "captions": group} for i, group in REFERENCES.items()]
    flat = [{"image_id": i, "id": k, "caption": c} for i, g in REFERENCES.items() for k, c in enumerate(g)]
    own = [{"image_id": i, "caption": CAPTIONS[i], "references": REFERENCES[i]} for i in CAPTIONS]
    return {
        "predictions.jsonl": write(tmp_path / "predictions.jsonl", jsonl(predicted)),
        "predictions.json": write(tmp_path / "predictions.json", predicted),
        "predictions.txt": write(tmp_path / "predictions.txt", "many planes\r\na river with a\r\n"),
        "own.jsonl": write(tmp_path / "own.jsonl", jsonl(own)),
        "references.jsonl": write(tmp_path / "references.jsonl", jsonl(groups)),
        "references.json": write(tmp_path / "references.json", {"images": [], "annotations": flat}),
        "first.txt": write(tmp_path / "first.txt", "some planes\na river\n"),
        "second.txt": write(tmp_path / "second.txt", "planes near a terminal\na green river"),
    }


@pytest.mark.parametrize("predictions", ["predictions.jsonl", "predictions.json"])
@pytest.mark.parametrize("references", ["references.jsonl", "references.json"])
def test_captions_with_ids_are_paired_by_id(files, predictions, references):
    pairs = read_pairs(files[predictions], [files[references]])
    assert dict(zip(pairs.image_ids, pairs.captions, strict=True)) == CAPTIONS
    assert dict(zip(pairs.image_ids, pairs.references, strict=True)) == REFERENCES


def test_predictions_that_bring_their_references(files, tmp_path):
    pairs = read_pairs(files["own.jsonl"])
    assert pairs.references == [REFERENCES[i] for i in CAPTIONS]
    (tmp_path / "own.jsonl").rename(tmp_path / "predictions.jsonl")
    assert read_pairs(str(tmp_path)) == pairs  # the folder of an evaluation


def test_plain_text_is_paired_by_line(files):
    pairs = read_pairs(files["predictions.txt"], [files["first.txt"], files["second.txt"]])
    assert pairs.captions == list(CAPTIONS.values())
    assert pairs.references == [REFERENCES["a"], REFERENCES["7"]]
    assert pairs.image_ids == ["1", "2"]


def test_standard_input(files, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(open(files["predictions.jsonl"], "rb").read()))  # noqa: SIM115
    monkeypatch.setattr("sys.stdin", stream)
    assert read_pairs("-", [files["references.jsonl"]]).captions == list(CAPTIONS.values())


def test_plain_captions_may_look_strange(tmp_path):
    lines = ["[a road] with trees", "{x}", "", "🌊 \u2028 and ||| pipes"]
    path = write(tmp_path / "strange.txt", "\n".join(lines) + "\n")
    pairs = read_pairs(path, [path])
    assert pairs.captions == lines


def test_a_file_with_byte_order_mark_and_blank_lines(tmp_path):
    path = write(tmp_path / "p.jsonl", "\ufeff" + jsonl([{"image_id": 1, "caption": "a"}]) + "\n\n")
    own = write(tmp_path / "r.jsonl", jsonl([{"image_id": "1", "references": ["b"]}]))
    assert read_pairs(path, [own]).references == [["b"]]


def test_optional_columns_come_along(tmp_path):
    rows = [{"image_id": i, "caption": "a", "references": ["b"], "ended_by_eos": i == 1} for i in (1, 2)]
    pairs = read_pairs(write(tmp_path / "p.jsonl", jsonl(rows)))
    assert pairs.ended_by_eos == [True, False]
    assert pairs.image_paths is None


def test_a_subset_is_scored_only_when_asked_for(files, tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl([{"image_id": "a", "caption": "x"}]))
    with pytest.raises(DataError, match="no caption for image '7' of the references; give --subset true"):
        read_pairs(one, [files["references.jsonl"]])
    assert read_pairs(one, [files["references.jsonl"]], subset=True).references == [REFERENCES["a"]]


WRONG = {
    "missing file": (None, "cannot be read: No such file"),
    "empty": ("", "is empty: expected captions"),
    "blank": (" \n\n", "is empty: expected captions"),
    "no utf-8": (b"\xff\xfe\x00", "expected UTF-8 text"),
    "broken json line": (
        '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap',
        "line 2' is no readable JSON",
    ),
    "no id": (jsonl([{"caption": "a"}]), "expected entries with `image_id`"),
    "no caption": (jsonl([{"image_id": 1, "text": "a"}]), "expected entries with `image_id`"),
    "caption is no text": (jsonl([{"image_id": 1, "caption": None}]), "with a text `caption`"),
    "several captions": (jsonl([{"image_id": 1, "captions": ["a"]}]), "with a text `caption`"),
    "numbers": ("[1, 2]", "expected entries with `image_id`"),
    "twice the same id": (
        jsonl([{"image_id": "a", "caption": "x"}] * 2),
        "more than one caption for image 'a'",
    ),
    "unknown id": (jsonl([{"image_id": "b", "caption": "x"}]), "references: none for image 'b'"),
    "plain against ids": ("a road\n", "cannot be paired"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_predictions_are_refused_with_what_came(files, tmp_path, case):
    content, message = WRONG[case]
    path = tmp_path / "wrong"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(str(path), [files["references.jsonl"]])
    assert "wrong" in str(caught.value)


def test_wrong_references_are_refused(files, tmp_path):
    with pytest.raises(DataError, match=r"references: missing; .* give --references FILE"):
        read_pairs(files["predictions.jsonl"])
    short = write(tmp_path / "short.txt", "some planes\n")
    with pytest.raises(DataError, match=r"short.txt has 1 lines, but .* has 2"):
        read_pairs(files["predictions.txt"], [short])
    empty = write(tmp_path / "empty.jsonl", jsonl([{"image_id": i, "captions": []} for i in CAPTIONS]))
    with pytest.raises(DataError, match="image 'a': expected texts under `captions`"):
        read_pairs(files["predictions.jsonl"], [empty])


def test_all_captions_of_a_file(files):
    assert read_captions(files["references.json"]) == [c for group in REFERENCES.values() for c in group]
    assert read_captions(files["first.txt"]) == ["some planes", "a river"]
