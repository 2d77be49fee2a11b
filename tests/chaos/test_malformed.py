"""The short form of the malformed inputs: a sample of all of them, and controls that faults are seen."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.chaos.malformed import attack
from tests.chaos.malformed.attack import Case, attack_all
from tests.chaos.malformed.run import all_cases, table_of

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("SCST_CHAOS_SEED", "1"))
SAMPLE = 150
LEAST = 5000
"""Cases of the long form."""


def test_a_sample_of_malformed_inputs(tmp_path):
    cases = all_cases(tmp_path, SEED)
    assert len(cases) >= LEAST
    assert len({(case.kind, case.name) for case in cases}) > 0.95 * len(cases), "hardly one is there twice"
    faults: list[str] = []
    sample = random.Random(SEED).sample(cases, SAMPLE)
    counts = attack_all(
        sample, lambda o: faults.append(f"{o.result}: {o.case.kind}, {o.case.name}\n{o.output[-500:]}")
    )
    assert not faults, "\n\n".join(faults)
    assert sum(counts.values()) == SAMPLE
    assert table_of(counts, 1.0).row_count == len({kind for kind, _ in counts}) + 1


def replaced(run):
    """Makes the command of a case be something else, in its own process."""

    def prepare(folder):
        import scst.cli.score

        scst.cli.score.main = run

    return prepare


def fails(flags):
    raise KeyError("no sentence")


def waits(flags):
    time.sleep(60)


def computes(flags):
    while True:
        pass


def floods(flags):
    print("x" * 200_000)
    return 2


def two_sentences(flags):
    print("error: one\nerror: two")
    return 2


def kills(flags):
    os.kill(os.getpid(), 9)


CONTROLS = {
    attack.TRACEBACK: [fails, kills, two_sentences],
    attack.HANG: [waits, computes],
    attack.FLOOD: [floods],
    attack.WRONG: [lambda flags: 0],
}


@pytest.mark.parametrize("result", CONTROLS)
def test_faults_are_seen(result):
    """And the cases after one that kills its process are run all the same."""
    cases = [
        Case("control", str(number), "score", [], replaced(run), is_right=False, seconds=1)
        for number, run in enumerate(CONTROLS[result])
    ]
    after = Case("control", "after", "score", ["--nothing", "1"], is_right=False)
    counts = attack_all([*cases, *[after] * 2], lambda outcome: None)
    fault, clear = counts["control", result], counts["control", attack.CLEAR]
    assert (fault, clear) in ((len(cases), 2), (len(cases) + 2, 0))
