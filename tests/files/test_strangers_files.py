"""YAML and JSON that somebody else made: what is read, and that everything else is one short sentence."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scst.data.pictures import PictureFiles, find_pictures
from scst.data.sources import check_layout
from scst.errors import DataError
from scst.files.json_reader import MAX_DEPTH, NoJson, parse_json, read_json, read_json_object
from scst.files.reading import read_bytes
from scst.files.yaml_reader import parse_yaml, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "alias bomb": (BOMB, "more than 20,000 values when its aliases are written out"),
    "alias of itself": ("a: &a [*a]", "stands inside what it stands for"),
    "repeated key": ("a: 1\nb: 2\na: 3", "(line 3): the key 'a' stands there twice"),
    "repeated key, nested": ("a: [{b: 1, b: 2}]", "the key 'b' stands there twice"),
    "number as key": ("1: 2", "expected keys that are texts, got '1'"),
    "no as key": ("no: 2", "expected keys that are texts, got 'no'"),
    "list as key": ("? [1]\n: 2", "expected keys that are texts, got a list"),
    "long number": ("a: " + "9" * 5000, "a number of 5000 characters"),
    "long hexadecimal": ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
    "sexagesimal": ("a: " + ":".join(["1"] * 3000), "a number of 5999 characters"),
    "deep list": ("[" * 100_000, "nested more than 50 levels deep"),
    "deep mapping": ("{a: " * 5000, "nested more than 50 levels deep"),
    "deep block": ("- " * 20_000, "nested more than 50 levels deep"),
    "object": ("a: !!python/object/apply:os.system [ls]", "are not read here"),
    "binary": ("a: !!binary aGk=", "are not read here"),
    "set": ("a: !!set {b}", "are not read here"),
    "own tag": ("a: !x 3", "are not read here"),
    "long tag": ("!" * 10_000, "are not read here"),
    "wrong tag": ("a: !!bool x", "not what its tag says"),
    "no number": ("a: !!int x", "invalid literal"),
    "control character": ("a: \x07", "special characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "unclosed": ("a: [b", "(line 1): while parsing a flow sequence"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_is_not_read(case):
    text, message = YAML[case]
    started = time.process_time()
    with pytest.raises(DataError) as refused:
        parse_yaml(text, "r.yaml")
    assert message in str(refused.value)
    assert str(refused.value).startswith("'r.yaml' is no readable YAML")
    assert len(str(refused.value)) < 600
    assert time.process_time() - started < 5


def test_plain_yaml_is_read():
    text = "a: 1\nb: [x, 2.5, null, true]\nc: {d: e}\nday: 2026-11-24\nempty:\nshared: &s [1]\nagain: *s\n"
    assert parse_yaml(text, "r.yaml") == {
        "a": 1,
        "b": ["x", 2.5, None, True],
        "c": {"d": "e"},
        "day": "2026-11-24",
        "empty": None,
        "shared": [1],
        "again": [1],
    }
    assert parse_yaml("base: &b {p: 1}\nmore: {<<: *b, q: 2}", "r.yaml")["more"] == {"p": 1, "q": 2}
    assert parse_yaml("", "r.yaml") is None


JSON = {
    "repeated name": ('{"a": 1, "b": {"c": 1, "c": 2}}', "the name 'c' stands twice"),
    "deep": ("[" * 100_000 + "]" * 100_000, f"nested more than {MAX_DEPTH} levels deep"),
    "deep enough to be read": ("[" * 150 + "]" * 150, f"nested more than {MAX_DEPTH} levels deep"),
    "long number": ("9" * 5000, "limit"),
    "half a character": ('["\\ud800"]', "half a character"),
    "unclosed": ('{"a": ', "no readable JSON"),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_not_read(case):
    text, message = JSON[case]
    with pytest.raises(DataError) as refused:
        parse_json(text, "r.json")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400
    assert isinstance(refused.value, NoJson) == (case == "unclosed"), "all others are JSON"


def test_plain_json_is_read(tmp_path):
    (tmp_path / "r.json").write_text('\ufeff{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', encoding="utf-8")
    assert read_json_object(tmp_path / "r.json") == {"a": [1, 2.5, None, "\N{GRINNING FACE}"]}
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(DataError, match="expected a JSON object"):
        read_json_object(tmp_path / "r.json")


@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    kinds = {
        tmp_path / "pipe": "is a named pipe",
        tmp_path: "is a folder",
        "/dev/zero": "is a device",
        "a\0b": "embedded null byte",
        "x" * 5000: "File name too long",
    }
    for path, message in kinds.items():
        with pytest.raises(DataError, match=message):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_size_is_bounded(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"a: " + b"x" * (1 << 18))
    with pytest.raises(DataError, match="is larger than 256 KiB"):
        read_yaml(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(DataError, match="expected UTF-8"):
        read_yaml(tmp_path / "r.yaml")


def test_pictures_with_names_that_no_file_system_can_hold():
    for name in ("x" * 50_000, "a\0b"):
        for open_them in (lambda name: find_pictures([name]), lambda name: PictureFiles([Path(name)])):
            with pytest.raises(DataError, match="does not exist") as refused:
                open_them(name)
            assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["data.parquet", "data/train.parquet", "state.json", "data.tar"])
def test_a_dataset_of_pipes_is_refused_and_not_waited_for(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name == "state.json":
        (tmp_path / name).write_text("{}")
        name = "dataset_info.json"
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is a pipe or device"):
        check_layout(str(tmp_path))
