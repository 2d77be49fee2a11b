"""A script that talks like METEOR's jar, which takes ten seconds to load, and misbehaves as it is told."""

from __future__ import annotations

import sys
from pathlib import Path

from rewards.scorers.tokenizer import tokenize

ODD = [
    "",
    " .",
    "🙂",
    "a\nriver",
    "a ||| river",
    "a\triver\x00\x1b",
    "a river\u2028b\x85c",
    "\ud83d half",
    "ein café",
]

# Answers every SCORE with the number of words it was given, and EVAL with that number / 100 of each. Files
# in its folder set what else it does: `exit_after` N lines, `sleep` seconds before it reads, say `junk` or
# `stderr` at first, give `wide` answers, answer nothing as long as there is a file `held`. It notes its
# starts, and the most lines that waited for an answer.
FAKE_JAVA = """#!{python} -SE
import os, sys, time
from pathlib import Path
folder = Path(__file__).parent
setting = lambda name: (folder / name).read_text() if (folder / name).exists() else None
with open(folder / "starts", "a") as starts:
    starts.write(f"{{os.getpid()}}\\n")
sys.stdout.write(setting("junk") or "")
sys.stderr.write(setting("stderr") or "")
left, most, text = int(setting("exit_after") or 1 << 40), 0, b""
while True:
    time.sleep(float(setting("sleep") or 0))
    block = os.read(0, 1 << 20)
    if not block:
        sys.exit()
    *lines, text = (text + block).split(b"\\n")
    most = max(most, len(lines))
    (folder / "most").write_text(str(most))
    while (folder / "held").exists():
        time.sleep(0.01)
    for line in lines:
        if left == 0:
            sys.exit("that is enough")
        left -= 1
        kind, *rest = line.decode().split(" ||| ")
        if kind == "SCORE":
            zeros = "400.0 " if setting("wide") else "0.0 "
            print(float(len(" ".join(rest).split())), zeros * 22, flush=True)
        else:
            for score in [*rest, rest[0]]:
                print(float(score.split()[0]) / 100, flush=True)
"""


def fake_score(caption: str, references: list[str]) -> float:
    """What FAKE_JAVA answers."""
    return sum(len(tokenize(text)) for text in [caption, *references]) / 100


class FakeJava:
    """A folder with FAKE_JAVA in it."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, str(folder / "java")
        self.write("java", FAKE_JAVA.format(python=sys.executable))

    def write(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    @property
    def was_asked(self) -> bool:
        """Whether it has read a line."""
        return (self.folder / "most").exists()

    def release(self) -> None:
        """Let it answer again."""
        (self.folder / "held").unlink()

    @property
    def starts(self) -> list[int]:
        """Process ids."""
        file = self.folder / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []
