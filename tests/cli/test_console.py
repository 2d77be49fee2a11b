"""The command ``scst``, thin launch scripts, packaged recipes, and the processes that commands start."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from scst import __version__
from scst.cli import console, launcher
from scst.cli.arguments import parse
from scst.cli.console import COMMANDS
from scst.cli.quickstart import commands, run_child
from scst.config.packaged import accelerate_names, find_accelerate_config, find_recipe, recipe_names
from scst.config.reader import read_recipe_file
from scst.config.recipes import RECIPES, EvaluateRecipe, MatrixRecipe, SCSTRecipe, SFTRecipe
from scst.errors import RecipeError
from tests.support.adapter_folders import write_adapter
from tests.support.commands import start, start_warm
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S, wait_until

SCRIPTS = sorted((ROOT / "launch").glob("*.py"))


# --- scripts and the console command


def test_every_command_has_a_script_of_the_contracted_name():
    names = {command if command != "rl" else "scst" for command in COMMANDS}
    assert {path.stem for path in SCRIPTS} == names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 10
    command = "rl" if path.stem == "scst" else path.stem
    assert f"from scst.cli.{command} import main" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_only_scripts_that_run_by_path_change_the_import_path():
    """launch/ would hide the package `scst`, and benchmarks/ the package `rewards`.

    And the one that does what the interpreter does for those that it starts.
    """
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split():
        if (
            name.startswith(("launch/", "benchmarks/", "tests/support/forked.py"))
            or not (ROOT / name).is_file()
        ):
            continue
        changed = [
            node
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
        ]
        assert not changed, name


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys; from scst.cli.console import main; code = main(['--help'])\n"
        "sys.exit(code or bool({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = start("-c", code)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys):
    assert console.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"scst {command}" in shown
    assert "launch/" in shown


def test_version(capsys):
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scst {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "error: evalute: unknown command; did you mean evaluate?"),
        (["scst"], "error: scst: unknown command; did you mean rl?"),
        (["zzz"], "error: zzz: unknown command; commands: sft, rl, "),
        ([], "commands:\n  sft"),
    ],
)
def test_unknown_commands_exit_2(argv, message, capsys):
    assert console.main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_recipe_is_answered_without_torch():
    code = (
        "import sys; from scst.cli.console import main\n"
        "code = main(['rl', '--config', 'quickstart/scst', '--num_sample', '3', '--num_processes', '2'])\n"
        "assert code == 2; sys.exit(bool({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = start("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: num_sample: unknown key; did you mean num_samples?\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-m", "scst.cli", "rl"], ["-m", "scst.cli.rl"]])
def test_both_modules_answer_a_dry_run_from_another_folder(how, tmp_path):
    write_adapter(tmp_path / "outputs" / "quickstart" / "sft")  # as the recipe names it
    done = start(*how, "--config", "quickstart/scst", "--dry_run", "--seed", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["seed"] == 7


# --- packaged recipes


def test_recipes_and_accelerate_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"rsicd/sft", "quickstart/scst", "experiments/prompts-matrix"} <= set(recipe_names())
    for name in recipe_names():
        assert find_recipe(name) == find_recipe(f"{name}.yaml") == ROOT / "recipes" / f"{name}.yaml"
    for name in accelerate_names():
        assert find_accelerate_config(name) == ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    assert not [name for name in recipe_names() if "/_" in name or name.startswith("accelerate")]


def test_a_file_counts_more_than_a_packaged_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rsicd").mkdir()
    (tmp_path / "rsicd" / "sft.yaml").write_text("seed: 99\n")
    (tmp_path / "cpu.yaml").write_text("num_processes: 1\n")
    assert read_recipe_file("rsicd/sft.yaml") == {"seed": 99}
    assert read_recipe_file("rsicd/sft") != {"seed": 99}
    assert find_accelerate_config("cpu.yaml") == Path("cpu.yaml")


def test_a_folder_of_recipes_is_the_recipe_that_the_command_has_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # an output folder of the user's is no recipe
    for recipe in (SFTRecipe, SCSTRecipe, EvaluateRecipe, MatrixRecipe):
        whole, short = (parse(recipe, ["--config", f"quickstart{end}"]) for end in (f"/{recipe.stage}", ""))
        assert whole.recipe == short.recipe
    with pytest.raises(RecipeError, match="there is no file 'reports'"):
        parse(SFTRecipe, ["--config", "reports"])


@pytest.mark.parametrize(
    ("name", "near"),
    [("rsicd/stf", "rsicd/sft"), ("sft", "quickstart/sft"), ("quickstart/scts.yaml", "quickstart/scst")],
)
def test_an_unknown_name_lists_near_ones(name, near):
    with pytest.raises(
        RecipeError, match=r"^--config: there is no file .*, and no packaged recipe"
    ) as caught:
        find_recipe(name)
    assert near in str(caught.value)


def test_an_unknown_accelerate_configuration_lists_the_packaged_ones():
    with pytest.raises(RecipeError, match=r"--accelerate_config: there is no file 'gpus'; .*cpu, cpu-2, ddp"):
        find_accelerate_config("gpus")


def test_a_recipe_extends_a_packaged_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: rsicd/sft\nseed: 99\n")
    assert read_recipe_file(tmp_path / "mine.yaml") == read_recipe_file("rsicd/sft") | {"seed": 99}


# --- processes


@pytest.mark.parametrize(
    ("flags", "config", "count"),
    [
        ([], None, None),
        (["--num_processes", "1"], None, None),
        (["--accelerate_config", "cpu"], "cpu", None),
        (["--accelerate_config=zero3", "--num_processes=4"], "zero3", 4),
        (["--num_processes", "2"], "ddp", 2),
    ],
)
def test_launch_flags_are_taken_out(flags, config, count):
    launch, remaining = launcher.take_launch_flags("sft", ["--seed", "7", *flags, "--plan"])
    assert remaining == ["--seed", "7", "--plan"]
    if config is None:
        assert launch is None
    else:
        assert launch == launcher.Launch(find_accelerate_config(config), count)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes", "two"], "--num_processes: invalid int value: 'two'"),
        (["--num_processes", "0"], "--num_processes: expected 1 or more, got 0"),
        (["--accelerate_config"], "--accelerate_config: expected one argument"),
        (["--accelerate_config="], "--accelerate_config: expected one argument"),
        (["--accelerate_config=--"], "--accelerate_config: expected one argument"),
        (["--num_processes=--"], "--num_processes: expected one argument"),
        (
            ["--accelerate_config", "cpu", "--num_processes", "2"],
            "cpu.yaml' describes one process; for 2 give",
        ),
    ],
)
def test_launch_flags_that_cannot_be_used(flags, message):
    with pytest.raises(RecipeError) as caught:
        launcher.take_launch_flags("scst", flags)
    assert message in str(caught.value)


def test_commands_of_one_process_know_no_launch_flags(capsys):
    assert console.main(["score", "--num_processes", "2"]) == 2
    assert "num_processes: unknown key" in capsys.readouterr().err


@pytest.mark.slow
def test_one_process_returns_its_exit_code(tmp_path):
    (tmp_path / "wrong.py").write_text("import sys; sys.exit(3)")
    code = (
        "import sys; from scst.cli.launcher import Launch, start_processes\n"
        "from scst.config.packaged import find_accelerate_config\n"
        "sys.exit(start_processes(Launch(find_accelerate_config('cpu')), 'wrong', []))"
    )
    assert start_warm("-c", code, PYTHONPATH=f"{ROOT}:{tmp_path}").returncode == 3


@pytest.mark.slow
def test_processes_are_started_and_their_exit_code_returned(tmp_path):
    """A recipe that is wrong in a way that only the processes find out."""
    launch = ["--accelerate_config", "cpu-2", "--num_processes", "2", "--output_dir", str(tmp_path)]
    wrong = ["--config", "quickstart/sft", "--model_name_or_path", str(tmp_path / "nowhere")]
    done = start("-m", "scst.cli", "sft", *launch, *wrong, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert done.returncode == 2, done.stderr
    assert "no model configuration found at" in done.stderr


CHILD = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1]).write_text(str(number))
    sys.exit({code})
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
Path(sys.argv[1]).touch()
time.sleep(60)
sys.exit("not told")
"""
PARENT = """
import os, sys
from scst.cli.quickstart import run_child
sys.exit(run_child([sys.executable, sys.argv[1], sys.argv[2]], os.environ))
"""


