"""The cache of image features: equal to computed ones, safe against kills, other images and full disks."""

from __future__ import annotations

import errno
import io
import os
import types
from dataclasses import replace

import pytest
import torch

from scst.data.collate import KEPT_FEATURES, SCSTCollator
from scst.errors import RecipeError
from scst.models.prompts import PromptEncoder
from scst.rollout import feature_cache as module
from scst.rollout.feature_cache import FeatureCache
from tests.support.adapter_folders import write_adapter
from tests.support.processes import run_together
from tests.support.rollouts import PROMPTS, make_policy
from tests.support.tiny import build_model, build_processor, noise_images

IDS = ["d", "b", "c", "a"]


def frozen_policy(processor, dtype=torch.float32, seed=0):
    return make_policy(build_model(processor, seed=seed).requires_grad_(False).to(dtype), processor)


@pytest.fixture
def prompts(tiny_processor, images):
    return PromptEncoder.of(tiny_processor).prompt_batch(images, PROMPTS)


def equal(ones, others):
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def close(ones, others):
    torch.testing.assert_close(torch.stack(list(ones)), torch.stack(list(others)), rtol=0, atol=1e-6)


@pytest.fixture
def cache_of(tiny_processor, tmp_path):
    """Opens the cache anew, as another run or process would, already knowing its files' shape."""

    def open_cache(policy, ids=IDS):
        cache = FeatureCache(tmp_path, policy.model, tiny_processor, ids)
        example = torch.zeros(1, 16, 64, dtype=next(policy.inner.parameters()).dtype)
        cache._array = cache._open(example)
        return cache

    return open_cache


def test_another_vision_configuration_is_another_cache(tiny_processor, prompts, tmp_path):
    """The same weights with another activation give other features."""
    found = []
    for activation in ("gelu_pytorch_tanh", "relu"):
        policy = frozen_policy(tiny_processor)
        vision = policy.inner.config.vision_config
        vision.hidden_act = activation
        tower = type(policy.inner.model.vision_tower)(vision).eval().requires_grad_(False)
        tower.load_state_dict(policy.inner.model.vision_tower.state_dict())
        policy.inner.model.vision_tower = tower
        cache = FeatureCache(tmp_path, policy.model, tiny_processor, IDS)
        cache._array = cache._open(torch.zeros(1, 16, 64))
        found.append(cache.features(policy, prompts, IDS))
        assert equal(found[-1], policy.image_features(prompts))
        assert cache.hits == 0
    assert not equal(*found)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stored_features_are_the_computed_ones_bit_for_bit(tiny_processor, prompts, cache_of, dtype):
    policy = frozen_policy(tiny_processor, dtype)
    computed = policy.image_features(prompts)
    first = cache_of(policy)
    assert equal(first.features(policy, prompts, IDS), computed)
    assert (first.hits, first.misses) == (0, 4)
    second = cache_of(policy)
    policy.image_features = None  # nothing may be computed
    order = [2, 0, 3]
    again = second.features(policy, prompts.select(torch.tensor(order)), [IDS[i] for i in order])
    assert {features.dtype for features in again} == {dtype}
    assert equal(again, [computed[i] for i in order])
    assert (second.hits, second.misses) == (3, 0)


@torch.no_grad()
def test_what_is_held_is_known_by_its_encoded_picture_and_needs_no_pixels(
    tiny_processor, prompts, cache_of, tmp_path
):
    policy, encoded = frozen_policy(tiny_processor), [b"one", b"two", b"three", b"four"]
    computed = policy.image_features(prompts)
    first = cache_of(policy)
    first.features(policy, prompts, IDS, first.kept(IDS, encoded))
    second = FeatureCache(tmp_path, policy.model, tiny_processor, IDS)  # finds the file by itself
    kept = second.kept(IDS, [b"another", *encoded[1:]])
    assert [features is None for features in kept.features] == [True, False, False, False]
    nothing = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    blank = replace(prompts, vision=[prompts.vision[0], nothing, nothing, nothing])
    close(second.features(policy, blank, IDS, kept), computed)
    assert (second.hits, second.misses) == (3, 1)


@torch.no_grad()
def test_a_picture_whose_features_are_held_is_not_decoded(tiny_processor, tmp_path):
    """The pixels of a cut PNG cannot be decoded; its header can be read."""
    buffer = io.BytesIO()
    noise_images(1, 32)[0].save(buffer, "PNG")
    data = buffer.getvalue()[:-400]
    policy = frozen_policy(tiny_processor)
    cache = FeatureCache(tmp_path, policy.model, tiny_processor, IDS)
    collate = SCSTCollator(tiny_processor, "caption en", kept=cache.kept)
    row = {"image": {"bytes": data, "path": None}, "references": ["a ."], "image_id": "a"}
    with pytest.raises(OSError, match="truncated"):
        collate([row])
    stand_in = collate.encoder.prompt_batch([noise_images(1)[0]], ["caption en"])
    cache.features(policy, stand_in, ["a"], cache.kept(["a"], [data]))
    batch = collate([row])
    assert batch[KEPT_FEATURES].features[0] is not None
    assert batch["columns"]["image"][0].size == (32, 32)


def test_a_disk_that_cannot_take_all_features_is_refused(tiny_processor, tmp_path, monkeypatch):
    policy = frozen_policy(tiny_processor)
    each = 16 * 64 * 4
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=4 * each))
    FeatureCache(tmp_path, policy.model, tiny_processor, IDS)
    with pytest.raises(RecipeError, match=r"the features of 5 images take .* GB more, .* free: use a larger"):
        FeatureCache(tmp_path, policy.model, tiny_processor, [*IDS, "e"])


