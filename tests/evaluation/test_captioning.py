"""Decoding presets, and captions of a tiny random model."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from scst.errors import DataError, RecipeError
from scst.evaluation.captioning import Caption, _to_caption, caption_images
from scst.evaluation.decoding import (
    DECODINGS,
    Decoding,
    bare_generation_defaults,
    get_decoding,
    to_generation_config,
)
from scst.models.prompts import PromptEncoder, forbidden_token_ids

IDS = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2}


def texts(captions):
    return [caption.text for caption in captions]


def test_presets():
    assert {name: preset.name for name, preset in DECODINGS.items()} == {name: name for name in DECODINGS}
    config = to_generation_config(DECODINGS["beam-sample"], max_new_tokens=16, suppress_tokens=[5], **IDS)
    assert (config.num_beams, config.do_sample, config.top_p, config.top_k) == (4, True, 0.9, 50)
    assert (config.temperature, config.early_stopping, config.no_repeat_ngram_size) == (0.8, True, 2)
    assert config.suppress_tokens == [5]
    nucleus = to_generation_config(DECODINGS["nucleus"], max_new_tokens=32, **IDS)
    assert (nucleus.top_p, nucleus.top_k) == (
        0.95,
        0,
    )  # unset, transformers would cut to the 50 most probable


PUBLISHED = {
    "greedy-16": {"num_beams": 1, "do_sample": False, "max_new_tokens": 16},
    "beam4-sample-16": {
        **{"num_beams": 4, "do_sample": True, "top_p": 0.9, "top_k": 50, "temperature": 0.8},
        **{"early_stopping": True, "no_repeat_ngram_size": 2, "max_new_tokens": 16},
    },
    "nucleus-32": {"num_beams": 1, "do_sample": True, "top_p": 0.95, "temperature": 1, "max_new_tokens": 32},
    "beam5": {"num_beams": 5, "do_sample": False, "max_new_tokens": 40},  # no limit published: the recipe's
}
"""What the reports of remote-sensing captioners print, in the names of ``generate``."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets(name):
    config = to_generation_config(DECODINGS[name], max_new_tokens=40, **IDS)
    assert {key: getattr(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_a_preset_limits_the_captions(tiny_model, tiny_processor, images):
    """A random model never ends by itself: what ends its captions is the preset's limit, not the call's."""
    found = caption_images(
        tiny_model, tiny_processor, images[:2], "caption en", decoding="greedy-16",
        max_new_tokens=24, min_new_tokens=16,
    )  # fmt: skip
    assert [caption.num_tokens for caption in found] == [16, 16]


def test_wrong_decoding_is_refused():
    with pytest.raises(RecipeError, match=r"'greddy'.*greedy, beam, nucleus, beam-sample, greedy-16"):
        get_decoding("greddy")
    with pytest.raises(RecipeError, match="temperature must be positive, got 0"):
        Decoding("cold", do_sample=True, temperature=0)
    with pytest.raises(RecipeError, match="min_new_tokens=9, max_new_tokens=8"):
        to_generation_config(DECODINGS["greedy"], max_new_tokens=8, min_new_tokens=9, **IDS)


def test_caption_of_token_ids(tiny_processor):
    encoder, tokenizer = PromptEncoder.of(tiny_processor), tiny_processor.tokenizer
    river = tokenizer("a river", add_special_tokens=False)["input_ids"]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert _to_caption(encoder, [*river, eos, pad, pad]) == Caption("a river", True, len(river) + 1)
    assert _to_caption(encoder, river) == Caption("a river", False, len(river))
    assert _to_caption(encoder, [eos, pad]) == Caption("", True, 1)


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_model_v2"])
def test_greedy_is_the_argmax_of_the_model(request, tiny_processor, images, fixture):
    model = request.getfixturevalue(fixture).eval()
    captions = caption_images(model, tiny_processor, images, "caption en", "greedy", max_new_tokens=5)
    forbidden = forbidden_token_ids(tiny_processor, model.config.text_config.vocab_size)
    for image, caption in zip(images, captions, strict=True):
        inputs, ids = PromptEncoder.of(tiny_processor).encode_prompts([image], ["caption en"]), []
        config = GenerationConfig(max_new_tokens=5, do_sample=False, suppress_tokens=forbidden, **IDS)
        ids = model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :].tolist()
        assert _to_caption(PromptEncoder.of(tiny_processor), ids) == caption


def test_batch_size_and_neighbours_with_longer_prompts_change_nothing(tiny_model, tiny_processor, images):
    prompts = ["caption en", "describe this image in every detail", "caption en", "caption"]
    settings = {"max_new_tokens": 6}
    one = caption_images(tiny_model, tiny_processor, images, prompts, "greedy", batch_size=1, **settings)
    assert (
        caption_images(tiny_model, tiny_processor, images, prompts, "greedy", batch_size=4, **settings) == one
    )
    assert len(caption_images(tiny_model, tiny_processor, [], "caption en", "greedy", **settings)) == 0


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_checkpoints_generation_config_does_not_leak(
    tiny_model, tiny_processor, images, decoding, adapted
):
    model = tiny_model
    if adapted:
        lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
        model = get_peft_model(tiny_model, lora)

    def captions():
        return caption_images(model, tiny_processor, images, "caption en", decoding, max_new_tokens=6)

    plain = captions()
    leak = GenerationConfig(
        do_sample=True,
        temperature=9.0,
        top_k=3,
        min_p=0.2,
        repetition_penalty=7.0,
        max_length=3,
        min_new_tokens=5,
        bad_words_ids=[[7]],
        suppress_tokens=list(range(300, 500)),
        forced_eos_token_id=9,
        num_beams=2,
        num_return_sequences=2,
        **IDS,
    )
    tiny_model.generation_config = model.generation_config = leak
    assert captions() == plain
    assert tiny_model.generation_config is leak
    assert model.generation_config is leak


def test_the_leak_is_real_without_the_guard(tiny_model, tiny_processor, images):
    """The test above can fail: without bare defaults a suppressed token changes greedy captions."""
    inputs = PromptEncoder.of(tiny_processor).encode_prompts(images, ["caption en"] * len(images))
    config = to_generation_config(DECODINGS["greedy"], max_new_tokens=6, **IDS)
    plain = tiny_model.generate(**inputs, generation_config=config)
    first = plain[:, inputs["input_ids"].shape[1]].unique().tolist()
    tiny_model.generation_config.suppress_tokens = first
    assert not torch.equal(tiny_model.generate(**inputs, generation_config=config), plain)
    with bare_generation_defaults(tiny_model):
        assert torch.equal(tiny_model.generate(**inputs, generation_config=config), plain)


def test_sampling_repeats_by_seed_and_leaves_the_random_state(tiny_model, tiny_processor, images):
    def sample(seed):
        return caption_images(
            tiny_model, tiny_processor, images, "caption en", "nucleus", max_new_tokens=8, seed=seed
        )

    state = torch.get_rng_state()
    first = sample(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert sample(3) == first
    assert sample(4) != first


def test_forbidden_tokens_are_never_sampled(tiny_model, tiny_processor, images):
    tiny_model.lm_head.weight.data[tiny_processor.image_token_id] *= 100
    hot = Decoding("hot", do_sample=True, temperature=5.0)
    captions = caption_images(tiny_model, tiny_processor, images, "caption en", hot, max_new_tokens=20)
    for caption in captions:
        assert not any(mark in caption.text for mark in ("<image>", "<loc", "<seg", "<pad>", "<bos>"))


def test_minimum_length(tiny_model, tiny_processor, images):
    eos = tiny_processor.tokenizer.eos_token_id
    real = tiny_model.lm_head.forward
    tiny_model.lm_head.forward = lambda hidden: real(hidden).index_fill(-1, torch.tensor([eos]), 1e4)
    settings = {"max_new_tokens": 6, "min_new_tokens": 3}
    captions = caption_images(tiny_model, tiny_processor, images, "caption en", "greedy", **settings)
    assert {(caption.ended_by_eos, caption.num_tokens) for caption in captions} == {(True, 4)}


def test_every_module_keeps_its_mode(tiny_model, tiny_processor, images):
    tiny_model.train()
    tiny_model.model.vision_tower.eval()
    modes = [module.training for module in tiny_model.modules()]
    done = []
    settings = {"max_new_tokens": 2, "batch_size": 3, "progress": done.append}
    caption_images(tiny_model, tiny_processor, images, "caption en", "greedy", **settings)
    assert [module.training for module in tiny_model.modules()] == modes
    assert done == [3, 1]


def test_wrong_number_of_prompts(tiny_model, tiny_processor, images):
    with pytest.raises(DataError, match=r"one prompt or 4 \(one per image\), got 2 prompts"):
        caption_images(tiny_model, tiny_processor, images, ["a", "b"], "greedy", max_new_tokens=2)


def test_real_model_captions_are_sensible(rsicd_model, shared_data):
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(rsicd_model)
    processor = AutoProcessor.from_pretrained(rsicd_model)
    path = str(shared_data / "rsicd-64" / "val.parquet")
    rows = load_dataset("parquet", data_files=path, split="train").shuffle(seed=0).select(range(16))
    captions = caption_images(model, processor, rows["image"], "caption en", "greedy", max_new_tokens=24)
    known = {word for group in rows["captions"] for text in group for word in text.split()}
    said = [word.strip(".") for caption in captions for word in caption.text.split()]
    assert all(caption.ended_by_eos for caption in captions)
    assert sum(word in known for word in said) > 0.7 * len(said)
