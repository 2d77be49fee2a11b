"""Prompt tuning, prefix tuning and bottlenecks against their definitions; saving, merging, refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.cache_utils import DynamicCache

from scst.adapters.loading import load_adapter
from scst.adapters.merging import write_merged
from scst.adapters.parameters import count_parameters
from scst.adapters.prefix_tuning import Prefix, keys_and_values
from scst.adapters.prompt_tuning import VirtualTokens, encoder_for, reserved_tokens
from scst.adapters.saved_adapter import check_adapter_exists
from scst.adapters.snapshot import AdapterSnapshot
from scst.config.reader import build_recipe
from scst.errors import RecipeError
from scst.models.masks import AttentionMask, for_attention, prompt_mask
from scst.models.pretrained import load_model
from scst.models.processors import load_processor
from scst.models.prompts import PromptEncoder, first_tokens
from tests.support.adapted import KINDS, N, adapted, new_adapter, policy_of
from tests.support.tiny import build_model
from tests.support.worlds import write_model

PROMPTS = ["caption en", "describe this image"]
VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["paligemma1", "paligemma2"])


def logits_of(model, processor, images):
    """(B, V) of the first caption token."""
    inputs = PromptEncoder.of(processor).encode_prompts(images[:2], PROMPTS)
    positions = inputs["attention_mask"].cumsum(1).clamp(min=1)  # a prefix tells them apart
    with torch.no_grad():
        return model(**inputs, position_ids=positions).logits[:, -1]


def prompts_for(policy, processor, images):
    batch = PromptEncoder.of(processor).prompt_batch(images[:2], PROMPTS)
    with torch.no_grad():
        return policy.from_prompts(batch, policy.image_features(batch), prompt_mask(batch))


@VERSIONS
def test_a_new_bottleneck_changes_nothing(tiny_processor, images, version):
    model = build_model(tiny_processor, version=version)
    before = logits_of(model, tiny_processor, images)
    after = logits_of(new_adapter("bottleneck", model, tiny_processor), tiny_processor, images)
    assert torch.equal(before, after)


@VERSIONS
def test_a_bottleneck_is_the_published_formula(tiny_processor, version):
    """h + W_up gelu(W_down h + b) + c behind attention and MLP of each of the two layers."""
    model, _ = adapted("bottleneck", build_model(tiny_processor, version=version), tiny_processor)
    mlp = model.get_base_model().model.language_model.layers[1].mlp
    states = torch.randn(2, 3, 64)
    hidden = mlp.base_layer(states)
    down, up = mlp.bottleneck_network.default.down, mlp.bottleneck_network.default.up
    expected = hidden + torch.nn.functional.gelu(hidden @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(mlp(states), expected)
    trained = sum(part.trainable for part in count_parameters(model))
    assert trained == 2 * 2 * (2 * 64 * 8 + 64 + 8), "layers x places x (2md + d + m) of Houlsby et al."


@VERSIONS
def test_virtual_tokens_are_embeddings_fed_by_hand(tiny_processor, images, version):
    """The same logits as the bare model with those embeddings in the places of the virtual tokens."""
    bare = build_model(tiny_processor, version=version)
    model, processor = adapted("prompt_tuning", build_model(tiny_processor, version=version), tiny_processor)
    ids = PromptEncoder.of(processor).encode_prompts(images[:2], PROMPTS)["input_ids"]
    plain = PromptEncoder.of(tiny_processor).encode_prompts(images[:2], PROMPTS)["input_ids"]
    reserved = torch.tensor(processor.tokenizer.convert_tokens_to_ids(reserved_tokens(processor, N)))
    for row, without in zip(ids, plain, strict=True):  # in order, behind <bos>, and nothing else has changed
        start = (row == processor.tokenizer.bos_token_id).nonzero().item() + 1
        assert torch.equal(row[start : start + N], reserved)
        assert torch.equal(torch.cat([row[:start], row[start + N :]]), without)
    rows = next(m for m in model.modules() if isinstance(m, VirtualTokens)).weight
    policy = policy_of(bare, processor)
    inputs = prompts_for(policy, processor, images)
    scale = getattr(bare.get_input_embeddings(), "embed_scale", 1.0)
    for row, token in enumerate(reserved):
        inputs.embeddings[ids == token] = rows[row].detach() * scale
    with torch.no_grad():
        expected = policy.forward(inputs, keep=1)[:, -1]
    torch.testing.assert_close(logits_of(model, processor, images), expected, rtol=0, atol=1e-5)
    assert (expected - logits_of(bare, tiny_processor, images)).abs().max() > 1e-3


@VERSIONS
def test_a_prefix_is_an_explicit_cache(tiny_processor, images, version):
    """The same logits as the bare model behind a key-value cache that holds the prefix."""
    model, processor = adapted("prefix_tuning", build_model(tiny_processor, version=version), tiny_processor)
    policy = policy_of(build_model(tiny_processor, version=version), processor)
    inputs = prompts_for(policy, processor, images)
    cache = DynamicCache()
    for layer, prefix in enumerate(m for m in model.modules() if isinstance(m, Prefix)):
        cache.update(*(rows.detach().expand(2, -1, -1, -1) for rows in (prefix.keys, prefix.values)), layer)
    seen = [
        torch.nn.functional.pad(each, (N, 0), value=True) for each in (inputs.mask.causal, inputs.mask.full)
    ]
    inputs = dataclasses.replace(inputs, mask=AttentionMask(*seen))
    with torch.no_grad():
        expected = policy.forward(inputs, keep=1, cache=cache)[:, -1]
    torch.testing.assert_close(logits_of(model, processor, images), expected, rtol=0, atol=1e-5)
    assert (expected - logits_of(policy.inner, processor, images)).abs().max() > 1e-3


@VERSIONS
def test_a_prefix_begins_as_keys_and_values_of_its_tokens(tiny_processor, version):
    """Those of a forward pass over the tokens alone: checked through the attention's own projections."""
    model = build_model(tiny_processor, version=version)
    tokens = first_tokens(tiny_processor, 1577, N, text="two planes", seed=0)
    keys, values = keys_and_values(model, tokens)[0]
    layer = model.model.language_model.layers[0]
    normed = layer.input_layernorm(model.get_input_embeddings()(tokens))
    torch.testing.assert_close(values[0], layer.self_attn.v_proj(normed))
    unrotated = layer.self_attn.k_proj(normed)  # rotation keeps lengths
    torch.testing.assert_close(keys[0].norm(dim=-1), unrotated.norm(dim=-1))


