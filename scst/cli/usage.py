"""The text of ``--help``, made from a command's docstring and the keys of its recipe."""

from __future__ import annotations

import dataclasses

from scst.cli.arguments import is_training
from scst.cli.launcher import LAUNCHED_STAGES
from scst.config.keys import Recipe, default_of
from scst.config.packaged import accelerate_names
from scst.training.arguments.argument_checks import argument_names
from scst.training.arguments.argument_table import OWNED


def help_text(recipe_class: type[Recipe], usage: str) -> str:
    """What ``--help`` prints: the docstring of the command, its flags, and every key with its default."""
    lines = [usage.strip(), "", "flags:", *_flags(recipe_class), "", "keys:"]
    for f in dataclasses.fields(recipe_class):
        if f.name == "training":
            continue
        default = default_of(recipe_class, f.name)
        choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
        lines.append(f"  {f.name:24} {f.metadata['help']}{choices} [{default}]")
    if is_training(recipe_class):
        lines += ["", "and every name of transformers.TrainingArguments:"]
        lines.append("  " + ", ".join(sorted(set(argument_names()) - set(OWNED))))
    return "\n".join(lines)


def _flags(recipe_class: type[Recipe]) -> list[str]:
    flags = {
        "--config RECIPE.yaml": "a file of `key: value` lines, or a packaged recipe such as rsicd/sft\n"
        "(rsicd alone is the recipe of this command in that folder);\n"
        "every key can be overridden as --key value; `extends: OTHER.yaml` in it\n"
        "begins with the keys of another recipe",
        "--dry_run": "check recipe and dataset, print the resolved recipe, load no model",
    }
    if is_training(recipe_class):
        flags["--plan [FILE.json]"] = "run a few steps, project the time of the whole run, write nothing else"
    if recipe_class.stage in LAUNCHED_STAGES:
        flags["--accelerate_config NAME"] = (
            "start the processes that an accelerate configuration describes: a file, or one\n"
            f"of {', '.join(accelerate_names())}"
        )
        flags["--num_processes N"] = "how many processes to start [the configuration's; without one: 1]"
    indented = {flag: text.replace("\n", "\n" + " " * 27) for flag, text in flags.items()}
    return [f"  {flag:24} {text}" for flag, text in indented.items()]
