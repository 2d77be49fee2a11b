"""A policy of each PaliGemma version, shared by the tests of this room."""

from __future__ import annotations

import pytest

from tests.support.rollouts import make_policy
from tests.support.tiny import build_model


@pytest.fixture(params=[1, 2], ids=["paligemma1", "paligemma2"])
def policy(request, tiny_processor):
    """A policy of each PaliGemma version."""

    return make_policy(build_model(tiny_processor, version=request.param), tiny_processor)
