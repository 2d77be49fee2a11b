"""Runs evaluation recipes one after the other; model and data that they share are loaded once."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rewards.errors import RewardError
from scst.config import build
from scst.config.build_metrics import checked_settings
from scst.config.checks import base_model_of, check_recipe
from scst.config.reader import read_recipe_file, recipe_of
from scst.config.recipes import EvaluateRecipe
from scst.data.files import write_text
from scst.data.terminal import plain
from scst.errors import RunStopped, ScstError
from scst.evaluation.evaluation import Evaluation

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
    "resplit",
    "max_train_images",
    "max_eval_images",
    "on_bad_example",
]
"""Keys of the loaded model and images: recipes that agree in them share both."""


class Evaluator:
    """Evaluates recipes one after the other; a model or dataset that two in a row share is loaded once.

    Args:
        console: where progress and tables go.
    """

    def __init__(self, console: Console):
        self.console = console
        self._keys: dict[str, Any] | None = None

    def run(self, recipe: EvaluateRecipe) -> None:
        """Run one evaluation recipe.

        Raises:
            ScstError: on a recipe, model or dataset that cannot be used.
        """
        settings = checked_settings(recipe)
        base = base_model_of(recipe)
        evaluation = Evaluation(
            prompt=recipe.prompt,
            output_dir=recipe.output_dir,
            metrics=recipe.metrics,
            decoding=recipe.decoding,
            max_new_tokens=recipe.max_new_tokens,
            min_new_tokens=recipe.min_new_tokens,
            batch_size=recipe.eval_batch_size,
            seed=recipe.seed,
            settings=settings,
            bootstrap_samples=recipe.bootstrap_samples,
            title=f"{recipe.adapter or base} on {recipe.dataset} {recipe.eval_split}",
            adapter=recipe.adapter,
            report_samples=recipe.report_samples,
            compare_with=recipe.compare_with,
            console=self.console,
        )
        evaluation.check()
        self._load(recipe, base)
        evaluation.run(self.model, self.processor, self.rows)

    def _load(self, recipe: EvaluateRecipe, base: str) -> None:
        keys = {name: getattr(recipe, name) for name in LOADED}
        if keys == self._keys:
            return
        self._keys = None  # a failure below must not leave the old keys beside new data
        self.rows = build.load_data(recipe, [recipe.eval_split], self.console).splits[recipe.eval_split]
        policy = build.build_policy(recipe, base, trainable=False)
        self.model, self.processor = policy.model, policy.encoder
        self._keys = keys


def evaluate_files(files: Sequence[str]) -> None:
    """Evaluate recipe files. When one fails, ``error.txt`` is written to its folder and the others continue.

    Raises:
        RunStopped: at the end, when one failed.
    """
    build.prepare_libraries()
    evaluator, failed = Evaluator(build.make_console()), []
    for file in files:
        recipe = recipe_of(EvaluateRecipe, read_recipe_file(file))
        try:
            check_recipe(recipe)
            evaluator.run(recipe)
        except Exception as error:
            if build.PartialState().num_processes > 1:
                raise  # the other processes are waiting in a collective operation
            known = isinstance(error, ScstError | RewardError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            write_text(Path(recipe.output_dir) / ERROR_FILE, text + "\n")
            failed.append(file)
            if known:
                evaluator.console.print(plain(f"error: {text}"))
            else:
                evaluator.console.print(plain(traceback.format_exc()))
    if failed:
        raise RunStopped(f"{len(failed)} of {len(files)} evaluations failed: {', '.join(failed)}")
