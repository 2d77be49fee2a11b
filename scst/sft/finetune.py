"""Stage 1 as two functions: build its trainer, or build and run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from trl import SFTConfig

from scst.adapters.loaded import LoadedPolicy
from scst.data.collate import SFTCollator
from scst.data.consensus import data_for
from scst.data.load_splits import LoadedData
from scst.data.stream_settings import check_streamed
from scst.data.streamed_rows import StreamedRows
from scst.data.supervision import CaptionChoice
from scst.sft.trainer import CaptionSFTTrainer
from scst.training.arguments.training_arguments import split_settings, training_arguments
from scst.training.progress import RichProgress
from scst.training.run import train_policy
from scst.training.validation import ValidationSettings, early_stopping


def sft_trainer(
    policy: LoadedPolicy,
    data: LoadedData,
    output_dir: str,
    *,
    train_split: str = "train",
    caption_policy: str = "random",
    prompts: Sequence[str] = (),
    validation: ValidationSettings | None = None,
    max_skipped_steps: int = 10,
    seed: int = 42,
    console: Console | None = None,
    training: Mapping[str, Any] | None = None,
) -> CaptionSFTTrainer:
    """The trainer of the supervised stage.

    Args:
        policy: with a trainable adapter.
        data: its split ``train_split`` is trained on.
        output_dir: of the run.
        train_split: name of the split.
        caption_policy: the caption an image is trained on: ``first``, ``random``, ``longest``, ``consensus``
            or ``all`` (one row per caption).
        prompts: instructions to train on, one drawn per example and epoch; none: that of the policy.
        validation: captions held-out images at every evaluation; needs ``eval_strategy`` in ``training``.
        max_skipped_steps: steps in a row without a finite loss and gradient that end the run.
        seed: of initialisation, data order and caption choice.
        console: where progress is drawn.
        training: names of ``trl.SFTConfig`` and ``transformers.TrainingArguments``.
    """
    validation = validation or ValidationSettings()
    settings = dict(training or {})
    args = training_arguments(SFTConfig, output_dir, settings, seed=seed, precision=policy.precision)
    choice, rows = CaptionChoice(caption_policy, seed), data.training_rows(train_split)
    if isinstance(rows, StreamedRows):
        check_streamed(settings, caption_policy=caption_policy)
    else:
        rows = data_for(caption_policy, data, train_split, seed).splits[train_split]
    return CaptionSFTTrainer(
        policy.model,
        args,
        train_dataset=rows if isinstance(rows, StreamedRows) else choice.expand(rows),
        data_collator=SFTCollator(policy.encoder, policy.prompt, choice, policy.max_new_tokens, prompts),
        processor=policy.encoder,
        validation=validation.build(policy, data, args),
        max_skipped_steps=max_skipped_steps,
        callbacks=[RichProgress(console or Console(), "SFT"), *early_stopping(validation, settings)],
    )


def finetune(
    policy: LoadedPolicy,
    data: LoadedData,
    output_dir: str,
    *,
    epochs: float | None = None,
    resume: bool | str = False,
    resume_changed: bool = False,
    overwrite: bool = False,
    save_minutes: float = 0.0,
    console: Console | None = None,
    **settings: Any,
) -> CaptionSFTTrainer:
    """Train the policy's adapter on human captions, and leave a complete output folder.

    Args:
        policy: with a trainable adapter.
        data: what :func:`scst.load_dataset` returns.
        output_dir: gets adapter, processor, checkpoints, ``trainer_state.json`` and ``run.json``.
        epochs: passes over the training images; or give ``max_steps``.
        resume: True continues from the newest complete checkpoint; or a checkpoint folder.
        resume_changed: resume although settings or data have changed that may not
            (:mod:`scst.training.run_folder.changed_settings`).
        overwrite: replace an earlier run in ``output_dir``: it is moved aside, and deleted when the new one
            has its first complete checkpoint.
        save_minutes: wall-clock minutes between checkpoints; 0: none by the clock.
        console: where progress is drawn.
        settings: arguments of :func:`sft_trainer`; every other name is one of
            ``transformers.TrainingArguments``, e.g. ``learning_rate=2e-4``.

    Raises:
        RecipeError: on a setting that cannot be used, a folder in which another run is at work, or a
            checkpoint that was made with other settings.
        Interrupted: after SIGTERM or Ctrl-C, when a checkpoint was saved.
    """
    own, training = split_settings(sft_trainer, settings)
    return train_policy(
        "sft",
        sft_trainer,
        policy,
        data,
        output_dir,
        own,
        training,
        epochs=epochs,
        resume=resume,
        resume_changed=resume_changed,
        overwrite=overwrite,
        save_minutes=save_minutes,
        console=console,
    )
