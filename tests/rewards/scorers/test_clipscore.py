"""CLIPScore on tiny random models: parity with torchmetrics, the paper's formulas, caching, wrong input."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torchmetrics.functional.multimodal import clip_score
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPProcessor,
    GemmaTokenizer,
    Siglip2Model,
)

from rewards.clipscore import ClipScoreReward
from rewards.errors import RewardError
from rewards.registry import build_rewards
from rewards.scorers.clipscore import ClipScorer, harmonic_mean, scaled
from rewards.scorers.encoders import EmbeddingCache, encodable, find_model
from tests.support.tiny import noise_images
from tests.support.tiny_clip import save_clip, save_siglip, save_siglip2
from tests.support.waiting import PATIENCE_S

CAPTIONS = ["a road", "two planes near a long building", "", "many trees"]
ODD = ["", " .", "🙂👩\u200d👧", "a\nroad", "a ||| b", "<|endoftext|>", "<pad>", "\ud83d half", "tree " * 400]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module", params=[save_clip, save_siglip, save_siglip2], ids=lambda save: save.__name__)
def checkpoint(request, tmp_path_factory):
    """Each family of models."""
    return str(request.param(tmp_path_factory.mktemp(request.param.__name__)))


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return ClipScorer(checkpoint)


@pytest.fixture(scope="module")
def pictures():
    """Images of four sizes, modes and brightnesses."""
    noise = noise_images(4)
    return [
        noise[0],
        noise[1].resize((48, 20)),
        noise[2].convert("L"),
        Image.new("RGBA", (32, 32), (200, 30, 90, 128)),
    ]


# --- the numbers ------------------------------------------------------------------------------------------


def plain_cosines(folder: str, captions: list[str], images: list[Image.Image], prefix: str) -> np.ndarray:
    """What transformers' documentation does, one pair at a time: no batch, no cache."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, pixels = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    full = isinstance(tokenizer, GemmaTokenizer) or isinstance(model, Siglip2Model)
    options = {"padding": "max_length", "max_length": 64} if full else {"max_length": 77}
    cosines = []
    for caption, image in zip(captions, images, strict=True):
        ids = tokenizer(prefix + caption, truncation=True, return_tensors="pt", **options)["input_ids"]
        with torch.no_grad():
            text = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
            inputs = pixels(image.convert("RGB"), return_tensors="pt")
            picture = normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
        cosines.append(float((text * picture).sum()))
    return np.array(cosines)


def test_cosines_equal_plain_transformers(scorer, checkpoint, pictures):
    expected = plain_cosines(checkpoint, CAPTIONS, pictures, "A photo depicts ")
    np.testing.assert_allclose(scorer.cosines(CAPTIONS, pictures), expected, atol=1e-5)
    assert expected.std() > 0.01, "the tiny model must tell captions apart"


def torchmetrics_model(folder: str):
    """torchmetrics 1.9 wants features as tensors, which transformers 5 wraps in an object."""
    model = AutoModel.from_pretrained(folder)
    model.requires_grad_(False)
    adapter = SimpleNamespace(
        config=model.config,
        get_image_features=lambda pixels: model.get_image_features(pixels).pooler_output,
        get_text_features=lambda ids, mask: model.get_text_features(ids, mask).pooler_output,
    )
    adapter.to = lambda device: adapter
    processor = CLIPProcessor(
        AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )
    return adapter, processor


