"""Document frequencies are counted once for the same rows, and anew for others."""

import pytest

from rewards.cider_d import CiderDReward
from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.data import reference_columns
from scst.data.reference_columns import ReferenceColumns
from tests.support.rows import read_form, rows_of


@pytest.fixture
def counted(monkeypatch):
    """How many rows were counted, by call."""
    monkeypatch.setattr(reference_columns, "REMEMBERED_FROM", 3)
    calls = []

    def count(references, **settings):
        references = list(references)
        calls.append(len(references))
        return real(references, **settings)

    real = DocumentFrequencies.from_references
    monkeypatch.setattr(reference_columns.DocumentFrequencies, "from_references", count)
    return calls


def test_the_same_rows_are_counted_once(counted):
    rows = read_form(rows_of({"train": 5}))
    first = ReferenceColumns(rows).document_frequencies("emitted")
    again = ReferenceColumns(read_form(rows_of({"train": 5}))).document_frequencies("emitted")
    assert counted == [5]
    assert first == again
    assert first.fingerprint == again.fingerprint
    plain = DocumentFrequencies.from_references(rows["references"][:], eos="emitted")
    assert plain == first


@pytest.mark.parametrize("other", ["rows", "order", "eos", "split"])
def test_others_are_counted_anew(other, counted):
    rows = read_form(rows_of({"train": 5}))
    ReferenceColumns(rows).document_frequencies("emitted")
    changed = {"rows": rows.select(range(4)), "order": rows.shuffle(seed=1)}.get(other, rows)
    table = ReferenceColumns(changed).document_frequencies(
        "omitted" if other == "eos" else "emitted", "val" if other == "split" else "train"
    )
    assert len(counted) == 2
    assert table.num_images == len(changed)


def test_few_rows_and_damaged_tables_are_counted(counted, caplog):
    rows = read_form(rows_of({"train": 5}))
    ReferenceColumns(rows.select(range(2))).document_frequencies("emitted")
    ReferenceColumns(rows.select(range(2))).document_frequencies("emitted")
    assert counted == [2, 2]
    ReferenceColumns(rows).document_frequencies("emitted")
    fingerprint = rows.select_columns(["references", "image_id"])._fingerprint
    cache = reference_columns.CacheFolder(f"references:{fingerprint}:train")
    cache.file("frequencies-emitted.npz").write_text("{")
    ReferenceColumns(rows).document_frequencies("emitted")
    assert counted == [2, 2, 5, 5]
    assert "counted again" in caplog.text


def test_the_reward_asks_for_what_was_counted(counted):
    rows = read_form(rows_of({"train": 5}))
    for _ in range(2):
        reward = CiderDReward()
        reward.setup(ReferenceColumns(rows))
        assert reward.scorer.frequencies.num_images == 5
    assert counted == [5]
