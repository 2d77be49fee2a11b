"""Names of modules on the model of each family: LoRA presets, what stays unquantised, parameter tables."""

from __future__ import annotations

import pytest
import torch

from scst.adapters.lora import LORA_TARGETS, add_lora
from scst.adapters.parameters import count_parameters
from scst.models.pretrained import load_model
from tests.support import families

EACH = pytest.mark.parametrize("name", families.FAMILIES)


def adapted_modules(world, preset: str) -> dict[str, set[str]]:
    """Names of the adapted modules by part."""
    names = world.encoder.family.names
    model = add_lora(world.model, targets=preset, rank=2, alpha=4.0)
    found = {
        name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")
    }
    parts: dict[str, set[str]] = {"decoder": set(), "vision": set(), "projector": set()}
    for name in found:
        if name.startswith(names.projector):
            parts["projector"].add(name)
        elif name.startswith(names.vision):
            parts["vision"].add(name)
        else:
            assert name.startswith(names.decoder)
            parts["decoder"].add(name)
    return parts


def linear_names(world, prefix: str, without: tuple[str, ...] = ()) -> set[str]:
    return {
        name
        for name, module in world.model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith(prefix)
        and not name.startswith(without or "\0")
    }


@EACH
def test_the_full_preset_reaches_every_linear_layer(name):
    world = families.make_world(name)
    names = world.encoder.family.names
    decoder = linear_names(world, names.decoder)
    vision = linear_names(world, names.vision, names.projector)
    projector = set().union(*(linear_names(world, part) for part in names.projector))
    if names.projector_parameters:  # a bare matrix: PEFT wraps the module that holds it
        projector = set(names.projector)
    parts = adapted_modules(world, "full")
    assert parts == {"decoder": decoder, "vision": vision, "projector": projector}
    assert all(parts.values())


@EACH
@pytest.mark.parametrize("preset", LORA_TARGETS)
def test_presets_reach_what_they_name(name, preset):
    world = families.make_world(name)
    parts = adapted_modules(world, preset)
    assert parts["decoder"]
    assert bool(parts["vision"]) == (preset in ("vision+decoder-qv", "full"))
    assert bool(parts["projector"]) == (preset in ("decoder-attention-mlp+projector", "full"))


@EACH
@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
def test_only_the_decoder_is_quantised(name, quantization, tmp_path):
    """As loaded from disk: vision tower, projector and head keep the compute precision."""
    world = families.make_world(name)
    world.model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), quantization=quantization, precision="bf16")
    names = world.encoder.family.names
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    quantised = {n for n, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert quantised == {n for n in kinds if n.startswith(names.decoder)}
    assert len(quantised) >= 14
    for part in (names.vision, *names.projector, names.head):
        assert {p.dtype for p in model.get_submodule(part).parameters()} == {torch.bfloat16}


@EACH
def test_the_parameter_table_has_every_part(name):
    world = families.make_world(name)
    counts = {
        part.part: part.total
        for part in count_parameters(add_lora(world.model, targets="full", rank=2, alpha=4.0))
    }
    names = world.encoder.family.names
    wanted = {part.rpartition(".")[2] for part in (names.decoder, names.vision, names.projector[0])}
    assert wanted <= set(counts)
