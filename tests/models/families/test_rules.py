"""Each family's own rules: without one of them its scores are wrong, as the tests of exactness would see."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scst.adapters.loaded import LoadedPolicy
from scst.errors import RecipeError
from scst.models import masks
from scst.models.masks import AttentionMask
from scst.models.policy import policy_for
from scst.models.processors import load_processor
from scst.models.prompts import PromptEncoder
from scst.scoring.score_captions import score
from tests.support.families import RULES, make_world, own_logprobs, pictures, sampled


def gap(world) -> float:
    """Between our scores and the library's, in nats, the largest of all tokens."""
    result, sampling = sampled(world)
    ids, mask = result.completion_ids, result.completion_mask
    with torch.no_grad():
        own = own_logprobs(world, ids, mask, sampling)
        return float((score(world.policy, world.prompts, ids, mask, sampling).logprobs - own).abs().max())


@pytest.mark.parametrize("rule", RULES)
def test_without_its_rule_a_family_is_wrong(monkeypatch, rule):
    name, method, usual, least = RULES[rule]
    world = make_world(name)
    assert gap(world) < 1e-5
    monkeypatch.setattr(type(world.encoder.family), method, usual)
    assert gap(world) > least


def test_without_the_window_of_its_layers_gemma_is_wrong(monkeypatch):
    world = make_world("gemma3")
    monkeypatch.setattr(AttentionMask, "sliding", lambda mask, window, cuts_blocks: mask.full)
    assert gap(world) > 0.02


@pytest.mark.parametrize("window", [1, 3, 6, 40])
@pytest.mark.parametrize("name", ["gemma3", "paligemma2"])
def test_windows_of_any_size(name, window):
    """Smaller than an image, a prompt or a caption, and larger than everything."""
    world = make_world(name, "eager", sliding_window=window)
    assert gap(world) < 2e-5


def test_a_sliding_window_counts_what_a_token_sees():
    """A caption of three tokens behind two others, a window of three: columns in between do not count."""
    prompt, captions = 2, torch.tensor([[0, 0, 1, 1, 1]])
    from tests.support.rollouts import paligemma_prompts

    prompts = paligemma_prompts(torch.zeros(1, prompt).long(), torch.ones(1, prompt))
    sliding = masks.shared_prefix_mask(prompts, captions).sliding(3)[0, 0].int().tolist()
    assert sliding[prompt:] == [
        # prompt a0 a1 b0 b1 b2
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ]


def test_multimodal_positions_are_the_models_own():
    """Of pictures of several shapes, against `get_rope_index`."""
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        world = make_world(name)
        prompts = world.prompts
        theirs, _ = world.model.model.get_rope_index(
            prompts.input_ids,
            mm_token_type_ids=prompts.image_mask.int(),
            image_grid_thw=torch.cat([image["image_grid_thw"] for image in prompts.vision]),
            attention_mask=prompts.attention_mask.long(),
        )
        real = prompts.attention_mask
        assert torch.equal(prompts.position_ids.transpose(0, 1)[:, real], theirs[:, real])


def test_gemmas_image_token_is_the_models():
    """`processor.image_token_id` is that of the token in front of the image."""
    world = make_world("gemma3")
    assert world.encoder.image_token_id == world.model.config.image_token_id
    assert world.processor.image_token_id != world.model.config.image_token_id
    assert int(world.prompts.image_mask.sum()) == 2 * 4


@pytest.mark.parametrize("name", ["llava", "smolvlm", "idefics3"])
def test_a_template_that_ends_in_a_colon_has_a_blank_before_the_caption(name):
    world = make_world(name)
    assert world.encoder.tokenizer.decode(world.prompts.input_ids[0]).endswith(":")
    ids = world.encoder.caption_token_ids("a river", 9)
    assert world.encoder.tokenizer.decode(ids[:-1]) == " a river"
    assert world.encoder.decode_captions(torch.tensor([ids[:-1]]), torch.ones(1, len(ids) - 1).bool()) == [
        "a river"
    ]


@pytest.mark.parametrize(
    ("name", "end"), [("gemma3", "<end_of_turn>"), ("qwen3_vl", "<|im_end|>"), ("llava", "</s>")]
)
def test_a_caption_ends_as_a_turn_does(name, end):
    world = make_world(name)
    tokenizer = world.encoder.tokenizer
    assert world.encoder.caption_token_ids("a river", 9)[-1] == tokenizer.convert_tokens_to_ids(end)
    forbidden = set(world.policy.forbidden.nonzero().flatten().tolist())
    assert world.encoder.eos_token_id not in forbidden
    assert tokenizer.eos_token_id in forbidden or tokenizer.eos_token_id == world.encoder.eos_token_id
    assert world.encoder.image_token_id in forbidden


LIMITS = {"qwen2_5_vl": 9, "qwen3_vl": 5, "smolvlm": 8, "idefics3": 12, "internvl": 12, "llava_onevision": 50}


@pytest.mark.parametrize("name", LIMITS)
def test_images_take_no_more_tokens_than_they_may(name, tmp_path):
    """As loaded from disk; scores are still the model's own, and what is saved has the limit."""
    world = make_world(name)
    for part in (world.model, world.processor):
        part.save_pretrained(tmp_path)
    policy = LoadedPolicy.load(
        str(tmp_path), quantization="none", precision="fp32", image_tokens=LIMITS[name]
    )
    counts = policy.encoder.prompt_batch(pictures(name, 4), ["x"] * 4).image_mask.sum(1)
    assert 0 < counts.max() <= LIMITS[name]
    assert counts.max() < world.encoder.prompt_batch(pictures(name, 4), ["x"] * 4).image_mask.sum(1).max()
    limited = dataclasses.replace(
        world,
        model=policy.model,
        processor=policy.encoder.processor,
        encoder=policy.encoder,
        policy=policy_for(policy.model, policy.encoder),
    )
    assert gap(limited) < 2e-5
    policy.encoder.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    again = PromptEncoder(load_processor(str(tmp_path / "saved"))).prompt_batch(pictures(name, 4), ["x"] * 4)
    assert torch.equal(again.image_mask.sum(1), counts)


@pytest.mark.parametrize("name", [*LIMITS, "paligemma", "llava", "gemma3"])
def test_too_few_image_tokens_are_refused(name):
    world = make_world(name)
    fixed = name not in LIMITS
    with pytest.raises(RecipeError, match="always have" if fixed else "image_tokens: expected 0 or at least"):
        world.encoder.family.limit_image_tokens(world.processor, 2)
