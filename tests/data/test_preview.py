"""The preview shows what the model sees and stops captions that do not belong to the references."""

import io

import pytest
from rich.console import Console

from scst.data.load_splits import load_splits
from scst.data.preview import (
    compute_preview,
    decode_tokens,
    known_share,
    prompt_tokens,
    reasons_by_kind,
    trained_tokens,
    training_preview,
    vocabulary,
)
from scst.data.supervision import CaptionChoice
from scst.data.validate import BadExample
from scst.errors import DataError
from tests.support.rows import read_form, rows_of, write_risc


class WordTokenizer:
    """One token per whitespace-separated word; ids are given as words come."""

    eos_token_id = 1
    special = ("<pad>", "<eos>", "<image>", "<bos>")

    def __init__(self):
        self.table = list(self.special)

    def ids(self, text):
        for word in text.split():
            if word not in self.table:
                self.table.append(word)
        return [self.table.index(word) for word in text.split()]

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [self.ids(text) for text in texts]}

    def convert_ids_to_tokens(self, token):
        return self.table[token]

    def decode(self, ids, skip_special_tokens):
        names = [self.table[token] for token in ids]
        return " ".join(name for name in names if not (skip_special_tokens and name in self.special))


def collate(tokenizer, captions, prompt="<bos> caption en", image_tokens=6, limit=100):
    """Left-padded ``(B, P + T)`` lists as a collator makes them, captions cut without ``<eos>``."""
    rows = []
    for caption in captions:
        head = [2] * image_tokens + tokenizer.ids(prompt)
        tail = [*tokenizer.ids(caption), 1][:limit]
        rows.append((head + tail, [-100] * len(head) + tail))
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": [[0] * (width - len(ids)) + ids for ids, _ in rows],
        "attention_mask": [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows],
        "labels": [[-100] * (width - len(ids)) + labels for ids, labels in rows],
    }


@pytest.fixture
def tokenizer():
    return WordTokenizer()


@pytest.fixture
def rows():
    rows = rows_of({"train": 4})
    for row, caption in zip(rows, ["a b c .", "a b .", "d [e] f g h .", " ."], strict=True):
        row["captions"] = [caption, "z"]
    return read_form(rows)


def first_captions(rows):
    return [captions[0] for captions in rows["references"]]


def test_numbers(rows, tokenizer):
    batch = collate(tokenizer, first_captions(rows)[:3], limit=5)
    preview = compute_preview(rows, batch, tokenizer, max_new_tokens=5, image_ids=["x", "y", "z"])
    # with <eos> the captions have 5, 4, 7 and 2 tokens: one of four is cut at 5
    assert (preview.captions, preview.cut_share, preview.longest) == (4, 0.25, 7)
    assert (preview.known_share, preview.batch_known_share) == (1.0, 1.0)
    assert preview.eos_share == pytest.approx(2 / 3)
    assert [(e.image_id, e.prompt, e.caption) for e in preview.examples] == [
        ("x", "<image> x 6 <bos> caption en", "a b c . <eos>"),
        ("y", "<image> x 6 <bos> caption en", "a b . <eos>"),
        ("z", "<image> x 6 <bos> caption en", "d [e] f g h"),
    ]


def test_everything_is_printed(tmp_path, tokenizer):
    written = rows_of({"train": 4, "val": 2})
    written[1]["captions"] = ["", "", ""]
    data = load_splits(str(write_risc(tmp_path / "d", written)), ["train", "val"], on_bad_example="skip")
    train = data.splits["train"]
    screen = io.StringIO()
    batch = collate(tokenizer, first_captions(train)) | {"image_id": train["image_id"][:]}
    console = Console(file=screen, width=160)
    preview = training_preview(train, batch, tokenizer, max_new_tokens=5, data=data, console=console)
    text = screen.getvalue()
    for shown in ("train", "val", "img_0", "<image> x 6 <bos> caption en", "many planes are parked . <eos>"):
        assert shown in text
    assert "left out: 1 x all captions are blank" in text
    assert (
        "100.0% are cut by the limit of 5 tokens (the longest has 6); 100.0% of their words are known" in text
    )
    assert preview.counts["train"]["images"] == 3


