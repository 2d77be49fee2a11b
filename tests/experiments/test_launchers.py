"""Which programs the ``launcher`` of a matrix may start, measured with the launchers' own parsers."""

from __future__ import annotations

import sys

import pytest

from scst.cli import matrix
from scst.config import build_matrix
from scst.errors import RecipeError
from scst.experiments.launchers import _KNOWN, launcher_command
from tests.support.worlds import write_recipe

OURS = ["-m", "scst.cli.sft", "--config", "recipe.yaml"]
VALUES = {"--mixed_precision": "bf16"}
"""Of options that do not take a number."""
OTHER_PROGRAMS = (
    "sh -c 'touch {marker}'",
    "touch {marker}",
    "/usr/bin/python {marker}",
    "python {script}",
    'python -c \'open("{marker}", "w")\'',
    "python -X utf8 {script}",
    "python -X presite={script}",
    "python -Xutf8",
    "python -W error::{script}",
    "python -uc print(1)",
    "python -m http.server",
    "python --",
    "accelerate",
    "accelerate test",
    "accelerate launch {script}",
    "accelerate launch -m http.server",
    "accelerate launch --module http.server",
    "accelerate launch --no_python",
    "accelerate launch --no-python",
    "accelerate launch --no_pyth",
    "accelerate launch --num_processes --no_python touch {marker}",
    "accelerate launch --num_processes 2 {script}",
    "accelerate launch --num_processes=2 {script}",
    "accelerate launch --cpu=1 {script}",
    "accelerate launch --num_processes",
    "torchrun {script}",
    "torchrun --no_python touch {marker}",
    "torchrun --nproc-per-node 2 --run-path {script}",
    "torchrun --logs_specs evil",
    "torchrun -m http.server",
    "srun -n 1 python",
    "env LD_PRELOAD=x python",
)


def test_known_launchers():
    assert launcher_command("") == launcher_command("python") == [sys.executable]
    assert launcher_command("python -X utf8 -u") == [sys.executable, "-X", "utf8", "-u"]
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    assert launcher_command("accelerate launch --num_processes 2") == [*accelerate, "--num_processes", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    assert launcher_command("torchrun --nproc-per-node=2") == [*torchrun, "--nproc-per-node=2"]


@pytest.mark.parametrize("launcher", OTHER_PROGRAMS)
def test_nothing_else_starts_without_the_flag(launcher, tmp_path, capsys):
    marker, script = tmp_path / "marker", tmp_path / "other.py"
    script.write_text(f"open({str(marker)!r}, 'w')")
    text = launcher.format(marker=marker, script=script)
    config = write_recipe(tmp_path / "m.yaml", models=[{"name": "m"}], launcher=text)
    assert matrix.main(["--config", str(config)]) == 2
    assert "--any_launcher" in capsys.readouterr().err
    assert not marker.exists()
    launcher_command(text, any_program=True)


def test_the_flag_is_not_a_key(tmp_path, capsys):
    config = write_recipe(tmp_path / "m.yaml", models=[{"name": "m"}], launcher="srun", any_launcher=True)
    assert matrix.main(["--config", str(config)]) == 2
    assert "any_launcher: unknown" in capsys.readouterr().err


def test_the_flag_reaches_the_run(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(build_matrix, "checked_plan", lambda recipe, **flags: used.append(flags))
    monkeypatch.setattr(build_matrix, "run_matrix", lambda recipe, plan, **flags: used.append(flags))
    config = write_recipe(tmp_path / "m.yaml", models=[{"name": "m"}], launcher="srun -n 1 python")
    for flags, expected in ([], False), (["--any_launcher"], True):
        assert matrix.main(["--config", str(config), *flags]) == 0
        assert used == [{"any_launcher": expected}] * 2
        used.clear()


def test_quotes_that_do_not_close():
    with pytest.raises(RecipeError, match="No closing quotation"):
        launcher_command("python '")


@pytest.mark.parametrize("name", ["accelerate launch", "torchrun"])
def test_allowed_options_leave_our_command_in_place(name):
    """As the launcher itself reads them: the script is ours, a module, and run by this Python."""
    if name == "torchrun":
        from torch.distributed.run import get_args_parser as parser
    else:
        from accelerate.commands.launch import launch_command_parser as parser
    known = _KNOWN[tuple(name.split())]
    options = [option for value in known.values for option in (value, VALUES.get(value, "2"))]
    options += sorted(known.flags)
    assert launcher_command(" ".join([name, *options])) == [*known.command, *options]
    parsed = parser().parse_args([*options, *OURS])
    assert (parsed.training_script, parsed.training_script_args) == (OURS[1], OURS[2:])
    assert parsed.module
    assert not parsed.no_python
