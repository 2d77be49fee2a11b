"""The shipped embedded model: small, complete, loadable offline, and able to see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

import scst.models
from scst.data.scenes.base_model import CAPTION_PROMPT, collate, encode
from scst.data.scenes.dataset import render_scene
from scst.data.scenes.scene_captions import PLAIN_PLACES

FOLDER = Path(scst.models.__file__).resolve().parents[1] / "assets" / "scenes-paligemma"


@pytest.fixture(scope="module")
def processor():
    return PaliGemmaProcessor.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, local_files_only=True).eval()


def test_folder_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 5_000_000


def test_loads_as_a_float32_paligemma_of_about_two_million_parameters(model):
    assert isinstance(model, PaliGemmaForConditionalGeneration)
    assert model.dtype == torch.float32
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.2e6
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_vocabulary_counts_the_processors_own_tokens(model, processor):
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    assert processor.tokenizer.convert_tokens_to_ids("<seg127>") == len(processor.tokenizer) - 1


def test_widths_fit_nf4_blocks(model):
    for config in (model.config.text_config, model.config.vision_config):
        assert config.hidden_size % 64 == 0
        assert config.intermediate_size % 64 == 0


def test_generation_stops_at_eos_and_is_greedy(model):
    settings = model.generation_config
    assert (settings.pad_token_id, settings.eos_token_id, settings.bos_token_id) == (0, 1, 2)
    assert not settings.do_sample


def test_training_rows_equal_the_processors(processor):
    image, caption = render_scene(1).image, "many green trees are near a pond ."
    theirs = processor(
        images=[image], text=[f"<image>{CAPTION_PROMPT}"], suffix=[caption], return_tensors="pt"
    )
    ours = collate([encode(processor, CAPTION_PROMPT, caption)])
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        assert torch.equal(ours[name], theirs[name]), name


def test_greedy_captions_name_the_place(model, processor):
    scenes = [render_scene(seed) for seed in range(2_500_000, 2_500_036)]
    inputs = processor(
        images=[scene.image for scene in scenes],
        text=[f"<image>{CAPTION_PROMPT}"] * len(scenes),
        return_tensors="pt",
    )
    inputs.pop("labels", None)
    with torch.no_grad():
        tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    captions = processor.batch_decode(tokens, skip_special_tokens=True)
    named = [PLAIN_PLACES[scene.kind][0] in text for scene, text in zip(scenes, captions, strict=True)]
    assert sum(named) >= 24, captions  # 36 of 36 when built
