"""Java itself: finding it, and pycocoevalcap's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from rewards.errors import RewardError
from rewards.meteor import MeteorReward
from rewards.scorers import java
from rewards.scorers.java import find_java, run_java
from rewards.scorers.meteor import meteor_scores
from tests.support.golden import CAPTIONS
from tests.support.java_ptb import ptb_tokenize


def test_without_java_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(java.shutil, "which", lambda _: None)
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda _: None)
    for needy in (find_java, MeteorReward, lambda: meteor_scores(["a"], [["a"]])):
        with pytest.raises(RewardError, match=r"pip install scst\[eval\]"):
            needy()


@pytest.mark.slow
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


def test_a_program_that_hangs_or_fails(fake):
    fake.write("java", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(RewardError, match="SPICE: no answer from Java after 1 s"):
        run_java("SPICE", [fake.path], Path.cwd(), 1)
    fake.write("java", "#!/bin/sh\nprintf 'Exception: bad\\n\\tat somewhere\\n' >&2\nexit 1\n")
    with pytest.raises(RewardError, match=r"SPICE: Java exited with 1: Exception: bad$"):
        run_java("SPICE", [fake.path], Path.cwd(), 10)
