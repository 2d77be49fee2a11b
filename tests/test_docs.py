"""What pages and recipe headers name exists: files, links, commands and flags, recipes, logged numbers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import scst
from scst.cli.arguments import NEED_CONFIG, parse
from scst.cli.console import COMMANDS
from scst.config.recipes import RECIPES
from tests.support.paths import ROOT
from tests.support.recipes import RECIPES_FOLDER, REPORTS

PAGES = sorted(
    page
    for folder in (ROOT, *(ROOT / name for name in ("docs", "recipes", "benchmarks", "examples")))
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
RECIPE_FILES = sorted(RECIPES_FOLDER.rglob("*.yaml"))
ROOMS = "scst|rewards|launch|recipes|tests|docs|benchmarks|examples"
PLACEHOLDERS = ("RECIPE", "RECIPE.yaml", "my_recipe.yaml")
"""Recipes that a page leaves to the reader."""
COMMAND_OF_SCRIPT = {name: name for name in COMMANDS} | {"scst": "rl"}
STAGE_OF_COMMAND = {recipe.command: stage for stage, recipe in RECIPES.items()}
LOGGED_IN = ("rl/rollout_metrics", "rl/rewarder", "rl/policy_loss", "rl/trainer", "training/non_finite")


def text_of(path: Path) -> str:
    """A page in the words of this release: a changelog also has the names of earlier ones."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        lines = [line for line in text.splitlines() if line.startswith("#")]
        text = "\n".join(line.removeprefix("#") for line in lines)
    return text.partition("\n## 0.1.0 ")[0] if path.name == "CHANGELOG.md" else text


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def exists(name: str, page: Path) -> bool:
    """Whether a path or pattern is in the project, beside the page, or among the recipes of reports."""
    return any((folder / name).exists() or any(folder.glob(name)) for folder in (ROOT, page.parent, REPORTS))


@pytest.mark.parametrize("page", [*PAGES, *RECIPE_FILES], ids=name_of)
def test_files_that_are_named_exist(page):
    text = text_of(page)
    named = re.findall(rf"(?<![\w./-])((?:{ROOMS})/[\w./*-]*\w)", text)
    named += re.findall(r"`([\w-]+/[\w./-]+\.(?:py|yaml|md|sh|json))`", text)
    missing = {name for name in named if "outputs/" not in name and not exists(name, page)}
    assert not missing


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(path: Path) -> Iterator[tuple[str, str]]:
    """(command, arguments) of the lines of code that start one."""
    for line in text_of(path).replace("\\\n", " ").splitlines():
        if not re.match(r"(\s{3,}|srun )", line) or line.strip().startswith(("launch/", "scst/")):
            continue  # prose, or a line of a tree
        line = re.split(r"\s+#\s|\s\|\s(?!scst )", line)[0]
        if found := re.search(r"\blaunch/(\w+)\.py\b(.*)", line):
            yield COMMAND_OF_SCRIPT[found[1]], found[2]
        elif found := re.search(r"(?:^|\|)\s*(?:[A-Z_]+=\S* )*scst (\w+)\b(.*)", line):
            yield found[1], found[2]


@pytest.mark.parametrize("path", [*PAGES, *RECIPE_FILES], ids=name_of)
def test_commands_are_accepted(path, monkeypatch):
    """Every flag is a key of its command, every recipe exists: what ``--dry_run`` checks first."""
    monkeypatch.chdir(ROOT)
    for command, text in commands(path):
        assert command in COMMANDS
        arguments = shlex.split(text.rstrip("'") if text.count("'") % 2 else text)
        if arguments[:1] == ["document-frequencies"] or arguments == ["--list"] or command == "quickstart":
            continue
        if "--adapter" in arguments and "--dataset" not in arguments and command == "evaluate":
            arguments += ["--dataset", "DATA"]  # in use it is that of the run that made the adapter
        stage = STAGE_OF_COMMAND[command]
        example = f"quickstart/{stage if stage in NEED_CONFIG else 'evaluate'}"
        parse(RECIPES[stage], [example if a in PLACEHOLDERS else a for a in arguments])


def test_commands_were_found():
    found = {command for path in [*PAGES, *RECIPE_FILES] for command, _ in commands(path)}
    assert found >= {"sft", "rl", "evaluate", "caption", "score", "prepare", "matrix", "explain", "merge"}


@pytest.mark.parametrize("path", [*PAGES, *RECIPE_FILES], ids=name_of)
def test_commands_in_a_sentence_exist(path):
    text = text_of(path)
    for command in re.findall(r"`scst (\w+)(?![\w=])", text):
        assert command in COMMANDS
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_calls_the_public_api(page):
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("scst."):
                function = getattr(scst, ast.unparse(node.func).removeprefix("scst."))
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(function).bind(*node.args, **keywords)
    for name in re.findall(r"`scst\.([A-Za-z_]+)[`(]", text_of(page)):
        # the last two: the group of entry points; a key of a stage in a matrix
        assert name in scst.__all__ or name in ("rewards", "learning_rate"), name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers(command, capsys):
    assert importlib.import_module(f"scst.cli.{command}").main(["--help"]) == 0
    assert "scst" in capsys.readouterr().out


@pytest.mark.parametrize("room", LOGGED_IN)
def test_every_logged_number_is_explained(room):
    source = (ROOT / "scst" / f"{room}.py").read_text(encoding="utf-8")
    statistic = r"(?:Mean|Deviation|Peak|MostCommon)\b"
    names = set(re.findall(rf'"(\w+)": (?:{statistic}|self\.skipped_steps|loss\b|sum\()', source))
    names |= set(re.findall(r'metrics\["(\w+)"\]', source))
    explained = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    assert names
    assert {name for name in names if f"`{name}`" not in explained} == set()
