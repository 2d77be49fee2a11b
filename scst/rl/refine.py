"""Stage 2 as two functions: build its trainer, or build and run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from rewards.mixture import RewardMixture
from scst.adapters.loaded import LoadedPolicy
from scst.data.collate import SCSTCollator
from scst.data.columns import STORED_IMAGE
from scst.data.consensus import data_for
from scst.data.load_splits import LoadedData
from scst.data.stream_settings import check_streamed
from scst.data.streamed_rows import StreamedRows
from scst.data.supervision import CaptionChoice
from scst.metrics.suite import METRICS
from scst.rl.policy_loss import Objective, ScoringSettings
from scst.rl.reward_setup import set_up_rewards
from scst.rl.sample_table import SampleTable
from scst.rl.trainer import SCSTTrainer
from scst.rollout.feature_cache import FeatureCache
from scst.training.arguments.argument_checks import evaluates
from scst.training.arguments.training_arguments import split_settings, training_arguments
from scst.training.monitors.collapse_monitor import CollapseMonitor, CollapseRule
from scst.training.monitors.hacking_monitor import HackingMonitor, HackingRule
from scst.training.monitors.monitor import Monitor
from scst.training.progress import RichProgress
from scst.training.run import train_policy
from scst.training.validation import CaptionValidation, ValidationSettings, early_stopping
from scst.types import Sampling

WATCHED_METRICS = ("cider_d", "bleu_4", "rouge_l", "repetition_rate", "bad_ending_rate")
"""Held-out metrics that must not fall while the reward rises."""


def scst_trainer(
    policy: LoadedPolicy,
    data: LoadedData,
    output_dir: str,
    *,
    rewards: RewardMixture | Sequence[Any] = ("cider_d",),
    train_split: str = "train",
    num_samples: int = 5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    objective: Objective | None = None,
    scoring: ScoringSettings | None = None,
    prompts: Sequence[str] = (),
    caption_policy: str = "random",
    validation: ValidationSettings | None = None,
    watched_metrics: Sequence[str] = WATCHED_METRICS,
    watch_patience: int = 2,
    watch_action: str = "log",
    feature_cache: str | Path | None = None,
    one_step_off_policy: bool = False,
    cuda_graphs: bool = False,
    streams_weights: bool = False,
    table_steps: int = 25,
    max_skipped_steps: int = 10,
    seed: int = 42,
    console: Console | None = None,
    training: Mapping[str, Any] | None = None,
) -> SCSTTrainer:
    """The trainer of the self-critical stage.

    Args:
        policy: with the adapter of the supervised stage, trainable.
        data: its split ``train_split`` is trained on.
        output_dir: of the run; nothing is written before it begins.
        rewards: names, functions (see CONTRIBUTING.md), entries of a recipe; or a mixture that is set up
            (:func:`scst.rl.reward_setup.set_up_rewards`).
        train_split: name of the split.
        num_samples: K, sampled captions per image beside the greedy one.
        temperature, top_k, top_p: of the sampling distribution.
        objective: baseline and weights.
        scoring: how captions are scored.
        prompts: instructions to train on, one drawn per image and epoch; none: that of the policy.
        caption_policy: human caption for the objective's cross-entropy term: ``first``, ``random``,
            ``longest`` or ``consensus``.
        validation: captions held-out images at every evaluation; needs ``eval_strategy`` in ``training``.
        watched_metrics: held-out metrics that must not fall while the reward rises; empty: no monitors.
        watch_patience: evaluations in a row before the alarm.
        watch_action: ``log``, or ``stop`` to end the run with the last adapter from before the alarm.
        feature_cache: folder that keeps image features of the frozen vision tower; None: they are computed.
        one_step_off_policy, cuda_graphs, streams_weights, max_skipped_steps: as of :class:`SCSTTrainer`.
        table_steps: print a table of captions and rewards every so many steps; 0: never.
        seed: of data order, caption choice and sampling.
        console: where progress is drawn.
        training: names of ``transformers.TrainingArguments``.
    """
    validation, objective = validation or ValidationSettings(), objective or Objective()
    console, settings = console or Console(), dict(training or {})
    if watched_metrics and evaluates(settings):  # compared with the policy that the stage began with
        settings.setdefault("eval_on_start", True)
    args = training_arguments(
        transformers.TrainingArguments, output_dir, settings, seed=seed, precision=policy.precision
    )
    rows = data.training_rows(train_split)
    if isinstance(rows, StreamedRows):
        check_streamed(
            settings,
            caption_policy=caption_policy,
            feature_cache=feature_cache,
            one_step_off_policy=one_step_off_policy,
        )
    else:
        data = data_for(caption_policy, data, train_split, seed)
        rows = data.splits[train_split]
    mixture = rewards if isinstance(rewards, RewardMixture) else set_up_rewards(RewardMixture(rewards), rows)
    watched = list(dict.fromkeys(["cider_d", *watched_metrics]))
    captioning = validation.build(policy, data, args, metrics=watched, reward=mixture.mean_reward)
    cache = None
    if feature_cache and not isinstance(rows, StreamedRows):
        cache = FeatureCache(feature_cache, policy.model, policy.encoder, rows["image_id"][:])
        rows = rows.cast_column("image", STORED_IMAGE)  # the collator decodes what the cache does not hold
    kept = cache.kept if cache else None
    stops = watch_action == "stop"
    trainer = SCSTTrainer(
        policy.model,
        args,
        train_dataset=rows,
        data_collator=SCSTCollator(policy.encoder, policy.prompt, prompts, seed, kept),
        processor=policy.encoder,
        sampling=Sampling(
            num_samples=num_samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=policy.max_new_tokens,
            min_new_tokens=policy.min_new_tokens,
        ),
        rewards=mixture,
        objective=objective,
        scoring=scoring,
        validation=captioning,
        choice=CaptionChoice(caption_policy, seed),
        feature_cache=cache,
        one_step_off_policy=one_step_off_policy,
        cuda_graphs=cuda_graphs,
        streams_weights=streams_weights,
        max_skipped_steps=max_skipped_steps,
        callbacks=[
            RichProgress(console, "SCST"),
            *early_stopping(validation, settings),
            *_monitors(watched_metrics, watch_patience, captioning, console, stops=stops),
        ],
    )
    trainer.add_callback(SampleTable(console, table_steps, lambda: trainer.last_step))
    return trainer


def _monitors(
    watched: Sequence[str],
    patience: int,
    validation: CaptionValidation | None,
    console: Console,
    *,
    stops: bool,
) -> list[Monitor]:
    if not watched:
        return []
    monitors: list[Monitor] = [CollapseMonitor(CollapseRule(), console, stop=stops)]
    if validation is not None:
        directions = {name: METRICS[name].direction for name in watched}
        monitors.append(HackingMonitor(HackingRule(directions, patience), validation, console, stop=stops))
    return monitors


def refine(
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
) -> SCSTTrainer:
    """Refine the policy's adapter by self-critical sequence training, and leave a complete output folder.

    Args:
        policy: with the adapter of the supervised stage.
        data: what :func:`scst.load_dataset` returns.
        output_dir: gets adapter, processor, checkpoints, ``trainer_state.json``, ``run.json`` and the
            document frequencies of the rewards.
        epochs: passes over the training images; or give ``max_steps``.
        resume, resume_changed, overwrite, save_minutes, console: as of :func:`scst.finetune`.
        settings: arguments of :func:`scst_trainer`, e.g. ``rewards=["cider_d", brevity]``, and of
            :class:`Objective`, e.g. ``baseline="leave_one_out"``; every other name is one of
            ``transformers.TrainingArguments``, e.g. ``learning_rate=5e-6``.

    Raises:
        RecipeError, Interrupted: as of :func:`scst.finetune`.
        RewardError: when a reward fails; a checkpoint of the last step was saved.
    """
    own, rest = split_settings(scst_trainer, settings)
    terms, training = split_settings(Objective, rest)
    if terms or own.get("objective") is None:
        own["objective"] = Objective(**terms)
    return train_policy(
        "scst",
        scst_trainer,
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
