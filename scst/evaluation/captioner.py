"""A policy that captions pictures, and its evaluation, as few lines of Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import datasets
from PIL import Image
from rich.console import Console

from scst.adapters.kinds import Adapter
from scst.adapters.loaded import LoadedPolicy
from scst.adapters.saved_adapter import adapter_settings, check_adapter_exists
from scst.data.pictures import open_picture
from scst.errors import RecipeError
from scst.evaluation.captioning import caption_images
from scst.evaluation.decoding import Decoding
from scst.evaluation.evaluation import Evaluation
from scst.metrics.suite import MetricSettings
from scst.models.base_checkpoint import check_model_exists
from scst.training.run_folder.run_record import recorded_settings

Picture = str | Path | Image.Image


class Captioner(LoadedPolicy):
    """A loaded policy that captions pictures."""

    # A str is also a Sequence[str], so the signatures overlap; the first one wins, and is what happens.
    @overload
    def caption(  # type: ignore[overload-overlap]
        self, pictures: Picture, *, decoding: Decoding | str = ..., batch_size: int = ..., seed: int = ...
    ) -> str: ...

    @overload
    def caption(
        self,
        pictures: Sequence[Picture],
        *,
        decoding: Decoding | str = ...,
        batch_size: int = ...,
        seed: int = ...,
    ) -> list[str]: ...

    def caption(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        decoding: Decoding | str = "greedy",
        batch_size: int = 16,
        seed: int = 0,
    ) -> str | list[str]:
        """Caption one picture, or each of several.

        Args:
            pictures: a file or a PIL image, or a list of them.
            decoding: a preset or its name, e.g. ``greedy``, ``beam``, ``nucleus``.
            batch_size: pictures at a time.
            seed: of presets that sample.

        Returns:
            A caption, or a list of captions in the order of the pictures.

        Raises:
            DataError: a file is no readable picture.
        """
        several = [pictures] if isinstance(pictures, str | Path | Image.Image) else list(pictures)
        images = [each if isinstance(each, Image.Image) else open_picture(Path(each)) for each in several]
        captions = caption_images(
            self.model,
            self.encoder,
            images,
            self.prompt,
            decoding,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        texts = [caption.text for caption in captions]
        return texts[0] if isinstance(pictures, str | Path | Image.Image) else texts


def load_policy(
    model_name_or_path: str | None = None,
    adapter: str | Path | Adapter | None = None,
    *,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    quantization: str | None = None,
    image_tokens: int | None = None,
    precision: str = "auto",
    attn_implementation: str = "auto",
    trainable: bool = True,
    seed: int = 42,
) -> Captioner:
    """Load a captioner.

    Args:
        model_name_or_path: base model: folder, hub id or ``embedded:scenes-paligemma``; None takes the one
            that the saved adapter names.
        adapter: folder of a saved adapter, settings of a new one such as ``scst.LoRA(rank=16)``, or None for
            the base model as it is.
        prompt, max_new_tokens, min_new_tokens, quantization, image_tokens: None takes what a saved adapter
            was trained with (``run.json`` in its folder), else ``caption en``, 32, 1, ``nf4`` and 0.
        precision: of computation: ``auto`` (bf16 on a GPU, fp32 on a CPU), ``bf16``, ``fp16`` or ``fp32``.
        attn_implementation: ``auto``, ``sdpa`` or ``eager``.
        trainable: whether a saved adapter can be trained further.
        seed: of a new adapter's weights.

    Raises:
        RecipeError: when model or adapter do not exist, or do not fit each other.
    """
    recorded: dict[str, Any] = {}
    if isinstance(adapter, str | Path):
        check_adapter_exists(adapter)
        recorded = recorded_settings(adapter)
        named = adapter_settings(Path(adapter)).get("base_model_name_or_path")
        model_name_or_path = model_name_or_path or named
    if model_name_or_path is None:
        raise RecipeError(
            "model_name_or_path: missing; give a checkpoint, or a saved adapter that names its own"
        )
    check_model_exists(model_name_or_path)
    given = {
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "quantization": quantization,
        "image_tokens": image_tokens,
    }
    settings = {name: recorded[name] for name in given if name in recorded}
    settings |= {name: value for name, value in given.items() if value is not None}
    return Captioner.load(
        model_name_or_path,
        adapter,
        precision=precision,
        attn_implementation=attn_implementation,
        trainable=trainable,
        seed=seed,
        **settings,
    )


def evaluate(
    policy: LoadedPolicy,
    rows: datasets.Dataset,
    metrics: Sequence[str] = ("cider_d",),
    *,
    output_dir: str | Path | None = None,
    decoding: Decoding | str = "greedy",
    batch_size: int = 16,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    settings: MetricSettings | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Caption a split and score it.

    Args:
        policy: what captions.
        rows: ``image``, ``references`` and ``image_id``, e.g. ``data["test"]``.
        metrics: names in ``scst.metrics.suite.METRICS``.
        output_dir: where ``predictions.jsonl``, ``metrics.json`` and ``report.html`` are written; None:
            nowhere.
        decoding, batch_size, seed: as of :meth:`Captioner.caption`.
        bootstrap_samples: resamples behind every 95 % interval.
        settings: models and tables that metrics need.
        console: where progress and a table go; None: nowhere.

    Returns:
        Metric -> ``value``, ``ci95``, ``signature`` and ``judged``, as ``metrics.json`` holds them.

    Raises:
        RecipeError: an unknown preset or metric. DataError: columns are missing.
    """
    return Evaluation(
        prompt=policy.prompt,
        output_dir=output_dir,
        metrics=metrics,
        decoding=decoding,
        max_new_tokens=policy.max_new_tokens,
        min_new_tokens=policy.min_new_tokens,
        batch_size=batch_size,
        seed=seed,
        settings=settings,
        bootstrap_samples=bootstrap_samples,
        console=console or Console(quiet=True),
    ).run(policy.model, policy.encoder, rows)
