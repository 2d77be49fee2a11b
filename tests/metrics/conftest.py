"""Fixtures of the metrics' tests: METEOR started once."""

from __future__ import annotations

import pytest

from scst.metrics.bootstrap import score_captions
from scst.metrics.corpus import Corpus
from tests.support.golden import CAPTIONS, EXPECTED, REFERENCES


@pytest.fixture(scope="session")
def golden_results():
    """Metrics with golden values on the golden captions: the one start of METEOR's Java in this folder."""
    return score_captions(Corpus(CAPTIONS, REFERENCES), list(EXPECTED))
