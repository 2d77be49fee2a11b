"""The layout: which rooms there are, which way imports point, what stands where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LEVELS = (
    ("cli",),
    ("config",),
    ("sft", "rl", "experiments", "explain", "evaluation"),
    ("training",),
    ("scoring", "rollout", "objective", "report", "metrics"),
    ("adapters", "data", "models", "distributed"),
    ("files",),
    ("types", "errors"),
)
"""Rooms of scst/ from the top down. A room imports those below it and, in its level, those to its right."""
ROOMS = [room for level in LEVELS for room in level]
LOOSE_FILES = {"__init__.py", "errors.py", "types.py", "py.typed"}
FOLDERS = {"assets"}
"""What scst/ holds beside rooms."""
SAME_NAME = {"__init__.py": None, "trainer.py": {"sft", "rl"}}
"""Names that several files may have, and the rooms that may hold one."""
WITHOUT_TORCH = ["scst", "scst.config.keys", "scst.config.recipes", "scst.config.reader"]
LINES_OF_A_SCRIPT = 12


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    """The room of a dotted name; None for ``scst`` itself and what is not of scst."""
    parts = name.split(".")
    return parts[1] if parts[0] == "scst" and len(parts) > 1 and parts[1] in ROOMS else None


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


SCST, REWARDS = modules("scst"), modules("rewards")


@pytest.mark.parametrize("module", [name for name in SCST if name != "scst"])
def test_every_module_is_in_a_room_and_imports_downwards(module):
    room = room_of(module)
    assert room, f"{module} is in no room: {', '.join(ROOMS)}"
    for imported in sorted(imports(SCST[module])):
        below = room_of(imported)
        assert below is None or ROOMS.index(below) >= ROOMS.index(room), f"{module} imports {imported}"
        assert not imported.startswith("scst.") or below or imported == "scst.__version__", imported


@pytest.mark.parametrize("module", [*SCST, *REWARDS])
def test_nothing_imports_commands_or_tests(module):
    path = (SCST | REWARDS)[module]
    assert not roots(imports(path)) & {"launch", "tests", "benchmarks"}


@pytest.mark.parametrize("module", REWARDS)
def test_rewards_stand_on_their_own(module):
    assert "scst" not in roots(imports(REWARDS[module]))


def test_rewards_load_no_torch_until_a_model_is_asked_for():
    assert_loads_no_torch(list(REWARDS))


def test_recipes_and_help_load_no_torch():
    """``import scst``, everything that commands do before they begin, and recipes."""
    assert_loads_no_torch(WITHOUT_TORCH + [name for name in SCST if room_of(name) == "cli"])


def assert_loads_no_torch(names: list[str]) -> None:
    code = (
        f"import sys, importlib\nfor name in {names!r}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rooms_are_those_of_the_plan():
    there = {p.name for p in (ROOT / "scst").iterdir() if p.name != "__pycache__"}
    files = {name for name in there if (ROOT / "scst" / name).is_file()}
    assert files <= LOOSE_FILES, "no loose files in scst/"
    assert there - files - FOLDERS == set(ROOMS) - {"types", "errors"}


def test_no_two_files_have_one_name():
    names = Counter(path.name for path in SCST.values())
    assert {name for name, count in names.items() if count > 1} <= set(SAME_NAME)
    for name, rooms in SAME_NAME.items():
        folders = {path.parent.name for path in SCST.values() if path.name == name}
        assert rooms is None or folders <= rooms


PACKAGES = sorted(path for path in (SCST | REWARDS).values() if path.name == "__init__.py")


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.relative_to(ROOT).as_posix())
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_scripts_hold_no_code(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= LINES_OF_A_SCRIPT
    ours = {name for name in imports(script) if name.split(".")[0] in ("scst", "rewards")}
    assert all(room_of(name) == "cli" for name in ours)


TESTS = {name: path for name, path in modules("tests").items() if path.name.startswith("test_")}


@pytest.mark.parametrize("module", TESTS)
def test_tests_share_by_way_of_support(module):
    """No test file imports from another one, or from a conftest."""
    shared = {"support", "chaos"}
    borrowed = {name for name in imports(TESTS[module]) if name.startswith("tests.")}
    assert {name.split(".")[1] for name in borrowed} <= shared
    assert not any(part.startswith("test_") for name in borrowed for part in name.split("."))


def test_rooms_of_the_tests_are_those_of_the_code():
    others = {"support", "chaos", "reference", "benchmarks", "security", "rewards"}
    there = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert there - others <= set(ROOMS)
    for room in ("scorers", "execution"):
        assert (ROOT / "rewards" / room).is_dir() == (ROOT / "tests" / "rewards" / room).is_dir()
