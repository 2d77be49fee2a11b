"""What is explained is the very log probability that captions are decoded and scored with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scst.errors import DataError, RecipeError
from scst.explain.attention import _rollout, attention_rollout
from scst.explain.attribution_target import AttributionTarget
from scst.explain.gradients import integrated_gradients
from scst.models.policy import Policy
from scst.models.prompts import forbidden_token_mask
from scst.scoring.score_captions import score
from scst.types import Sampling
from tests.support.adapted import KINDS, adapted
from tests.support.tiny import build_model

CAPTION = "two planes are parked near a road"


def tiny_target(model, processor, image, caption=CAPTION):
    return AttributionTarget(model, processor, image, "caption en", caption, max_new_tokens=40)


@pytest.mark.parametrize("version", [1, 2])
def test_logprobs_are_those_of_scoring(version, tiny_processor, images):
    model = build_model(tiny_processor, version=version).requires_grad_(False)
    target = tiny_target(model, tiny_processor, images[0])
    tokenizer = tiny_processor.tokenizer
    forbidden = forbidden_token_mask(tiny_processor, model.config.get_text_config().vocab_size)
    policy = Policy(model, forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id)
    ids, sampling = target.ids[None], Sampling(min_new_tokens=0)
    expected = score(policy, target.prompts, ids, torch.ones_like(ids, dtype=torch.bool), sampling)
    found = target.token_logprobs(target.pixels.expand(3, -1, -1, -1))
    torch.testing.assert_close(found, expected.logprobs[0].expand(3, -1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_adapter_is_explained(kind, version, tiny_processor, images):
    """By the log probabilities that its captions are scored with; IG is complete, rollout within bounds."""
    model, processor = adapted(kind, build_model(tiny_processor, version=version), tiny_processor)
    target = tiny_target(model.requires_grad_(False), processor, images[0])
    ids = target.ids[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    expected = score(target.policy, target.prompts, ids, mask, Sampling(min_new_tokens=0))
    torch.testing.assert_close(
        target.token_logprobs(target.pixels), expected.logprobs[0], atol=2e-5, rtol=1e-5
    )
    start = 0.95 * target.pixels  # a short path: random weights are rough
    heat, total, difference = integrated_gradients(target, 0, start, steps=64, batch_size=32)
    assert np.abs(heat).sum() > 0
    assert total == pytest.approx(difference, abs=1e-3 * abs(difference) + 1e-4)
    shares = attention_rollout(target).sum((1, 2))
    assert ((shares > 0) & (shares < 1)).all()


def test_a_later_word_changes_nothing_earlier(tiny_model, tiny_processor, images):
    first = tiny_target(tiny_model, tiny_processor, images[0], "a river goes through the forest")
    other = tiny_target(tiny_model, tiny_processor, images[0], "a river goes through the planes")
    assert [w.text for w in first.words[:5]] == [w.text for w in other.words[:5]]
    with torch.no_grad():
        a, b = first.logprobs(first.pixels), other.logprobs(other.pixels)
    assert torch.equal(a[:, 1:6], b[:, 1:6])


def test_words_are_groups_of_tokens_without_the_end(tiny_model, tiny_processor, images):
    target = tiny_target(tiny_model, tiny_processor, images[0], "two zeppelins, naïve ☂ .")
    assert [word.text for word in target.words] == ["two", "zeppelins,", "naïve", "☂", "."]
    tokens = [token for word in target.words for token in word.tokens]
    assert tokens == list(range(target.ids.shape[1] - 1)), "every token but the end belongs to one word"
    assert len(target.words[1].tokens) > 1
    with torch.no_grad():
        whole, *words = target.logprobs(target.pixels)[0]
        end = target.token_logprobs(target.pixels)[0, -1]
    torch.testing.assert_close(whole, sum(words) + end)


def test_words_are_found_by_text_or_place(tiny_model, tiny_processor, images):
    target = tiny_target(tiny_model, tiny_processor, images[0], "a road, a Road and trees.")
    assert target.find_word("road") == 2, "the first, without its comma"
    assert target.find_word("Trees") == 6
    assert target.find_word(4) == 4
    for word in ("roads", 7, 0, ""):
        with pytest.raises(RecipeError, match=r"^word: the caption has no word .* a road a road and trees"):
            target.find_word(word)


@pytest.mark.parametrize("caption", ["", "   "])
def test_a_caption_without_words_is_refused(caption, tiny_model, tiny_processor, images):
    with pytest.raises(DataError, match="no words to explain"):
        tiny_target(tiny_model, tiny_processor, images[0], caption)


def test_colours_and_pixels_are_inverse(tiny_model, tiny_processor, images):
    target = tiny_target(tiny_model, tiny_processor, images[0])
    torch.testing.assert_close(target.to_pixels(target.to_colours(target.pixels)), target.pixels)
    assert target.picture().shape == (32, 32, 3)
    assert 0 <= target.picture().min() <= target.picture().max() <= 1


def test_attention_rollout_looks_from_where_a_word_is_predicted(tiny_model, tiny_processor, images):
    """From the position before it: the map of the last word is the same whatever that word is."""
    endings = [
        tiny_target(tiny_model, tiny_processor, images[0], f"a river near the {end}")
        for end in ("trees", "road")
    ]
    assert all(target.words[-1].tokens == (4,) for target in endings), "one token each"
    trees, road = (attention_rollout(target) for target in endings)
    np.testing.assert_allclose(trees[1:], road[1:], rtol=1e-5)
    assert not np.allclose(trees[0], road[0], rtol=1e-5), "the end of the sequence has read the last word"


def test_rollout_literally():
    """Two heads of weights [[1, 0], [.5, .5]] and [[1, 0], [1, 0]]: mean [[1, 0], [.75, .25]].

    Half identity: [[1, 0], [.375, .625]]. Twice: the lower row is .375 + .625 * .375 and .625 ** 2.
    """
    layer = torch.tensor([[[[1, 0], [0.5, 0.5]], [[1, 0], [1, 0]]]])
    np.testing.assert_allclose(_rollout([layer]).numpy(), [[1, 0], [0.375, 0.625]])
    np.testing.assert_allclose(_rollout([layer, layer]).numpy(), [[1, 0], [0.609375, 0.390625]])
