"""Reads declarations from the source of the installed ``transformers``; importing it would import torch."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from scst.errors import RecipeError


def parsed(module: str) -> ast.Module:
    """The syntax tree of a file of transformers.

    Raises:
        RecipeError: transformers is not installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise RecipeError("transformers is not installed: pip install transformers")
    return ast.parse((Path(spec.origin).parent / f"{module}.py").read_text(encoding="utf-8"))


def members_of(module: ast.Module, name: str) -> dict[str, str]:
    """Member -> text of an ``ExplicitEnum``; empty for every other class."""
    for node in module.body:
        if (
            isinstance(node, ast.ClassDef)
            and node.name == name
            and "ExplicitEnum" in map(ast.unparse, node.bases)
        ):
            return {
                ast.unparse(each.targets[0]): each.value.value
                for each in node.body
                if isinstance(each, ast.Assign)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            }
    return {}