def test_square_brackets_survive_printing(rows, tokenizer):
    screen = io.StringIO()
    batch = collate(tokenizer, ["d [e] f"])
    training_preview(rows, batch, tokenizer, max_new_tokens=9, console=Console(file=screen, width=120))
    assert "d [e] f <eos>" in screen.getvalue()


def test_captions_of_other_data_are_refused(rows, tokenizer):
    others = rows_of({"train": 2})  # of a b c a b d e f g h they know only the two a
    with pytest.raises(
        DataError, match="captions and references disagree: only 20% of the words of the training"
    ):
        training_preview(
            rows,
            collate(tokenizer, ["a b"]),
            tokenizer,
            max_new_tokens=9,
            references_vocabulary_of=read_form(others),
            console=Console(file=io.StringIO()),
        )


def test_labels_that_are_not_the_captions_are_refused(rows, tokenizer):
    batch = collate(tokenizer, ["a b", "quite other words"])
    with pytest.raises(DataError, match="only 40% of the words of the trained part of a batch"):  # 2 of 5
        training_preview(rows, batch, tokenizer, max_new_tokens=9, console=Console(file=io.StringIO()))


def test_word_cut_in_two_is_not_held_against_the_references(rows, tokenizer):
    batch = collate(tokenizer, ["a b unkn"], limit=3)
    assert compute_preview(rows, batch, tokenizer, max_new_tokens=3).batch_known_share == 1.0


def test_preview_follows_the_caption_choice(rows, tokenizer):
    batch = collate(tokenizer, ["z"])
    choice = CaptionChoice("all")
    preview = compute_preview(choice.expand(rows), batch, tokenizer, max_new_tokens=9, choice=choice)
    assert preview.captions == 8


def test_tensors_are_read_without_importing_their_library(tokenizer):
    class Tensor:
        def __init__(self, values):
            self.values = values

        def tolist(self):
            return self.values

    batch = collate(tokenizer, ["a b"], image_tokens=1)
    tensors = {name: Tensor(values) for name, values in batch.items()}
    assert trained_tokens(tensors) == trained_tokens(batch) == [[*tokenizer.ids("a b"), 1]]
    assert prompt_tokens(tensors) == [[2, *tokenizer.ids("<bos> caption en")]]


def test_decoding_shows_runs_and_line_ends(tokenizer):
    ids = [2, 2, 2, *tokenizer.ids("a b"), 2, 2, 2, 2, 1]
    assert decode_tokens(ids, tokenizer) == "<image> <image> <image> a b<image> x 4 <eos>"


def test_shares_and_reasons():
    known = vocabulary([["A river, wide", "a road"], ["Trees."]])
    assert known == {"a", "river", "wide", "road", "trees"}
    assert known_share(["a RIVER and a bridge ."], known) == pytest.approx(3 / 5)
    assert known_share([" ."], known) == 1.0
    bad = [
        BadExample("a", "image file missing: x"),
        BadExample("b", "image file missing: y"),
        BadExample("c", "z"),
    ]
    assert reasons_by_kind(bad) == {"image file missing": 2, "z": 1}


def test_real_tokenizer_and_captions(shared_data):
    transformers = pytest.importorskip("transformers")
    model = shared_data.parent / "models" / "rsicd-paligemma-tiny"
    if not model.is_dir():
        pytest.skip(f"no tokenizer at {model}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    train = load_splits(str(shared_data / "rsicd-224"), ["train"], limit=100).splits["train"]
    captions = first_captions(train)
    image = tokenizer.convert_tokens_to_ids("<image>")
    head = [image] * 64 + tokenizer("<bos>caption en\n", add_special_tokens=False)["input_ids"]
    tail = [*tokenizer(captions[0], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    batch = {
        "input_ids": [head + tail],
        "attention_mask": [[1] * len(head + tail)],
        "labels": [[-100] * len(head) + tail],
    }
    preview = compute_preview(train, batch, tokenizer, max_new_tokens=48)
    assert preview.examples[0].prompt == "<image> x 64 <bos>caption en\\n"
    assert preview.examples[0].caption == f"{captions[0]}<eos>"
    assert (preview.known_share, preview.batch_known_share, preview.eos_share) == (1.0, 1.0, 1.0)
