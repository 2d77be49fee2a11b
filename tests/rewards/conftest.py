"""Fixtures of several files."""

from __future__ import annotations

import pytest

from tests.support.fake_java import FakeJava


@pytest.fixture
def fake(tmp_path) -> FakeJava:
    """A Java that a test may make die, hang or shout."""
    return FakeJava(tmp_path)
