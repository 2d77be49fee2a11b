"""SPICE as far as it goes without the Stanford models: what is asked for, sent and read.

FAKE_JAVA stands for Java and the jar; its scores are made up.
Where the models are, the last test has real ones.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from pycocoevalcap.spice import spice as pycoco_spice

from rewards.errors import RewardError
from rewards.scorers import spice
from rewards.scorers.spice import find_spice, spice_scores
from rewards.scorers.tokenizer import tokenize

CAPTIONS = ["A café's roof .", "", "a\nroad ||| \U0001f642", "tree " * 400, "two planes"]
REFERENCES = [["a roof", "a café"], ["a river"], [" .", "a road"], ["a tree"] * 5, ["two planes"]]

# Notes what it is asked; (i + 1) / 8 is the F1 of image i; as the jar does, it gives null for kinds of tuples
# that no reference has. `answer` replaces what it writes, `sleep` and `fail` are what they say.
FAKE_JAVA = """#!{python} -SE
import json, sys, time
from pathlib import Path
folder = Path(__file__).parent
if sys.argv[1:] == ["-version"]:
    sys.exit((folder / "version").read_text())  # to standard error
(folder / "arguments").write_text(json.dumps(sys.argv[1:]))
given = json.loads(Path(sys.argv[4]).read_text())
(folder / "given").write_text(json.dumps(given))
if (folder / "sleep").exists():
    time.sleep(60)
if (folder / "fail").exists():
    sys.exit("Exception in thread main: no memory\\n\\tat somewhere")
none = dict(f=None, pr=None, re=None, tp=0)
scores = [dict(All=dict(f=(item["image_id"] + 1) / 8, pr=0.5, re=1), Color=none) for item in given]
answer = [dict(image_id=item["image_id"], scores=s) for item, s in zip(given, scores)]
text = (folder / "answer").read_text() if (folder / "answer").exists() else json.dumps(answer[::-1])
out = sys.argv[sys.argv.index("-out") + 1]
Path(out).write_text(text)
"""


def models_are_there() -> bool:
    try:
        return bool(find_spice())
    except RewardError:
        return False


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder like pycocoevalcap's with all files, which are empty; FAKE_JAVA of version 8 on PATH."""
    for name in (spice.JAR, *spice.MODELS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "java").write_text(FAKE_JAVA.format(python=sys.executable))
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "version").write_text('openjdk version "1.8.0_312"\nOpenJDK Runtime Environment')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_missing_files_are_named_with_their_place(fake):
    assert find_spice(fake) == fake
    assert find_spice(str(fake)) == fake
    (fake / spice.MODELS[1]).unlink()
    with pytest.raises(
        RewardError, match=r"expected lib/stanford-corenlp-3.6.0-models.jar in .*nothing is down"
    ):
        spice_scores(["a"], [["a"]], folder=fake)
    (fake / spice.JAR).unlink()
    (fake / spice.MODELS[0]).unlink()
    with pytest.raises(RewardError) as caught:
        find_spice(fake)
    assert "expected spice-1.0.jar, lib/stanford-corenlp-3.6.0.jar, lib/stanford-" in str(caught.value)
    assert "stanford-corenlp-full-2015-12-09.zip" in str(caught.value)
    assert str(fake / "lib") in str(caught.value)


def test_by_default_it_is_looked_for_in_pycocoevalcap():
    """Which has the jar, but perhaps not the models."""
    folder = Path(pycoco_spice.__file__).resolve().parent
    assert (folder / spice.JAR).is_file()
    if not (folder / spice.MODELS[0]).is_file():
        with pytest.raises(RewardError, match=str(folder)):
            find_spice()


@pytest.mark.parametrize("version", ["1.8.0_312", "9", "11.0.2", "14.0.1"])
def test_older_java_will_do(fake, version):
    (fake / "version").write_text(f'java version "{version}" 2020-04-14')
    assert find_spice(fake) == fake


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "15" 2020', "15"),
        ('openjdk version "21.0.8"', "21"),
        ("what?", "an unknown version"),
    ],
)
def test_newer_java_is_refused_before_it_parses_for_minutes(fake, said, version):
    (fake / "version").write_text(said)
    with pytest.raises(RewardError, match=f"expected Java 8 to 14, .* got {version} .*/java"):
        spice_scores(["a"], [["a"]], folder=fake)
    assert not (fake / "arguments").exists()


