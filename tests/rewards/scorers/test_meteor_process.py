"""The life of METEOR's process: it dies, hangs, shouts or is left behind."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys

import pytest

from rewards.errors import RewardError
from rewards.scorers.meteor import CHUNK, MeteorService
from tests.support.fake_java import FakeJava, fake_score
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, is_alive, wait_for_the_end_of, wait_until

pytestmark = pytest.mark.slow


def test_a_bounded_number_of_lines_waits_for_an_answer(fake):
    """And all are answered, in order; equal ones are asked once."""
    captions = ["word " * i for i in range(5 * CHUNK + 3)] + ["word"] * 50
    references = [["a road", "b"]] * len(captions)
    fake.write("sleep", "0.02")
    with MeteorService(fake.path) as there:
        scores = there.scores(captions, references)
    assert scores == [fake_score(caption, ["a road", "b"]) for caption in captions]
    assert int((fake.folder / "most").read_text()) == CHUNK


def test_the_smallest_pipes_do_not_lock(fake):
    """4 KiB each way, long lines and the widest answers there can be: 400.0 in all places."""
    fake.write("wide")
    with MeteorService(fake.path, timeout_s=PATIENCE_S) as there:
        for stream in (there._java._process.stdin, there._java._process.stdout):
            assert fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, 4096) == 4096
        captions = [f"{i} " * 400 for i in range(2 * CHUNK)]
        assert there.scores(captions, [["tree " * 400]] * len(captions)) == [8.0] * len(captions)


def test_a_java_that_dies_now_and_then_is_replaced(fake):
    """It ends after 20 lines: in the middle of the second chunk, which is sent again."""
    fake.write("exit_after", "20")
    captions = ["word " * i for i in range(3 * CHUNK)]
    with MeteorService(fake.path) as there:
        assert there.scores(captions, [["a"]] * len(captions)) == [fake_score(c, ["a"]) for c in captions]
    assert len(fake.starts) == 3
    assert not any(map(is_alive, fake.starts))


def test_a_java_that_always_dies_is_given_up_and_tried_again_later(fake):
    fake.write("exit_after", "3")
    captions = list("abcdefgh")
    with MeteorService(fake.path) as there:
        with pytest.raises(
            RewardError, match=r"died 3 times in a row \(exit code 1. It said: that is enough\)"
        ):
            there.scores(captions, [["a"]] * 8)
        assert len(fake.starts) == 3
        fake.write("exit_after", "100")
        assert there.scores(captions, [["a"]] * 8) == [0.02] * 8
    assert len(fake.starts) == 4


def test_a_java_that_dies_at_once(fake):
    fake.write("java", "#!/bin/sh\necho no memory for the heap >&2\nexit 3\n")
    with pytest.raises(RewardError, match=r"exit code 3. It said: no memory for the heap\). It needs 0.7 GB"):
        MeteorService(fake.path).scores(["a"], [["a"]])


def test_a_java_that_hangs_is_ended(fake):
    """Also when it is a shell script whose child holds the pipe."""
    fake.write("java", '#!/bin/sh\necho I hang >&2\necho $$ > "$(dirname "$0")/starts"\nsleep 100000\n')
    with MeteorService(fake.path, timeout_s=1) as there:
        wait_until(lambda: fake.starts)
        with pytest.raises(RewardError, match=r"no answer from Java within 1 s. It said: I hang"):
            there.scores(["a"], [["a"]])
        assert not is_alive(fake.starts[0])
        FakeJava(fake.folder)
        there.timeout_s = PATIENCE_S
        assert there.scores(["a"], [["a"]]) == [0.02]


def test_a_java_that_does_not_read_is_ended(fake):
    """More than a pipe holds is written to it."""
    fake.write("java", "#!/bin/sh\nsleep 100000\n")
    with (
        MeteorService(fake.path, timeout_s=1) as there,
        pytest.raises(RewardError, match="no answer from Java within 1 s"),
    ):
        there.scores(["tree " * 100_000], [["a"]])


def test_a_java_that_shouts_or_talks_nonsense(fake):
    fake.write("stderr", "x" * 1_000_000)
    with MeteorService(fake.path, timeout_s=PATIENCE_S) as there:
        assert there.scores(["a"], [["a"]]) == [0.02]
    fake.write("junk", "Picked up options\n")
    with MeteorService(fake.path) as there:
        with pytest.raises(RewardError, match=r"expected 23 numbers .* got 'Picked up options'; does "):
            there.scores(["a"], [["a"]])
        fake.write("junk")
        assert there.scores(["b b"], [["a"]]) == [0.03], "its late answers are not taken for ours"


def test_wrong_arguments(fake):
    with pytest.raises(RewardError, match="'/no/java' cannot be started"):
        MeteorService("/no/java")
    with MeteorService(fake.path) as there:
        with pytest.raises(RewardError, match="METEOR: caption 0 needs a list of one or more references"):
            there.submit(["a"], [[]])
        with pytest.raises(RewardError, match="METEOR: 2 captions, but 1 references"):
            there.scores(["a", "b"], [["a"]])


def test_close(fake):
    """At work, twice, and before a further request; what waits is told."""
    fake.write("held")
    there = MeteorService(fake.path)
    waiting = [there.submit(["a"], [["a"]]) for _ in range(2)]
    wait_until(lambda: fake.was_asked)
    there.close()
    there.close()
    for future in waiting:
        with pytest.raises(RewardError, match="closed"):
            future.result(PATIENCE_S)
    with pytest.raises(RewardError, match="METEOR: the service is closed"):
        there.scores(["a"], [["a"]])
    assert len(fake.starts) <= 1
    assert not any(map(is_alive, fake.starts))


def test_it_ends_with_the_last_reference(fake):
    there = MeteorService(fake.path)
    there.scores(["a"], [["a"]])
    (pid,) = fake.starts
    assert is_alive(pid)
    del there
    gc.collect()
    wait_for_the_end_of([pid])


PARENT = """
import os, signal, sys, threading
from rewards.scorers.meteor import MeteorService
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background jobs without it
service = MeteorService({java!r})
how = {how!r}
print(*service.scores(["a b"], [["a"]]), file=sys.stderr)
print(service._java.pid, flush=True)
if how == "at work":
    service.submit([f"a {{i}}" for i in range(100_000)], [["a"]] * 100_000)
