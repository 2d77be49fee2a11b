"""Texts and files that break readers, and random damage of those that do not."""

from __future__ import annotations

import os
import random
from pathlib import Path

YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "alias bomb": YAML_BOMB,
    "alias bomb as a value": YAML_BOMB.replace("a: &a", "prompts: &a"),
    "alias of itself": "prompt: &a [*a]",
    "mapping in itself": "&a {prompt: *a}",
    "repeated key": "seed: 1\nprompt: x\nseed: 2",
    "repeated nested key": "rewards: [{name: length, name: cider_d}]",
    "number as key": "1: 2",
    "no as key": "no: 2",
    "null as key": "~: 2",
    "list as key": "? [1]\n: 2",
    "mapping as key": "? {a: 1}\n: 2",
    "long number": "seed: " + "9" * 5000,
    "long float": "learning_rate: 0." + "9" * 100_000,
    "long hexadecimal": "seed: 0x" + "f" * 50_000,
    "sexagesimal": "seed: " + ":".join(["1"] * 30_000),
    "deep list": "prompts: " + "[" * 100_000,
    "deep mapping": "{a: " * 50_000,
    "deep block": "- " * 50_000,
    "deep questions": "? " * 50_000,
    "object": "prompt: !!python/object/apply:os.system [ls]",
    "binary": "prompt: !!binary aGk=",
    "set": "prompt: !!set {b}",
    "own tag": "prompt: !x 3",
    "long tag": "!" * 100_000,
    "wrong tag": "seed: !!bool x",
    "wrong int": "seed: !!int ''",
    "control character": "prompt: \x07",
    "zero byte": "prompt: a\x00b",
    "two documents": "seed: 1\n---\nseed: 2",
    "unclosed": "prompts: [a",
    "tab": "prompt:\n\t- x",
    "not utf-8": b"prompt: caf\xe9",
    "utf-16": "prompt: x".encode("utf-16"),
    "list": "- prompt\n- seed",
    "text": "prompt",
    "number": "42",
    "undefined alias": "prompt: *x",
    "merge of a number": "<<: 3",
    "long key": "x" * 100_000 + ": 1",
    "strange key": '"\\e[31mseed": 1',
    "empty key": '"": 1',
    "long text": "lora_rank: " + "x" * 200_000,
    "long list": "seed: [" + "1," * 80_000 + "1]",
    "too large": "prompt: " + "x" * (1 << 19),
    "extends itself": "extends: recipe.yaml",
    "extends a list": "extends: [1]",
    "extends nothing": "extends: ''",
    "extends a long name": "extends: " + "x" * 5000,
    "extends a folder": "extends: .",
}
JSON = {
    "repeated name": '{"recipe": {}, "recipe": {}}',
    "deep list": "[" * 100_000,
    "deep closed": "[" * 50_000 + "]" * 50_000,
    "deep object": '{"a":' * 50_000,
    "a little deep": "[" * 500 + "]" * 500,
    "long number": '{"recipe": ' + "9" * 50_000 + "}",
    "half a character": '{"recipe": {"prompt": "\\ud800"}}',
    "unclosed": '{"recipe": {',
    "not utf-8": b'{"recipe": "caf\xe9"}',
    "utf-16": '{"recipe": {}}'.encode("utf-16"),
    "zero bytes": b"\x00" * 1000,
    "empty": "",
    "null": "null",
    "number": "1e999",
    "text": '"recipe"',
    "list": "[]",
    "list of lists": "[[[]]]",
    "other keys": '{"x": 0}',
    "recipe is a list": '{"recipe": [1]}',
    "recipe is a number": '{"recipe": 3}',
    "recipe is null": '{"recipe": null}',
    "wrong values": '{"recipe": {"prompt": 5, "max_new_tokens": "x", "seed": []}}',
    "wrong numbers": '{"recipe": {"max_new_tokens": -1, "seed": 1e400}}',
    "infinite": '{"recipe": {"seed": Infinity, "max_new_tokens": NaN}}',
    "garbage": bytes(range(256)) * 10,
}
VALUES = (
    *("", " ", "-", "--", "null", "~", "[", "[[[[", "{", "}", "a: b: c", "*x", "&a [*a]", "!!python/name:os"),
    *("'", '"', "\\", "%", "@", "`", "?", "|", ">", "\t", "\x00", "\x1b[31mred\x1b[0m", "[red]", "\ud800"),
    *("nan", ".nan", ".inf", "-.inf", "1e400", "-1", "0", "0.5", "9" * 400, "0x" + "f" * 400, "1:2:3", "1_0"),
    *("x" * 5000, "/" * 5000, "a/" * 3000, "../" * 50, "[" * 5000, "{a: " * 200, "é" * 300, "true", "no"),
)
"""Values of a flag."""


def write(path: Path, content: str | bytes) -> None:
    """Write text or bytes to a file whose folder need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def no_file(path: Path, kind: str) -> None:
    """Put something at a path that is no file: a pipe, a folder, a device, a loop, or nothing readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.symlink_to({"zero": "/dev/zero", "tty": "/dev/tty", "nowhere": "/nowhere/at/all"}[kind])


NO_FILES = ("pipe", "folder", "loop", "zero", "tty", "nowhere")


def damaged(content: bytes, generator: random.Random) -> bytes:
    """The content with one to eight bytes changed, removed, added, doubled, or with its end cut off."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        place = generator.randrange(len(data) + 1)
        length = generator.choice((1, 1, 1, 2, 5, 40))
        what = generator.randrange(6)
        if what == 0 and data:
            data[place % len(data)] ^= 1 << generator.randrange(8)
        elif what == 1:
            del data[place : place + length]
        elif what == 2:
            data[place:place] = generator.randbytes(length)
        elif what == 3:
            data[place:place] = data[place : place + length]
        elif what == 4:
            data[place:place] = generator.choice(
                (b'"', b"'", b"[", b"{", b"}", b":", b",", b"\n", b"-", b"\x00")
            )
        elif len(data) > 20:
            del data[generator.randrange(len(data) // 2, len(data)) :]
    return bytes(data)
