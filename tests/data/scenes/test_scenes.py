"""The embedded scenes: reproducible, varied, and described by annotators who mostly agree."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from scst.data.scenes.dataset import (
    LAYOUTS,
    PRETRAIN_SEEDS,
    SCENE_KINDS,
    SPLIT_SEEDS,
    human_captions,
    plain_caption,
    render_scene,
    scene_rows,
)
from scst.data.scenes.painters import PAINTERS
from scst.data.scenes.scene_captions import NO_STOP_RATE, NOUNS

KEYWORDS = {
    "port": ("port", "pier"),
    "airport": ("airport", "runway"),
    "dense residential": ("residential", "houses"),
    "forest": ("forest", "trees"),
    "parking": ("parking",),
    "roundabout": ("roundabout", "circle"),
    "beach": ("beach", "sand"),
    "industrial": ("industrial", *(noun for forms in NOUNS["industrial"] for _, noun in forms)),
    "railway station": ("railway", "station"),
    "farmland": ("farmland", "fields"),
    "playground": ("playground", "football"),
}


@pytest.fixture(scope="module")
def rows():
    return scene_rows("test")


@pytest.fixture(scope="module")
def captions(rows):
    return [caption for row in rows for caption in row["references"]]


def test_same_seed_same_bytes_and_words():
    first, again, other = render_scene(7), render_scene(7), render_scene(8)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert human_captions(first, 3) == human_captions(again, 3)
    assert human_captions(first, 3) != human_captions(first, 4)
    assert plain_caption(first, 3) == plain_caption(again, 3)


def test_picture_has_the_asked_size_and_is_not_flat():
    for size in (32, 64, 96):
        image = render_scene(11, size).image
        assert image.size == (size, size)
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 10


def test_tiny_sizes_and_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="at least 16 pixels, got size=8"):
        render_scene(0, size=8)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        scene_rows("dev")
    with pytest.raises(ValueError, match="at least one caption, got n=0"):
        human_captions(render_scene(0), 0, n=0)


def test_every_kind_occurs_and_has_a_painter(rows):
    assert set(PAINTERS) == set(LAYOUTS) == set(SCENE_KINDS)
    assert len(SCENE_KINDS) >= 14
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == set(SCENE_KINDS)
    # 300 scenes over 18 kinds: 16.7 expected each, standard deviation 4
    assert max(counts.values()) < 40


def test_facts_come_from_the_layout_of_the_kind():
    for seed in range(200):
        scene = render_scene(seed)
        layout = LAYOUTS[scene.kind]
        assert scene.count in layout.counts
        assert scene.colour in layout.colours
        assert scene.companion in layout.companions
        assert scene.arrangement in layout.arrangements


def test_splits_and_pretraining_share_no_seed(rows):
    ranges = [*SPLIT_SEEDS.values(), PRETRAIN_SEEDS]
    assert len(set().union(*ranges[:-1])) == 1500 + 200 + 300
    assert all(seed not in PRETRAIN_SEEDS for seeds in SPLIT_SEEDS.values() for seed in seeds)
    assert [row["image_id"] for row in rows[:2]] == ["test-00000", "test-00001"]
    assert len({row["image"].tobytes() for row in rows}) == len(rows) == 300


def test_five_references_mostly_differ(rows):
    assert all(len(row["references"]) == 5 for row in rows)
    assert np.mean([len(set(row["references"])) for row in rows]) >= 3
    repeats = np.mean([len(set(row["references"])) < 5 for row in rows])
    assert 0.1 < repeats < 0.5


def test_captions_are_clean_of_unfilled_slots(captions):
    assert not [caption for caption in captions if re.search(r"[{}]|\ba a\b|\ban? \.", caption)]
    assert all(caption == caption.lower() and 3 <= len(caption.split()) <= 30 for caption in captions)


def test_references_name_their_kind(rows):
    named = [
        any(
            word in " ".join(row["references"])
            for word in KEYWORDS.get(row["kind"], row["kind"].split()[-1:])
        )
        for row in rows
    ]
    assert np.mean(named) > 0.97


def test_slips_occur_at_their_rates(captions):
    # 1,500 captions: three standard deviations of a 4 % rate are 1.5 %, of a 3 % rate 1.3 %
    assert abs(np.mean([not caption.endswith(" .") for caption in captions]) - NO_STOP_RATE) < 0.02
    assert 0.01 < np.mean(["  " in caption for caption in captions]) < 0.05
    known = Counter(word for caption in captions for word in caption.split())
    rare = np.mean([any(known[word] <= 2 for word in caption.split()) for caption in captions])
    assert 0.01 < rare < 0.06  # typos make words that occur once or twice


def test_no_caption_fits_everything(captions):
    vague = [caption for caption in captions if re.match(r"(this|it) is an? |a photo of|here is", caption)]
    assert 0.02 < len(vague) / len(captions) < 0.12
    assert Counter(captions).most_common(1)[0][1] / len(captions) < 0.03


def test_plain_register_is_another_language(rows):
    plain = {word for seed in SPLIT_SEEDS["test"] for word in plain_caption(render_scene(seed), seed).split()}
    human = {word for row in rows for caption in row["references"] for word in caption.split()}
    shared = plain & human
    assert len(shared) / len(plain) < 0.5
    assert {"airfield,", "harbour,", "woods"} <= plain
