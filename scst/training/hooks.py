"""The class between this project's trainers and ``transformers.Trainer``: it forwards hooks to parts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from rewards.errors import RewardError
from scst.data.streamed_rows import StreamedRows
from scst.distributed.processes import first_message
from scst.distributed.sharded_loader import sharded_loader
from scst.errors import DataError
from scst.models.prompts import PromptEncoder
from scst.training.checkpointer import Checkpointer
from scst.training.library_checkpoints import LibraryCheckpoints
from scst.training.micro_batcher import MicroBatcher
from scst.training.monitors.monitor import Monitor
from scst.training.non_finite import Diverged, NonFiniteGuard, weights_are_finite
from scst.training.run_callbacks import Intervals, SetEpoch
from scst.training.run_folder import checkpoints
from scst.training.run_folder.changed_settings import write_settings
from scst.training.step_metrics import StepMetrics
from scst.training.stream_loader import POSITION, stream_loader
from scst.training.unreadable_data import GuardedBatches, UnreadableData, innermost_line
from scst.training.validation import CaptionValidation

logger = logging.getLogger(__name__)


class TrainerHooks(LibraryCheckpoints):
    """Forwards the hooks of ``transformers.Trainer`` to parts; for the supervised and the RL trainer alike.

    | hook of the library | part |
    |---|---|
    | ``training_step``, ``_get_grad_norm`` | :class:`NonFiniteGuard` |
    | ``_save_checkpoint``, ``_load_optimizer_and_scheduler``, ``get_batch_samples`` | :class:`Checkpointer` |
    | ``get_train_dataloader``, ``get_eval_dataloader`` | :func:`sharded_loader` |
    | ``evaluation_loop`` | :class:`CaptionValidation` |
    | ``log`` | :class:`StepMetrics`, :class:`NonFiniteGuard` |

    A trainer overrides :meth:`micro_step`, and never ``training_step``, which is final: no trainer can step
    around the guard.

    Args:
        model: a PEFT model with a trainable adapter.
        args: training arguments; those that this project decides are set here.
        train_dataset: rows with ``image``, ``references`` and ``image_id``, or a stream of them.
        data_collator: makes training batches; has ``epoch`` and ``for_evaluation()``.
        processor: the checkpoint's processor, or a prompt encoder of it.
        validation: caption metrics on held-out images, or None.
        max_skipped_steps: steps in a row without a finite loss and gradient that end the run.
        callbacks: of ``transformers``; a :class:`Monitor` among them is saved with every checkpoint.

    Attributes:
        metrics, guard, checkpointer: the parts.
        monitors: the monitors among the callbacks.
        settings: what every checkpoint says of the run
            (``scst.training.run_folder.changed_settings.settings_record``); nothing when empty.
    """

    # narrower than the library's: this project always has all of them
    model: torch.nn.Module
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any

    has_held_out_loss = False
    """Whether evaluations also have a loss on held-out data."""
    _batch_pass = 0

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Any,
        data_collator: Any,
        processor: Any,
        validation: CaptionValidation | None = None,
        max_skipped_steps: int = 10,
        callbacks: Sequence[TrainerCallback] = (),
        **library: Any,
    ):
        args.remove_unused_columns = False  # rewards and collators want all columns
        args.logging_nan_inf_filter = False  # it would log an infinite loss as 0.0
        self.stream = train_dataset if isinstance(train_dataset, StreamedRows) else None
        if self.stream is not None:
            args.ignore_data_skip = True  # a resumed run continues at the stream's position
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset if self.stream is None else self.stream.source,
            eval_dataset=validation.dataset if validation else None,
            data_collator=data_collator,
            processing_class=PromptEncoder.of(processor).processor,
            callbacks=[SetEpoch(data_collator), Intervals(), *callbacks],
            **library,
        )
        self.validation = validation
        self.settings: dict[str, Any] = {}
        self.metrics = StepMetrics(self.args.device)
        self.guard = NonFiniteGuard(max_skipped_steps)
        self.monitors = [callback for callback in callbacks if isinstance(callback, Monitor)]
        self.output_dir = Path(str(args.output_dir))
        self.checkpointer = Checkpointer(
            self.output_dir,
            process_index=args.process_index,
            limit=args.save_total_limit,
            can_fail=not self.has_collective_forward,
        )
        self.checkpointer.register("guard", self.guard)
        if self.stream is not None:
            self.checkpointer.register("stream", self.stream.position, rewinds=True)
        for monitor in self.monitors:
            self.checkpointer.register(monitor.name, monitor)

    @property
    def batchers(self) -> dict[str, MicroBatcher]:
        """What works on the images of a micro-batch in parts that fit into memory, by phase."""
        return {}

    @property
    def has_collective_forward(self) -> bool:
        """Whether processes wait for each other within forward and backward passes (DeepSpeed, FSDP)."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    # a run

    def write_tables(self, folder: Path) -> None:
        """Write what the stage has computed from the training data before its first step; here nothing."""

    def close(self) -> None:
        """End what the stage has started beside this process; here nothing."""

    # a step

    @final
    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, watched by the guard.

        Raises:
            RewardError: on all processes when a reward of any fails, after a checkpoint of the last step.
        """
        try:
            loss = self.micro_step(model, inputs, num_items_in_batch)
        except RewardError:
            self._save_last_step()
            raise
        self.guard.observe(loss)
        return loss

    def micro_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Add the gradient of one micro-batch; returns its loss, a scalar without gradient.

        Args:
            model: the model, wrapped for its devices.
            inputs: a batch of the collator.
            num_items: what the loss is averaged over in the whole optimizer step, over all micro-batches and
                processes.
        """
        return super().training_step(model, inputs, num_items)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The last hook before the update: here a step that is not finite loses its gradients.

        Raises:
            Diverged: after too many in a row; under DeepSpeed, which updates the weights within the backward
                pass, after the first, before a checkpoint could keep it.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm)
        norm = float(grad_norm if grad_norm is not None else 0.0)
        if not self.guard.step_is_finite(norm, self.args.max_grad_norm):
            must_end = self.guard.skip(model.parameters(), scaler=self.accelerator.scaler)
            if must_end or (self.is_deepspeed_enabled and not self.args.fp16):
                self._close_callbacks()
                raise self._divergence()
        return grad_norm

    def _divergence(self) -> Diverged:
        newest = checkpoints.newest_complete(self.output_dir)
        return Diverged(
            f"loss or gradient was NaN or infinite in {self.guard.skipped_in_a_row or 1} steps in a row, "
            f"up to step {self.state.global_step + 1}. Last good checkpoint: {newest or 'none yet'}. "
            "Go on from there with --resume true and a smaller learning_rate or max_grad_norm, or precision: "
            "bf16 or fp32"
        )

    def refuse_ruined_weights(self) -> None:
        """Let no adapter be written that holds NaN or infinity, wherever they came from. Collective.

        Raises:
            Diverged: on all processes, naming the last good checkpoint.
        """
        if weights_are_finite(self.model):
            return
        self._close_callbacks()
        newest = checkpoints.newest_complete(self.output_dir)
        raise Diverged(
            f"the adapter holds NaN or infinity after step {self.state.global_step} and was not written. "
            f"Last good checkpoint: {newest or 'none'}. Go on from there with --resume true and a smaller "
            "learning_rate or max_grad_norm, or precision: bf16 or fp32"
        )

    # the log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the statistics since the last log; ``loss`` is the mean over steps with a finite loss."""
        if "loss" in logs:
            logs = {**logs, **self.metrics.flush(), **self.guard.flush()}
        if "train_loss" in logs:  # the library's holds the losses of skipped steps
            logs = {**logs, "train_loss": self.guard.mean_loss()}
        # every entry of the log stays in memory: let all of them have the same names, and not their own
        super().log({sys.intern(name): value for name, value in logs.items()}, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The end of an optimizer step: remember what a checkpoint written here would hold."""
        self.metrics.end_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.checkpointer.end_step()
        self.metrics.resume_clock()

    # checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any = None) -> None:
        """None in the middle of skipped steps: the last good one is from before them.

        Raises:
            Diverged: on all processes when the adapter holds NaN or infinity.
        """
        if self.guard.skipped_in_a_row:
            logger.warning("no checkpoint at step %d: it was skipped", self.state.global_step)
            return
        self.refuse_ruined_weights()
        self.checkpointer.save(self.state.global_step, self._write_checkpoint, **self._checkpoint_settings())

    def _checkpoint_settings(self) -> dict[str, Any]:
        # ended by its own rules: early stopping, an alarm; not by a signal, nor by max_steps, which may be
        # raised
        ended = self.control.should_training_stop and self.state.global_step < self.state.max_steps
        return {"ended": ended, "protected": {self.state.best_global_step or 0}}

    def _write_checkpoint(self, folder: Path) -> None:
        """The library's own files, in ``folder``."""
        self.write_library_files(folder, self.checkpointer.folder)
        if self.args.should_save and self.settings:
            write_settings(folder, self.settings)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.checkpointer.restore(checkpoint)

    def _save_last_step(self) -> None:
        """A checkpoint of the last completed optimizer step, because this one cannot be completed."""
        settings = self._checkpoint_settings()
        if weights_are_finite(self.model) and self.checkpointer.save_last_step(
            self.state.global_step, self._write_checkpoint, **settings
        ):
            self.callback_handler.on_save(self.args, self.state, self.control)
        self._close_callbacks()

    def _close_callbacks(self) -> None:
        """Progress bars and trackers close before an error is printed."""
        self.callback_handler.on_train_end(self.args, self.state, self.control)

    # data

    def get_train_dataloader(self) -> DataLoader:
        """This process's shard of every training batch; N processes share the batches that one would make."""
        if self.stream is not None:
            return stream_loader(
                self.stream,
                self.data_collator,
                self.accelerator,
                batch_size=self._train_batch_size,
                drop_last=self.args.dataloader_drop_last,
                **self._loading(),
            )
        sampler = self._get_train_sampler()
        if self.accelerator.num_processes == 1 or not isinstance(sampler, RandomSampler | SequentialSampler):
            return super().get_train_dataloader()
        return sharded_loader(
            self.train_dataset,
            sampler,
            self.data_collator,
            self.accelerator,
            batch_size=self._train_batch_size,
            drop_last=self.args.dataloader_drop_last,
            **self._loading(),
        )

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> DataLoader:
        """This process's shard of every evaluation batch; each image is there once."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return sharded_loader(
            dataset,
            SequentialSampler(dataset),
            self.data_collator.for_evaluation(),
            self.accelerator,
            batch_size=self.args.eval_batch_size,
            drop_last=False,
            **self._loading(),
        )

    def _loading(self) -> dict[str, Any]:
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The batches of a step.

        Raises:
            DataError: on all processes when a file cannot be read any more, after a checkpoint.
        """
        batches, fault = [], None
        try:
            for _ in range(num_batches):
                batches.append(next(epoch_iterator))
        except StopIteration:
            pass
        except OSError as error:
            fault = innermost_line(error)
        except DataError as error:  # of a stream, whose rows are checked as they come
            fault = str(error)
        fault = first_message(fault)
        if fault:
            self._save_last_step()
            raise DataError(
                f"the data of step {self.state.global_step + 1} cannot be read any more: {fault}. Put the "
                f"dataset back and go on with --resume true (step {self.state.global_step} is saved)"
            )
        if self.stream is not None and batches:
            positions = [batch.pop(POSITION) for batch in batches]
            self._batch_pass = positions[-1].pop("batch_pass")
            self.stream.position.load_state_dict(positions[-1])
        return super().get_batch_samples(iter(batches), num_batches, device)

    @property
    def data_epoch(self) -> int:
        """The pass over the training data that this step belongs to, from 0."""
        return int(self.state.epoch or 0) if self.stream is None else self._batch_pass

    # evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, at the end of a step.

        Raises:
            DataError: on all processes when an image cannot be read any more, after a checkpoint of the step.
            RewardError: when a reward fails, likewise.
        """
        try:
            return super().evaluate(*args, **kwargs)
        except RewardError:
            self._save_this_step()
            raise
        except UnreadableData as fault:
            self._save_this_step()
            step = self.state.global_step
            raise DataError(
                f"the held-out images of the evaluation at step {step} cannot be read any more: {fault}. Put "
                f"the dataset back and go on with --resume true (step {step} is saved, its evaluation is not "
                "repeated)"
            ) from fault

    def _save_this_step(self) -> None:
        """A checkpoint of the step that is complete, because its evaluation cannot be made."""
        step = self.state.global_step
        if step and not self.checkpointer.has(step):
            self._save_checkpoint(self.model)
        self._close_callbacks()

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The held-out loss, where the stage has one, and caption metrics.

        They are computed here so that the log, the choice of the best checkpoint (``metric_for_best_model:
        cider_d``) and early stopping see them. ``eval_memory_gb`` is their peak memory.

        Raises:
            UnreadableData: on all processes when one of them cannot read an image any more.
        """
        if self.has_held_out_loss:
            batches: Any = GuardedBatches(dataloader, lockstep=self.has_collective_forward)
            output = super().evaluation_loop(
                batches, *args, **kwargs | {"metric_key_prefix": metric_key_prefix}
            )
            batches.check()
        else:
            output = EvalLoopOutput(np.empty(0), None, {}, len(self.eval_dataset))
        if self.validation is not None:
            with self.accelerator.autocast():
                metrics = self.validation.run(self.accelerator.unwrap_model(self.model))
            self.validation.keep_within(max(self.metrics.phases.peak_gb.values(), default=0.0))
            prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            output = output._replace(metrics={**(output.metrics or {}), **prefixed})
        return output
