"""YAML from outside: plain values only, every key once and a text, aliases and nesting within bounds.

A stricter dialect than PyYAML's safe one: null, true and false, numbers, texts, lists and mappings. Dates
stay texts; sets, binary data and tags that make objects are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from scst.errors import DataError, shown
from scst.files.reading import read_text

FILE_BYTES = 1 << 18
"""Largest file; recipes have a few kB."""
MAX_DEPTH = 50
MAX_VALUES = 20_000
"""Values of a document, which take a second to read; also when every alias in it is written out."""
MAX_DIGITS = 100


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        FileNotFoundError: there is none.
        DataError: no regular file, too large, or not as :func:`parse_yaml` wants it.
    """
    return parse_yaml(read_text(path, limit=FILE_BYTES), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document.

    Args:
        text: YAML.
        name: of where it comes from, for errors.

    Raises:
        DataError: naming the place, the line and the fault.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" (line {mark.line + 1})" if mark else ""
        fault = " ".join(filter(None, (error.context, error.problem)))
        raise DataError(f"{shown(name)} is no readable YAML{line}: {fault[:300]}") from error
    except (LookupError, AttributeError) as error:  # PyYAML's answer to !!bool x
        raise DataError(f"{shown(name)} is no readable YAML: a value is not what its tag says") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())[:300]
        raise DataError(f"{shown(name)} is no readable YAML: {fault}") from error


class _Fault(yaml.MarkedYAMLError):
    """A document that is YAML, but not as it is wanted here."""

    def __init__(self, problem: str, node: Any):
        super().__init__(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the limits of this module."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self._depth > MAX_DEPTH:
            raise _Fault(f"nested more than {MAX_DEPTH} levels deep", self.peek_event())
        self._depth += 1
        self._values += 1
        if self._values > MAX_VALUES:
            raise _Fault(f"more than {MAX_VALUES:,} values", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_values(node, {})
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                text = shown(key.value) if isinstance(key, ScalarNode) else "a list or mapping"
                raise _Fault(f"expected keys that are texts, got {text}; put it into quotes", key)
            if key.value in seen:
                raise _Fault(f"the key {shown(key.value)} stands there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: Any) -> Any:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise _Fault(f"a number of {len(node.value)} characters; at most {MAX_DIGITS} are read", node)
        return super().construct_scalar(node)

    def refuse(self, node: Node) -> Any:
        """Constructor of every tag but those of plain values."""
        raise _Fault(f"values with the tag {shown(node.tag)} are not read here; write a plain value", node)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    **{
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in _PLAIN
    },
    None: _Loader.refuse,
}
_Loader.yaml_implicit_resolvers = {  # 2026-11-24 is a text
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _count_values(node: Node, sizes: dict[int, int | None]) -> int:
    """Values below a node with its aliases written out; refuses too many, and aliases within themselves."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise _Fault("an alias stands inside what it stands for", node)
        return size
    sizes[id(node)] = None
    size = 1
    if isinstance(node, MappingNode):
        inner = [each for pair in node.value for each in pair]
    else:
        inner = node.value if isinstance(node, SequenceNode) else []
    for each in inner:
        size += _count_values(each, sizes)
        if size > MAX_VALUES:
            raise _Fault(f"more than {MAX_VALUES:,} values when its aliases are written out", node)
    sizes[id(node)] = size
    return size
