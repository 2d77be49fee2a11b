"""Prompt format and masks: what is trained, what attends to what, and that three code paths agree."""

from __future__ import annotations

import pytest
import torch

from scst.models import masks
from scst.models.prompts import IGNORED_LABEL, PromptEncoder, forbidden_token_ids
from tests.support.rollouts import paligemma_prompts
from tests.support.tiny import SENTENCES, build_model

PROMPTS = ["caption en", "describe the harbour in this image"]
CAPTIONS = [SENTENCES[0], SENTENCES[2]]


@pytest.fixture(params=[(1, "sdpa"), (1, "eager"), (2, "eager")], ids=["v1-sdpa", "v1-eager", "v2-eager"])
def model(request, tiny_processor):
    """Every supported pair of PaliGemma version and attention kernel."""
    version, kernel = request.param
    model = build_model(tiny_processor, version=version)
    model.set_attn_implementation(kernel)
    return model


def supervised_batch(processor, images, prompts=PROMPTS, captions=CAPTIONS):
    return PromptEncoder.of(processor).encode_captions(
        images[: len(prompts)], prompts, captions, max_new_tokens=32
    )


def logits_of(model, batch):
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("prompts", [["caption en"] * 2, PROMPTS], ids=["one prompt", "padded prompts"])
@pytest.mark.parametrize("captions", [[SENTENCES[0]] * 2, CAPTIONS], ids=["equal lengths", "padded captions"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_sft_collation_hides_the_future(model, tiny_processor, images, prompts, captions, training):
    """Changing a caption token changes no earlier logit, bit for bit, nor any logit of another row."""
    model.train(training)
    batch = supervised_batch(tiny_processor, images, prompts, captions)
    first = int((batch["labels"][0] != IGNORED_LABEL).nonzero()[0])
    position = first + 4
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][0, position] = 300 + (int(changed["input_ids"][0, position]) - 299) % 60
    assert changed["input_ids"][0, position] != batch["input_ids"][0, position]
    before, after = logits_of(model, batch), logits_of(model, changed)
    real = batch["attention_mask"][0].bool()
    assert torch.equal(before[0, :position][real[:position]], after[0, :position][real[:position]])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, position], after[0, position])


def test_prompt_is_bidirectional(model, tiny_processor, images):
    """The last word of the prompt changes the first image token's state: a causal prompt would hide it."""
    batch = PromptEncoder.of(tiny_processor).encode_prompts(images[:1], ["caption en"])
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][0, -2] = 301
    assert not torch.equal(logits_of(model, batch)[0, 0], logits_of(model, changed)[0, 0])


def test_generation_sees_what_training_saw(model, tiny_processor, images):
    """Logits of every step of `generate` equal those of the supervised forward pass on the same caption."""
    prompts = PromptEncoder.of(tiny_processor).encode_prompts(images[:2], PROMPTS)
    done = model.generate(
        **prompts,
        do_sample=False,
        max_new_tokens=6,
        min_new_tokens=6,
        output_logits=True,
        return_dict_in_generate=True,
    )
    generated = done.sequences[:, prompts["input_ids"].shape[1] :]
    batch = {
        "input_ids": done.sequences,
        "attention_mask": torch.cat([prompts["attention_mask"], torch.ones_like(generated)], 1),
        "token_type_ids": torch.cat([prompts["token_type_ids"], torch.ones_like(generated)], 1),
        "pixel_values": prompts["pixel_values"],
    }
    expected = logits_of(model, batch)[:, -7:-1]
    torch.testing.assert_close(torch.stack(done.logits, 1), expected, rtol=0, atol=1e-4)