@pytest.mark.parametrize(
    ("sent", "code", "arrives"),
    [
        (signal.SIGTERM, 143, signal.SIGTERM),
        (signal.SIGHUP, 143, signal.SIGHUP),
        (signal.SIGKILL, -signal.SIGKILL, signal.SIGTERM),  # the kernel tells the child
    ],
    ids=["SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_a_signal_reaches_the_child_of_the_quickstart(tmp_path, sent, code, arrives):
    (tmp_path / "child.py").write_text(CHILD.format(code=143))
    mark = tmp_path / "started"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "child.py"), str(mark)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    until = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    parent.send_signal(sent)
    assert parent.wait(timeout=PATIENCE_S) == code, "the child's own exit code, after it has saved"
    wait_until(lambda: mark.read_text() == str(int(arrives)), "the child being told")


def test_a_child_that_a_signal_ends_has_the_exit_code_of_a_shell():
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert run_child(killed, os.environ) == 137


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_reaches_the_processes_of_a_launch(processes, tmp_path):
    """One process replaces the command; several are told by the agent."""
    module = tmp_path / "patient.py"
    module.write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "rank = os.environ.get('RANK', '0')\n"
        "def stop(*_):\n"
        "    (folder / f'saved-{rank}').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "(folder / f'started-{rank}').touch()\n"
        "time.sleep(120)\n"
    )
    config = "cpu" if processes == 1 else "cpu-2"
    code = (
        "import sys; from scst.cli.launcher import Launch, start_processes\n"
        "from scst.config.packaged import find_accelerate_config\n"
        f"launch = Launch(find_accelerate_config({config!r}))\n"
        f"sys.exit(start_processes(launch, 'patient', [{str(tmp_path)!r}]))"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | environment, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("started-*"))) < processes:
        assert command.poll() is None, command.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=60) == 143
    assert len(list(tmp_path.glob("saved-*"))) == processes


