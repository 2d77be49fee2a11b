"""The step benchmark: its rivals compute what they should, or beating them would mean nothing."""

from __future__ import annotations

import json

import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer

from benchmarks.models import VOCABULARY_3B, ModelShape, build_config, build_processor
from benchmarks.naive import NaiveSCST, coco_cider
from benchmarks.trl_paligemma import TRAINERS, build_trainer
from rewards.cider_d import CiderDReward
from rewards.scorers.cider import CiderD
from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.adapters.lora import add_lora
from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder, forbidden_token_mask
from scst.scoring.score_captions import score
from scst.types import Sampling
from tests.support.commands import start_warm
from tests.support.rollouts import paligemma_prompts
from tests.support.tiny import SENTENCES, build_model, noise_images
from tests.support.tiny import build_processor as build_tiny_processor

PROMPT, NUM_SAMPLES, LENGTH = "caption en", 3, 6
IMAGES = noise_images(2)
ROWS = [
    {"image": image, "references": list(SENTENCES[:5]), "image_id": f"image-{i}"}
    for i, image in enumerate(IMAGES)
]
VERSIONS = pytest.mark.parametrize("version", [1, 2])
KINDS = pytest.mark.parametrize("kind", sorted(TRAINERS))


def adapted(processor, version=1):
    """A tiny model with a LoRA whose every weight has a gradient."""
    model = build_model(processor, version=version).requires_grad_(False)
    torch.manual_seed(1)
    model = add_lora(model, targets="decoder-attention", rank=4, alpha=8.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return model


def adapter_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trl_trainer(kind, model, processor, tmp_path, min_tokens=1, reward=None):
    if reward is None:
        reward = CiderDReward()
        reward.setup({"references": [row["references"] for row in ROWS]})
    trainer = build_trainer(
        kind,
        model,
        processor,
        reward,
        ROWS,
        prompt=PROMPT,
        num_samples=NUM_SAMPLES,
        tokens=LENGTH,
        output_dir=tmp_path,
        min_tokens=min_tokens,
        use_cpu=True,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def trl_inputs(trainer):
    """What TRL scores: prompts and completions that it sampled itself."""
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def trl_logprobs(trainer, inputs, method=None):
    """TRL's (B * K, T) log probabilities, 0 on padding."""
    method = method or trainer._get_per_token_logps_and_entropies
    logprobs, _, _ = method(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        inputs["completion_ids"].shape[1],
        pixel_values=inputs["pixel_values"],
        num_images=inputs["num_images"],
        token_type_ids=inputs["token_type_ids"],
    )
    return logprobs * inputs["completion_mask"]


def our_logprobs(model, processor, inputs, forbidden=None, min_new_tokens=0):
    """Our plain scoring of the same; by default under the whole softmax, as TRL has it."""
    if forbidden is None:
        forbidden = torch.zeros(model.config.get_text_config().vocab_size, dtype=torch.bool)
    tokenizer = processor.tokenizer
    scores = score(
        Policy(model, forbidden, tokenizer.eos_token_id, tokenizer.pad_token_id),
        paligemma_prompts(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["pixel_values"], processor.image_token_id
        ),
        inputs["completion_ids"].unsqueeze(1),
        inputs["completion_mask"].bool().unsqueeze(1),
        Sampling(1, max_new_tokens=LENGTH, min_new_tokens=min_new_tokens),
        layout="plain",
    )
    return scores.logprobs.squeeze(1)


@VERSIONS
@KINDS
def test_trl_scores_as_we_do(kind, version, tmp_path):
    """Log probabilities to 1e-4, and the adapter's gradients of a weighted sum of them."""
    processor = build_tiny_processor()
    model = adapted(processor, version)
    trainer = trl_trainer(kind, model, processor, tmp_path)
    inputs = trl_inputs(trainer)
    assert tuple(inputs["completion_ids"].shape) == (2 * NUM_SAMPLES, LENGTH)
    prompts = PromptEncoder.of(processor).prompt_batch(IMAGES, [PROMPT] * 2)
    assert inputs["prompt_ids"].unique(dim=0).equal(prompts.input_ids.unique(dim=0)), "PaliGemma's own prompt"
    weights = torch.randn(2 * NUM_SAMPLES, LENGTH, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for logprobs in (trl_logprobs(trainer, inputs), our_logprobs(model, processor, inputs)):
        model.zero_grad()
        (logprobs * weights).sum().backward()
        found.append(logprobs.detach())
        gradients.append(adapter_gradients(model))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-3, msg=name)


@KINDS
def test_only_the_patch_keeps_the_future_out(kind, tmp_path):
    """Another last token changes no earlier log probability; as TRL has it, it does."""
    processor = build_tiny_processor()
    model = adapted(processor)
    trainer = trl_trainer(kind, model, processor, tmp_path, min_tokens=LENGTH)
    inputs = trl_inputs(trainer)
    changed = dict(inputs, completion_ids=inputs["completion_ids"].clone())
    changed["completion_ids"][:, -1] = (changed["completion_ids"][:, -1] + 1) % 500 + 3

    def leak(method=None):
        with torch.no_grad():
            before, after = (trl_logprobs(trainer, i, method) for i in (inputs, changed))
        return (before - after)[:, :-1].abs().max().item()

    assert leak() == 0
    unpatched = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[kind]._get_per_token_logps_and_entropies
    assert leak(unpatched.__get__(trainer)) > 1e-3


def test_rloo_without_the_patch_stops_at_the_labels(tmp_path):
    processor = build_tiny_processor()
    trainer = trl_trainer("rloo", adapted(processor), processor, tmp_path)
    trainer._get_per_token_logps_and_entropies = RLOOTrainer._get_per_token_logps_and_entropies.__get__(
        trainer
    )
    with pytest.raises(TypeError, match="labels"):
        trl_inputs(trainer)


@KINDS
def test_trl_step_trains_the_adapter(kind, tmp_path):
    """All of ``train()``: rewards of our function, captions of the forced length without special tokens."""
    processor = build_tiny_processor()
    model = adapted(processor)
    rewarded = []

    def reward(completions, references, image_id, completion_ids, **columns):
        rewarded.extend(zip(image_id, completion_ids, references, strict=True))
        return [float(i) for i in range(len(completions))]

    trainer = trl_trainer(kind, model, processor, tmp_path, min_tokens=LENGTH, reward=reward)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.args.max_steps = 1
    trainer.train()
    assert sorted({image_id for image_id, _, _ in rewarded}) == ["image-0", "image-1"]
    forbidden = forbidden_token_mask(processor, len(processor.tokenizer)).nonzero().flatten().tolist()
    for _, ids, references in rewarded:
        assert len(ids) == LENGTH
        assert not set(ids) & {*forbidden, processor.tokenizer.eos_token_id}
        assert references == list(SENTENCES[:5])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".default." in name), name  # RLOO adds another, "ref"


@VERSIONS
def test_naive_scores_as_we_do(version):
    """Under the very distribution that is sampled from: suppressed tokens and early ends have no mass."""
    processor = build_tiny_processor()
    model = adapted(processor, version)
    naive = NaiveSCST(model, processor, prompt=PROMPT, num_samples=NUM_SAMPLES, tokens=LENGTH)
    encoded = PromptEncoder.of(processor).encode_prompts(IMAGES, [PROMPT] * 2)
    _, sampled = naive.generate(encoded)
    repeated = {n: t.repeat_interleave(NUM_SAMPLES, 0) for n, t in encoded.items()}
    inputs = {
        "prompt_ids": repeated["input_ids"],
        "prompt_mask": repeated["attention_mask"],
        "pixel_values": repeated["pixel_values"],
        "completion_ids": sampled,
        "completion_mask": torch.ones_like(sampled),
    }
    forbidden = forbidden_token_mask(processor, len(processor.tokenizer))
    ours = our_logprobs(model, processor, inputs, forbidden, min_new_tokens=LENGTH)
    torch.testing.assert_close(naive.logprobs(encoded, sampled), ours, atol=1e-4, rtol=1e-4)


def test_naive_reward_is_cider_d_with_frequencies_of_the_batch():
    """Greedy and sampled captions of an image count its references once each."""
    references = [list(SENTENCES[:5]), list(SENTENCES[1:]), list(SENTENCES[:5])]
    captions = [SENTENCES[0], "a river goes through the forest", SENTENCES[5]]
    ours = CiderD(DocumentFrequencies.from_references(references, eos="omitted"))
    assert coco_cider(captions, references) == pytest.approx(ours.scores(captions, references), abs=1e-9)


@pytest.mark.parametrize(("version", "billions"), [(1, 2.92), (2, 3.03)])
def test_real_shape_has_the_parameters_of_the_release(version, billions):
    """google/paligemma-3b-pt-224 has 2.92 B parameters, google/paligemma2-3b-pt-224 3.03 B."""
    from transformers import PaliGemmaForConditionalGeneration

    config = build_config(ModelShape(version, "3b"), build_processor(8192))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    assert model.lm_head.weight.shape[0] == VOCABULARY_3B


def test_random_captions_are_words_that_references_share():
    """Forced lengths must be words, rewards not zero, and no more tokens suppressed than in real life."""
    processor = build_processor(8192)
    assert len(processor.tokenizer) == 8192
    assert forbidden_token_mask(processor, 8192).sum() < 1200
    words = processor.tokenizer.decode(list(range(1000, 3000))).split()
    assert len(words) == len(set(words)) == 2000
    assert all(word.isalpha() for word in words)
    assert len({word.lower() for word in words}) == 256


@pytest.mark.slow
def test_benchmark_writes_its_ratios(tmp_path):
    """The whole command at a small size; it checks the work of all ways itself."""
    small = "--width 32 --vocabulary 2048 --images 2 --samples 4 --tokens 12 --repetitions 1"
    result = start_warm("-m", "benchmarks.step", *small.split(), "--json", str(tmp_path / "step.json"))
    assert result.returncode == 0, result.stderr[-2000:]
    record = json.loads((tmp_path / "step.json").read_text())
    assert {"ours", "naive", "trl", "trl_rloo"} <= set(record["images_per_s"])
    seconds = {name: times["seconds"] for name, times in record["times"].items()}
    assert record["ratio_naive"] == pytest.approx(seconds["naive"] / seconds["ours"], abs=0.01)
    assert record["ratio_trl"] == pytest.approx(seconds["trl"] / seconds["ours"], abs=0.01)
    assert record["images_per_s"]["ours"] == pytest.approx(2 / seconds["ours"], rel=0.01)
    assert 0 < record["ours_share_of_peak"] < 1
    for name, times in record["times"].items():
        assert sum(times["phases"].values()) == pytest.approx(times["seconds"], abs=1e-3), name
