"""Signals and the clock: when a checkpoint is due, and what its epoch's end has to do with it."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from scst.training.signals import SaveAndStop, StopSignals


def state(step, epoch):
    return SimpleNamespace(global_step=step, epoch=epoch, is_world_process_zero=True)


def test_the_first_signal_is_remembered_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals().installed() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_by_the_clock():
    """Every two minutes: the count begins with every checkpoint, whoever asked for it."""
    now = [0.0]
    callback, control = SaveAndStop(StopSignals(), 2.0, lambda: now[0]), TrainerControl()
    due = []
    for minute in range(1, 8):
        now[0], control.should_save = minute * 60.0, minute == 3  # save_steps has one at minute 3
        callback.on_step_end(None, state(minute, 0.1 * minute), control)
        if control.should_save:
            due.append(minute)
            callback.on_save(None, state(minute, 0.1 * minute), control)
    assert due == [2, 3, 5, 7]
    assert not control.should_training_stop


def test_at_the_end_of_an_epoch_the_clock_waits_for_the_evaluation():
    callback, control = SaveAndStop(StopSignals(), 1.0, lambda: 61.0), TrainerControl()
    callback._saved_at = 0.0
    callback.on_step_end(None, state(3, 1.0), control)
    assert not control.should_save
    callback.on_epoch_end(None, state(3, 1.0), control)
    assert control.should_save


@pytest.mark.parametrize("epoch", [0.5, 1.0], ids=["within an epoch", "at its end"])
def test_a_signal_saves_once_and_stops_after_it(epoch):
    """Training stops after the checkpoint and not before: else it would say that training had ended."""
    signals = StopSignals()
    callback, control = SaveAndStop(signals), TrainerControl()
    signals.received = signal.SIGTERM
    callback.on_step_end(None, state(3, epoch), control)
    assert (control.should_epoch_stop, control.should_training_stop) == (True, False)
    control.should_evaluate = True  # as eval_strategy: epoch asks for
    callback.on_epoch_end(None, state(3, epoch), control)
    assert control.should_evaluate is (epoch == 1.0), "in the middle of an epoch it would be one too many"
    assert (control.should_save, control.should_training_stop) == (True, False)
    callback.on_save(None, state(3, epoch), control)
    assert control.should_training_stop
    assert callback.interrupted_by == signal.SIGTERM


def test_training_that_ends_by_itself_is_not_interrupted():
    signals = StopSignals()
    callback, control = SaveAndStop(signals), TrainerControl()
    signals.received, control.should_training_stop = signal.SIGTERM, True  # the last step
    callback.on_step_end(None, state(8, 2.0), control)
    callback.on_epoch_end(None, state(8, 2.0), control)
    assert callback.interrupted_by is None
