"""The short form of `make chaos`: real runs, real faults, in a process of their own that forks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

SEED = os.environ.get("SCST_CHAOS_SEED", "1")
"""Of the events to kill at and the order of the faults."""
FAULTS = (
    "SIGKILL, training event",
    "SIGKILL, file operation",
    "SIGTERM",
    "SIGINT",
    "SIGINT twice",
    "full disk",
    "read-only output",
    "vanished dataset",
    "corrupt newest checkpoint",
    "dying process",
    "stuck reward",
    "NaN gradient",
    "two runs at once",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcomes of one short suite."""
    file = tmp_path_factory.mktemp("chaos") / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.run", "--short", "--seed", SEED, "--json", str(file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert file.is_file(), done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_survived(outcomes, fault):
    found = [outcome for outcome in outcomes if outcome["fault"].split(":")[0] == fault]
    assert found, f"nobody injected: {fault}"
    for outcome in found:
        assert outcome["survived"] == outcome["injected"], outcome
    if fault == "read-only output" and not found[0]["injected"]:
        pytest.skip(found[0]["note"])
    assert sum(outcome["injected"] for outcome in found) > 0
