"""Malformed datasets, caption files, adapters and records."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.chaos.malformed import texts
from tests.chaos.malformed.attack import DRY, Case
from tests.support.adapter_folders import write_adapter
from tests.support.rows import dataset_of, rows_of
from tests.support.worlds import write_risc

Change = Callable[[Path], object]


class Files:
    """Right files of every kind, made once and copied for every case."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_risc(folder / "risc", train=5, val=2)
        data = dataset_of(rows_of({"train": 5, "val": 2}))
        data.to_parquet(str(folder / "parquet" / "data.parquet"))
        data.save_to_disk(str(folder / "saved"))
        write_adapter(folder / "adapter")
        texts.write(
            folder / "adapter" / "run.json", json.dumps({"recipe": {"prompt": "caption en", "seed": 3}})
        )
        _captions(folder / "captions")

    def copied(self, name: str, change: Change, folder: Path) -> None:
        """Copy a folder to where the process works, then change it there."""
        shutil.copytree(self.folder / name, folder, dirs_exist_ok=True)
        change(folder)


def _captions(folder: Path) -> None:
    rows = [{"image_id": i, "caption": f"a plane and {i} cars ."} for i in range(4)]
    texts.write(folder / "p.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    texts.write(folder / "coco.json", json.dumps(rows))
    texts.write(folder / "p.txt", "".join(str(row["caption"]) + "\n" for row in rows))
    groups = [{"image_id": row["image_id"], "captions": [row["caption"], "cars ."]} for row in rows]
    texts.write(folder / "r.jsonl", "".join(json.dumps(row) + "\n" for row in groups))
    texts.write(folder / "r.txt", "".join(f"{i} cars .\n" for i in range(4)))


def _everywhere(
    make: Callable[[str, Change, bool | None], Case],
    files: dict[str, bytes],
    generator: random.Random,
) -> Iterator[Case]:
    """Every file replaced by what is no file, by broken texts, with random damage; ``make`` builds a case."""
    for name in files:
        for strange in texts.NO_FILES:
            yield make(f"{name} is a {strange}", partial(_no_file, name, strange), False)
        for title, content in texts.JSON.items():
            yield make(f"{name}: {title}", partial(_replace, name, content), None)
        yield make(f"{name} is missing", lambda folder, name=name: (folder / name).unlink(), None)
    for number in range(40):
        name, content = generator.choice(list(files.items()))
        yield make(
            f"{name}, damaged ({number})", partial(_replace, name, texts.damaged(content, generator)), None
        )


def _no_file(name: str, kind: str, folder: Path) -> None:
    texts.no_file(folder / name, kind)


def _replace(name: str, content: str | bytes, folder: Path) -> None:
    texts.write(folder / name, content)


def _contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def datasets(files: Files, generator: random.Random, rounds: int) -> Iterator[Case]:
    """Folders of every form, read whole (document frequencies) and looked at (dry run)."""
    forms = {
        "risc": ("captions.csv", "resized/tile_0.png"),
        "parquet": ("data.parquet",),
        "saved": ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"),
    }
    for form, names in forms.items():
        content = _contents(files.folder / form, *names)

        def make(
            name: str, change: Change, is_right: bool | None, form: str = form, stage: str = "sft"
        ) -> Case:
            arguments = {
                "sft": ["--config", "quickstart/sft", "--dataset", ".", DRY],
                "document-frequencies": ["--dataset", ".", "--output", "df.json"],
            }[stage]
            copied = partial(files.copied, form, change)
            # an image is looked at only when all of the dataset is read
            must = None if stage == "sft" and "png" in name else is_right
            return Case("datasets", f"{form}: {name} ({stage})", stage, arguments, copied, must)

        for stage in ("sft", "document-frequencies"):
            yield make("as it is", lambda folder: None, True, stage=stage)
            yield from _everywhere(partial(make, stage=stage), content, generator)
        for number in range(rounds):
            name = names[number % len(names)]
            change = partial(_replace, name, texts.damaged(content[name], generator))
            yield make(f"{name}, damaged again ({number})", change, None, stage="document-frequencies")
    yield from _tables(files, generator, rounds)


def _tables(files: Files, generator: random.Random, rounds: int) -> Iterator[Case]:
    """RISC tables with other cells, columns and rows."""
    rows = list(csv.reader((files.folder / "risc" / "captions.csv").open(newline="")))
    cells = (
        "",
        " ",
        ".",
        "train",
        "x" * 70_000,
        '"',
        "a\nb",
        "\x1b[31m",
        "../tile_0.png",
        "/etc/passwd",
        "tile_0.png",
    )
    for number in range(rounds):
        table = [list(row) for row in rows]
        for _ in range(generator.randint(1, 4)):
            row = generator.choice(table)
            column = generator.randrange(len(row))
            what = generator.randrange(4)
            if what == 0:
                row[column] = generator.choice(cells)
            elif what == 1:
                del row[column]
            elif what == 2:
                row.insert(column, generator.choice(cells))
            else:
                table.append(list(row))
        written = io.StringIO()
        csv.writer(written).writerows(table)
        change = partial(_replace, "captions.csv", written.getvalue())
        yield Case(
            "datasets",
            f"risc: other cells ({number})",
            "document-frequencies",
            ["--dataset", ".", "--output", "df.json"],
            partial(files.copied, "risc", change),
        )


SCORE = ("--metrics", "length,bleu_1,cider_d", "--bootstrap_samples", "5")


def captions(files: Files, generator: random.Random, rounds: int) -> Iterator[Case]:
    """Predictions and references in every form."""
    pairs = {"p.jsonl": "r.jsonl", "coco.json": "r.jsonl", "p.txt": "r.txt"}
    for predictions, references in pairs.items():
        content = _contents(files.folder / "captions", predictions, references)
        arguments = ["--predictions", predictions, "--references", references, *SCORE]

        def make(name: str, change: Change, is_right: bool | None, arguments: list[str] = arguments) -> Case:
            copied = partial(files.copied, "captions", change)
            return Case("caption files", f"{arguments[1]}: {name}", "score", arguments, copied, is_right)

        yield make("as it is", lambda folder: None, True)
        yield from _everywhere(make, content, generator)
        for number in range(rounds):
            name = generator.choice((predictions, references))
            change = partial(_replace, name, texts.damaged(content[name], generator))
            yield make(f"{name}, damaged again ({number})", change, None)
    for number in range(rounds):
        yield _strange_rows(files, generator, number)


def _strange_rows(files: Files, generator: random.Random, number: int) -> Case:
    """JSONL with values of other kinds."""
    values = (
        None,
        5,
        1.5,
        True,
        "",
        " ",
        [],
        {},
        ["a"],
        {"a": 1},
        "x" * 50_000,
        "\x1b[31m",
        [None],
        [[]],
        "0",
    )
    rows = [{"image_id": i, "caption": "a plane", "image": "a.png", "ended_by_eos": True} for i in range(3)]
    for _ in range(generator.randint(1, 3)):
        row = generator.choice(rows)
        row[generator.choice((*row, "captions", "references"))] = generator.choice(values)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    metrics = generator.choice(("length,bleu_1", "truncation_rate", "rouge_l,distinct_captions"))
    arguments = ["--predictions", "p.jsonl", "--references", "r.jsonl", "--metrics", metrics, *SCORE[2:]]
    copied = partial(files.copied, "captions", partial(_replace, "p.jsonl", content))
    return Case(
        "caption files", f"strange values ({number})", "score", [*arguments, "--subset", "true"], copied
    )


def adapters(files: Files, generator: random.Random, rounds: int) -> Iterator[Case]:
    """Settings and weights of a saved adapter."""
    names = ("adapter_config.json", "adapter_model.safetensors")
    content = _contents(files.folder / "adapter", *names)

    def make(name: str, change: Change, is_right: bool | None) -> Case:
        arguments = ["--adapter", ".", DRY, "--output_dir", "merged"]
        copied = partial(files.copied, "adapter", change)
        return Case("adapters", name, "merge", arguments, copied, is_right)

    yield make("as it is", lambda folder: None, True)
    yield from _everywhere(make, content, generator)
    for number in range(rounds):
        name = names[number % 2]
        change = partial(_replace, name, texts.damaged(content[name], generator))
        yield make(f"{name}, damaged again ({number})", change, None)
    settings = json.loads(content["adapter_config.json"])
    values = (
        None,
        -1,
        0,
        1.5,
        True,
        "",
        "x",
        [],
        {},
        [1],
        {"a": {}},
        10**30,
        "(" * 50,
        "(a+)+$",
        "x" * 10_000,
    )
    for name in (
        *settings,
        "rank_pattern",
        "modules_to_save",
        "megatron_config",
        "auto_mapping",
        "task_type",
    ):
        for value in values:
            if value != settings.get(name):
                changed = json.dumps(settings | {name: value})
                yield make(f"{name}: {value!r:.40}", partial(_replace, "adapter_config.json", changed), None)


def records(files: Files, generator: random.Random, rounds: int) -> Iterator[Case]:
    """``run.json`` beside an adapter, tables of document frequencies, evaluations to compare with."""
    record = _contents(files.folder / "adapter", "run.json")

    def beside(name: str, change: Change, is_right: bool | None) -> Case:
        arguments = ["--adapter", ".", "a.png", DRY]

        def prepare(folder: Path) -> None:
            shutil.copyfile(files.folder / "risc" / "resized" / "tile_0.png", folder / "a.png")
            files.copied("adapter", change, folder)

        return Case("records", name, "caption", arguments, prepare, None)

    yield from _everywhere(beside, record, generator)
    for number in range(rounds):
        change = partial(_replace, "run.json", texts.damaged(record["run.json"], generator))
        yield beside(f"run.json, damaged again ({number})", change, None)
    for title, content in texts.JSON.items():
        for flag, name in (("--frequencies", "df.json"), ("--training_captions", "t.json")):
            arguments = ["--predictions", "p.jsonl", "--references", "r.jsonl", *SCORE, flag, name]
            arguments += ["--metrics", "novelty"] if name == "t.json" else []
            copied = partial(files.copied, "captions", partial(_replace, name, content))
            yield Case("records", f"{flag} {title}", "score", arguments, copied)
        arguments = ["--compare", "a", "b", "--metrics", "bleu_1", "--bootstrap_samples", "5"]
        prepare = partial(files.copied, "captions", partial(_two_evaluations, content))
        yield Case("records", f"--compare {title}", "evaluate", arguments, prepare, False)
    for kind in texts.NO_FILES:
        arguments = [
            "--predictions",
            "p.jsonl",
            "--references",
            "r.jsonl",
            *SCORE,
            "--frequencies",
            "df.json",
        ]
        copied = partial(files.copied, "captions", partial(_no_file, "df.json", kind))
        yield Case("records", f"--frequencies is a {kind}", "score", arguments, copied, False)
        flags = ["--model_name_or_path", "model", "--dataset", "embedded:scenes", DRY]
        prepare = partial(_no_file, "model/config.json", kind)
        yield Case("records", f"config.json of a model is a {kind}", "evaluate", flags, prepare, False)
    for title, content in texts.JSON.items():
        prepare = partial(_replace, "model/config.json", content)
        flags = ["--model_name_or_path", "model", "--dataset", "embedded:scenes", DRY]
        yield Case("records", f"config.json of a model: {title}", "evaluate", flags, prepare, False)


def _two_evaluations(content: str | bytes, folder: Path) -> None:
    for name in ("a", "b"):
        shutil.copyfile(folder / "p.jsonl", folder / f"{name}.jsonl")
    texts.write(folder / "a" / "predictions.jsonl", content)
    texts.write(folder / "b" / "predictions.jsonl", content)
