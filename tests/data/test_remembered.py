"""What was checked once is not checked again, and what has changed is."""

import os

import numpy as np
import pytest

from scst.data import remembered_checks, validate
from scst.data.cache_folder import CacheFolder
from scst.data.content_hashes import ContentHashes
from scst.data.load_splits import load_again, load_splits
from scst.errors import DataError, RecipeError
from tests.support.rows import encoded, rows_of, write_risc


def age(folder):
    """Date a file, or all of a folder, an hour back: what is seconds old is not taken on trust."""
    for file in folder.rglob("*") if folder.is_dir() else [folder]:
        stamp = file.stat().st_mtime_ns - 3600 * 10**9
        os.utime(file, ns=(stamp, stamp))
    return folder


@pytest.fixture
def folder(tmp_path):
    return age(write_risc(tmp_path / "d", rows_of({"train": 8, "val": 3})))


@pytest.fixture
def decoded(monkeypatch):
    """The images that are decoded from here on."""
    seen = []

    def probe(image):
        seen.append(os.path.basename(str(image["path"])))
        return real(image)

    real = validate.probe_image
    monkeypatch.setattr(validate, "probe_image", probe)
    return seen


def load(folder, **settings):
    return load_splits(str(folder), ["train", "val"], **settings)


def same(one, other):
    assert (one.fingerprint, one.counts, one.bad_examples) == (
        other.fingerprint,
        other.counts,
        other.bad_examples,
    )
    for name, rows in one.splits.items():
        assert rows["references"][:] == other[name]["references"][:]
        assert rows["image_id"][:] == other[name]["image_id"][:]
        assert rows[0]["image"].tobytes() == other[name][0]["image"].tobytes()


def test_a_second_load_reads_no_image_and_gives_the_same(folder, decoded):
    first = load(folder)
    assert len(decoded) == 11
    decoded.clear()
    second = load(folder)
    assert decoded == []
    assert first.key == second.key != ""
    same(first, second)


def test_every_form_is_remembered(any_form, tmp_path, decoded):
    age(tmp_path / "toy")
    first = load(any_form)
    decoded.clear()
    same(first, load(any_form))
    assert decoded == []


def test_another_selection_of_checked_images_reads_none(folder, decoded):
    load(folder)
    decoded.clear()
    data = load(folder, fractions="60/20/20", resplit=True)
    assert decoded == []
    assert data.counts["train"]["images"] == 7
    assert load(folder, limit=2, split_seed=3).counts["val"]["images"] == 2
    assert decoded == []


def test_a_changed_a_new_and_a_lost_image_are_noticed(folder, decoded):
    before = load(folder)
    (folder / "resized" / "img_3.png").write_bytes(encoded(77))
    age(folder / "resized" / "img_3.png")
    decoded.clear()
    after = load(folder)
    assert decoded == ["img_3.png"]
    assert after.fingerprint != before.fingerprint
    (folder / "resized" / "img_5.png").write_bytes(b"damaged")
    decoded.clear()
    with pytest.raises(DataError, match="img_5: image does not decode"):
        load(folder)
    assert decoded == ["img_5.png"]
    (folder / "resized" / "img_5.png").unlink()
    with pytest.raises(DataError, match="img_5: image file missing"):
        load(folder)


def test_a_bad_image_stays_bad(folder, decoded):
    (folder / "resized" / "img_5.png").write_bytes(b"damaged")
    age(folder)
    first = load(folder, on_bad_example="skip")
    decoded.clear()
    second = load(folder, on_bad_example="skip")
    same(first, second)
    assert [bad.image_id for bad in second.bad_examples] == ["img_5"]
    with pytest.raises(DataError, match="img_5"):
        load(folder)
    assert decoded == []


def test_files_of_this_moment_are_read_again(tmp_path, decoded):
    """Within one tick of a file's clock it may change twice and look the same."""
    folder = write_risc(tmp_path / "new", rows_of({"train": 3}))
    assert load_splits(str(folder), ["train"]).key == ""
    decoded.clear()
    load_splits(str(folder), ["train"])
    assert len(decoded) == 3


def test_captions_that_change_are_read_again(folder):
    before = load(folder)
    text = (folder / "captions.csv").read_text()
    (folder / "captions.csv").write_text(text.replace("many planes", "some planes"))
    age(folder)
    assert load(folder).fingerprint != before.fingerprint