def test_parity_with_torchmetrics(clip, images):
    scorer = ClipScorer(clip, prompt_prefix="")
    values = []
    for caption, image in zip(CAPTIONS, images, strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        values.append(float(clip_score(pixels, caption, lambda: torchmetrics_model(clip))))
    ours = [100 * max(cosine, 0.0) for cosine in scorer.cosines(CAPTIONS, images)]
    assert ours == pytest.approx(values, abs=1e-3)
    assert max(values) > 1


def test_scaled_and_reference_scores_are_the_papers_formulas(scorer, pictures):
    references = [["a road", "a long road"], ["planes"], ["", "trees", "many trees"], ["many trees"]]
    cosines = scorer.cosines(CAPTIONS, pictures)
    scores = scorer.scores(CAPTIONS, pictures)
    assert scores == [2.5 * max(cosine, 0) for cosine in cosines]

    best = []
    for caption, group in zip(CAPTIONS, references, strict=True):
        vectors = scorer.encoder.texts([scorer.prompt_prefix + text for text in (caption, *group)])
        best.append(max(float(vectors[0] @ other) for other in vectors[1:]))
    assert scorer.reference_cosines(CAPTIONS, references) == pytest.approx(best, abs=1e-5)
    assert [best[0], best[3]] == pytest.approx([1.0, 1.0], abs=1e-5), "captions that are their own reference"

    # Harmonic mean of CLIPScore and max(best cosine, 0); 0 when one of the two is 0.
    expected = [0.0 if min(s, b) <= 0 else 2 / (1 / s + 1 / b) for s, b in zip(scores, best, strict=True)]
    assert scorer.reference_scores(CAPTIONS, references, pictures) == pytest.approx(expected, abs=1e-5)


def test_a_negative_cosine_counts_as_zero(clip, images, monkeypatch):
    scorer = ClipScorer(clip)
    monkeypatch.setattr(scorer, "cosines", lambda *_: [0.3, 0.3, -0.1])
    monkeypatch.setattr(scorer, "reference_cosines", lambda *_: [0.5, -0.2, 0.5])
    # CLIPScores 0.75, 0.75, 0; harmonic means 0.6, 0, 0.
    values = scorer.reference_scores(["a"] * 3, [["a"]] * 3, images[:3])
    assert values == pytest.approx([0.6, 0, 0])


def test_formulas_on_numbers():
    assert [scaled(c) for c in (-0.3, 0.0, 0.3, 0.4)] == pytest.approx([0, 0, 0.75, 1.0])
    # 2 * 0.75 * 0.5 / (0.75 + 0.5) = 0.75 / 1.25 = 0.6
    assert harmonic_mean(0.75, 0.5) == pytest.approx(0.6)
    assert harmonic_mean(0.75, 0.0) == harmonic_mean(0.0, 0.5) == harmonic_mean(0.0, 0.0) == 0


def test_the_prefix_counts(clip, images):
    bare, standard, spaced = (
        ClipScorer(clip, **kwargs).cosines(CAPTIONS, images)
        for kwargs in ({"prompt_prefix": ""}, {}, {"prompt_prefix": "A photo depicts"})
    )
    assert standard == spaced, "the authors' code adds the missing space"
    prefixed = ["A photo depicts " + caption for caption in CAPTIONS]
    assert ClipScorer(clip, prompt_prefix="").cosines(prefixed, images) == standard
    assert np.abs(np.subtract(bare, standard)).max() > 0.01


def test_long_captions_are_cut_before_the_end_token_and_counted(clip, images):
    scorer = ClipScorer(clip, prompt_prefix="")
    # One token per letter, a start and an end: 75 letters fill 77 tokens.
    fits, longer, longest = "x" * 75, "x" * 76, "x" * 400
    values = scorer.cosines([fits, longer, longest, "a"], [images[0]] * 4)
    assert scorer.truncated == 2
    # Not equal to a caption that ends earlier, but to one with the same 75 first letters, all but the last
    # of which ("x</w>") are the same token.
    assert values[1] == pytest.approx(values[2], abs=1e-6)
    assert abs(values[3] - values[0]) > 1e-3
    scorer.cosines(["a"], images[:1])
    assert scorer.truncated == 0
    assert ClipScorer(clip).cosines([fits], images[:1]) != pytest.approx(values[:1]), "the prefix takes room"


def test_siglip_reads_64_tokens(tmp_path, images):
    scorer = ClipScorer(str(save_siglip(tmp_path)))
    assert scorer.encoder.max_tokens == 64
    assert scorer.encoder.texts(["a road"]).shape == (1, 32)
    scorer.cosines(["zq" * 100, "a road"], images[:2])
    assert scorer.truncated == 1


# --- properties -------------------------------------------------------------------------------------------


def test_permuting_items_permutes_scores(scorer, pictures):
    order = [2, 0, 3, 1]
    moved = scorer.cosines([CAPTIONS[i] for i in order], [pictures[i] for i in order])
    expected = scorer.cosines(CAPTIONS, pictures)
    assert moved == pytest.approx([expected[i] for i in order], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(checkpoint, scorer, pictures, batch_size):
    captions = [*CAPTIONS, "a much longer caption with many more words than the others"]
    images = [*pictures, pictures[0]]
    small = ClipScorer(checkpoint, batch_size=batch_size)
    assert small.cosines(captions, images) == pytest.approx(scorer.cosines(captions, images), abs=1e-5)


def counted(scorer: ClipScorer, kind: str) -> list[int]:
    """Lets the encoder note how many items it encodes."""
    sizes, encode = [], getattr(scorer.encoder, kind)
    setattr(scorer.encoder, kind, lambda items: (sizes.append(len(items)), encode(items))[1])
    return sizes


def test_an_image_is_encoded_once_per_id(clip, images):
    scorer = ClipScorer(clip)
    encoded = counted(scorer, "images")
    ids = ["a", "a", "b", "a"]
    pictures = [images[0].copy(), images[0].copy(), images[1], images[0].copy()]
    first = scorer.cosines(CAPTIONS, pictures, ids)
    again = scorer.cosines(CAPTIONS, pictures, ids)
    scorer.cosines(CAPTIONS[:1], images[2:3], ["c"])
    assert encoded == [2, 1]
    assert first == again == pytest.approx(scorer.cosines(CAPTIONS, pictures), abs=1e-5), "without ids"


def test_without_ids_a_repeated_object_is_encoded_once_and_nothing_is_kept(clip, images):
    scorer = ClipScorer(clip)
    encoded = counted(scorer, "images")
    repeated = [images[0]] * 3 + [images[1]]
    scorer.cosines(CAPTIONS, repeated)
    scorer.cosines(CAPTIONS, repeated)
    assert encoded == [2, 2]


def test_the_cache_is_bounded_and_changes_nothing(clip, images):
    small, large = ClipScorer(clip, cache_size=1), ClipScorer(clip)
    ids = ["a", "b", "c", "d"]
    for _ in range(2):
        assert small.cosines(CAPTIONS, images, ids) == pytest.approx(large.cosines(CAPTIONS, images, ids))
    assert (len(small._image_cache), len(large._image_cache)) == (1, 4)


def test_equal_captions_are_encoded_once(clip, images):
    scorer = ClipScorer(clip)
    encoded = counted(scorer, "texts")
    scorer.reference_scores(["a", "a", "b"], [["a", "c"], ["c"], ["b"]], images[:3])
    assert encoded == [3, 2]  # a, b, c among references; a, b with the images


def test_the_last_used_embeddings_stay():
    cache, asked = EmbeddingCache(2), []

    def encode(keys):
        asked.append(list(keys))
        return np.array([[ord(key)] for key in keys], dtype=float)

    assert cache.embed(list("aba"), encode)[:, 0].tolist() == [97, 98, 97]
    cache.embed(list("a"), encode)
    cache.embed(list("c"), encode)  # pushes b out
    cache.embed(list("acb"), encode)
    assert asked == [["a", "b"], ["c"], ["b"]]


def test_odd_captions_give_finite_numbers(scorer, images):
    image = [images[0]] * len(ODD)
    assert all(map(math.isfinite, scorer.scores(ODD, image)))
    assert all(map(math.isfinite, scorer.reference_scores(ODD, [["a road"]] * len(ODD), image)))
    assert all(
        map(math.isfinite, scorer.reference_scores(["a road"] * len(ODD), [[odd] for odd in ODD], image))
    )
    assert all(map(math.isfinite, scorer.reference_scores(ODD, [["a road"] * 5] * len(ODD), image)))


def test_no_captions(clip):
    scorer = ClipScorer(clip)
    assert scorer.scores([], []) == scorer.reference_scores([], [], []) == []


def test_a_trainers_autocast_does_not_touch_the_scores(clip, images):
    scorer = ClipScorer(clip)
    expected = scorer.cosines(CAPTIONS, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scorer.cosines(CAPTIONS, images) == expected


def test_the_dtype_is_the_one_stated(tmp_path, images):
    folder = str(save_clip(tmp_path, dtype=torch.bfloat16))
    full, half = ClipScorer(folder), ClipScorer(folder, dtype="bfloat16")
    assert {p.dtype for p in full.encoder._network.parameters()} == {torch.float32}
    assert {p.dtype for p in half.encoder._network.parameters()} == {torch.bfloat16}
    assert half.cosines(CAPTIONS, images) == pytest.approx(full.cosines(CAPTIONS, images), abs=0.05)
    assert half.cosines(CAPTIONS, images) != full.cosines(CAPTIONS, images)


def test_the_signature_tells_checkpoints_apart(clip, tmp_path):
    signature = ClipScorer(clip).signature
    assert signature.startswith("model:clip0,")
    assert signature.endswith("|prefix:A photo depicts|dtype:float32")
    other = tmp_path / "clip0"
    save_clip(other, seed=1)
    assert ClipScorer(str(other)).signature.split("|")[0] != signature.split("|")[0]
    assert "|prefix:none|dtype:bfloat16" in ClipScorer(clip, prompt_prefix="", dtype="bfloat16").signature


# --- the reward -------------------------------------------------------------------------------------------


def test_the_reward_follows_the_contract(clip, images):
    logged = {}
    raw, in_paper = ClipScoreReward(clip), ClipScoreReward(clip, form="scaled")
    raw.setup(dataset=None)
    columns = {"prompts": [""] * 4, "references": [["a"]] * 4, "image": images, "image_id": list("abcd")}
    long = [*CAPTIONS[:3], "x" * 99]
    values = raw(completions=long, log_metric=logged.__setitem__, **columns)
    assert values == pytest.approx(raw.scorer.cosines(long, images), abs=1e-6)
    assert logged == {"clipscore_truncated": 0.25}
    assert in_paper(completions=long, **columns) == pytest.approx([scaled(value) for value in values])
    assert raw.__name__ == "clipscore"


def test_a_reward_without_images_is_refused(clip, images):
    with pytest.raises(RewardError, match=r"no column `image`; found \['prompts'\]"):
        ClipScoreReward(clip)(completions=["a"], prompts=[""])
    with pytest.raises(RewardError, match="image 1 must be a PIL image, got NoneType"):
        ClipScoreReward(clip)(completions=["a", "b"], image=[images[0], None])


def test_by_import_path_from_a_recipe(clip, images):
    entry = {
        "import_path": "rewards.clipscore:ClipScoreReward",
        "kwargs": {"model_name_or_path": clip, "form": "scaled"},
    }
    (reward,) = build_rewards([entry])
    assert reward.function(completions=["a"], image=images[:1])[0] >= 0
    with pytest.raises(RewardError, match="no model given"):
        build_rewards([{**entry, "kwargs": {}}])


# --- what a user can get wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {},
            "clipscore: no model given; give `model_name_or_path`: a local folder, or a hub id such as open",
        ),
        ({"model_name_or_path": "/no/such/folder"}, "'/no/such/folder' is neither a folder nor a hub id"),
        ({"model_name_or_path": "nobody/nothing"}, "not in the hub cache, and HF_HUB_OFFLINE is set"),
        ({"model_name_or_path": "tests"}, r"expected a checkpoint in 'tests', found no config\.json"),
        ({"form": "percent"}, "form must be one of raw, scaled, got 'percent'"),
        ({"dtype": "fp8"}, "dtype must be one of float32, bfloat16, float16, got 'fp8'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_before_a_model_is_loaded(kwargs, message, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardError, match=message):
        ClipScoreReward(**kwargs)


def test_a_hub_id_goes_to_transformers_when_there_is_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert find_model("x", "nobody/nothing", "a/b") == "nobody/nothing"


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RewardError, match=rf"clipscore: '{tmp_path}' cannot be loaded: "):
        ClipScoreReward(str(tmp_path)).setup(None)


def test_a_model_that_is_no_dual_encoder_is_refused(rsicd_model, images):
    with pytest.raises(RewardError, match="does not encode texts and images: want CLIP or SigLIP"):
        ClipScorer(str(rsicd_model)).cosines(["a"], images[:1])


def test_columns_of_different_lengths_are_refused(clip, images):
    scorer = ClipScorer(clip)
    with pytest.raises(RewardError, match="2 captions, but 1 images: expected equal"):
        scorer.scores(["a", "b"], images[:1])
    with pytest.raises(RewardError, match="1 captions, but 2 image_ids"):
        scorer.scores(["a"], images[:1], ["x", "y"])
    with pytest.raises(RewardError, match=r"caption 0 needs a list of one or more references, got \[\]"):
        scorer.reference_scores(["a"], [[]], images[:1])
    with pytest.raises(RewardError, match="caption 0 needs a list of one or more references, got 'a road'"):
        scorer.reference_scores(["a"], ["a road"], images[:1])


def test_lone_surrogates_become_encodable():
    assert encodable("a \ud83d road 🙂") == "a ? road 🙂"


def test_importing_the_scorers_loads_no_torch():
    code = (
        "import sys, rewards.scorers.clipscore, rewards.scorers.bertscore; "
        "import rewards.scorers.sentence_similarity, rewards.mixture; "
        "print({'torch', 'transformers', 'bert_score', 'sentence_transformers'} & set(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert loaded.stdout.strip() == "set()"
