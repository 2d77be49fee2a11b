"""Our reward, unchanged, inside TRL's GRPOTrainer (the other way round: tests/rl/test_rewards.py)."""

from __future__ import annotations

import math

import datasets
import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from rewards.cider_d import CiderDReward
from rewards.registry import build_rewards
from tests.support.tiny import SENTENCES, build_tokenizer

ROWS = {
    "prompt": ["caption en\n" + SENTENCES[i][:12] for i in range(4)],
    "references": [[SENTENCES[i] + " .", SENTENCES[i]] for i in range(4)],
    "image_id": [f"img_{i}" for i in range(4)],
}


def build_model(tokenizer) -> GemmaForCausalLM:
    """A tiny random language model."""
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return GemmaForCausalLM(config)


def train(tmp_path, reward_funcs, rows=ROWS) -> GRPOTrainer:
    """Two steps of GRPO on the CPU."""
    tokenizer = build_tokenizer()
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=10,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        learning_rate=0.0,  # the same completions in every run
        seed=0,
    )
    trainer = GRPOTrainer(
        build_model(tokenizer),
        reward_funcs,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def silent(completions, **columns):
    return [0.0] * len(completions)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """References that the policy does write: a random model never meets a sentence."""
    logs = train(tmp_path_factory.mktemp("written"), silent)._logs
    written = list(zip(logs["prompt"], logs["completion"], strict=True))
    references = [[text for prompt, text in written if prompt == p] or ["a road"] for p in ROWS["prompt"]]
    return ROWS | {"references": references}


@pytest.mark.slow
def test_cider_d_under_grpo(tmp_path, rows):
    """The rewards that TRL logs are those of the scorer; its own columns and functions are passed over."""
    reward = CiderDReward()
    reward.setup({"references": rows["references"]})
    trainer = train(tmp_path, reward, rows)
    prompts, completions = list(trainer._logs["prompt"]), list(trainer._logs["completion"])
    assert len(completions) == 4, "of the last step"
    references = dict(zip(rows["prompt"], rows["references"], strict=True))
    expected = reward.scorer.scores(completions, [references[prompt] for prompt in prompts])
    # each is one of its two references: cosines of 1 and at least 0, so the mean is at least 5
    assert min(expected) >= 5
    logged = list(trainer._logs["rewards"]["cider_d"])
    assert logged == pytest.approx(expected, rel=1e-6), "kept in single precision"
    entries = [entry for entry in trainer.state.log_history if "rewards/cider_d/mean" in entry]
    assert len(entries) == 2
    assert entries[-1]["rewards/cider_d/mean"] == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_rewards_of_a_recipe_under_grpo(tmp_path):
    """With kwargs bound to an asynchronous function; names and opinions survive."""
    entries = [
        {"name": "cider_d", "kwargs": {"eos": "omitted"}},
        {"import_path": "tests.rewards.test_trl:preference", "kwargs": {"wanted": 3}},
    ]
    functions = [reward.function for reward in build_rewards(entries)]
    functions[0].setup({"references": ROWS["references"]})
    trainer = train(tmp_path, functions)
    values = list(trainer._logs["rewards"]["preference"])
    completions = list(trainer._logs["completion"])
    for text, value in zip(completions, values, strict=True):
        words = len(text.split())
        assert value == -abs(words - 3) if words % 2 else math.isnan(value)
    (last,) = [entry for entry in trainer.state.log_history if entry.get("step") == 2 and "loss" in entry]
    assert last["words"] == pytest.approx(sum(len(text.split()) for text in completions) / 4)


async def preference(completions, references, image_id, trainer_state, log_metric, wanted=12, **columns):
    """Distance to a length, without opinion on even ones; uses everything TRL hands over."""
    assert len(completions) == len(references) == len(image_id)
    assert trainer_state.max_steps == 2
    lengths = [len(text.split()) for text in completions]
    log_metric("words", sum(lengths) / len(lengths))
    return [-abs(length - wanted) if length % 2 else None for length in lengths]
