"""Captions are sampled in eval mode and scored in train mode: ``disable_dropout`` makes these one policy."""

from __future__ import annotations

import pytest
import torch
from transformers import PaliGemmaForConditionalGeneration

from scst.adapters.loading import disable_dropout, load_adapter
from scst.models.policy import policy_for
from scst.models.prompts import PromptEncoder
from scst.rollout.decode import rollout
from scst.scoring.score import score
from scst.types import Sampling
from tests.support.adapted import new_adapter
from tests.support.rollouts import uniforms
from tests.support.tiny import build_config

PROMPTS = ["caption en", "describe this image"]


def with_attention_dropout(processor, version: int) -> PaliGemmaForConditionalGeneration:
    """A model of a checkpoint whose configuration has dropout in decoder and vision tower."""
    config = build_config(processor, version=version, attention_dropout=0.5)
    config.vision_config.attention_dropout = 0.5
    torch.manual_seed(0)
    return PaliGemmaForConditionalGeneration(config).requires_grad_(False)


@pytest.mark.parametrize("version", [1, 2], ids=["paligemma1", "paligemma2"])
def test_what_was_sampled_is_what_is_scored(tiny_processor, images, tmp_path, version):
    new_adapter("lora", with_attention_dropout(tiny_processor, version), tiny_processor).save_pretrained(
        tmp_path
    )
    model = load_adapter(with_attention_dropout(tiny_processor, version), tmp_path, trainable=True)
    policy, sampling = policy_for(model, tiny_processor), Sampling(3, max_new_tokens=6)
    batch = PromptEncoder(tiny_processor).prompt_batch(images[:2], PROMPTS)
    model.eval()
    drawn = rollout(policy, tiny_processor, batch, sampling, uniforms(sampling, 2))
    model.train()  # image features are computed again, with the vision tower's dropout if it has any left
    scores = score(policy, drawn.prompts, drawn.completion_ids, drawn.completion_mask, sampling)
    torch.testing.assert_close(scores.logprobs, drawn.sampled_logprobs, rtol=0, atol=1e-5)


class DropPath(torch.nn.Module):
    """Stochastic depth as timm and transformers write it: the probability is a plain attribute."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.3


def test_every_form_of_dropout():
    model = torch.nn.Sequential(
        torch.nn.Dropout(0.1), torch.nn.Dropout2d(0.1), torch.nn.AlphaDropout(0.1), DropPath()
    )
    model.append(torch.nn.MultiheadAttention(4, 1, dropout=0.1))
    model.append(torch.nn.LSTM(4, 4, num_layers=2, dropout=0.1))
    disable_dropout(model)
    assert [model[i].p for i in range(3)] == [0.0] * 3
    assert (model[3].drop_prob, model[4].dropout, model[5].dropout) == (0.0, 0.0, 0.0)
