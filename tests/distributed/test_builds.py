"""Extensions that DeepSpeed compiles: a process killed meanwhile must not stop every later run."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from scst.distributed.launching import clear_abandoned_builds

pytestmark = pytest.mark.slow

BUILDING = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(600)
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The mark of a build, and the process that holds it as PyTorch does."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    mark = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    mark.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", BUILDING, str(mark)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"building\n"
        yield mark, process
        process.kill()


def test_what_a_killed_build_leaves_is_removed(build):
    mark, process = build
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mark.exists(), "PyTorch would wait for this"
    clear_abandoned_builds()
    assert not mark.exists()


def test_a_build_that_goes_on_is_left_alone(build):
    mark, process = build
    clear_abandoned_builds()
    assert process.poll() is None
    assert mark.exists()


def test_nothing_was_ever_built(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "absent"))
    clear_abandoned_builds()
    assert not (tmp_path / "absent").exists()