def test_no_mask_means_causal_to_sdpa(tiny_processor):
    """The library leaves out masks that it takes for causal; with a prefix they must be written down."""
    model, _ = adapted("prefix_tuning", build_model(tiny_processor), tiny_processor)
    attention = model.get_base_model().model.language_model.layers[0].self_attn
    states = torch.randn(1, 6, 64)
    rotation = model.get_base_model().model.language_model.rotary_emb(states, torch.arange(6)[None])
    causal = for_attention(torch.ones(1, 1, 6, 6, dtype=torch.bool).tril(), "sdpa", torch.float32)
    with torch.no_grad():
        outputs = [
            attention(hidden_states=states, position_embeddings=rotation, attention_mask=mask)[0]
            for mask in (None, causal)
        ]
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(tiny_processor, images, tmp_path, kind):
    """A small file, the same logits bit for bit, nothing but the adapter to train; the snapshot swaps it."""
    model, processor = adapted(kind, build_model(tiny_processor), tiny_processor)
    before = logits_of(model, processor, images)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert check_adapter_exists(tmp_path) == kind
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 30_000
    loaded = load_adapter(build_model(tiny_processor), tmp_path, trainable=True).eval()
    fresh = encoder_for(loaded, AutoProcessor.from_pretrained(tmp_path))
    assert torch.equal(logits_of(loaded, fresh, images), before)
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
    snapshot = AdapterSnapshot(loaded)
    for parameter in loaded.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    assert not torch.equal(logits_of(loaded, fresh, images), before)
    with snapshot.applied(loaded):
        assert torch.equal(logits_of(loaded, fresh, images), before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "prompt_tuning"])
