"""YAML as Atlases use it: JSON's own values, written with less ink.

YAML 1.2's booleans only (``no`` and ``on`` are texts), no dates, no sexagesimal numbers, no tags, no keys that are not
texts, no key twice. Anchors and merge keys work; what would unfold into more than ``MAX_NODES`` values is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable

import yaml
from pydantic import JsonValue
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_NODES = 200_000
MAX_CHARACTERS = 2_000_000
_MERGE = "tag:yaml.org,2002:merge"


class NotYamlError(ValueError):
    """The text is not YAML, or not of the kind that an Atlas may hold; the message names line and column."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  yaml's own way

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise NotYamlError(f"a key that is no text {_place(key)}: put it in quotes")
            if key.value in seen:
                raise NotYamlError(f"duplicate key {key.value[:80]!r} {_place(key)}: only one of them would count")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _resolver(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


# YAML 1.2, core schema: https://yaml.org/spec/1.2.2/#103-core-schema
_resolver("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_resolver("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolver("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789")
_resolver("float", r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+0123456789.")
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])


def read_yaml(text: str) -> JsonValue:
    """The one document in ``text``.

    Raises:
        NotYamlError: when it is not YAML, or more than JSON could say.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotYamlError(f"longer than {MAX_CHARACTERS} characters; write it as JSON")
    try:
        return _document(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise NotYamlError(f"not YAML: {error.problem or error.context}{at}") from None
    except yaml.YAMLError:
        raise NotYamlError("not YAML: it holds a character that YAML does not allow") from None
    except RecursionError:
        raise NotYamlError("nested too deeply") from None
    except NotYamlError:
        raise
    except ValueError:  # CPython refuses to read an integer of more than 4,300 digits
        raise NotYamlError("holds a number that is too long to read") from None


def _document(text: str) -> JsonValue:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, set())
        value: JsonValue = loader.construct_document(node)
        _check_numbers(value, set())
        return value
    finally:
        loader.dispose()


def _measure(node: Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node unfolds into, anchors followed."""
    name = id(node)
    if name in known:
        return known[name]
    if name in above:
        raise NotYamlError(f"an anchor inside itself {_place(node)}")
    above.add(name)
    parts: list[Node] = []
    if isinstance(node, MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        parts = list(node.value)
    size = 1 + sum(_measure(part, known, above) for part in parts)
    if size > MAX_NODES:
        raise NotYamlError(f"unfolds into more than {MAX_NODES} values {_place(node)}")
    above.discard(name)
    known[name] = size
    return size


def _check_numbers(value: object, seen: set[int]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise NotYamlError("holds a number that is not finite")
    if isinstance(value, (dict, list)) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item, seen)


def _place(node: Node) -> str:
    return f"(line {node.start_mark.line + 1}, column {node.start_mark.column + 1})"
