"""What a quantization_config says of one linear: bits, group size, and whether its zero points are fixed.

AWQ says it once for all. GPTQ says it once, and ``dynamic`` otherwise for some: the first pattern that matches a
module's name decides, ``-:`` leaves it alone. compressed-tensors has a group of settings for the names, patterns or
classes among its ``targets``; a name counts before a pattern, a pattern before a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.errors import QuantkitError


@dataclass(frozen=True)
class Stated:
    """What the config says of one linear; None where it says nothing, group_size -1 for the whole row."""

    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None


def stated(layout: str, config: Mapping[str, Any], names: Sequence[str]) -> Stated | None:
    """What ``config`` (a quantization_config of ``layout``) says of a linear that a reader knows by ``names``.

    None: it is to stay plain. Raises QuantkitError for a pattern that is none.
    """
    try:
        return _stated(layout, config, names)
    except re.error as problem:
        raise QuantkitError(f"a pattern in quantization_config is no regular expression ({problem})") from problem


def _stated(layout: str, config: Mapping[str, Any], names: Sequence[str]) -> Stated | None:
    if layout == "awq":
        return Stated(
            _number(config.get("bits", config.get("w_bit"))),
            _number(config.get("group_size", config.get("q_group_size"))),
        )
    if layout == "gptq":
        return _gptq(config, names)
    if layout == "compressed-tensors":
        return _compressed_tensors(config, names)
    return Stated()


def _gptq(config: Mapping[str, Any], names: Sequence[str]) -> Stated | None:
    settings = {name: config.get(name) for name in ("bits", "group_size", "sym")}
    for pattern, changes in dynamic_rules(config):
        if any(re.match(pattern[2:], name) for name in names):
            if pattern.startswith("-:"):
                return None
            settings |= changes if isinstance(changes, Mapping) else {}
            break
    symmetric = settings["sym"]
    return Stated(
        _number(settings["bits"]),
        _number(settings["group_size"]),
        symmetric if isinstance(symmetric, bool) else None,
    )


def is_version_2(config: Mapping[str, Any]) -> bool:
    """Whether a GPTQ file holds zero points as they are, and not less one."""
    return str(config.get("checkpoint_format", config.get("format", "gptq"))) == "gptq_v2"


def dynamic_rules(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """GPTQ's rules a module, every pattern with its sign (``+:`` where none is written)."""
    rules = config.get("dynamic")
    if not isinstance(rules, Mapping):
        return []
    return [
        (pattern if pattern.startswith(("-:", "+:")) else f"+:{pattern}", changes) for pattern, changes in rules.items()
    ]


def _compressed_tensors(config: Mapping[str, Any], names: Sequence[str]) -> Stated | None:
    groups = config.get("config_groups")
    entries = [
        (target, group.get("weights"))
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping)
        for target in group.get("targets") or ()
        if isinstance(target, str)
    ]
    by_name = [weights for target, weights in entries if target in names]
    by_pattern = [
        weights
        for target, weights in entries
        if target.startswith("re:") and any(re.match(target.removeprefix("re:"), name) for name in names)
    ]
    by_class = [weights for target, weights in entries if target == "Linear"]
    found = next(iter([*by_name, *by_pattern, *by_class]), None)
    if not isinstance(found, Mapping):
        return Stated() if by_name or by_pattern or by_class else None
    size = -1 if found.get("strategy") == "channel" else found.get("group_size")
    symmetric = found.get("symmetric", True)
    return Stated(_number(found.get("num_bits")), _number(size), symmetric if isinstance(symmetric, bool) else None)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
