"""What is quantised, what is adapted, what is frozen; and which settings are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from scst.adapters.loading import disable_dropout, load_adapter
from scst.adapters.lora import LORA_TARGETS, LORA_VARIANTS, add_lora
from scst.adapters.parameters import count_parameters
from scst.adapters.saved_adapter import check_adapter_exists
from scst.adapters.snapshot import AdapterSnapshot
from scst.errors import RecipeError
from scst.models.base_checkpoint import check_model_exists
from scst.models.pretrained import attention_kernel, load_model
from tests.support.worlds import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "v1")


@pytest.mark.parametrize(("quantization", "kind"), [("nf4", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_only_decoder_layers_are_quantised(folder, quantization, kind):
    model = load_model(str(folder), quantization=quantization, precision="fp32")
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == kind}
    assert len(quantised) == 7, "q, k, v, o, gate, up, down of one layer"
    assert all("language_model" in name for name in quantised)
    assert model.lm_head.weight.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.model.vision_tower.parameters())
    if quantization == "nf4":
        state = model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precision(folder, precision):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    model = load_model(str(folder), quantization="none", precision=precision)
    assert {p.dtype for p in model.parameters()} == {dtype}


EXPECTED_LAYERS = {
    "decoder-attention": {"language_model": 4},
    "decoder-attention-mlp": {"language_model": 7},
    "decoder-attention-mlp+projector": {"language_model": 7, "multi_modal_projector": 1},
    "vision+decoder-qv": {"language_model": 2, "vision_tower": 2},
    "full": {"language_model": 7, "vision_tower": 6, "multi_modal_projector": 1},
    r".*language_model.*\.o_proj": {"language_model": 1},
}


@pytest.mark.parametrize("targets", EXPECTED_LAYERS)
def test_lora_targets(folder, targets):
    """One decoder layer and one vision layer: the adapted layers are counted."""
    model = add_lora(load_model(str(folder), quantization="none"), targets=targets, rank=2, alpha=4)
    adapted = [name for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name]
    counts = {part: sum(part in name for name in adapted) for part in EXPECTED_LAYERS["full"]}
    assert {part: n for part, n in counts.items() if n} == EXPECTED_LAYERS[targets]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    assert set(EXPECTED_LAYERS) >= set(LORA_TARGETS)


@pytest.mark.parametrize("targets", ["q_prj", r".*no_such_part.*"])
def test_targets_that_fit_nothing(folder, targets):
    with pytest.raises(RecipeError, match="fits no layer"):
        add_lora(load_model(str(folder), quantization="none"), targets=targets, rank=2, alpha=4)


def lora_modules(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def test_ranks_of_single_layers(folder):
    """The scale alpha / rank is that of the whole adapter; it survives saving."""
    model = add_lora(
        load_model(str(folder), quantization="none"),
        targets="decoder-attention",
        rank=8,
        alpha=16,
        rank_pattern={"q_proj": 2, r"layers\.0.*\.v_proj": 4},
    )
    modules = lora_modules(model)
    ranks = {name.rsplit(".", 1)[1]: module.r["default"] for name, module in modules.items()}
    assert ranks == {"q_proj": 2, "k_proj": 8, "v_proj": 4, "o_proj": 8}
    assert {module.scaling["default"] for module in modules.values()} == {2.0}
    with pytest.raises(RecipeError, match=r"lora_rank_pattern: 'layers.9' is the end of no adapted layer"):
        add_lora(
            load_model(str(folder), quantization="none"),
            targets="full",
            rank=8,
            alpha=16,
            rank_pattern={"layers.9": 2},
        )


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("variant", list(LORA_VARIANTS))
def test_variants_of_lora_are_saved_and_loaded(folder, tmp_path, variant, quantization):
    """A trained one changes the logits, and the one that is loaded changes them alike."""
    ids = torch.arange(300, 308).unsqueeze(0)
    logits = []
    for step in ("new", "loaded"):
        model = load_model(str(folder), quantization=quantization, precision="fp32")
        with torch.no_grad():
            base = model(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits
        if step == "new":
            model = add_lora(model, targets="decoder-attention-mlp", rank=4, alpha=8, variant=variant)
            generator = torch.Generator().manual_seed(0)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.1, generator=generator)
            model.save_pretrained(tmp_path / "adapter")
        else:
            model = load_adapter(model, tmp_path / "adapter", trainable=True)
        with torch.no_grad():
            logits.append(model.eval()(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits)
        assert (logits[-1] - base).abs().max() > 1e-3
    torch.testing.assert_close(logits[1], logits[0])
    scalings = {module.scaling["default"] for module in lora_modules(model).values()}
    assert scalings == ({4.0} if variant == "rslora" else {2.0}), "8 / sqrt(4), 8 / 4"
    magnitudes = [name for name, p in model.named_parameters() if "magnitude" in name and p.requires_grad]
    assert bool(magnitudes) == (variant == "dora")


def test_head_and_embeddings_are_refused(folder):
    with pytest.raises(RecipeError, match="head or the embeddings"):
        add_lora(load_model(str(folder), quantization="none"), targets=r".*lm_head", rank=2, alpha=4)


def test_parameter_counts_of_a_quantised_model_count_weights_not_bytes(folder):
    plain = count_parameters(
        add_lora(load_model(str(folder), quantization="none"), targets="full", rank=2, alpha=4)
    )
    packed = count_parameters(
        add_lora(load_model(str(folder), quantization="nf4"), targets="full", rank=2, alpha=4)
    )
    assert packed == plain


@pytest.mark.slow
def test_published_trainable_share_of_the_full_adapter():
    """Rank 8 on decoder, vision tower and projector of PaliGemma 3B: the published 14.2 M parameters."""
    from accelerate import init_empty_weights
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    text = {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 257216,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "vision_use_head": False,
        "projection_dim": 2048,
    }
    config = PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=2048)
    with init_empty_weights():
        model = add_lora(
            PaliGemmaForConditionalGeneration(config).requires_grad_(False), targets="full", rank=8, alpha=8
        )
    trainable = sum(part.trainable for part in count_parameters(model))
    assert round(trainable / 1e6, 1) == 14.2


def test_paligemma2_gets_eager_attention(tmp_path):
    config = AutoConfig.from_pretrained(write_model(tmp_path, version=2))
    assert attention_kernel(config, "auto") == "eager"
    with pytest.raises(RecipeError, match="PaliGemma 2 needs eager"):
        attention_kernel(config, "sdpa")


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RecipeError, match="'bert' model; expected a checkpoint of one of paligemma"):
        check_model_exists(str(tmp_path))


def test_folder_without_adapter_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RecipeError, match=r"found: notes\.txt"):
        check_adapter_exists(tmp_path)


def test_snapshot_swaps_and_restores(folder):
    model = add_lora(
        load_model(str(folder), quantization="none"), targets="full", rank=2, alpha=4, dropout=0.5
    )
    disable_dropout(model)
    snapshot = AdapterSnapshot(model)
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    weight.data += 1.0
    with snapshot.applied(model):
        assert weight.abs().sum() == 0
    assert (weight == 1).all()
    assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize("name", ["x" * 10_000, "no/such", "a\0b"])
def test_a_name_of_no_model_is_one_sentence(name):
    with pytest.raises(
        RecipeError, match=r"^model_name_or_path: no model configuration found at "
    ) as refused:
        check_model_exists(name)
    assert len(str(refused.value)) < 1000