@torch.no_grad()
def test_a_batch_of_stored_and_missing_images(tiny_processor, prompts, cache_of):
    policy = frozen_policy(tiny_processor)
    cache = cache_of(policy)
    cache.features(policy, prompts.select(slice(2)), IDS[:2])
    result = cache.features(policy, prompts, IDS)
    assert (cache.hits, cache.misses) == (2, 4)
    close(result, policy.image_features(prompts))


@torch.no_grad()
def test_another_picture_or_model_or_unknown_id_is_computed(tiny_processor, prompts, cache_of, tmp_path):
    policy = frozen_policy(tiny_processor)
    cache_of(policy).features(policy, prompts, IDS)
    other = prompts.select(torch.tensor([3, 2, 1, 0]))
    result = cache_of(policy).features(policy, other, IDS)  # augmentation, or another data set with these ids
    assert equal(result, policy.image_features(other))
    cache = cache_of(policy)
    cache.features(policy, prompts.select(slice(1)), ["unknown"])
    assert cache.misses == 1
    cache_of(frozen_policy(tiny_processor, seed=1))
    assert len(list(tmp_path.iterdir())) == 2, "another model has its own file"
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {4 * (16 * 64 * 4 + 12)}, "bounded by the number of images"


@torch.no_grad()
@pytest.mark.parametrize("cut_after", [0, 1000, 16 * 64 * 4, 16 * 64 * 4 + 3])
def test_a_kill_in_mid_write_leaves_nothing_to_believe(
    tiny_processor, prompts, cache_of, monkeypatch, cut_after
):
    """The first ``cut_after`` bytes of an entry reach the file, over an older entry of another picture."""
    policy = frozen_policy(tiny_processor)
    cache_of(policy).features(policy, prompts.select(torch.tensor([3, 2, 1, 0])), IDS)
    budget = [cut_after]

    def dying(file, content, start):
        part = bytes(content[: budget[0]])
        budget[0] -= os.pwrite(file, part, start)
        if len(part) < len(content):
            raise KeyboardInterrupt

    cache = cache_of(policy)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_fully", dying)
        with pytest.raises(KeyboardInterrupt):
            cache.features(policy, prompts.select(slice(1)), IDS[:1])
    result = cache_of(policy).features(policy, prompts.select(slice(1)), IDS[:1])
    assert equal(result, policy.image_features(prompts.select(slice(1))))


@torch.no_grad()
def test_a_full_disk_ends_the_storing_and_not_the_run(tiny_processor, prompts, cache_of, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_fully", full)
    policy = frozen_policy(tiny_processor)
    cache = cache_of(policy)
    for _ in range(2):
        assert equal(cache.features(policy, prompts, IDS), policy.image_features(prompts))
    assert [r.message.count("No space left") for r in caplog.records] == [1]


def _fill(folder):
    """Look features up in an order of this process's own; how many of them were there."""
    torch.set_num_threads(1)
    processor = build_processor()
    policy = frozen_policy(processor)
    cache = FeatureCache(folder, policy.model, processor, [str(i) for i in range(12)])
    prompts = PromptEncoder.of(processor).prompt_batch(noise_images(12), ["caption en"] * 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(int(os.environ["RANK"])))
    with torch.no_grad():
        expected = policy.image_features(prompts)
        for part in [*order.split(3), *order.split(4)]:
            result = cache.features(policy, prompts.select(part), [str(int(i)) for i in part])
            close(result, [expected[i] for i in part.tolist()])
    return cache.hits


@pytest.mark.slow
def test_several_processes_share_a_folder(tmp_path):
    hits = run_together(_fill, str(tmp_path / "cache"), folder=tmp_path / "processes")
    assert min(hits) >= 9
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_trained_vision_tower_is_refused(tiny_processor, tmp_path):
    model = build_model(tiny_processor).requires_grad_(False)
    model.model.multi_modal_projector.linear.weight.requires_grad_(True)
    with pytest.raises(RecipeError, match="feature_cache: the adapter trains the vision tower or the proj"):
        FeatureCache(tmp_path, model, tiny_processor, IDS)


def test_a_folder_that_cannot_be_made_is_refused(tiny_processor, tmp_path):
    (tmp_path / "file").write_text("")
    model = build_model(tiny_processor).requires_grad_(False)
    with pytest.raises(RecipeError, match=r"feature_cache: .*cannot be made"):
        FeatureCache(tmp_path / "file" / "below", model, tiny_processor, IDS)


def test_training_with_the_cache_is_training_without(run_stage, sft_adapter, tmp_path):
    """A second epoch and a second run compute no feature, and the adapters are equal bit for bit."""
    runs = {}
    folders = {"off": "off", "first": tmp_path / "features", "second": tmp_path / "features"}
    for name, folder in folders.items():
        keys = {"feature_cache": str(folder), "max_steps": 4, "per_device_train_batch_size": 4}
        output = str(tmp_path / name)
        runs[name] = run_stage("scst", adapter=str(sft_adapter), output_dir=output, **keys)
    weights = {
        name: {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
        for name, trainer in runs.items()
    }
    for name in ("first", "second"):
        assert all(torch.equal(weights[name][n], weight) for n, weight in weights["off"].items())
    assert runs["off"].sampler.feature_cache is None
    features = runs["second"].sampler.feature_cache
    assert (features.misses, features.hits) == (0, 16)


def test_the_key_wants_a_folder(tmp_path):
    from scst.config.checks import check_recipe
    from scst.config.reader import build_recipe

    keys = {"adapter": str(write_adapter(tmp_path)), "dataset": "embedded:scenes"}
    for off in (False, "off"):
        check_recipe(build_recipe("scst", keys | {"feature_cache": off}))
    with pytest.raises(RecipeError, match="feature_cache: expected off or a folder, got true"):
        check_recipe(build_recipe("scst", keys | {"feature_cache": True}))