def test_merged_model_is_the_adapted_one(tmp_path, images, kind):
    """A plain checkpoint with the logits of base and adapter, up to rounding."""
    folder = str(write_model(tmp_path / "base"))
    model, processor = adapted(
        kind, load_model(folder, quantization="none", precision="fp32"), load_processor(folder)
    )
    model.save_pretrained(tmp_path / "adapter")
    tokens = write_merged(folder, str(tmp_path / "adapter"), tmp_path / "merged", precision="fp32")
    assert len(tokens) == (N if kind == "prompt_tuning" else 0)
    merged = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "merged", attn_implementation="sdpa"
    ).eval()
    plain = load_processor(str(tmp_path / "merged"))
    with torch.no_grad():
        prompts = ["".join(tokens) + prompt for prompt in PROMPTS]
        found = merged(**PromptEncoder.of(plain).encode_prompts(images[:2], prompts)).logits[:, -1]
    expected = logits_of(model, processor, images)
    ordinary = torch.ones(expected.shape[1], dtype=torch.bool)
    ordinary[plain.tokenizer.convert_tokens_to_ids(tokens)] = False  # the tied head has their rows, too
    torch.testing.assert_close(found[:, ordinary], expected[:, ordinary], rtol=0, atol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", ["prefix_tuning", "bottleneck"])
def test_what_has_no_place_in_the_weights_is_not_merged(tiny_processor, tmp_path, kind):
    adapted(kind, build_model(tiny_processor), tiny_processor)[0].save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=f"{kind} cannot be merged"):
        write_merged("no model is looked for", str(tmp_path), tmp_path / "merged", precision="fp32")


def test_first_tokens(tiny_processor):
    """A text is repeated to the length; random words come from the seed and are words."""
    text = tiny_processor.tokenizer("two planes", add_special_tokens=False)["input_ids"]
    found = first_tokens(tiny_processor, 1577, len(text) + 1, text="two planes", seed=0).tolist()
    assert found == [*text, text[0]]
    random = [first_tokens(tiny_processor, 1577, 200, text=None, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2])
    names = tiny_processor.tokenizer.convert_ids_to_tokens(random[0].tolist())
    assert not any(name.startswith("<") and not name.startswith("<0x") for name in names)
    with pytest.raises(RecipeError, match="has no tokens"):
        first_tokens(tiny_processor, 1577, 3, text="", seed=0)


def test_reserved_tokens_run_out(tiny_processor):
    assert len(set(reserved_tokens(tiny_processor, 1152))) == 1152
    with pytest.raises(RecipeError, match="num_virtual_tokens: the vocabulary has 1152 reserved tokens"):
        reserved_tokens(tiny_processor, 1153)


def test_virtual_tokens_of_another_vocabulary_are_refused(tiny_processor):
    model, _ = adapted("prompt_tuning", build_model(tiny_processor), tiny_processor)
    model.peft_config["default"].token_ids = [1, 2, 3, 4, 5]
    with pytest.raises(RecipeError, match="other numbers in this model's vocabulary"):
        encoder_for(model, tiny_processor)


def test_adapters_that_the_passes_would_pass_by_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(RecipeError, match="PEFT's type 'PREFIX_TUNING'; expected one of LORA, SCST_PROMPT"):
        check_adapter_exists(tmp_path)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"adapter_type": "prompt_tuning", "lora_rank": 8}, "lora_rank: a key of adapter_type: lora"),
        (
            {"num_virtual_tokens": 8},
            "num_virtual_tokens: a key of adapter_type: prompt_tuning, pre",
        ),
        ({"adapter_type": "bottleneck", "prompt_init": "random"}, "prompt_init: a key of adapter_type"),
        ({"adapter_type": "prefix_tuning", "bottleneck_size": 8}, "bottleneck_size: a key of adapter_type"),
        (
            {"adapter_type": "prefix_tuning", "num_virtual_tokens": 0},
            "num_virtual_tokens: expected 1",
        ),
        (
            {"adapter_type": "prompt_tuning", "prompt_init": "random", "prompt_init_text": "a"},
            "prompt_init_text: needs prompt_init: text",
        ),
    ],
)
def test_keys_of_another_type_are_refused(keys, expected):
    with pytest.raises(RecipeError, match=expected):
        build_recipe("sft", keys)
