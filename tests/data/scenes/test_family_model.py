"""The script that trains tiny models of other families on scenes."""

from __future__ import annotations

import pytest
import torch

from scst.adapters.loaded import LoadedPolicy
from scst.data.scenes import family_model, tiny_families
from scst.data.scenes.base_model import Scenes
from scst.data.scenes.dataset import PRETRAIN_SEEDS
from scst.models.policy import policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout.greedy import greedy_captions

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", tiny_families.FAMILIES)
def test_a_model_of_every_family_is_trained_and_saved(name, tmp_path, monkeypatch):
    monkeypatch.setattr(family_model, "BATCH", 2)
    family_model.build(name, tmp_path, steps=1, decoder_steps=1, scenes=12)
    policy = LoadedPolicy.load(str(tmp_path), quantization="none", precision="fp32")
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    assert 1e6 < parameters < 4e6
    scenes = Scenes(PRETRAIN_SEEDS[:1])
    data = family_model.EncodedScenes(scenes, policy.encoder)
    found = greedy_captions(
        policy_for(policy.model, policy.encoder),
        policy.encoder,
        data.prompts([0], [0]),
        max_new_tokens=4,
        min_new_tokens=1,
    )
    assert len(found) == 1


def test_both_phases_lower_their_loss(monkeypatch, capsys):
    """Printed every 200 steps and at the end; a few dozen on a handful of scenes are enough to see it."""
    torch.manual_seed(0)
    monkeypatch.setattr(family_model, "BATCH", 4)
    scenes = Scenes(PRETRAIN_SEEDS[:8])
    processor = tiny_families.build_processor("smolvlm", scenes.texts(), family_model.SHAPE)
    model = family_model.build_model("smolvlm", processor)
    encoder = PromptEncoder.of(processor)
    policy, data = policy_for(model, encoder), family_model.EncodedScenes(scenes, encoder)
    losses = {}
    for phase in (family_model.train_vision, family_model.train_decoder):
        for steps in (1, 30):
            phase(policy, data, steps)
            losses[phase, steps] = float(capsys.readouterr().out.rpartition("loss ")[2].split()[0])
        assert losses[phase, 30] < 0.8 * losses[phase, 1]
