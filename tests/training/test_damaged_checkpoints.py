"""Whatever happens to the files of a checkpoint, the run goes on from the one before."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from scst.training.run_folder.checkpoints import checkpoint_to_resume
from scst.training.run_folder.manifest import MANIFEST, read_manifest

TRIALS = int(os.environ.get("SCST_DAMAGE_TRIALS", "150"))
"""Random damages of single files, and as many of pairs."""
SEED = int(os.environ.get("SCST_CHAOS_SEED", "1"))


@pytest.fixture(scope="module")
def run(run_stage, tmp_path_factory):
    """Two checkpoints of a real run, under a umask that is not the usual one; damage is repaired."""
    folder = tmp_path_factory.mktemp("run") / "out"
    before = os.umask(0o027)
    try:
        run_stage("sft", output_dir=str(folder), max_steps=2, save_strategy="steps", save_steps=1)
    finally:
        os.umask(before)
    return folder


@contextmanager
def undone(folder: Path):
    """What happens to a folder inside is undone afterwards."""
    spare = folder.with_name(f"spare-{folder.name}")
    shutil.copytree(folder, spare)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        spare.rename(folder)


def resumed(run: Path) -> str | None:
    found = checkpoint_to_resume(str(run), True)
    return Path(found).name if found else None


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def overwrite(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 64] = bytes(rng.randrange(256) for _ in content[start : start + 64])
    path.write_bytes(content)


def grow(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(1 + rng.randrange(9)))


def lose(path: Path, rng: random.Random) -> None:
    path.unlink()


def become_a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def become_a_pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip,
    flip,
    cut,
    overwrite,
    grow,
    lose,
    become_a_folder,
    become_a_pipe,
)


def test_the_run_is_sound(run):
    """The negative control: undamaged, the newest is taken."""
    assert resumed(run) == "checkpoint-2"


def test_every_file_is_listed(run):
    names = {p.name for p in (run / "checkpoint-2").iterdir()}
    assert set(read_manifest(run / "checkpoint-2")["files"]) == names - {MANIFEST}
    assert {"adapter_model.safetensors", "optimizer.pt", "parts-0.pt", "trainer_state.json"} < names


def test_every_file_has_the_umask_of_the_user(run):
    """The weights, which safetensors writes through a private temporary file, like all others."""
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.glob("checkpoint-*")} == {0o750}


@pytest.mark.parametrize("number", [1, 2], ids=["one file", "two files"])
def test_random_damage_of_every_file_is_found(run, number):
    """The one before is taken, but where the damage changed nothing (blanks of the manifest)."""
    newest = run / "checkpoint-2"
    sound, rng = read_manifest(newest), random.Random(f"{SEED} {number}")
    names = sorted(p.name for p in newest.iterdir())
    for trial in range(TRIALS):
        # every file in turn, and others by chance
        victims = [names[trial % len(names)], *rng.sample(names, number - 1)]
        with undone_files(newest, victims):
            done = []
            for name in dict.fromkeys(victims):
                damage = rng.choice(DAMAGES)
                damage(newest / name, rng)
                done.append((damage.__name__, name))
            found = resumed(run)
            if found == "checkpoint-2":
                assert {name for _, name in done} == {MANIFEST}, done
                assert read_manifest(newest) == sound, done
            else:
                assert found == "checkpoint-1", done


@contextmanager
def undone_files(folder: Path, names: list[str]):
    """As :func:`undone`, for single files: the other ones need not be copied."""
    before = {name: ((folder / name).read_bytes(), (folder / name).stat().st_mode) for name in names}
    try:
        yield
    finally:
        for name, (content, mode) in before.items():
            path = folder / name
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(content)
            path.chmod(mode)


def test_damage_of_both_starts_from_the_beginning(run):
    rng, lines = random.Random(SEED), []
    with undone(run / "checkpoint-1"), undone(run / "checkpoint-2"):
        flip(run / "checkpoint-1" / "scheduler.pt", rng)
        lose(run / "checkpoint-2" / "parts-0.pt", rng)
        assert checkpoint_to_resume(str(run), True, lines.append) is None
    assert [line.partition(" is passed over")[0] for line in lines] == [
        "resume: checkpoint-2",
        "resume: checkpoint-1",
    ]


def changed(**changes):
    """Manifest text with other values; None removes the key."""
    return lambda m: json.dumps({k: v for k, v in (m | changes).items() if v is not None})


def one_file(**changes):
    def change(manifest):
        name = min(manifest["files"])
        return json.dumps(manifest | {"files": manifest["files"] | {name: manifest["files"][name] | changes}})

    return change


MANIFESTS = {
    "no files": changed(files={}),
    "files gone": changed(files=None),
    "files a list": changed(files=[1]),
    "a file less": lambda m: json.dumps(m | {"files": dict(list(m["files"].items())[1:])}),
    "step gone": changed(step=None),
    "other step": changed(step=7),
    "step a text": changed(step="2"),
    "step infinite": lambda m: json.dumps(m | {"step": float("inf")}),
    "ended gone": changed(ended=None),
    "ended turned": changed(ended=True),
    "format gone": changed(format=None),
    "older format": changed(format=2),
    "unknown format": changed(format=99),
    "format a text": changed(format="3"),
    "format a list": changed(format=[3]),
    "its sum gone": changed(sha256=None),
    "its sum changed": changed(sha256="0" * 64),
    "its sum a number": changed(sha256=5),
    "one more key": changed(values={}),
    "bytes a text": one_file(bytes="x"),
    "bytes negative": one_file(bytes=-1),
    "sum null": one_file(sha256=None),
    "another key of a file": one_file(mode=1),
    "a file outside": lambda m: json.dumps(m | {"files": {"../complete.json": {"bytes": 1, "sha256": ""}}}),
    "an impossible name": lambda m: json.dumps(m | {"files": {"a\0b": {"bytes": 1, "sha256": ""}}}),
    "deep": lambda m: "[" * 200_000,
    "deep within": lambda m: '{"files": ' * 50_000 + "1" + "}" * 50_000,
    "a long number": lambda m: '{"step": ' + "9" * 10_000 + "}",
    "NaN": lambda m: "NaN",
    "null": lambda m: "null",
    "empty": lambda m: "",
    "an older step's": lambda m: json.dumps(m | {"step": 1}),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_is_passed_over(run, damage):
    newest, lines = run / "checkpoint-2", []
    with undone_files(newest, [MANIFEST]):
        (newest / MANIFEST).write_text(MANIFESTS[damage](read_manifest(newest)))
        found = checkpoint_to_resume(str(run), True, lines.append)
    assert found == str(run / "checkpoint-1")
    assert len(lines) == 1
    assert len(lines[0]) < 500


def test_the_manifest_of_another_checkpoint_is_no_use(run):
    with undone_files(run / "checkpoint-2", [MANIFEST]):
        shutil.copy(run / "checkpoint-1" / MANIFEST, run / "checkpoint-2")
        assert resumed(run) == "checkpoint-1"


def test_checkpoints_of_version_0_2_0_are_read(run):
    """Their manifest has no sum of itself."""
    newest = run / "checkpoint-2"
    with undone_files(newest, [MANIFEST]):
        manifest = {k: v for k, v in read_manifest(newest).items() if k != "sha256"} | {"format": 2}
        (newest / MANIFEST).write_text(json.dumps(manifest))
        assert resumed(run) == "checkpoint-2"
