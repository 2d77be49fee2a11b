"""A command that is told to stop: by its launcher's end, and by Ctrl-C before there is anything to save."""

from __future__ import annotations

import os
import signal

import pytest

from scst.cli.launcher import Launch, start_processes
from scst.config import build
from scst.config.packaged import find_accelerate_config
from scst.distributed.parent_process import is_launcher
from scst.training.signals import StopSignals
from tests.chaos.launchers import STEP, hit, recipe_of
from tests.support.commands import call
from tests.support.worlds import tiny_run, write_recipe


def keys_of(world, tmp_path, **keys):
    return tiny_run(world, output_dir=str(tmp_path / "out"), max_steps=8) | keys


def test_sigterm_to_accelerate_launch_reaches_the_training(world, sft_adapter, tmp_path):
    """accelerate waits for a single process and does not pass the signal on: the kernel does."""
    keys = keys_of(world, tmp_path, adapter=str(sft_adapter), num_samples=2, table_steps=0)
    recipe = recipe_of(keys, tmp_path / "recipe.yaml")
    ended = hit("accelerate launch", signal.SIGTERM, recipe, tmp_path / "out", tmp_path / "notes")
    assert ended.code == -signal.SIGTERM
    assert ended.newest == STEP + 1
    said = " ".join(ended.text.split())
    assert f"SIGTERM: stopped at step {STEP + 1} of 8" in said
    assert "--resume true" in said
    assert "Traceback" not in said


def test_ctrl_c_while_data_loads_is_one_sentence(world, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", **keys_of(world, tmp_path))
    monkeypatch.setattr(build, "load_data", lambda *args: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = call("sft", "--config", str(recipe))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert capsys.readouterr().err.strip() == "SIGINT: stopped before there was anything to save"


def test_sighup_is_a_signal_to_stop_but_not_under_nohup():
    with StopSignals().installed() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().installed() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/venv/bin/python /venv/bin/accelerate launch --cpu launch/sft.py", True),
        ("/venv/bin/python -m accelerate.commands.launch launch/sft.py", True),
        ("/venv/bin/python /venv/bin/accelerate-launch launch/sft.py", True),
        ("python -u -m torch.distributed.run --standalone launch/sft.py", True),
        ("/venv/bin/torchrun launch/sft.py", True),
        ("-bash", False),
        ("bash -c accelerate-like launch/sft.py", False),
        ("/usr/sbin/sshd -D", False),
        ("", False),
    ],
)
def test_only_a_launcher_takes_its_training_along(command, expected):
    """A shell that ends must not: training goes on under nohup, in tmux and with disown."""
    assert is_launcher(command.split(" ")) is expected


@pytest.mark.parametrize("nohup", [True, False])
def test_several_processes_outlive_the_terminal_under_nohup(monkeypatch, nohup):
    """torchrun handles SIGHUP unless it is told not to, whatever was ignored before."""
    told = []
    monkeypatch.setattr("torch.distributed.run.run", lambda args: told.append(args.signals_to_handle))
    monkeypatch.setattr("accelerate.commands.launch.simple_launcher", None)  # it is replaced: put it back
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        assert start_processes(Launch(find_accelerate_config("cpu-2"), 2), "nothing", []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("SIGHUP" in told[0]) is not nohup
