"""What supervised training trains on, sampling must be able to say: which tokens a caption must not hold."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AddedToken

from scst.models.policy import policy_for
from scst.models.processors import load_processor
from scst.models.prompts import IGNORED_LABEL, PromptEncoder, forbidden_token_ids, forbidden_token_mask
from scst.objective.losses import cross_entropy_loss
from scst.scoring.score_captions import score
from scst.types import Sampling
from tests.support.tiny import build_model, build_processor

TEXT = ["  ", "   ", "\n\n", "\t", "<table>", "<h1>", "</h1>", "<b>", "</b>"]
"""Text that Gemma's tokenizer has among its added tokens, not special."""
CONTROL = ["<unused0>", "<unused98>", "<start_of_turn>"]
CAPTIONS = [
    "a river  goes through   the green forest",
    "two planes\n\nare parked",
    "a <b>large</b> tank\tis near a road",
    " many buildings ",
    "a <image> river <eos> goes <loc0001> through",
]


@pytest.fixture(scope="module")
def processor():
    """A processor whose tokenizer has the added tokens of Gemma's."""
    processor = build_processor()
    processor.tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in TEXT])
    processor.tokenizer.add_tokens([AddedToken(text, special=False) for text in CONTROL[:2]])
    processor.tokenizer.add_tokens([AddedToken(CONTROL[2], special=True)], special_tokens=True)
    return processor


def test_it_is_decided_by_what_a_token_is(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(TEXT[0]) in tokenizer.added_tokens_decoder
    forbidden = forbidden_token_ids(processor, len(tokenizer) + 2)
    ids = dict(zip(TEXT + CONTROL, tokenizer.convert_tokens_to_ids(TEXT + CONTROL), strict=True))
    assert [text for text in TEXT if ids[text] in forbidden] == []
    assert [text for text in CONTROL if ids[text] not in forbidden] == []
    names = ["<image>", "<pad>", "<bos>", "<unk>", "<loc0000>", "<loc1023>", "<seg000>", "<seg127>"]
    assert set(tokenizer.convert_tokens_to_ids(names)) <= set(forbidden)
    assert forbidden[-2:] == [len(tokenizer), len(tokenizer) + 1], "ids that no token has"


def test_human_captions_have_a_finite_cross_entropy(processor, images):
    """Through the real model and the scoring that ``cross_entropy_weight`` uses."""
    policy, encoder = policy_for(build_model(processor), processor), PromptEncoder(processor)
    rows = [torch.tensor(encoder.caption_token_ids(caption, 40)) for caption in CAPTIONS]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unsqueeze(0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    mask = mask.unsqueeze(0)
    batch = encoder.prompt_batch(images[:1], ["caption en"])
    scores = score(policy, batch, ids, mask, Sampling(min_new_tokens=0))
    assert cross_entropy_loss(scores.logprobs, mask).isfinite().all()


def test_training_and_decoding_see_the_same_text(processor, images):
    """Blanks are collapsed in what is trained on as in what is decoded; control tokens are left out."""
    encoder = PromptEncoder(processor)
    batch = encoder.encode_captions(images[:1] * 5, ["caption en"] * 5, CAPTIONS, max_new_tokens=60)
    forbidden = set(forbidden_token_ids(processor, len(processor.tokenizer)))
    trained = batch["labels"]
    assert not forbidden & set(trained[trained != IGNORED_LABEL].tolist())
    kept = (trained != IGNORED_LABEL) & (trained != processor.tokenizer.eos_token_id)
    texts = encoder.decode_captions(trained.masked_fill(~kept, 0), kept)
    assert texts[0] == "a river goes through the green forest"
    assert texts[1] == "two planes are parked"
    assert texts[2] == "a <b>large</b> tank is near a road"
    assert texts[3] == "many buildings"
    assert texts[4] == "a river goes through"
    eos = (trained == processor.tokenizer.eos_token_id).sum(1)
    assert eos.tolist() == [1] * 5, "an <eos> spelled out does not end a caption"


@pytest.mark.parametrize("added", [[], TEXT], ids=["own tokens", "with runs of spaces"])
def test_every_rsicd_caption_can_be_sampled(shared_data, rsicd_model, added):
    lines = (shared_data / "captions" / "rsicd_train.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    assert sum("  " in caption for caption in captions) > 100
    processor = load_processor(str(rsicd_model))
    processor.tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    encoder = PromptEncoder(processor)
    forbidden = forbidden_token_mask(processor, len(processor.tokenizer))
    doubled = [caption for caption in captions if "  " in caption] + captions[::50]
    ids = {i for caption in doubled for i in encoder.caption_token_ids(caption, 200)}
    assert not forbidden[sorted(ids)].any()
