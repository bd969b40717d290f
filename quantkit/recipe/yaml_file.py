"""YAML with lines: plain values, and where each key stands, so that an error can say it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from quantkit.errors import QuantkitError

MOST_BYTES = 1 << 20


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML mapping as plain values, and the line of each key, with dots between levels.

    Raises QuantkitError for what is no mapping, a key that stands twice, an alias (a small file could unfold to
    gigabytes), and anything but plain values.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise QuantkitError(f"{path}: larger than {MOST_BYTES >> 20} MiB; this is no recipe")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise QuantkitError(f"{path}: no text in UTF-8") from error
    lines: dict[str, int] = {}
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
                raise QuantkitError(f"{path}:{token.start_mark.line + 1}: anchors are not read; write the value out")
        loader = _Loader(text)
        node = loader.get_single_node()
        content = None if node is None else _plain(loader, node, "", lines, path)
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1 if error.problem_mark or error.context_mark else 1
        raise QuantkitError(f"{path}:{line}: no valid YAML ({error.problem or error.context})") from error
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError) as error:
        # the last two: PyYAML's own, for "!!bool x" and "!!timestamp x"
        raise QuantkitError(f"{path}: no valid YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise QuantkitError(f"{path}: write options as name: value, one a line")
    return content, lines


class _Loader(yaml.SafeLoader):
    """YAML's safe tags, with 1e-3 for a number, as YAML 1.2 has it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _plain(loader: _Loader, node: yaml.Node, place: str, lines: dict[str, int], path: Path) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            inner = f"{place}.{key}" if place else key
            if key in found:
                raise QuantkitError(f"{path}:{line}: {inner} stands twice, on line {lines[inner]} too; leave one")
            lines[inner] = line
            found[key] = _plain(loader, value_node, inner, lines, path)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, one, f"{place}.{index}", lines, path) for index, one in enumerate(node.value)]
    value = loader.construct_object(node)
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise QuantkitError(f"{path}:{node.start_mark.line + 1}: {place}: holds a character that no name may have")
    return value