def test_our_masks_equal_the_library_on_a_supervised_batch(model, tiny_processor, images):
    """The explicit mask of scoring and the library's own mask from token types give the same logits."""
    batch = supervised_batch(tiny_processor, images)
    prompts = PromptEncoder.of(tiny_processor).prompt_batch(images[:2], PROMPTS)
    prompt_length = prompts.input_ids.shape[1]
    caption_mask = batch["attention_mask"][:, prompt_length:].bool()
    mask = masks.suffix_mask(prompts, caption_mask)
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    is_image = (batch["input_ids"] == tiny_processor.image_token_id).unsqueeze(-1)
    with torch.no_grad():
        ours = model(
            inputs_embeds=embeddings.masked_scatter(is_image, features.to(embeddings.dtype)),
            attention_mask=masks.for_attention(
                mask.full, model.config.text_config._attn_implementation, torch.float32
            ),
            position_ids=batch["attention_mask"].cumsum(-1).clamp(min=1),
        ).logits
    trained = batch["labels"] != IGNORED_LABEL
    torch.testing.assert_close(ours[trained], logits_of(model, batch)[trained], rtol=0, atol=1e-4)


def test_shared_prefix_mask_by_hand(tiny_processor, images):
    """Two prompt tokens (the first is padding), two captions of two tokens: written out."""
    prompts = paligemma_prompts(torch.zeros(1, 2).long(), torch.tensor([[False, True]]))
    mask = masks.shared_prefix_mask(prompts, torch.tensor([[0, 0, 1, 1]])).full[0, 0]
    expected = [
        # pad  prompt  a0  a1  b0  b1
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]
    assert mask.int().tolist() == expected


def test_encoding_equals_the_processors_own(tiny_processor, images):
    """Parity with `processor(text, images, suffix=captions)` where nothing is cut."""
    ours = supervised_batch(tiny_processor, images, ["caption en"] * 2)
    theirs = tiny_processor(
        text=["<image>caption en"] * 2,
        images=images[:2],
        suffix=CAPTIONS,
        return_tensors="pt",
        padding="longest",
        padding_side="right",
    )
    for name in ("input_ids", "attention_mask", "labels", "pixel_values"):
        assert torch.equal(ours[name], theirs[name]), name
    real = theirs["attention_mask"].bool()
    assert torch.equal(ours["token_type_ids"][real], theirs["token_type_ids"][real])


def test_prompt_is_masked_and_eos_is_trained(tiny_processor, images):
    batch = supervised_batch(tiny_processor, images)
    for row, caption in enumerate(CAPTIONS):
        trained = batch["labels"][row][batch["labels"][row] != IGNORED_LABEL]
        assert trained[-1] == tiny_processor.tokenizer.eos_token_id
        assert tiny_processor.tokenizer.decode(trained[:-1]) == caption
    types = batch["token_type_ids"][batch["labels"] != IGNORED_LABEL]
    assert types.eq(1).all()


def test_a_cut_caption_keeps_no_eos(tiny_processor, images):
    batch = PromptEncoder.of(tiny_processor).encode_captions(
        images[:1], ["caption en"], [SENTENCES[0]], max_new_tokens=4
    )
    trained = batch["labels"][batch["labels"] != IGNORED_LABEL]
    assert len(trained) == 4
    assert tiny_processor.tokenizer.eos_token_id not in trained


def test_forbidden_tokens(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    forbidden = forbidden_token_ids(tiny_processor, len(tokenizer) + 3)
    names = tokenizer.convert_ids_to_tokens([i for i in forbidden if i < len(tokenizer)])
    assert {"<image>", "<pad>", "<bos>", "<unk>", "<loc0000>", "<loc1023>", "<seg000>", "<seg127>"} <= set(
        names
    )
    assert tokenizer.eos_token_id not in forbidden
    assert forbidden[-3:] == [len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2], "ids without a token"
    words = tokenizer(" ".join(SENTENCES), add_special_tokens=False)["input_ids"]
    assert not set(words) & set(forbidden)


def test_decoding_drops_padding_and_collapses_spaces(tiny_processor):
    ids = tiny_processor.tokenizer("a  river", add_special_tokens=False)["input_ids"]
    row = torch.tensor([[*ids, 1, 0, 0]])
    mask = torch.tensor([[True] * len(ids) + [True, False, False]])
    assert PromptEncoder.of(tiny_processor).decode_captions(row, mask) == ["a river"]
