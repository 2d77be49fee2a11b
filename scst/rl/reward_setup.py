"""Gives rewards what they need before the first step: the references of the training images."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from rewards.mixture import RewardMixture
from scst.data.reference_columns import ReferenceColumns, StreamedReferences
from scst.data.streamed_rows import StreamedRows


def set_up_rewards(mixture: RewardMixture, rows: Any) -> RewardMixture:
    """Give the rewards the references of the training images, once; returns the mixture.

    Args:
        mixture: not set up yet.
        rows: what is trained on: a dataset with ``references``, or a stream.

    Raises:
        RewardError: when a reward wants all references of a stream.
    """
    with PartialState().main_process_first():  # it counts, the others read what it has counted
        mixture.setup(StreamedReferences() if isinstance(rows, StreamedRows) else ReferenceColumns(rows))
    return mixture
