"""What becomes of an earlier run: nothing of it is lost, and nobody else's files are touched.

No test here loads a model: a checkpoint is a folder with a manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from scst.data.files import STAGING
from scst.errors import RecipeError
from scst.training.run_folder import checkpoints
from scst.training.run_folder.manifest import write_manifest
from scst.training.run_folder.output_folder import FILE_LIST, MARKER, REPLACED, OutputFolder

OURS = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "trainer_state.json")


def write_checkpoint(folder: Path, step: int, content: str = "old") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(content)
    write_manifest(checkpoint, step=step)
    return checkpoint


def write_run(folder: Path) -> OutputFolder:
    """A complete earlier run, beside files of the user's."""
    output = OutputFolder(folder)
    folder.mkdir(exist_ok=True)
    output.open(resume=False, overwrite=False)
    output.begin()
    write_checkpoint(folder, 2)
    write_checkpoint(folder, 4)
    place(output, dict.fromkeys((*OURS, "cider_d/document_frequencies.json"), "old"))
    (folder / "run.json").write_text("old")
    for name in ("checkpoint-mynotes/a.txt", "cider_d/mine.txt", "notes.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    return output


def place(output: OutputFolder, files: dict[str, str]) -> None:
    staged = output.path / STAGING / "output"
    for name, text in files.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text(text)
    output.place(staged)
    shutil.rmtree(output.path / STAGING)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder; manifests differ by nothing that matters."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "run")
    return tmp_path / "run"


def replacing(folder: Path, said: list[str] | None = None) -> OutputFolder:
    output = OutputFolder(folder, (said if said is not None else []).append)
    output.open(resume=False, overwrite=True)
    return output


def test_checking_changes_nothing(folder):
    """All that can fail happens between `open` and `begin`."""
    before = content(folder)
    replacing(folder).close()
    assert content(folder) == before


def test_earlier_run_is_refused(folder):
    before = content(folder)
    with pytest.raises(RecipeError, match=r"holds an earlier run \(run.json\); give another folder"):
        OutputFolder(folder).open(resume=False, overwrite=False)
    assert content(folder) == before


def test_a_folder_of_notes_is_no_earlier_run(tmp_path):
    (tmp_path / "checkpoint-mynotes").mkdir()
    (tmp_path / "checkpoint-mynotes" / "a.txt").write_text("mine")
    output = OutputFolder(tmp_path)
    output.open(resume=False, overwrite=False)
    assert output.checkpoint is None
    assert (tmp_path / "checkpoint-mynotes" / "a.txt").read_text() == "mine"


def test_replaced_when_the_new_run_has_a_checkpoint(folder):
    said: list[str] = []
    mine = {name: text for name, text in content(folder).items() if text == "mine"}
    output = replacing(folder, said)
    output.begin()
    assert str(folder / REPLACED) in said[0]
    visible = {name: text for name, text in content(folder).items() if not name.startswith(REPLACED)}
    assert visible == mine, "nothing of the earlier run is taken for the new one's"
    write_checkpoint(folder, 1, "new")
    output.has_checkpoint()
    output.close()
    assert not (folder / REPLACED).exists()
    assert {name: text for name, text in content(folder).items() if text in ("old", "mine")} == mine


def test_put_back_when_the_new_run_fails(folder):
    said: list[str] = []
    before = content(folder)
    output = replacing(folder, said)
    output.begin()
    place(output, {"document_frequencies.json": "new", "cider_d/document_frequencies.json": "new"})
    output.close()
    assert content(folder) == before
    assert "was put back" in said[-1]


def test_a_new_run_that_fails_after_its_checkpoint_keeps_it(folder):
    output = replacing(folder)
    output.begin()
    write_checkpoint(folder, 1, "new")
    output.close()
    assert not (folder / REPLACED).exists()
    assert checkpoints.newest_complete(folder) == folder / "checkpoint-1"


@pytest.mark.parametrize("restart", ["plain", "overwrite", "resume"])
def test_killed_before_the_first_checkpoint(folder, restart):
    """The next start puts the earlier run back, whatever it asks for; --resume true is told so."""
    before = content(folder)
    replacing(folder).begin()
    (folder / STAGING / "checkpoint-1").mkdir(parents=True)
    after = OutputFolder(folder)
    if restart == "overwrite":
        after.open(resume=False, overwrite=True)
    else:
        match = "holds an earlier run" if restart == "plain" else "ended before its first checkpoint"
        with pytest.raises(RecipeError, match=match):
            after.open(resume=restart == "resume", overwrite=False)
    assert content(folder) == before
    after = OutputFolder(folder)
    after.open(resume=True, overwrite=False)
    assert after.checkpoint == str(folder / "checkpoint-4")


def test_killed_between_the_first_checkpoint_and_the_deletion(folder):
    output = replacing(folder)
    output.begin()
    write_checkpoint(folder, 1, "new")
    after = OutputFolder(folder)
    after.open(resume=True, overwrite=False)
    assert after.checkpoint == str(folder / "checkpoint-1")
    assert not (folder / REPLACED).exists()


def replace_in_a_process_killed_at(folder: Path, count: int) -> bool:
    """Move the earlier run aside and back, with SIGKILL at a file operation; False when there are fewer."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    operations = iter(range(1, 1000))

    def hook(event: str, arguments: tuple) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
        writes = writes or (event == "open" and set(str(arguments[1])) & set("wax+"))
        if writes and str(arguments[0]).startswith(str(folder)) and next(operations) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    output = replacing(folder)
    sys.addaudithook(hook)  # for good, hence the process
    output.begin()
    output.close()
    os._exit(0)


@pytest.mark.slow
def test_killed_at_any_file_operation(tmp_path, folder):
    """Of moving aside and of putting back: the next start always finds the whole earlier run."""
    before = content(folder)
    for count in range(1, 100):
        work = tmp_path / str(count)
        shutil.copytree(folder, work)
        was_killed = replace_in_a_process_killed_at(work, count)
        OutputFolder(work).open(resume=False, overwrite=True)
        assert content(work) == before, count
        if not was_killed:
            assert count > 30
            return
    pytest.fail("it never came to its end")


def test_continuing_keeps_the_record_until_there_is_a_newer_checkpoint(folder):
    output = OutputFolder(folder)
    output.open(resume=True, overwrite=False)
    output.begin()
    assert (folder / "run.json").is_file()
    write_checkpoint(folder, 6)
    output.has_checkpoint()
    assert not (folder / "run.json").exists()


def test_a_checkpoint_of_another_folder_does_not_open_this_one(folder, tmp_path):
    other = write_checkpoint(tmp_path / "other", 8)
    with pytest.raises(RecipeError, match="holds an earlier run"):
        OutputFolder(folder).open(resume=str(other), overwrite=False)
    within = OutputFolder(folder)
    within.open(resume=str(folder / "checkpoint-2"), overwrite=False)
    assert within.checkpoint == str(folder / "checkpoint-2")


def test_names_of_checkpoints_that_no_run_has_written(folder):
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "thesis.tex").write_text("mine")
    with pytest.raises(RecipeError, match=r"checkpoint-7.* no run has written it"):
        OutputFolder(folder).open(resume=False, overwrite=True)


def test_adapter_that_no_run_has_written(tmp_path):
    """A downloaded adapter is not written over, even when the run may continue what it finds."""
    (tmp_path / "adapter_config.json").write_text("theirs")
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"earlier run \(adapter_config.json\)"):
            OutputFolder(tmp_path).open(resume=resume, overwrite=False)


def test_readme_of_the_user_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    output = OutputFolder(tmp_path)
    place(output, {"README.md": "model card", "tokenizer.json": "new"})
    assert (tmp_path / "README.md").read_text() == "mine"
    assert json.loads((tmp_path / FILE_LIST).read_text())["files"] == ["tokenizer.json"]


@pytest.mark.parametrize("names", [["../../victim"], ["/victim"], [".."], [3], "run", None])
def test_lists_that_lead_outside_are_not_followed(tmp_path, names):
    run = tmp_path / "a" / "run"
    run.parent.mkdir()
    write_run(run)
    (tmp_path / "victim").write_text("mine")
    (run / FILE_LIST).write_text(json.dumps({"files": names}))
    output = replacing(run)
    output.begin()
    (run / REPLACED / MARKER).write_text(json.dumps({"state": "aside", "files": names}))
    OutputFolder(run).open(resume=False, overwrite=True)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("marker", [None, "{", "[]", "{}"])
def test_a_folder_that_only_has_the_name(folder, marker):
    (folder / REPLACED).mkdir()
    (folder / REPLACED / "mine.txt").write_text("mine")
    if marker is not None:
        (folder / REPLACED / MARKER).write_text(marker)
    before = content(folder)
    with pytest.raises(RecipeError, match="is no earlier run that was moved aside"):
        OutputFolder(folder).open(resume=False, overwrite=True)
    assert content(folder) == before
