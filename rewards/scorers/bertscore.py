"""BERTScore: precision, recall and F1 of matched token embeddings, through the package ``bert-score``.

Zhang et al. 2020, arXiv:1904.09675. With several references the best counts, for each of the three numbers on
its own, as in the authors' package. No idf weights: over a batch they would make a caption's score depend on
its neighbours. Baseline rescaling, which spreads the scores, only when asked for; both are in use: with
roberta-large a raw F1 of 0.852 is 0.122 rescaled.

The package is from 2023; with transformers 5 three things in it go wrong, and are set right here by the
tokeniser we give it:

- RoBERTa's ``add_prefix_space=True`` is ignored per call, so that the first word was cut as in mid-word and
  scores differed from published ones;
- an empty sentence raises: a method it calls is gone;
- a checkpoint without a stated maximum length (1e30) raises, and so does a text longer than the model reads.

torchmetrics has its own BERTScore, but puts sentences of unequal length out of order (its issue 2728).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import RewardError
from rewards.scorers.encoders import (
    check_references,
    encodable,
    find_model,
    inference,
    loading,
    model_label,
    pick_device,
    require_package,
)

_SCORER = "bertscore"
_EXAMPLE = "roberta-large"


class BertScorer:
    """BERTScore with one model. Building it checks the arguments; the model loads at first use.

    Args:
        model_name_or_path: folder or hub id, e.g. "roberta-large", the package's model for English.
        num_layers: which layer's output to compare, counted from 1; by default the one the authors
            found best, which is known for the hub ids of common models only.
        rescale_with_baseline: subtract what unrelated sentences score, and stretch the rest to 1.
        baseline_path: table of such baselines; by default the package's for English and this hub id.
        device: such as "cpu" or "cuda:1"; by default the GPU, if there is one.
        batch_size: texts that are encoded together.

    Raises:
        RewardError: an argument is wrong, there can be no such model, or bert-score is missing.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        num_layers: int | None = None,
        rescale_with_baseline: bool = False,
        baseline_path: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        require_package(_SCORER, "bert_score", "bert-score")
        self.model_name_or_path = find_model(_SCORER, model_name_or_path, _EXAMPLE)
        if Path(self.model_name_or_path).is_dir():
            _check_folder(Path(self.model_name_or_path), num_layers)
            if rescale_with_baseline and baseline_path is None:
                raise RewardError(f"{_SCORER}: there is no baseline for a local folder; give `baseline_path`")
        if baseline_path is not None and not Path(baseline_path).is_file():
            raise RewardError(f"{_SCORER}: baseline_path {baseline_path!r} is no file")
        self._num_layers, self.device, self.batch_size = num_layers, device, batch_size
        self.rescale_with_baseline, self.baseline_path = rescale_with_baseline, baseline_path

    @property
    def num_layers(self) -> int:
        """The layer that is compared."""
        if self._num_layers is None:
            with loading(_SCORER, self.model_name_or_path):
                from bert_score.utils import model2layers
            if self.model_name_or_path not in model2layers:
                raise RewardError(
                    f"{_SCORER}: give `num_layers`; none is known to be best for {self.model_name_or_path!r}"
                )
            self._num_layers = model2layers[self.model_name_or_path]
        return self._num_layers

    @cached_property
    def encoder(self) -> Any:
        """bert-score's ``BERTScorer`` in float32, loaded when first asked for."""
        layers = self.num_layers
        with loading(_SCORER, self.model_name_or_path):
            from bert_score import BERTScorer
            from transformers import AutoConfig

            # refuses a checkpoint that needs code of its own; bert-score would ask on the terminal to run it
            AutoConfig.from_pretrained(self.model_name_or_path, trust_remote_code=False)
            scorer = BERTScorer(
                self.model_name_or_path,
                num_layers=layers,
                device=str(pick_device(self.device)),
                lang="en",
                rescale_with_baseline=self.rescale_with_baseline,
                baseline_path=self.baseline_path,
            )
            scorer._tokenizer = _tokenizer(self.model_name_or_path, scorer._model.config)
            if self.rescale_with_baseline:
                _ = scorer.baseline_vals  # raises here, not after a run, when there is no table
        scorer._model.float()
        return scorer

    @cached_property
    def signature(self) -> str:
        """What two values must share to be compared: bert-score's own hash, spelled as ours are."""
        rescaled = "custom" if self.baseline_path else "yes"
        return "|".join(
            (
                f"model:{model_label(self.model_name_or_path)}",
                f"layer:{self.num_layers}",
                "idf:no",
                f"rescaled:{rescaled if self.rescale_with_baseline else 'no'}",
                f"bert-score:{version('bert-score')}",
                f"transformers:{version('transformers')}",
            )
        )

    def scores(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """F1 of N captions; arguments as in :meth:`precision_recall_f1`."""
        return self.precision_recall_f1(captions, references)[:, 2].tolist()

    def precision_recall_f1(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """(N, 3) precision, recall and F1, about 0 to 1 (before rescaling an empty caption has 0).

        Args:
            captions: N texts.
            references: N lists of one or more texts; an empty one scores 0.

        Raises:
            RewardError: a caption has no references, or the model cannot be loaded.
        """
        check_references(_SCORER, captions, references)
        if not captions:
            return np.zeros((0, 3))
        texts = [encodable(text) for text in captions]
        groups = [[encodable(text) for text in group] for group in references]
        with inference(pick_device(self.device)):
            columns = self.encoder.score(texts, groups, batch_size=self.batch_size)
        # Not a number: a text of nothing but the model's special tokens, whose weights add up to 0.
        return np.nan_to_num(np.stack([column.double().numpy() for column in columns], axis=1), nan=0.0)


def _check_folder(folder: Path, num_layers: int | None) -> None:
    """Refuse a folder for which bert-score would fail an assertion or use random weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    there = config.get("num_hidden_layers") or config.get("n_layers")
    if num_layers is None or (there and not 0 < num_layers <= there):
        raise RewardError(
            f"{_SCORER}: `num_layers` of the model in {str(folder)!r} must be 1 to {there}, got {num_layers}"
        )
    if "t5" in str(folder) and "t5" not in config.get("model_type", ""):
        raise RewardError(
            f"{_SCORER}: bert-score takes every path with 't5' in it for a T5 model: rename {str(folder)!r}"
        )


def _tokenizer(model: str, config: Any) -> Any:
    """A tokeniser that makes bert-score work with transformers 5: see the module's docstring."""
    from transformers import AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer):
        tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True, trust_remote_code=False)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        if isinstance(tokenizer, RobertaTokenizer):
            positions -= 2  # RoBERTa counts positions from its padding id on
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    tokenizer.build_inputs_with_special_tokens = lambda ids: tokenizer.encode("")  # type: ignore[method-assign]
    return tokenizer
