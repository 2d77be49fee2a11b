"""Text of data is shown on the terminal and never obeyed: every table, line, bar, error and export."""

from __future__ import annotations

import ast
import csv
import io
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.errors import MarkupError

from rewards.errors import RewardError
from scst.cli import command, score
from scst.config.recipes import ScoreRecipe
from scst.data.files import write_jsonl
from scst.data.preview import Preview, PreviewExample, print_preview
from scst.data.terminal import labelled, progress_bar
from scst.data.visible import json_text, visible, visible_lines, yaml_text
from scst.errors import DataError, Interrupted, RecipeError, RunStopped
from scst.evaluation import side_by_side, training_log
from scst.evaluation.evaluation import results_table
from scst.evaluation.score_files import differences_table
from scst.experiments import tables
from scst.experiments.results import Result, rows_of
from scst.experiments.runner import Runner
from scst.metrics.paired import MetricDifference
from scst.rl.sample_table import sample_table
from scst.training.monitors.collapse_monitor import CollapseMonitor
from scst.training.monitors.monitor import Monitor
from tests.support.hostile import HOSTILE, MARKUP, Screen, assert_not_obeyed, assert_shown
from tests.support.matrices import Lab
from tests.support.paths import ROOT

ENTRY = {"value": 0.5, "ci95": [0.4, 0.6], "signature": HOSTILE}


def preview(screen, tmp_path):
    example = PreviewExample(HOSTILE, HOSTILE, HOSTILE)
    counts = {HOSTILE: {"images": 1, HOSTILE: 2}}
    print_preview(Preview(counts, {HOSTILE: 1}, 0, [example], 1, 1, 0, 1, 1, 1, 1), screen, 8)


def samples(screen, tmp_path):
    rollout = SimpleNamespace(greedy_captions=[HOSTILE], captions=[[HOSTILE]])
    rewards = SimpleNamespace(greedy=[0.5], sampled=torch.ones(1, 1))
    columns = {"references": [[HOSTILE]], "image_id": [HOSTILE]}
    record = SimpleNamespace(rollout=rollout, rewards=rewards, columns=columns, advantages=torch.ones(1, 1))
    screen.print(sample_table(record, 3, 1))


def write_evaluation(folder):
    folder.mkdir()
    row = {"image_id": HOSTILE, "caption": HOSTILE, "references": [HOSTILE]}
    (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "metrics.json").write_text(json.dumps({HOSTILE: ENTRY}))
    return folder


def quickstart(screen, tmp_path):
    runs = {HOSTILE: write_evaluation(tmp_path / "run")}
    screen.print(side_by_side.captions_table(runs, title=HOSTILE))
    screen.print(side_by_side.comparison_table(runs, title=HOSTILE))


def evaluate(screen, tmp_path):
    screen.print(results_table(HOSTILE, {}))


def compare(screen, tmp_path):
    difference = MetricDifference((0.1, 0.2), 0.1, (0.0, 0.2), 0.5, "bootstrap", 3, HOSTILE)
    screen.print(differences_table({"bleu_4": difference}, HOSTILE, HOSTILE))


def hostile_results(tmp_path):
    cells = Lab(tmp_path).plan(models=[{"name": HOSTILE}], prompts=[HOSTILE, "-5"]).cells
    return [Result(cells[0], {"cider_d": ENTRY, HOSTILE: ENTRY}, None), Result(cells[1], {}, HOSTILE)]


def matrix(screen, tmp_path):
    results = hostile_results(tmp_path)
    screen.print(tables.rich_table(HOSTILE, rows_of(results), ["cider_d", HOSTILE]))


def failed_runs(screen, tmp_path):
    lab = Lab(tmp_path)
    for stage in lab.scripts:
        lab.scripts[stage] = ["-c", f"import sys; sys.exit('error: ' + {HOSTILE!r}.replace(chr(13), ''))"]
    run = Runner(lab.scripts, ["python3"], screen)
    run.run(lab.plan(models=[{"name": "m"}], prompts=["p"]), tmp_path / "out", lambda outcome: None)