def test_full_reads_all_and_finds_what_its_date_hides(folder, decoded):
    load(folder)
    path = folder / "resized" / "img_3.png"
    stamp = path.stat().st_mtime_ns
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes(40))
    os.utime(path, ns=(stamp, stamp))
    load(folder)  # same size, same time
    decoded.clear()
    with pytest.raises(DataError, match="img_3: image does not decode"):
        load(folder, check="full")
    assert len(decoded) == 11
    with pytest.raises(DataError, match="img_3"):
        load(folder)


def test_sampled_looks_at_some_and_misses_no_file(folder, decoded, monkeypatch):
    monkeypatch.setattr("scst.data.data_source.SAMPLED_IMAGES", 2)
    data = load(folder, check="sampled")
    assert len(decoded) == 4
    same(data, load(folder, check="sampled"))
    assert data.fingerprint != load(folder).fingerprint
    (folder / "resized" / "img_0.png").unlink()
    (folder / "resized" / "img_1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^2 examples cannot be used"):
        load(folder, check="sampled")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check": "never"}, "one of remembered, sampled, full; got 'never'"),
        ({"check": "sampled", "fractions": "80/10/10"}, "cannot be used with split_fractions"),
    ],
)
def test_wrong_checks(folder, settings, message):
    with pytest.raises(RecipeError, match=message):
        load(folder, **settings)


def test_another_process_repeats_nothing(folder, decoded, monkeypatch):
    first = load(folder)
    decoded.clear()
    monkeypatch.setattr("scst.data.image_files.os.lstat", lambda path: pytest.fail(f"looked at {path}"))
    second = load_again(str(folder), first.key)
    same(first, second)
    assert decoded == []
    assert load_again(str(folder), "") is None
    assert load_again(str(folder), "f" * 64) is None


def test_blank_captions_are_removed_from_what_is_remembered(tmp_path):
    rows = rows_of({"train": 4, "val": 2})
    rows[1]["captions"] = ["", "a river .", " "]
    folder = age(write_risc(tmp_path / "d", rows))
    first, second = load(folder), load(folder)
    assert second["train"]["references"][1] == ["a river ."]
    assert first.blank_captions == second.blank_captions == 2


@pytest.mark.parametrize("pattern", ["loaded-*", "checks-*", "rows-*"])
def test_a_damaged_memory_is_made_again(folder, pattern, decoded):
    first = load(folder)
    for file in CacheFolder(str(folder)).newest(pattern):
        damaged = file.read_bytes()[:100]
        file.unlink()  # `first` still reads it
        file.write_bytes(damaged)
    again = load(folder)
    same(first, again)
    assert len(again["train"]) == len(first["train"])


def test_a_cache_that_cannot_be_written_is_said_and_no_error(folder, monkeypatch, caplog, tmp_path):
    first = load(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file")
    second = load(folder)
    assert "is not remembered" in caplog.text
    same(first, second)
    assert second.key == ""


def test_many_parts_of_a_memory_are_joined(folder, monkeypatch, decoded):
    monkeypatch.setattr(validate, "KEPT_EVERY", 1)
    monkeypatch.setattr(remembered_checks, "PARTS", 3)
    monkeypatch.setattr(validate, "BATCH", 1)
    load(folder)
    assert len(CacheFolder(str(folder)).newest("checks-*")) <= 3
    decoded.clear()
    load(folder, limit=5)
    assert decoded == []


def test_a_link_out_of_the_folder_is_refused_however_much_is_remembered(folder, tmp_path):
    load(folder)
    path = folder / "resized" / "img_2.png"
    (tmp_path / "outside.png").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="is a link to"):
        load(folder)


def test_hashes_are_texts_in_32_bytes():
    texts = ["ab" * 32, "cd" * 32, "ab" * 32]
    hashes = ContentHashes(np.array([np.frombuffer(bytes.fromhex(text), np.uint8) for text in texts]))
    assert (list(hashes), hashes[0], hashes[1:], hashes.num_distinct) == (texts, texts[0], texts[1:], 2)
    assert list(hashes.take(np.array([1]))) == texts[1:2]
