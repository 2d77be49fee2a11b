"""Scoring, comparing and counting from the command line, as a shell user would."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rewards.scorers.document_frequencies import DocumentFrequencies
from scst.metrics.suite import METRICS
from tests.support.adapter_folders import write_adapter
from tests.support.commands import call, start
from tests.support.golden import CAPTIONS, EXPECTED, REFERENCES
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S
from tests.support.worlds import write_risc


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path):
    """The golden captions and references as JSONL."""
    predictions = [{"image_id": f"img_{i}", "caption": caption} for i, caption in enumerate(CAPTIONS)]
    references = [{"image_id": f"img_{i}", "captions": group} for i, group in enumerate(REFERENCES)]
    (tmp_path / "p.jsonl").write_text(jsonl(predictions))
    (tmp_path / "r.jsonl").write_text(jsonl(references[::-1]))
    return tmp_path


def test_scores_of_files_are_the_golden_ones(files):
    done = start(
        "launch/score.py",
        *("--predictions", str(files / "p.jsonl"), "--references", str(files / "r.jsonl")),
        *("--metrics", "cider_d,bleu_4,rouge_l", "--per_caption", str(files / "each.jsonl")),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert list(summary) == ["cider_d", "bleu_4", "rouge_l"]
    for name, entry in summary.items():
        assert entry["value"] == pytest.approx(EXPECTED[name][0], abs=1e-12)
        assert entry["signature"].startswith(METRICS[name].title + "|refs:2|")
    rows = [json.loads(line) for line in (files / "each.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == [f"img_{i}" for i in range(6)]
    assert [row["cider_d"] for row in rows] == pytest.approx(EXPECTED["cider_d"][1], abs=1e-12)


def test_captions_come_through_a_pipe_and_json_goes_out(files):
    flags = ("--predictions", "-", "--references", str(files / "r.jsonl"), "--metrics", "cider_d")
    done = start("launch/score.py", *flags, stdin=(files / "p.jsonl").read_text())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cider_d"]["value"] == pytest.approx(EXPECTED["cider_d"][0], abs=1e-12)


def test_plain_text_with_a_file_per_reference(tmp_path, capsys):
    for name, lines in (
        ("p", CAPTIONS),
        ("r1", [g[0] for g in REFERENCES]),
        ("r2", [g[1] for g in REFERENCES]),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    p, r1, r2 = (str(tmp_path / name) for name in ("p", "r1", "r2"))
    values = []
    for references in (
        ["--references", r1, r2],
        ["--references", r1, "--references", r2],
        [f"--references={r1},{r2}"],
    ):
        assert call("score", "--predictions", p, *references, "--metrics=bleu_1") == 0
        values.append(json.loads(capsys.readouterr().out)["bleu_1"]["value"])
    assert values == pytest.approx([EXPECTED["bleu_1"][0]] * 3, abs=1e-12)


def test_the_list_names_every_metric():
    done = start("launch/score.py", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(METRICS)


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} launch/score.py --help | head -1",
        cwd=ROOT,
        shell=True,
        capture_output=True,
        text=True,
    )
    assert (
        done.stdout
        == "Score caption files, as sacrebleu does for translations: no captioning model, no dataset.\n"
    )
    assert done.stderr == ""


def test_scoring_loads_no_torch(files):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['score', '--predictions', {str(files / 'p.jsonl')!r}, "
        f"'--references', {str(files / 'r.jsonl')!r}]\n"
        "try: runpy.run_path('launch/score.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


def test_a_dry_run_reads_but_does_not_score(files, capsys):
    flags = ("--predictions", str(files / "p.jsonl"), "--references", str(files / "r.jsonl"), "--dry_run")
    assert call("score", *flags) == 0
    shown = capsys.readouterr().out
    assert "captions: 6" in shown
    assert "bootstrap_samples: 1000" in shown


WRONG = {
    "no predictions": ([], "predictions: missing"),
    "missing file": (["--predictions", "/nowhere.txt"], "cannot be read"),
    "unknown metric": (
        ["--predictions", "{p}", "--references", "{r}", "--metrics", "ciderr"],
        "unknown ['ciderr']",
    ),
    "no images": (["--predictions", "{p}", "--references", "{r}", "--metrics", "clipscore"], "needs images"),
    "no model": (
        ["--predictions", "{p}", "--references", "{r}", "--metrics", "bertscore"],
        "bertscore: no model given",
    ),
    "image folder": (
        ["--predictions", "{p}", "--references", "{r}", "--images", "{folder}"],
        "holds no picture",
    ),
    "wrong table": (["--predictions", "{p}", "--references", "{r}", "--frequencies", "{r}"], "frequencies"),
    "given twice": (["--predictions", "{p}", "--predictions", "{p}"], "predictions: expected str"),
    "typo": (["--prediction", "{p}"], "did you mean predictions"),
    "no training captions": (
        ["--predictions", "{p}", "--references", "{r}", "--metrics", "novel_words"],
        "--training_captions FILE",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_exit_2_with_a_message(files, case, capsys):
    flags, message = WRONG[case]
    paths = {"p": files / "p.jsonl", "r": files / "r.jsonl", "folder": files}
    assert call("score", *(flag.format(**paths) for flag in flags)) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.fixture
def evaluations(files):
    """Two evaluations as folders: the golden captions, and worse ones in another order."""
    for name, captions in (("a", CAPTIONS), ("b", ["a road", *CAPTIONS[1:]])):
        rows = [
            {"image_id": f"img_{i}", "caption": caption, "references": REFERENCES[i], "ended_by_eos": True}
            for i, caption in enumerate(captions)
        ]
        (files / name).mkdir()
        (files / name / "predictions.jsonl").write_text(jsonl(rows if name == "a" else rows[::-1]))
    return files


def test_two_evaluations_are_compared(evaluations, capsys):
    folders = (str(evaluations / "a"), str(evaluations / "b"))
    assert call("evaluate", "--compare", *folders, "--metrics", "cider_d,bleu_1") == 0
    shown = capsys.readouterr()
    entry = json.loads(shown.out)["cider_d"]
    assert entry["a"] == pytest.approx(EXPECTED["cider_d"][0], abs=1e-12)
    assert entry["difference"] == pytest.approx(entry["b"] - entry["a"])
    assert entry["difference"] < 0
    assert 0 < entry["p_value"] <= 1
    assert "B - A" in shown.err


def test_what_cannot_be_compared_is_refused(evaluations, capsys):
    a, b = evaluations / "a", evaluations / "b"
    assert call("evaluate", "--compare", str(a), "--metrics", "bleu_1") == 2
    assert "expected two output folders" in capsys.readouterr().err
    lines = (b / "predictions.jsonl").read_text().splitlines(keepends=True)
    (b / "predictions.jsonl").write_text("".join(lines[1:]))
    assert call("evaluate", "--compare", str(a), str(b), "--metrics", "bleu_1") == 2
    assert "not about the same images; 1 are in one only, e.g. 'img_5'" in capsys.readouterr().err


@pytest.mark.slow
def test_document_frequencies_are_those_that_training_would_count(tmp_path):
    data = write_risc(tmp_path / "data")
    output = tmp_path / "new" / "df.json"
    done = start("launch/prepare.py", "document-frequencies", "--dataset", str(data), "--output", str(output))
    assert done.returncode == 0, done.stderr
    table = DocumentFrequencies.load(output)
    assert (table.num_images, table.split, table.eos) == (12, "train", "emitted")
    assert table.fingerprint[:6] in done.stdout
    from scst.data.load_splits import load_splits

    rows = load_splits(str(data), ["train"]).splits["train"]
    assert (
        table.fingerprint
        == DocumentFrequencies.from_references(rows["references"], eos="emitted").fingerprint
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["frequencies", "--dataset", "embedded:scenes"], "unexpected argument 'frequencies'"),
        (["document-frequencies"], "dataset: missing"),
        (["document-frequencies", "--dataset", "/nowhere"], "/nowhere"),
        (["document-frequencies", "--dataset", "embedded:scenes", "--eos", "maybe"], "eos: must be one of"),
    ],
)
def test_wrong_preparations_exit_2(flags, message):
    done = start("launch/prepare.py", *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_table_of_another_split_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    DocumentFrequencies.from_references(REFERENCES, eos="emitted", split="val").save(tmp_path / "df.json")
    rewards = [{"name": "cider_d", "kwargs": {"frequencies": str(tmp_path / "df.json")}}]
    flags = ["--config", "quickstart/scst", "--adapter", str(write_adapter(tmp_path / "adapter"))]
    flags += ["--rewards", json.dumps(rewards), "--output_dir", str(tmp_path / "out")]
    assert call("scst", *flags) == 2
    assert "are of split 'val', but the run trains on 'train'" in capsys.readouterr().err
