"""Where a quickstart writes: never over an earlier one."""

from __future__ import annotations

import pytest

from scst.cli.quickstart import OUTPUT, commands, folder_for


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def leave(folder, tmp_path):
    (tmp_path / folder / "sft").mkdir(parents=True)
    (tmp_path / folder / "sft" / "run.json").write_text("{}")


def test_a_fresh_folder(tmp_path):
    (tmp_path / OUTPUT / "matrix").mkdir(parents=True)
    assert folder_for(["--seed", "2"]) == (OUTPUT, ["--seed", "2"])
    leave(OUTPUT, tmp_path)
    assert folder_for([]) == (f"{OUTPUT}-2", [])
    leave(f"{OUTPUT}-2", tmp_path)
    assert folder_for([]) == (f"{OUTPUT}-3", [])


@pytest.mark.parametrize("flags", [["--resume", "true"], ["--overwrite=true"]])
def test_flags_that_say_what_becomes_of_the_earlier_one(tmp_path, flags):
    leave(OUTPUT, tmp_path)
    assert folder_for(flags) == (OUTPUT, flags)


def test_a_folder_by_name():
    folder, flags = folder_for(["--output_dir", "mine", "--seed", "2"])
    assert (folder, flags) == ("mine", ["--seed", "2"])
    sft, rl, *evaluations = commands(flags, folder)
    assert sft[-4:] == ["--output_dir", "mine/sft", "--seed", "2"]
    assert rl[-6:] == ["--output_dir", "mine/scst", "--adapter", "mine/sft", "--seed", "2"]
    assert [command[4] for command in evaluations] == ["mine/base", "mine/sft", "mine/scst"]


def test_as_the_page_says():
    """In the usual folder the recipes say it all."""
    assert "--output_dir" not in commands([])[0]
    assert "--adapter" not in commands([])[1]