def test_asks_and_reads_as_pycocoevalcap_does(fake, monkeypatch):
    """Its own ``Spice`` and ours through the same Java: equal requests, equal scores; no file is left."""
    monkeypatch.setattr(pycoco_spice, "__file__", str(fake / "spice.py"))
    monkeypatch.setattr(pycoco_spice, "get_stanford_models", lambda: None)
    tokens = {i: [" ".join(tokenize(caption))] for i, caption in enumerate(CAPTIONS)}
    reference_tokens = {i: [" ".join(tokenize(text)) for text in group] for i, group in enumerate(REFERENCES)}
    value, theirs = pycoco_spice.Spice().compute_score(reference_tokens, tokens)
    their_arguments = json.loads((fake / "arguments").read_text())
    their_request = json.loads((fake / "given").read_text())

    before = sorted(fake.rglob("*"))
    scores = spice_scores(CAPTIONS, REFERENCES, folder=fake)
    assert sorted(fake.rglob("*")) == before
    assert scores == [score["All"]["f"] for score in theirs] == [0.125, 0.25, 0.375, 0.5, 0.625]
    assert value == pytest.approx(sum(scores) / len(scores))
    assert json.loads((fake / "given").read_text()) == their_request
    arguments = json.loads((fake / "arguments").read_text())
    assert not Path(arguments[3]).exists()
    cache = their_arguments.index("-cache")
    del their_arguments[cache : cache + 2]
    for changing in (3, 5):  # the paths of both files
        arguments[changing] = their_arguments[changing] = ""
    assert sorted(arguments) == sorted(their_arguments)
    assert arguments[4:5] == ["-out"]


def test_no_captions_and_wrong_arguments(fake):
    assert spice_scores([], [], folder=fake) == []
    with pytest.raises(RewardError, match="SPICE: caption 0 needs a list of one or more references"):
        spice_scores(["a"], [[]], folder=fake)
    with pytest.raises(RewardError, match="SPICE: 1 captions, but 2 references"):
        spice_scores(["a"], [["a"], ["b"]], folder=fake)


@pytest.mark.parametrize(
    "answer", ["", "{}", "[]", '[{"image_id": 0, "scores": {"All": {"f": null}}}]', "no"]
)
def test_an_answer_that_does_not_fit_is_shown(fake, answer):
    (fake / "answer").write_text(answer)
    with pytest.raises(RewardError, match="SPICE: expected scores of 1 captions") as caught:
        spice_scores(["a"], [["a"]], folder=fake)
    assert answer in str(caught.value)


def test_a_java_that_fails_or_hangs(fake):
    (fake / "fail").touch()
    with pytest.raises(RewardError, match=r"SPICE: Java exited with 1: Exception in thread main: no memory$"):
        spice_scores(["a"], [["a"]], folder=fake)
    (fake / "sleep").touch()
    with pytest.raises(RewardError, match="SPICE: no answer from Java after 1 s"):
        spice_scores(["a"], [["a"]], folder=fake, timeout_s=1)


def test_the_jar_takes_our_arguments_up_to_its_first_model(fake, monkeypatch):
    """The real jar and the real Java, with empty files for the Stanford models: it misses their classes."""
    monkeypatch.undo()  # the real Java
    real = Path(pycoco_spice.__file__).resolve().parent
    for jar in [real / spice.JAR, *(real / "lib").glob("*.jar")]:
        place = fake / jar.relative_to(real)
        if str(jar.relative_to(real)) not in spice.MODELS:
            place.unlink(missing_ok=True)
            place.symlink_to(jar)
    monkeypatch.setattr(spice, "NEWEST_JAVA", 99)
    with pytest.raises(
        RewardError, match=r"SPICE: Java exited with 1: .*NoClassDefFoundError: edu/stanford/nlp"
    ):
        spice_scores(["a road"], [["a road"]], folder=fake)


@pytest.mark.skipif(not models_are_there(), reason="the Stanford models of SPICE are not on this machine")
def test_equal_captions_score_one_and_unrelated_ones_zero():
    captions = ["two white planes near a building", "a river", ""]
    assert spice_scores(captions, [captions[:1], ["many green trees"], ["a road"]]) == [1.0, 0.0, 0.0]
