"""Builders of the self-critical stage: rewards, sampling, objective, trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import build_rewards
from rewards.scorers.document_frequencies import FILE_NAME, DocumentFrequencies
from scst.adapters.lora import check_adapter_exists
from scst.config import build
from scst.config.devices import check_adapter_on_devices
from scst.data.loading import LoadedData
from scst.data.supervision import CaptionChoice
from scst.errors import RecipeError
from scst.metrics.bootstrap import check_metrics
from scst.metrics.suite import METRICS
from scst.rl.progress import RichProgress, SampleTable, SaveRewardState
from scst.rl.trainer import Objective, SCSTTrainer
from scst.rollout.feature_cache import FeatureCache
from scst.training.checkpoints import checkpoint_to_resume
from scst.training.collapse_monitor import CollapseAlarm, CollapseWatch
from scst.training.hacking_monitor import HackingAlarm, HackingWatch
from scst.training.validation import CaptionValidation
from scst.types import Sampling


def check_settings(recipe: Any) -> None:
    """The checks that need neither data nor model.

    Raises:
        RecipeError: on settings that cannot work together.
    """
    if recipe.adapter is None:
        raise RecipeError("adapter: missing; give the output folder of launch/sft.py (--adapter DIR)")
    if recipe.baseline != "greedy" and recipe.num_samples < 2:
        raise RecipeError(
            f"num_samples: the {recipe.baseline} baseline needs at least 2, got {recipe.num_samples}"
        )
    check_metrics(recipe.watched_metrics or ["cider_d"], columns=("images", "ended_by_eos"))
    aimless = [name for name in recipe.watched_metrics if METRICS[name].direction == 0]
    if aimless:
        raise RecipeError(f"watched_metrics: of {', '.join(aimless)} neither more nor less is better")
    if recipe.feature_cache is True:
        raise RecipeError("feature_cache: expected off or a folder, got true")
    least = {"watch_patience": 1, "scoring_batch_size": 0, "head_chunk": 0, "max_importance_ratio": 1}
    for name, limit in least.items():
        if (value := getattr(recipe, name)) < limit:
            raise RecipeError(f"{name}: expected {limit} or more, got {value}")
    if not recipe.prompt_gradient and check_adapter_exists(recipe.adapter) == "prompt_tuning":
        raise RecipeError(
            "prompt_gradient: all of the gradient of prompt tuning flows through the prompt; use true"
        )
    if recipe.cuda_graphs and not torch.cuda.is_available():
        raise RecipeError("cuda_graphs: there is no CUDA device here; leave it out")
    sampling_of(recipe)


def sampling_of(recipe: Any) -> Sampling:
    """The sampling distribution of a recipe.

    Raises:
        RecipeError: on a value outside its range.
    """
    try:
        return Sampling(
            num_samples=recipe.num_samples,
            temperature=recipe.temperature,
            top_k=recipe.top_k,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
            min_new_tokens=recipe.min_new_tokens,
        )
    except ValueError as error:
        raise RecipeError(str(error)) from error


def build_reward(recipe: Any) -> RewardMixture:
    """The reward mixture, not yet set up.

    Raises:
        RecipeError: naming the reward that cannot be built.
    """
    try:
        mixture = RewardMixture(build_rewards(recipe.rewards))
    except RewardError as error:
        raise RecipeError(f"rewards: {error}") from error
    for reward in mixture.rewards:
        scorer = getattr(reward.function, "scorer", None)  # there already when the recipe names a table
        table = getattr(scorer, "frequencies", None)
        if table is not None and table.split != recipe.train_split:
            raise RecipeError(
                f"rewards: the document frequencies of {reward.name!r} are of split {table.split!r}, but "
                f"the run trains on {recipe.train_split!r}: count it with launch/prepare.py, or give none"
            )
    return mixture


def setup_reward(reward: RewardMixture, train: Any, recipe: Any) -> None:
    """Give the rewards the training references, and write their state beside the run.

    A resumed run must find the document frequencies it began with.

    Raises:
        RecipeError: when they differ from those saved with the checkpoint.
    """
    reward.setup(train.select_columns(["references", "image_id"]))
    checkpoint = checkpoint_to_resume(recipe.output_dir, recipe.resume)
    if checkpoint is not None:
        _check_frequencies(reward, Path(checkpoint))
        _restore(reward, checkpoint)
    if PartialState().is_main_process:
        reward.save(recipe.output_dir)


def _restore(reward: RewardMixture, checkpoint: str) -> None:
    try:
        reward.load(checkpoint)
    except RewardError as error:
        raise RecipeError(f"resume: {error}") from error


def _check_frequencies(reward: RewardMixture, checkpoint: Path) -> None:
    """By what the rewards would save: one that runs in worker processes has its table there."""
    with tempfile.TemporaryDirectory() as folder:
        reward.save(folder)
        for name, own in reward.state_folders(folder).items():
            tables = [path / FILE_NAME for path in (checkpoint / own.relative_to(folder), own)]
            if not all(path.is_file() for path in tables):
                continue
            before, now = (DocumentFrequencies.load(path).fingerprint for path in tables)
            if before != now:
                raise RecipeError(
                    f"resume: the document frequencies of {name!r} ({now[:6]}) are not those of the "
                    f"checkpoint ({before[:6]}): dataset, split or end-of-sequence policy have changed"
                )


def build_trainer(
    recipe: Any,
    args: Any,
    model: Any,
    processor: Any,
    collator: Any,
    reward: RewardMixture,
    data: LoadedData,
    console: Console,
) -> SCSTTrainer:
    """The trainer of the self-critical stage, with its progress, tables and saved reward state."""
    check_adapter_on_devices(model)
    validation = _build_validation(recipe, args, processor, reward, data)
    trainer = SCSTTrainer(
        model,
        args,
        train_dataset=data.splits[recipe.train_split],
        data_collator=collator,
        processor=processor,
        sampling=sampling_of(recipe),
        reward=reward,
        objective=Objective(
            baseline=recipe.baseline,
            kl_weight=recipe.kl_weight,
            entropy_weight=recipe.entropy_weight,
            cross_entropy_weight=recipe.cross_entropy_weight,
            prompt_gradient=recipe.prompt_gradient,
            layout=recipe.scoring,
            merge_captions=recipe.merge_captions,
            skip_zero_advantages=recipe.skip_zero_advantages,
            head_chunk=recipe.head_chunk,
            batch_size=recipe.scoring_batch_size,
            max_importance_ratio=recipe.max_importance_ratio,
        ),
        validation=validation,
        choice=CaptionChoice(recipe.caption_policy, recipe.seed),
        late_rollouts=recipe.one_step_off_policy,
        cuda_graphs=recipe.cuda_graphs,
        streamed_weights=recipe.rollout_weights == "streamed",
        feature_cache=build_feature_cache(recipe, model, processor, data),
        callbacks=[RichProgress(console, "SCST"), SaveRewardState(reward), *build.stopping_callbacks(recipe)],
    )
    trainer.add_callback(SampleTable(console, recipe.table_steps, lambda: trainer.last_step))
    if validation and recipe.watched_metrics:
        trainer.add_callback(_build_alarm(recipe, validation, console))
    if recipe.watched_metrics:
        trainer.add_callback(_build_collapse_alarm(recipe, console))
    return trainer


def build_feature_cache(recipe: Any, model: Any, processor: Any, data: LoadedData) -> FeatureCache | None:
    """The cache of the training images' features, where the recipe names a folder for it.

    Raises:
        RecipeError: when the adapter trains the vision tower or the projector.
    """
    if recipe.feature_cache in (False, "off"):
        return None
    image_ids = data.splits[recipe.train_split]["image_id"]
    return FeatureCache(recipe.feature_cache, model, processor, image_ids)


def _build_validation(
    recipe: Any, args: Any, processor: Any, reward: RewardMixture, data: LoadedData
) -> CaptionValidation | None:
    metrics = list(dict.fromkeys(["cider_d", *recipe.watched_metrics]))
    return build.build_validation(recipe, data, processor, args, metrics=metrics, reward=reward.mean_reward)


def _build_alarm(recipe: Any, validation: CaptionValidation, console: Console) -> HackingAlarm:
    watch = HackingWatch(
        {name: METRICS[name].direction for name in recipe.watched_metrics}, recipe.watch_patience
    )
    return HackingAlarm(
        watch,
        validation,
        console,
        stop=recipe.watch_action == "stop",
        resumed_from=checkpoint_to_resume(recipe.output_dir, recipe.resume),
    )


def _build_collapse_alarm(recipe: Any, console: Console) -> CollapseAlarm:
    return CollapseAlarm(
        CollapseWatch(),
        console,
        stop=recipe.watch_action == "stop",
        resumed_from=checkpoint_to_resume(recipe.output_dir, recipe.resume),
    )


def training_arguments(recipe: Any) -> Any:
    """The watch compares with the policy that SCST began with: evaluate before the first step."""
    watches = recipe.watched_metrics and recipe.training.get("eval_strategy", "no") != "no"
    stage = {"eval_on_start": recipe.training.get("eval_on_start", True)} if watches else {}
    return build.build_training_arguments(recipe, **stage)
