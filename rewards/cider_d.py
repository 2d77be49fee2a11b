"""CIDEr-D as a reward: the default of self-critical training (Rennie et al. 2017, arXiv:1612.00563)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import NamedRewardError, RewardError
from rewards.scorers.cider import CiderD
from rewards.scorers.document_frequencies import EOS_POLICIES, FILE_NAME, DocumentFrequencies
from rewards.scorers.text import caption_texts


class CiderDReward:
    """CIDEr-D as a reward function: the reward of Rennie et al. 2017 (arXiv:1612.00563).

    Args:
        eos: "emitted" (default): the end of sequence counts as a word when the policy emitted it, so that a
            fragment ("... with a") does not score like a finished caption; "omitted": plain captions.
        frequencies: path of a saved table; by default it is built from the training references in ``setup``.

    Raises:
        ValueError: another ``eos``, or a table that was counted with another one.
    """

    __name__ = "cider_d"  # TRL names a reward by it

    def __init__(self, eos: str = "emitted", frequencies: str | None = None):
        if eos not in EOS_POLICIES:
            raise ValueError(f"eos must be one of {', '.join(EOS_POLICIES)}, got {eos!r}")
        self.eos = eos
        self.scorer: CiderD | None = None
        if frequencies is not None:
            self._use(DocumentFrequencies.load(frequencies))

    def setup(self, dataset: Any) -> None:
        """Build the document frequencies from ``dataset["references"]`` unless a table was given.

        A dataset with a method ``document_frequencies(eos)`` is asked for them: it may have counted before.
        """
        if self.scorer is None:
            counted = getattr(dataset, "document_frequencies", None)
            self._use(
                counted(self.eos)
                if counted
                else DocumentFrequencies.from_references(dataset["references"], eos=self.eos)
            )

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint of the document frequencies; None before ``setup``."""
        return {"fingerprint": self.scorer and self.scorer.frequencies.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the run continues with the document frequencies that it began with.

        Raises:
            RewardError: when they differ.
        """
        before, now = state["fingerprint"], self.state_dict()["fingerprint"]
        if before != now:
            raise RewardError(
                f"the document frequencies ({_short(now)}) are not those of the checkpoint "
                f"({_short(before)}): dataset, split or end-of-sequence policy have changed"
            )

    def write_tables(self, folder: Path) -> None:
        """Write the document frequencies into ``folder``, as ``document_frequencies.json``."""
        if self.scorer is not None:
            self.scorer.frequencies.save(Path(folder) / FILE_NAME)

    def _use(self, frequencies: DocumentFrequencies) -> None:
        if frequencies.eos != self.eos:
            raise ValueError(
                f"the document frequencies were counted with eos={frequencies.eos!r}, but the reward wants "
                f"eos={self.eos!r}: build a table with the same policy or change the reward's `eos`"
            )
        self.scorer = CiderD(frequencies)

    def __call__(
        self,
        completions: Sequence[str],
        references: Sequence[Sequence[str]],
        ended_by_eos: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """CIDEr-D of every completion; without ``ended_by_eos`` all count as ended.

        Raises:
            RewardError: when called before ``setup``.
        """
        if self.scorer is None:
            raise NamedRewardError(
                "reward 'cider_d' counts with the document frequencies of the training references: call "
                "setup(dataset) with them first, or give it `frequencies`, the path of a saved table"
            )
        return self.scorer.scores(caption_texts(completions), references, ended_by_eos)


def _short(fingerprint: str | None) -> str:
    return fingerprint[:6] if fingerprint else "none"
