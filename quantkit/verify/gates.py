"""Gates: limits that a variant must keep, each judged on the pessimistic end of the figure's 95 % interval.

    max_kl             mean KL, nats a token            upper end
    max_kl_p99         99th percentile of KL            upper end
    min_top1           share of equal first choices     lower end
    max_accuracy_drop  score lost, reference - candidate, as a share    upper end
    min_agreement      share of equal greedy answers    lower end

Token figures are taken at the answers' tokens, at all text where a group has none. A limit may be for one group of
items ("image=0.01"): a modality, a mode ("16x") or a language ("zh").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.verify.report import EngineResult, GateResult, Group

FEWEST_ITEMS = 5
FULL_COVERAGE = 0.99
GATES = ("max_kl", "max_kl_p99", "min_top1", "max_accuracy_drop", "min_agreement")


@dataclass(frozen=True)
class Gate:
    """One limit for one group of items ("all": every item)."""

    name: str
    limit: float
    group: str = "all"

    def __post_init__(self) -> None:
        if self.name not in GATES:
            raise QuantkitError(f"gate '{self.name}' is unknown; known are {', '.join(GATES)}")
        if not (self.limit >= 0 and self.limit < float("inf")):
            raise QuantkitError(f"gate {self.name}: the limit must be a number from 0 up, not {self.limit}")
        if self.name in ("min_top1", "min_agreement", "max_accuracy_drop") and self.limit > 1:
            raise QuantkitError(f"gate {self.name}: a share from 0 to 1, not {self.limit} (1 % is 0.01)")


def parse(name: str, text: str) -> Gate:
    """A gate of the command line: "0.01", or "image=0.01" for one group."""
    group, equals, number = text.rpartition("=")
    try:
        limit = float(number) if group.strip() or not equals else None
    except ValueError:
        limit = None
    if limit is None:
        option = "--" + name.replace("_", "-")
        raise QuantkitError(f"{option} {text!r}: write a number, or GROUP=NUMBER as in image=0.01")
    return Gate(name, limit, group.strip() if equals else "all")


def read_recipe(path: Path) -> list[Gate]:
    """The gates of a YAML file's section `gates`: a number, or numbers by group. Other sections are not looked at.

    gates:
      max_kl: 0.01
      min_top1: {all: 0.98, video: 0.95}
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QuantkitError(f"{path}: no valid YAML ({' '.join(str(error).split())})") from error
    section = content.get("gates") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise QuantkitError(f"{path}: has no section gates (gates: followed by limits such as max_kl: 0.01)")
    try:
        return from_section(section)
    except QuantkitError as error:
        raise QuantkitError(f"{path}: {error}") from error


def from_section(section: Mapping[str, Any]) -> list[Gate]:
    """The gates of a section `gates`; raises QuantkitError naming the limit."""
    found = []
    for name, limits in section.items():
        for group, limit in limits.items() if isinstance(limits, dict) else [("all", limits)]:
            try:
                number = math.nan if isinstance(limit, bool) else float(limit)  # YAML takes 1e-3 for a text
            except (TypeError, ValueError):
                number = math.nan
            if math.isnan(number):
                raise QuantkitError(f"gates.{name}: {limit!r} is no number")
            try:
                found.append(Gate(str(name), number, str(group)))
            except QuantkitError as error:
                raise QuantkitError(f"gates.{name}: {error}") from error
    return found


def judge(gates: Iterable[Gate], engines: Iterable[EngineResult]) -> list[GateResult]:
    """Every gate on every engine. An engine that was not run, or a group without items, keeps no limit: it fails."""
    return [_judge(gate, engine) for engine in engines for gate in gates]


def _judge(gate: Gate, engine: EngineResult) -> GateResult:
    group = next((one for one in engine.groups if one.value == gate.group), None)
    value = _FIGURES[gate.name](group) if group is not None else None
    unsound = _unsound(gate, group)
    if value is not None and unsound is not None:
        passed = False
        message = f"{gate.name} on {gate.group} ({engine.name}): {unsound}"
    elif value is None:
        passed = False
        why = f"not run: {engine.why}" if engine.status == "not run" else f"nothing to judge in group '{gate.group}'"
        message = f"{gate.name} on {gate.group} ({engine.name}): {why}"
    else:
        passed = value >= gate.limit if gate.name.startswith("min_") else value <= gate.limit
        sign = "at least" if gate.name.startswith("min_") else "at most"
        end = "(lower end of its interval)" if gate.name.startswith("min_") else "(upper end of its interval)"
        message = f"{gate.name} on {gate.group} ({engine.name}): {value:.4g}, {sign} {gate.limit:g} is asked for {end}"
    return GateResult(
        gate=gate.name,
        group=gate.group,
        engine=engine.name,
        limit=gate.limit,
        value=value,
        passed=passed,
        message=message,
    )


def _unsound(gate: Gate, group: Group | None) -> str | None:
    """Why a figure cannot be judged: a limit is for all items of its group, and for figures, not for bounds."""
    if group is None:
        return None
    if group.ran < group.items:
        return f"only {group.ran} of {group.items} items could be run; set the limit for groups that can"
    if group.items < FEWEST_ITEMS:
        return f"{group.items} items are too few to judge by; take {FEWEST_ITEMS} or more"
    tokens = group.answer or group.text
    if gate.name.startswith("max_kl") and tokens is not None and tokens.coverage < FULL_COVERAGE:
        return f"this engine's KL is a lower bound ({tokens.coverage:.1%} of the probability mass was compared)"
    return None


def _max_kl(group: Group) -> float | None:
    tokens = group.answer or group.text
    return tokens.kl_mean.high if tokens else None


def _max_kl_p99(group: Group) -> float | None:
    tokens = group.answer or group.text
    return tokens.kl_p99.high if tokens else None


def _min_top1(group: Group) -> float | None:
    tokens = group.answer or group.text
    return tokens.top1.low if tokens else None


def _max_accuracy_drop(group: Group) -> float | None:
    return -group.accuracy.difference.low if group.accuracy else None


def _min_agreement(group: Group) -> float | None:
    return group.generation.same.low if group.generation else None


_FIGURES: dict[str, Callable[[Group], float | None]] = {
    "max_kl": _max_kl,
    "max_kl_p99": _max_kl_p99,
    "min_top1": _min_top1,
    "max_accuracy_drop": _max_accuracy_drop,
    "min_agreement": _min_agreement,
}
