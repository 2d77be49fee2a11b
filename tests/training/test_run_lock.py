"""One run per folder: processes that start together, dead holders, numbers that were given out again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from scst.errors import RecipeError
from scst.training.run_folder import run_lock as lock_module
from scst.training.run_folder.run_lock import LOCK_NAME, Holder, run_lock
from tests.support.paths import ROOT

CONTENDER = """
import sys, time
from pathlib import Path
from scst.errors import RecipeError
from scst.training.run_folder.run_lock import run_lock
assert "torch" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.readline()
except RecipeError as error:
    print(error, flush=True)
"""


def contender(folder):
    return subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_of_processes_that_start_together_exactly_one_wins(tmp_path):
    """Round after round, while winners release or are killed; the losers name the winner."""
    for how_it_ends in ("release", "kill", "release"):
        processes = [contender(tmp_path) for _ in range(6)]
        assert [p.stdout.readline() for p in processes] == ["ready\n"] * 6
        for process in processes:
            go(process)
        answers = {p.pid: p.stdout.readline() for p in processes}
        (winner,) = [p for p in processes if answers[p.pid] == "won\n"]
        for pid in answers.keys() - {winner.pid}:
            known = f"process {winner.pid} on " in answers[pid] or "has just begun" in answers[pid]
            assert "another run is at work" in answers[pid], answers[pid]
            assert known, answers[pid]
        with pytest.raises(RecipeError, match=f"process {winner.pid} on .*, since 20"), run_lock(tmp_path):
            pytest.fail("two runs in one folder")
        winner.kill() if how_it_ends == "kill" else go(winner)
        for process in processes:
            process.communicate()
        said: list[str] = []
        with run_lock(tmp_path, said.append):
            pass
        assert len(said) == (how_it_ends == "kill")
        assert all(f"process {winner.pid} on" in line and "without a word" in line for line in said)
        assert not (tmp_path / LOCK_NAME).exists()


def leave_lock(folder, **changes):
    """A lock file as a holder would leave it that was killed."""
    holder = replace(Holder.this_process(), **changes)
    (folder / LOCK_NAME).write_text(json.dumps(asdict(holder)))
    return holder


def test_one_process_holds_a_folder_once(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(RecipeError, match="this very process"), run_lock(tmp_path):
            pytest.fail("twice")
        assert (tmp_path / LOCK_NAME).is_file(), "the refused one must not take the lock away"
    with run_lock(tmp_path):
        pass


def test_number_of_a_dead_process_given_out_again(tmp_path):
    """The parent lives, but it did not begin when the holder did."""
    said: list[str] = []
    holder = leave_lock(tmp_path, process=os.getppid(), process_started=1.0)
    with run_lock(tmp_path, said.append):
        pass
    assert said == [f"the run of {holder} ended without a word; its lock is taken over"]


def test_living_holder_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    import psutil

    def no_locks(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_module.fcntl, "lockf", no_locks)
    parent = psutil.Process(os.getppid())
    leave_lock(tmp_path, process=parent.pid, process_started=parent.create_time())
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(RecipeError, match=f"process {parent.pid} on"), run_lock(tmp_path):
            pytest.fail("two runs in one folder")


@pytest.mark.parametrize("lives", [True, False])
def test_holder_on_another_host(tmp_path, monkeypatch, lives):
    """It is alive while it touches the file."""
    monkeypatch.setattr(lock_module, "SILENCE_S", 0.2)
    leave_lock(tmp_path, host="elsewhere")
    if lives:
        sleep = lock_module.time.sleep
        monkeypatch.setattr(lock_module.time, "sleep", lambda s: (sleep(s), os.utime(tmp_path / LOCK_NAME)))
        with pytest.raises(RecipeError, match="on elsewhere"), run_lock(tmp_path):
            pytest.fail("two runs in one folder")
    else:
        with run_lock(tmp_path):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 1}', "\0" * 100])
def test_lock_that_says_nothing(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()


def test_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "SIGN_OF_LIFE_S", 0.01)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK_NAME, (0, 0))
        for _ in range(200):
            if (tmp_path / LOCK_NAME).stat().st_mtime > 0:
                return
            lock_module.time.sleep(0.01)
    pytest.fail("no sign of life")
