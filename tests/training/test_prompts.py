"""Training on several prompts: who draws them, masks of unequal lengths, resuming in the middle."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from scst.config.reader import build_recipe
from scst.data.collate import SCSTCollator, SFTCollator
from scst.data.supervision import CaptionChoice, PromptChoice
from scst.errors import RecipeError
from tests.support.tiny import SENTENCES, noise_images

HERE = "tests.training.test_prompts"
PROMPTS = [
    "caption en",
    "Describe this image in detail:",
    "what is there to be seen in this picture of the ground ?",
]
ASKED: list[tuple[str, str]] = []
"""(image id, prompt) of every caption that the reward was asked about."""


def asking(completions, prompts, image_id, **columns):
    ASKED.extend(zip(image_id, prompts, strict=True))
    return [float(len(set(text.split()))) for text in completions]


@pytest.fixture
def rows():
    images = noise_images(6)
    return [
        {"image": image, "image_id": f"tile_{i}", "references": [SENTENCES[i] + " .", SENTENCES[i - 1]]}
        for i, image in enumerate(images)
    ]


def test_draws_are_even_and_change_with_the_epoch():
    choice = PromptChoice(tuple(PROMPTS), seed=1)
    drawn = [choice.choose(f"tile_{i}", epoch) for epoch in range(3) for i in range(1000)]
    counts = Counter(drawn)
    # 3000 draws of 3: 1000 each, standard deviation 26; five of them
    assert all(abs(counts[prompt] - 1000) < 130 for prompt in PROMPTS)
    moved = sum(a != b for a, b in zip(drawn[:1000], drawn[1000:2000], strict=True))
    assert 590 < moved < 745  # 2/3 of 1000, standard deviation 15


def test_a_draw_depends_on_seed_epoch_and_example_only():
    """Pinned: another draw for the same run would make a resumed run differ from the one before."""
    drawn = [PromptChoice(("a", "b", "c"), seed=7).choose(f"tile_{i}", 2) for i in range(12)]
    assert "".join(drawn) == PINNED


PINNED = "aaacacababcc"


class DrawsInTurn(PromptChoice):
    """The wrong twin: looks random enough, but depends on what was drawn before."""

    generator = torch.Generator().manual_seed(0)

    def choose(self, example, epoch):
        return self.prompts[int(torch.randint(len(self.prompts), (), generator=self.generator))]


@pytest.mark.parametrize("twin", [PromptChoice, DrawsInTurn])
def test_prompts_do_not_depend_on_how_images_are_cut_into_batches(tiny_processor, rows, twin):
    collator = SCSTCollator(tiny_processor, "unused", PROMPTS)
    collator.prompts = twin(tuple(PROMPTS), 0)
    whole = [collator(rows * 2)["columns"]["prompts"] for _ in range(4)]
    cut = [
        [p for i in (3, 0, 2, 1, 4, 5) for p in collator([rows[i]])["columns"]["prompts"]] for _ in range(4)
    ]
    order = [3, 0, 2, 1, 4, 5]
    same = all(w[:6] == w[6:] and [w[i] for i in order] == c for w, c in zip(whole, cut, strict=True))
    assert same == (twin is PromptChoice)


def test_one_prompt_is_what_it_was(tiny_processor, rows):
    """An empty list: the same ids as without the key."""
    choice = CaptionChoice("first", 3)
    for collator in (
        SFTCollator(tiny_processor, "caption en", choice, 8),
        SCSTCollator(tiny_processor, "caption en"),
    ):
        batch = collator(rows)
        expected = tiny_processor.tokenizer("caption en", add_special_tokens=False)["input_ids"]
        text = [tiny_processor.tokenizer.decode(ids) for ids in batch["input_ids"]]
        assert all("caption en" in line for line in text)
        assert batch["attention_mask"].bool()[:, : 16 + len(expected)].all()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_a_row_in_a_batch_of_unequal_prompts_is_the_row_alone(
    tiny_processor, tiny_model, tiny_model_v2, rows, version
):
    """Left padding is masked in all of the prefix; with the mask forgotten (the twin) it is not."""
    model = tiny_model if version == 1 else tiny_model_v2
    collator = SFTCollator(tiny_processor, "unused", CaptionChoice("first"), 10, PROMPTS)
    batch = collator(rows)
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1, "prompts of different lengths"
    together = caption_logprobs(model, batch)
    alone = [caption_logprobs(model, collator([row]))[0] for row in rows]
    for row, (mixed, single) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(mixed, single, rtol=1e-4, atol=1e-5, msg=f"row {row}")
    forgotten = caption_logprobs(model, batch | {"attention_mask": torch.ones_like(batch["attention_mask"])})
    shortest = int(lengths.argmin())
    assert (forgotten[shortest] - alone[shortest]).abs().max() > 1e-2


def caption_logprobs(model, batch):
    """Log probabilities of every row's trained tokens."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logprobs = model(**inputs).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    chosen = logprobs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return [row[keep] for row, keep in zip(chosen, labels != -100, strict=True)]


