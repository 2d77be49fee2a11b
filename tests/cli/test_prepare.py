"""launch/prepare.py from the command line: what it leaves, that training reads it, what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil

import pytest

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.cli.prepare import main
from scst.data.load_splits import load_splits
from scst.data.preparation.prepared_folder import check_output
from scst.errors import RecipeError
from tests.support.commands import start
from tests.support.worlds import write_risc


def call(*flags: str) -> int:
    return main(["--agreement", "[]", *flags])


@pytest.fixture
def data(tmp_path):
    return write_risc(tmp_path / "data", train=8, val=3)


@pytest.mark.slow
def test_by_path_the_whole_of_it(data, tmp_path):
    """Cleaning, selection, a report, frequencies; the new folder is what training reads."""
    output = tmp_path / "deep" / "new"
    flags = ["--cleaning", "lowercase,collapse-spaces,length 1-40,dedupe", "--selection", "consensus"]
    done = start("launch/prepare.py", "--dataset", str(data), "--output_dir", str(output), *flags,
                 "--agreement", "bleu_4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dedupe: 0 captions changed" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == [
        "captions.csv",
        "data_report.html",
        "data_report.json",
        "document_frequencies.json",
        "resized",
        "run.json",
    ]
    assert not list(output.parent.glob("*.partial"))
    record = json.loads((output / "run.json").read_text())
    assert record["stage"] == "prepare"
    assert record["peak_memory_mb"] > 10
    loaded = load_splits(str(output), ["train", "val"])
    assert loaded.fingerprint == record["data_fingerprint"]
    table = DocumentFrequencies.load(output / "document_frequencies.json")
    assert (table.num_images, table.split, table.eos) == (8, "train", "emitted")
    assert (
        load_splits(str(data), ["val"]).splits["val"]["references"][:]
        == loaded.splits["val"]["references"][:]
    )


@pytest.mark.slow
def test_importing_it_loads_no_torch():
    heavy = {"torch", "transformers"}
    code = f"import sys, scst.config.build_prepare; sys.exit(bool({heavy} & set(sys.modules)))"
    assert start("-c", code).returncode == 0


def test_help_names_both_commands():
    done = start("launch/prepare.py", "--help")
    assert done.returncode == 0
    assert "document-frequencies" in done.stdout
    assert "--config RECIPE.yaml" in done.stdout
    assert "kept_captions" in done.stdout


def test_parquet_and_fractions_and_one_caption(data, tmp_path):
    output = tmp_path / "new"
    flags = ["--layout", "parquet", "--split_fractions", "60/20/20", "--resplit", "true",
             "--selection", "longest", "--kept_captions", "chosen"]  # fmt: skip
    assert call("--dataset", str(data), "--output_dir", str(output), *flags) == 0
    assert sorted(path.name for path in output.glob("*.parquet")) == [
        "test.parquet",
        "train.parquet",
        "val.parquet",
    ]
    splits = load_splits(str(output), ["train", "val", "test"]).splits
    assert [len(rows) for rows in splits.values()] == [7, 2, 2]
    assert {len(references) for references in splits["train"]["references"][:]} == {1}
    assert {len(references) for references in splits["test"]["references"][:]} == {5}


def test_a_report_only_and_what_a_killed_run_left_is_cleared(data, tmp_path):
    (tmp_path / "look.partial" / "resized").mkdir(parents=True)
    assert call("--dataset", str(data), "--output_dir", str(tmp_path / "look"), "--layout", "none") == 0
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == [
        "data_report.html", "data_report.json", "document_frequencies.json", "run.json",
    ]  # fmt: skip
    assert not (tmp_path / "look.partial").exists()


def test_prepared_twice_is_the_same(data, tmp_path):
    flags = ["--cleaning", "lowercase,dedupe", "--selection", "random"]
    for name in ("a", "b"):
        assert call("--dataset", str(data), "--output_dir", str(tmp_path / name), *flags) == 0
    assert (tmp_path / "a" / "captions.csv").read_text() == (tmp_path / "b" / "captions.csv").read_text()
    again = ["--dataset", str(tmp_path / "a"), "--output_dir", str(tmp_path / "c")]
    assert call(*again, "--cleaning", "lowercase,dedupe") == 0
    report = json.loads((tmp_path / "c" / "data_report.json").read_text())
    assert [(step["changed"], step["dropped"]) for step in report["steps"]] == [(0, 0), (0, 0)]


def test_categories_beside_the_dataset_or_named(data, tmp_path):
    with (data / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_id", "category"], *([f"tile_{i}", "port"] for i in range(11))])
    assert call("--dataset", str(data), "--output_dir", str(tmp_path / "a"), "--layout", "none") == 0
    assert "<h2>Categories</h2>" in (tmp_path / "a" / "data_report.html").read_text()


def test_an_earlier_preparation_is_replaced_only_on_request(data, tmp_path, capsys):
    flags = ["--dataset", str(data), "--output_dir", str(tmp_path / "new"), "--layout", "none"]
    assert call(*flags) == 0
    assert call(*flags) == 2
    assert "holds an earlier prepared dataset" in capsys.readouterr().err
    (tmp_path / "new" / "notes.md").touch()
    (tmp_path / "new" / "captions.csv").touch()
    assert call(*flags, "--overwrite", "true") == 0
    assert (tmp_path / "new" / "notes.md").exists(), "the user's"
    assert not (tmp_path / "new" / "captions.csv").exists(), "of an earlier preparation"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("new")] == ["new"]


def test_killed_while_an_earlier_preparation_is_replaced(tmp_path):
    """Between the two renames, and before the earlier one is deleted: nothing of the user's is lost."""
    output, replaced = tmp_path / "new", tmp_path / "new.replaced"
    replaced.mkdir()
    for name in ("data_report.json", "train.parquet", "notes.md"):
        (replaced / name).write_text("earlier")
    with pytest.raises(RecipeError, match="holds an earlier prepared dataset"):
        check_output(output, overwrite=False)
    assert {path.name for path in output.iterdir()} == {"data_report.json", "train.parquet", "notes.md"}
    output.rename(replaced)
    output.mkdir()
    (output / "data_report.json").write_text("new")
    check_output(output, overwrite=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == {
        "data_report.json": "new",
        "notes.md": "earlier",
    }
    assert not replaced.exists()


def test_a_failure_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scst.data.preparation.preparation.write_examples", fail)
    assert call("--dataset", str(data), "--output_dir", str(tmp_path / "new")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_synonyms_by_the_bundled_encoder(data, tmp_path, monkeypatch):
    """The encoder is stood in for: a word's letters. `docks` goes to `dock`, and the page says so."""
    import numpy as np

    def embed(words):
        rows = np.array(
            [[word.count(letter) for letter in "abcdefghijklmnopqrtuvwxyz"] for word in words], float
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr("scst.data.preparation.caption_scorers.word_embedding", lambda model: embed)
    lines = (data / "captions.csv").read_text().splitlines()
    table = [f"noise,train,tile_{i}.png,boats lie at a dock .,x y .,x y .,x y .,x y ." for i in range(7)]
    table += ["noise,train,tile_7.png,boats lie at docks .,x y .,x y .,x y .,x y .", *lines[9:]]
    (data / "captions.csv").write_text("\n".join([lines[0], *table]) + "\n")
    flags = ["--dataset", str(data), "--output_dir", str(tmp_path / "new"), "--cleaning", "synonyms",
             "--synonym_rare", "2", "--synonym_distance", "0.1"]  # fmt: skip
    assert call(*flags) == 0
    assert json.loads((tmp_path / "new" / "data_report.json").read_text())["synonyms"] == {"docks": "dock"}
    assert "docks → <b>dock</b>" in (tmp_path / "new" / "data_report.html").read_text()


WRONG = {
    "unknown key": (["--cleanin", "lowercase"], "did you mean cleaning"),
    "unknown step": (["--cleaning", "lower"], "unknown step 'lower'"),
    "unknown selection": (["--selection", "best"], "selection: must be one of all, first, random"),
    "clipscore without a model": (["--selection", "clipscore"], "clip_model: clipscore: no model given"),
    "fractions": (["--split_fractions", "60/60"], "split_fractions: expected two or three"),
    "training split": (["--train_split", "trian"], "there is no split 'trian'; the dataset has train (8)"),
    "agreement": (["--agreement", "bleu_5"], "agreement: unknown 'bleu_5'"),
    "contact sheet": (["--contact_sheet", "-1"], "contact_sheet: expected 0 or more"),
    "categories": (["--categories", "/nowhere.csv"], "categories: there is no file"),
    "layout": (["--layout", "coco"], "layout: must be one of auto, risc"),
    "stray": (["lowercase"], "unexpected argument 'lowercase'"),
    "no dataset": (["--dataset", "/nowhere"], "no such file or folder: /nowhere"),
    "everything left out": (["--cleaning", "length 90-99"], "'length 90-99' leaves no caption"),
    "wordnet": (["--cleaning", "synonyms", "--synonym_wordnet", "true"], "synonym_wordnet: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_2_and_leaves_nothing(case, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", without_nltk(importlib.util.find_spec))
    flags, message = WRONG[case]
    flags = flags if "--dataset" in flags else ["--dataset", str(data), *flags]
    assert call("--output_dir", str(tmp_path / "new"), *flags) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def without_nltk(find_spec):
    return lambda name, *rest: None if name == "nltk" else find_spec(name, *rest)


def test_bad_examples_stop_it_or_are_counted(data, tmp_path, capsys):
    (data / "resized" / "tile_3.png").unlink()
    flags = ["--dataset", str(data), "--output_dir", str(tmp_path / "new")]
    assert call(*flags) == 2
    assert "tile_3: image file missing" in capsys.readouterr().err
    assert call(*flags, "--on_bad_example", "skip") == 0
    report = json.loads((tmp_path / "new" / "data_report.json").read_text())
    assert [bad["image_id"] for bad in report["bad_examples"]] == ["tile_3"]


def test_nothing_usable(data, tmp_path, capsys):
    for picture in (data / "resized").iterdir():
        picture.write_bytes(b"not an image")
    flags = ["--dataset", str(data), "--output_dir", str(tmp_path / "new"), "--on_bad_example", "skip"]
    assert call(*flags) == 2
    assert "no usable example is left; 11 are bad" in capsys.readouterr().err


def test_output_that_is_somebody_elses_or_the_dataset(data, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    flags = ["--dataset", str(data), "--overwrite", "true", "--output_dir"]
    assert call(*flags, str(tmp_path / "full")) == 2
    assert "was not made by scst prepare" in capsys.readouterr().err
    for folder in (data, data / "inside", tmp_path):
        assert call(*flags, str(folder)) == 2
    assert (data / "captions.csv").is_file()
    assert (tmp_path / "full" / "thesis.tex").is_file()


def test_dry_run_reads_no_image(data, tmp_path, capsys):
    shutil.rmtree(data / "resized")
    (data / "resized").mkdir()
    (data / "resized" / "tile_0.png").write_bytes(b"not an image")
    assert call("--dataset", str(data), "--output_dir", str(tmp_path / "new"), "--dry_run") == 0
    assert "missing_images: 10" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_the_chosen_caption_has_the_highest_clipscore(data, tmp_path):
    """A real (tiny, random) CLIP from a folder; the scores are taken again here, image by image."""
    from rewards.scorers.clipscore import ClipScorer
    from tests.support.tiny_clip import save_clip

    clip = save_clip(tmp_path / "clip")
    flags = ["--dataset", str(data), "--output_dir", str(tmp_path / "new"), "--selection", "clipscore"]
    assert call(*flags, "--clip_model", str(clip)) == 0
    scorer = ClipScorer(str(clip))
    firsts = []
    for row in load_splits(str(tmp_path / "new"), ["train"]).splits["train"]:
        scores = scorer.cosines(row["references"], [row["image"]] * 5)
        assert scores[0] == max(scores)
        firsts.append(row["references"][0])
    before = [row["references"][0] for row in load_splits(str(data), ["train"]).splits["train"]]
    assert firsts != before
