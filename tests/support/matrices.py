"""A matrix whose scripts are stand-ins: they write what the real ones leave, and note that they ran."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from scst.config.build_matrix import plan_of
from scst.config.reader import build_recipe
from scst.experiments.runner import Runner

STAND_IN = """
import json, pathlib, sys, time, yaml
stage, calls = "{stage}", pathlib.Path("{calls}")
for file in sys.argv[2:] if stage != "evaluate" else sys.argv[1:]:
    keys = yaml.safe_load(open(file))
    folder = pathlib.Path(keys["output_dir"])
    with calls.open("a") as log:
        log.write(stage + " " + folder.name + "\\n")
    adapter = pathlib.Path(keys["adapter"]) / "run.json" if keys["adapter"] else None
    assert adapter is None or adapter.is_file(), "its adapter is there first"
    if keys.get("lora_rank") == 13:
        sys.exit("error: thirteen brings bad luck")
    if keys.get("lora_rank") == 60:
        (folder / "checkpoint-1").mkdir(exist_ok=True)
        time.sleep(1_000_000)  # until it is told to stop
    if stage == "evaluate":
        if keys["max_new_tokens"] == 13:
            (folder / "error.txt").write_text("thirteen tokens\\n")
            continue
        value = len(keys["prompt"]) / 10 + keys["seed"] + keys["max_new_tokens"] / 1000
        entry = {{"value": value, "ci95": [value - 0.5, value + 0.25], "signature": "CIDEr-D|refs:5"}}
        (folder / "metrics.json").write_text(json.dumps({{"cider_d": entry, "bleu_4": entry}}))
    else:
        record = {{"recipe": keys, "steps": 2, "train_seconds": 0.5}}
        (folder / "run.json").write_text(json.dumps(record))
"""


SFT = {"stage": "sft", "max_steps": 2}


SCST = {"stage": "scst", "max_steps": 1}


class Lab:
    """Matrices in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls = folder / "calls.txt"
        self.scripts = {}
        for stage in ("sft", "scst", "evaluate"):
            script = folder / f"{stage}.py"
            self.scripts[stage] = [str(script)]
            script.write_text(STAND_IN.format(stage=stage, calls=self.calls))

    def recipe(self, **keys):
        settings = {
            "models": [{"name": "base"}, {"name": "lora", "stages": [SFT]}],
            "prompts": ["caption en", "What is it?"],
            "common": {"model_name_or_path": "embedded:scenes-paligemma"},
            "output_dir": str(self.folder / "out"),
        }
        return build_recipe("matrix", settings | keys)

    def plan(self, **keys):
        return plan_of(self.recipe(**keys))

    def run(self, **keys):
        """Run a matrix; returns its outcome and what was started, without fingerprints."""
        self.calls.write_text("")
        runner = Runner(self.scripts, [sys.executable], Console(quiet=True))
        outcome = runner.run(self.plan(**keys), self.folder / "out", lambda outcome: None)
        return outcome, [line.rpartition("-")[0] for line in self.calls.read_text().splitlines()]
