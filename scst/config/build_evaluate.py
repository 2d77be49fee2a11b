"""Builders of evaluations: model and data once, then as many evaluations of them as are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewards.errors import RewardError
from scst.config import build
from scst.config.build_metrics import checked_settings
from scst.config.reader import build_recipe, read_recipe_file
from scst.data.files import write_text
from scst.errors import RunStopped, ScstError
from scst.evaluation.caption_files import read_pairs
from scst.evaluation.evaluate import evaluate
from scst.evaluation.samples import check_report_samples

ERROR_FILE = "error.txt"
LOADED = [
    "model_name_or_path",
    "adapter",
    "quantization",
    "precision",
    "attn_implementation",
    "dataset",
    "train_split",
    "eval_split",
    "split_fractions",
    "split_seed",
    "max_train_images",
    "max_eval_images",
    "on_bad_example",
]
"""Keys that decide which model and which images are in memory."""
PASSED_ON = [
    "prompt",
    "output_dir",
    "decoding",
    "max_new_tokens",
    "min_new_tokens",
    "metrics",
    "bootstrap_samples",
    "seed",
    "adapter",
    "report_samples",
    "compare_with",
]
"""Keys that are settings of the evaluation, by the same name."""


class Evaluator:
    """Evaluates recipes one after the other; what two have in common is loaded once.

    Args:
        console: where progress and tables go.
    """

    def __init__(self, console: Console):
        self.console = console
        self._keys: dict[str, Any] | None = None

    def run(self, recipe: Any) -> None:
        """Caption and score as the recipe says.

        Raises:
            ScstError: on a recipe, model or dataset that cannot be used.
        """
        settings = checked_settings(recipe)
        _check_report(recipe)
        base = build.check_inputs(recipe)
        self._load(recipe, base)
        evaluate(
            self.model,
            self.processor,
            self.rows,
            **{name: getattr(recipe, name) for name in PASSED_ON},
            batch_size=recipe.eval_batch_size,
            settings=settings,
            title=f"{recipe.adapter or base} on {recipe.dataset} {recipe.eval_split}",
            console=self.console,
        )

    def _load(self, recipe: Any, base: str) -> None:
        keys = {name: getattr(recipe, name) for name in LOADED}
        if keys == self._keys:
            return
        self._keys = None  # a failure below leaves nothing half loaded
        self.rows = build.load_data(recipe, [recipe.eval_split], self.console).splits[recipe.eval_split]
        policy = build.build_policy(recipe, base, trainable=False)
        self.model, self.processor = policy.model, policy.encoder
        self._keys = keys


def _check_report(recipe: Any) -> None:
    """Refuse, before a model is loaded, what the report cannot show."""
    check_report_samples(recipe.report_samples)
    if recipe.compare_with is not None:
        read_pairs(recipe.compare_with)


def evaluate_files(files: Sequence[str]) -> None:
    """Evaluate recipe files; one that fails leaves ``error.txt`` in its folder and the others go on.

    Raises:
        RunStopped: at the end, when one failed.
    """
    build.prepare_libraries()
    evaluator, failed = Evaluator(build.make_console()), []
    for file in files:
        recipe = build_recipe("evaluate", read_recipe_file(file))
        try:
            evaluator.run(recipe)
        except Exception as error:
            if build.PartialState().num_processes > 1:
                raise  # the others wait for this process
            known = isinstance(error, ScstError | RewardError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            write_text(Path(recipe.output_dir) / ERROR_FILE, text + "\n")
            failed.append(file)
            evaluator.console.print_exception() if not known else evaluator.console.print(f"error: {text}")
    if failed:
        raise RunStopped(f"{len(failed)} of {len(files)} evaluations failed: {', '.join(failed)}")