def test_evaluations_keep_their_prompt_and_captions(tiny_processor, rows):
    collator = SFTCollator(tiny_processor, "caption en", CaptionChoice("random", 3), 10, PROMPTS[1:])
    collator.epoch = 5
    held_out = collator.for_evaluation()(rows)
    plain = SFTCollator(tiny_processor, "caption en", CaptionChoice("random", 3), 10)(rows)
    assert torch.equal(held_out["input_ids"], plain["input_ids"])
    assert not torch.equal(collator(rows)["input_ids"], held_out["input_ids"])
    assert collator.epoch == 5


def test_the_captions_of_an_image_share_one_prompt(run_stage, sft_adapter, tmp_path):
    ASKED.clear()
    keys = {"adapter": str(sft_adapter), "prompts": PROMPTS, "max_steps": 6}
    run_stage("scst", output_dir=str(tmp_path / "out"), rewards=[{"import_path": f"{HERE}:asking"}], **keys)
    assert len(ASKED) == 6 * 4 * 4  # 6 steps of 4 images with 3 samples and the greedy caption
    for epoch in (ASKED[:48], ASKED[48:]):
        by_image = {image: {p for i, p in epoch if i == image} for image, _ in epoch}
        assert len(by_image) == 12
        assert all(len(prompts) == 1 for prompts in by_image.values())
        assert set.union(*by_image.values()) == set(PROMPTS)
    first, second = dict(ASKED[:48]), dict(ASKED[48:])
    assert any(first[image] != second[image] for image in first), "drawn anew in the second epoch"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["recipe"]["prompts"] == PROMPTS


@pytest.mark.parametrize("stage", ["sft", "scst", "late"])
def test_resumed_run_draws_the_same_prompts(run_stage, sft_adapter, tmp_path, stage):
    """Killed at the end of the first epoch (3 steps); a late rollout then waits with its epoch's prompts."""
    stage, late = ("scst", True) if stage == "late" else (stage, False)
    keys = {"prompts": PROMPTS, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    keys |= {"adapter": str(sft_adapter), "one_step_off_policy": late} if stage == "scst" else {}
    run_stage(stage, output_dir=str(tmp_path / "whole"), **keys)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "parts" / "checkpoint-3")
    run_stage(stage, output_dir=str(tmp_path / "parts"), resume=True, **keys)
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_several_prompts_train_another_adapter(run_stage, tmp_path):
    for name, prompts in {"one": [], "several": PROMPTS}.items():
        run_stage("sft", output_dir=str(tmp_path / name), prompts=prompts, max_steps=1)
    one, several = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "several"))
    assert any(not torch.equal(one[name], several[name]) for name in one)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["caption en", " "], "prompts: ' ' is empty"),
        (["caption en", "x", "caption en"], "prompts: 'caption en' stands there twice"),
        (["caption en", 3], "prompts: expected a list of texts, got 3"),
        (7, "prompts: expected list, got 7"),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_wrong_prompts_are_refused_before_anything_is_loaded(stage, prompts, message):
    with pytest.raises(RecipeError, match=message):
        build_recipe(stage, {"prompts": prompts})
