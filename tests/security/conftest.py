"""A payload that shows whether a file was unpickled, and a small world to hide it in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


class _Payload:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Trap:
    """A pickle that leaves a trace when it is loaded the unsafe way.

    Args:
        marker: the file it makes.
    """

    def __init__(self, marker: Path):
        self.marker = marker

    def hide_in(self, path: Path) -> None:
        """Write the armed pickle, and prove that it is armed."""
        torch.save({"state": {"weight": torch.zeros(2), "payload": _Payload(self.marker)}}, path)
        torch.load(path, weights_only=False)
        assert self.sprang(), "the payload does nothing: the test would prove nothing"
        self.marker.unlink()

    def sprang(self) -> bool:
        """Whether the pickle was executed."""
        return self.marker.exists()


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Trap:
    """The libraries' own defaults are tested; the launch scripts force torch's safe mode on top of them."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    return Trap(tmp_path / "executed")