elif how == "exception":
    raise RuntimeError
elif how == "fork":
    if os.fork() == 0:
        try:
            service.scores(["a"], [["a"]])
        except Exception as error:
            print(error, flush=True)
        sys.exit()
    os.wait()
    print(*service.scores(["a b"], [["a"]]), flush=True)
elif how == "sleep":
    threading.Event().wait()
"""


@pytest.fixture
def parent(tmp_path):
    """Starts a Python with a service in it; gives it and the process id of Java."""
    running = []

    def start(how: str, path: str) -> tuple[subprocess.Popen, int]:
        script = tmp_path / "parent.py"
        script.write_text(PARENT.format(java=path, how=how))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        running.append(subprocess.Popen([sys.executable, str(script)], env=environment, **settings))
        return running[-1], int(running[-1].stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("how", ["normal", "exception", "at work"])
def test_no_java_outlives_python(fake, parent, how):
    process, pid = parent(how, fake.path)
    assert process.wait(PATIENCE_S) == (1 if how == "exception" else 0)
    wait_for_the_end_of([pid])
    assert fake.starts == [pid], "and none is started on the way out"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_no_java_outlives_a_killed_python(fake, parent, how):
    process, pid = parent("sleep", fake.path)
    assert is_alive(pid)
    process.send_signal(how)
    process.wait(PATIENCE_S)
    wait_for_the_end_of([pid])


def test_a_fork_neither_uses_nor_ends_it(fake, parent):
    process, pid = parent("fork", fake.path)
    said = process.stdout.read()  # communicate() would miss what came with the line that was read before
    assert said.splitlines() == ["METEOR: a service cannot be used in a fork: build one there", "0.03"]
    assert fake.starts == [pid]
