"""Every record of a step can be drawn, and another record is refused with a sentence."""

from __future__ import annotations

import json

import pytest

from benchmarks import chart
from tests.support.paths import ROOT

RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*-step-cpu.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.name)
def test_records_of_a_step_are_drawn(file, tmp_path):
    record = json.loads(file.read_text(encoding="utf-8"))
    chart.draw(record, tmp_path / "step.svg")
    seconds = chart.run_to_draw(record)["times"]["ours"]["seconds"]
    assert f"{seconds:.1f} s" in (tmp_path / "step.svg").read_text(encoding="utf-8")


def test_of_several_runs_the_last_one_counts():
    runs = [{"times": dict.fromkeys(chart.WAYS, number)} for number in range(3)]
    assert chart.run_to_draw({"runs": [*runs, {"times": {"ours": 7}}]}) is runs[2]


def test_another_record_is_refused():
    with pytest.raises(ValueError, match=r"expected a record of step\.py, with times of naive, trl, ours"):
        chart.run_to_draw({"benchmark": "memory"})
