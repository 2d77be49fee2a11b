"""The caption policy ``consensus``: splits whose rows have the caption of highest consensus first."""

from __future__ import annotations

import dataclasses

from scst.data.load_splits import LoadedData
from scst.data.preparation.caption_scorers import consensus_scores
from scst.data.preparation.selection import consensus_first


def data_for(caption_policy: str, data: LoadedData, split: str, seed: int) -> LoadedData:
    """The data that a caption policy chooses from.

    For ``consensus`` the captions of ``split`` are put in order, once: data that are in order are returned as
    they are. Every other policy takes the data as they are.

    Args:
        caption_policy: a name in ``scst.data.supervision.POLICIES``.
        data: the data.
        split: the one that is trained on.
        seed: decides between captions of equal consensus.
    """
    if caption_policy != "consensus" or split in data.consensus_first:
        return data
    rows = data[split]
    first = consensus_first(rows, consensus_scores(rows["references"][:], split), seed)
    return dataclasses.replace(
        data, splits=data.splits | {split: first}, consensus_first=data.consensus_first | {split}
    )