def bar(screen, tmp_path):
    with progress_bar(screen) as progress:
        progress.add_task(HOSTILE, total=1)


def alarm(screen, tmp_path):
    monitor = CollapseMonitor.__new__(CollapseMonitor)
    monitor.console, monitor.stop = screen, False
    Monitor.report(monitor, [HOSTILE], SimpleNamespace())


def label(screen, tmp_path):
    screen.print(labelled(HOSTILE, "bold", HOSTILE))


SCREENS = [preview, samples, quickstart, evaluate, compare, matrix, failed_runs, bar, alarm, label]


@pytest.mark.parametrize("surface", SCREENS, ids=lambda surface: surface.__name__)
def test_nothing_is_obeyed_on_the_screen(surface, tmp_path):
    screen = Screen()
    surface(screen, tmp_path)
    assert_shown(screen.text)


@pytest.mark.parametrize("kind", [RecipeError, DataError, RunStopped, RewardError, Interrupted])
def test_nothing_is_obeyed_in_errors(kind, capsys):
    def fail(arguments):
        raise Interrupted(HOSTILE, 15) if kind is Interrupted else kind(HOSTILE)

    command.run_command(ScoreRecipe, fail, usage="", argv=[])
    assert_shown(capsys.readouterr().err)


def test_nothing_is_obeyed_by_score(tmp_path, capsys):
    """Ids and captions in its errors, its JSON, and its dry run."""
    predictions, references = tmp_path / "p.jsonl", tmp_path / f"r{MARKUP.replace('/', '')}.jsonl"
    predictions.write_text(json.dumps({"image_id": HOSTILE, "caption": HOSTILE}) + "\n")
    references.write_text(json.dumps({"image_id": "other", "captions": [HOSTILE]}) + "\n")
    files = ["--predictions", str(predictions), "--references", str(references), "--metrics", "bleu_4"]
    assert score.main(files) == 2
    assert_not_obeyed(capsys.readouterr().err)
    references.write_text(json.dumps({"image_id": HOSTILE, "captions": [HOSTILE]}) + "\n")
    assert (
        score.main([*files, "--per_caption", str(tmp_path / "each.jsonl"), "--bootstrap_samples", "5"]) == 0
    )
    printed = capsys.readouterr()
    assert_not_obeyed(printed.out + printed.err)
    assert_shown((tmp_path / "each.jsonl").read_text(), markup=False)
    assert score.main([*files, "--dry_run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["references"] == [str(references)]


def test_captions_on_standard_output(capsys):
    """What ``scst caption`` writes is JSON: the same text after reading, and safe to look at."""
    row = {"image": HOSTILE, "caption": HOSTILE + "\ud83d é\n"}
    write_jsonl([row], None)
    printed = capsys.readouterr().out
    assert_shown(printed, markup=False)
    assert json.loads(printed) == row
    assert "é" in printed, "what is harmless stays readable"


def test_logs(tmp_path, caplog):
    path = tmp_path / f"x{MARKUP.replace('/', '')}\x1b[2J.json"
    path.write_text("{")
    assert training_log._read_json(path) is None
    assert_not_obeyed(caplog.text)
    assert "\\x1b[2J" in caplog.text


def test_the_helper_keeps_text_and_spells_the_rest():
    assert visible("a\x1b[2Jb\nc\x9b\u202e\ud83d") == "a\\x1b[2Jb\\nc\\x9b\\u202e\\ud83d"
    assert visible_lines("a\n\tb\r") == "a\n\tb\\r"
    for harmless in ("a road", "Ünïcödé 東京 👩‍👩‍👧 שלום", "\u00a0\u3000"):
        assert visible(harmless) == harmless
        assert json.loads(json_text(harmless)) == harmless
        assert json_text(harmless) == f'"{harmless}"'
    content = {"prompt": HOSTILE, "é": "é"}
    assert yaml.safe_load(yaml_text(content)) == content
    assert_not_obeyed(yaml_text(content))
    assert yaml_text({"é": "é"}) == "é: é\n"


@pytest.mark.parametrize("start", [*"=+-@\t\r", "\n=", "＝"])
def test_no_cell_of_the_csv_is_a_formula(start, tmp_path):
    """As OWASP lists them; numbers, negative ones too, stay numbers."""
    text = f'{start}cmd|"/C calc"!A0;=1'
    cells = Lab(tmp_path).plan(models=[{"name": text}], prompts=[text]).cells
    entry = {"value": -0.5, "ci95": [-1.0, None], "signature": text}
    exported = tables.csv_text([Result(cells[0], {text: entry}, text)])
    (line,) = csv.DictReader(io.StringIO(exported, newline=""))
    for column in ("model", "prompt", "metric", "signature", "error"):
        assert line[column] == "'" + text, column
    assert '"value"' in exported
    assert ',-0.5,-1.0,"",' in exported, "numbers stand without quotes"


def test_markdown_of_a_matrix(tmp_path):
    results = hostile_results(tmp_path)
    written = tables.markdown(HOSTILE, results, rows_of(results), [], None)
    assert_not_obeyed(written)
    assert "<script" not in written
    assert "](" not in tables.markdown("![x](http://evil)", [], [], [], None)


SOURCES = sorted((ROOT / "scst").rglob("*.py"))
SAFE_CALLS = {"plain", "labelled", "visible", "visible_lines", "json_text", "yaml_text"}
SAFE_CALLS |= {"help_text", "metric_list"}  # no text of data
SAFE_CALLS |= {"_one_message"}  # of errors; it calls visible_lines
RAW = {"rich.table", "rich.markup"}
"""What only scst/data/terminal.py uses."""
BUILDERS = ("scenes/base_model.py", "adapters/patterns.py")
"""Print their own numbers, or JSON in ASCII for another process."""


def is_safe(node: ast.expr) -> bool:
    """Whether what is printed is a constant, a table, or made by one of the helpers."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        return not any(isinstance(part, ast.FormattedValue) and not is_number(part) for part in parts)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        doc = ast.unparse(node).startswith("(__doc__ or ''")
        return name in SAFE_CALLS or name.endswith("_table") or doc
    return isinstance(node, ast.Name) and node.id == "table"


def is_print(node: ast.AST) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", None)) == "print"


def is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")


def is_text_of_data(node: ast.expr) -> bool:
    """Whether a log gets an error, path or caption as it is: only the names that they have here are known."""
    last = ast.unparse(node).rpartition(".")[2]
    return last in (
        "error",
        "fault",
        "path",
        "folder",
        "dataset",
        "output_dir",
        "caption",
        "text",
        "str(error)",
    )


def is_number(part: ast.FormattedValue) -> bool:
    """Or a call of a helper within an f-string."""
    known = ast.unparse(part.value) in ("code", "__version__", "seconds", "OUTPUT")
    return known or (isinstance(part.value, ast.Call) and is_safe(part.value))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_print_goes_through_the_helpers(path):
    """``print`` and ``console.print`` get nothing else, and rich's own tables and markup are not used."""
    if path.as_posix().endswith((*BUILDERS, "data/terminal.py")):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in RAW, f"{path}:{node.lineno}"
        if is_print(node):
            assert all(is_safe(argument) for argument in node.args), f"{path}:{node.lineno}"
        if is_log(node):
            assert not any(is_text_of_data(argument) for argument in node.args), f"{path}:{node.lineno}"


def test_an_unsafe_print_is_found():
    """The control: rich itself obeys the text, and the walk finds what would print it so."""
    screen = Screen()
    screen.print(HOSTILE.replace("[/]", ""))
    with pytest.raises(AssertionError):
        assert_shown(screen.text)
    with pytest.raises(MarkupError):  # rich's markup in a caption ended the run
        screen.print(HOSTILE)
    for text in ("f'{caption}'", "caption", "'a' + caption", "str(error)"):
        assert not is_safe(ast.parse(text, mode="eval").body)
    for text in ("error", "self.folder", "str(error)"):
        assert is_text_of_data(ast.parse(text, mode="eval").body)