def test_the_quickstart_names_its_recipes():
    first, second, *evaluations = commands(["--seed", "2"])
    assert first[0] == "sft"
    assert second[0] == "rl"
    assert first[-2:] == second[-2:] == ["--seed", "2"]
    for command in (first, second, *evaluations):
        assert find_recipe(command[command.index("--config") + 1]).is_file()


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the tracked files alone."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name.split("/")[0] in ("scst", "rewards", "recipes", *TOP_FILES):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run(
        [sys.executable, *build, str(folder / "source")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel, installed into an empty folder."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def installed(site, code, cwd):
    """Run code with the installed wheel, from another folder."""
    found = f"import scst; assert {str(site)!r} in scst.__file__\n"
    done = start_warm("-c", found + code, cwd=cwd, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_holds_all_that_commands_need(wheel, site, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    for name in recipe_names():
        assert f"scst/recipes/{name}.yaml" in names
    assert "scst/assets/scenes-paligemma/model.safetensors" in names
    assert {"scst/py.typed", "rewards/py.typed"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"scst", "rewards", f"scst-{__version__}.dist-info"}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "scst = scst.cli.console:main" in zipfile.ZipFile(wheel).read(entry).decode()
    argv = ["matrix", "--config", "quickstart/matrix", "--dry_run"]
    installed(site, f"import sys; from scst.cli.console import main; sys.exit(main({argv!r}))", tmp_path)


SCRIPT = """
data = scst.load_dataset("embedded:scenes", splits=["train"], limit=8)
lora = scst.LoRA(rank=4)
policy = scst.load_policy("embedded:scenes-paligemma", lora, quantization="none", max_new_tokens=8)
short = {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
scst.finetune(policy, data, "sft", **short)
scst.refine(policy, data, "scst", rewards=["cider_d"], num_samples=2, **short)
print(policy.caption(data["train"][0]["image"]))
"""


@pytest.mark.slow
def test_both_stages_train_from_the_wheel_by_script_and_by_command(site, tmp_path):
    assert installed(site, SCRIPT, tmp_path).strip()
    short = ["--max_steps", "1", "--max_train_images", "8", "--save_strategy", "no", "--eval_strategy", "no"]
    for argv in (
        ["sft", "--config", "quickstart/sft", "--output_dir", "command/sft"],
        ["rl", "--config", "quickstart/scst", "--adapter", "sft", "--output_dir", "command/scst"],
    ):
        code = f"import sys; from scst.cli.console import main; sys.exit(main({argv + short!r}))"
        installed(site, code, tmp_path)
    for folder in ("sft", "scst", "command/sft", "command/scst"):
        assert (tmp_path / folder / "adapter_model.safetensors").is_file()


TOP_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def test_every_stage_belongs_to_a_command():
    assert {recipe.command.split()[0] for recipe in RECIPES.values()} == set(COMMANDS) - {"quickstart"}


@pytest.mark.parametrize("flag", ["--output_dir=", "--output_dir=--"])
def test_a_quickstart_without_a_folder_is_refused(flag, capsys):
    from scst.cli.quickstart import main

    assert main([flag]) == 2
    assert capsys.readouterr().err == "error: --output_dir: expected the name of a folder\n"
