"""The skip list against what is stored, by each runtime's own matching rule.

A runtime decides from config.json alone, before it reads a weight, which linears it builds as quantized ones. If it
decides otherwise than the file was written, loading fails or, worse, leaves a module at its initial values. The rules,
restated from the runtimes' sources:

=================== =========================== =======================================================================
layout              runtime                     a linear stays plain if
=================== =========================== =======================================================================
AWQ                 Transformers                an entry, as a regular expression, matches the name from its start up to
                                                a module boundary, or the name ends in the entry; ``lm_head`` always
AWQ                 vLLM                        an entry (renamed) is part of the module's name or of all its parts'; an
                                                empty list means: the prefixes of all tensors of floats
AWQ                 SGLang                      an entry (as it is) is part of the module's name
GPTQ                Transformers (optimum)      it is outside the blocks, or ends in no entry of a list that is there;
                                                ``dynamic`` is not read
GPTQ                vLLM                        no entry of ``modules_in_block_to_quantize`` is part of its name, or a
                                                ``-:`` rule of ``dynamic`` matches
GPTQ                SGLang                      a ``-:`` rule of ``dynamic`` matches
compressed-tensors  all                         no target matches, or an entry of ``ignore`` does (equal, or ``re:``; in
                                                SGLang also as a part, whatever the case)
bitsandbytes        Transformers                as for AWQ, with ``llm_int8_skip_modules``
bitsandbytes        SGLang                      an entry is one component of the name, or a leading part of it
=================== =========================== =======================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.integrity.findings import Finding, error, some, warning
from quantkit.integrity.readers import grids_read
from quantkit.integrity.runtimes import RUNTIMES, SGLANG, TRANSFORMERS, VLLM, Runtime, fused_neighbours
from quantkit.integrity.stated import dynamic_rules
from quantkit.integrity.subject import Subject
from quantkit.model import LAYERS_PREFIX

NAME = "skip list"
_FLOATS = ("BF16", "F16", "F32")
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"

Decision = Callable[[str], bool]  # full name of a linear -> whether the runtime builds it as a quantized one


class MixedError(QuantkitError):
    """A runtime refuses a fused module of which only some parts are to be quantized."""


@dataclass(frozen=True)
class Rule:
    """field: what the decision is read from, inside quantization_config."""

    field: str
    decide: Decision


def check_skip_list(subject: Subject) -> Iterator[Finding]:
    """Every linear is stored as each runtime expects it, and neighbours that a runtime fuses are stored alike."""
    yield from _fused_alike(subject)
    if not subject.packed:
        return
    layout = next(iter(subject.packed.values())).layout
    for runtime in RUNTIMES:
        if subject.map is None and runtime is not TRANSFORMERS:
            yield warning(NAME, runtime.name, "not checked: its names for this architecture are not known here")
            continue
        try:
            rule = rule_of(runtime, layout, subject.quantization, subject.candidate)
        except QuantkitError as reason:
            yield warning(NAME, runtime.name, f"not checked: {reason}")
            continue
        yield from _disagreements(subject, runtime, rule)
        yield from grids_read(subject, runtime, layout)


def _disagreements(subject: Subject, runtime: Runtime, rule: Rule) -> Iterator[Finding]:
    plain, packed, mixed = [], [], []
    for name, linear in subject.linears.items():
        if not runtime.can_quantize(name):
            if linear.packed:
                packed.append(name)
            continue
        try:
            quantized = rule.decide(name)
        except MixedError:
            mixed.append(name)
            continue
        except re.error as problem:
            yield error(NAME, f"quantization_config.{rule.field}", f"{runtime.name}: no regular expression ({problem})")
            return
        if quantized and not linear.packed:
            plain.append(name)
        elif linear.packed and not quantized:
            packed.append(name)
    field = f"quantization_config.{rule.field}"
    for names, words in (
        (plain, f"{runtime.name} takes {len(plain)} linears for quantized by {field}, they are stored plain"),
        (packed, f"{runtime.name} takes {len(packed)} linears for plain by {field}, they are stored quantized"),
        (mixed, f"{runtime.name} refuses {field}: it names some but not all parts of a fused module"),
    ):
        if names:
            yield Finding(runtime.severity, NAME, some(names), words)


def _fused_alike(subject: Subject) -> Iterator[Finding]:
    done: set[str] = set()
    for name in subject.linears:
        group = fused_neighbours(name, subject.linears)
        if name in done or len(group) < 2:
            continue
        done |= set(group)
        forms = {(one.layout, one.bits, one.group_size) for one in (subject.linears[part] for part in group)}
        if len(forms) > 1 and subject.map is not None:
            yield error(NAME, some(group, 3), "stored unlike each other; vLLM and SGLang load them as one module")


# ---- the rules ----------------------------------------------------------------------------------------------------


def rule_of(runtime: Runtime, layout: str, config: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> Rule:
    """The rule by which ``runtime`` reads ``config`` (a quantization_config of ``layout``).

    Raises QuantkitError with the reason where that rule is not known here.
    """
    if layout == "awq":
        return _awq(runtime, config, checkpoint)
    if layout == "gptq":
        return _gptq(runtime, config, checkpoint)
    if layout == "compressed-tensors":
        return _compressed_tensors(runtime, config)
    if layout == "bitsandbytes" and runtime is not VLLM:
        return _bitsandbytes(runtime, config)
    raise QuantkitError(f"how {runtime.name} reads this layout ({layout}) is not known here")


def _awq(runtime: Runtime, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> Rule:
    field = "modules_to_not_convert"
    skip = _texts(config.get(field))
    if runtime is TRANSFORMERS:
        skip = [*skip, "lm_head"]
        return Rule(field, lambda name: not transformers_skips(name, skip))
    if runtime is VLLM:
        entries = [runtime.rename(entry) for entry in skip or _float_modules(checkpoint)]
        return Rule(field, lambda name: not _part_of_all(runtime, name, entries))
    return Rule(field, lambda name: not any(entry in runtime.module(name) for entry in skip))


def transformers_skips(name: str, entries: Sequence[str]) -> bool:
    """Transformers' rule for its lists of modules to leave alone; raises re.error for an entry that is no pattern."""
    return any(re.match(f"(?:{entry}){_BOUNDARY}", name) or name.endswith(entry) for entry in entries)


def _float_modules(checkpoint: Checkpoint | None) -> list[str]:
    """What vLLM puts in place of an empty list: tensors' names up to the last dot, where all are floats."""
    names = [] if checkpoint is None else checkpoint.tensor_names
    modules = {name.rpartition(".")[0] for name in names}
    packed = {name.rpartition(".")[0] for name in names if checkpoint and checkpoint.dtype(name) not in _FLOATS}
    return sorted(modules - packed)


def _part_of_all(runtime: Runtime, name: str, entries: Sequence[str]) -> bool:
    """Whether an entry is part of the module's name, or of each of its parts' names; MixedError for some of them."""
    module, parts = runtime.module(name), runtime.parts(name)
    if any(entry in module for entry in entries):
        return True
    found = {any(entry in part for entry in entries) for part in parts}
    if len(found) > 1:
        raise MixedError(name)
    return found.pop()


def _gptq(runtime: Runtime, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> Rule:
    wanted = _flat(config.get("modules_in_block_to_quantize"))
    if runtime is TRANSFORMERS:
        blocks = str(config.get("block_name_to_quantize") or LAYERS_PREFIX)
        return Rule(
            "modules_in_block_to_quantize",
            lambda name: name.startswith(blocks) and (not wanted or any(name.endswith(entry) for entry in wanted)),
        )
    negative = [pattern.removeprefix("-:") for pattern, _ in dynamic_rules(config) if pattern.startswith("-:")]

    def left_alone(name: str) -> bool:
        return any(re.match(pattern, runtime.module(name)) for pattern in negative)

    if runtime is SGLANG:
        return Rule("dynamic", lambda name: not left_alone(name))
    entries = [runtime.rename(entry) for entry in wanted or _packed_modules(checkpoint)]
    return Rule(
        "modules_in_block_to_quantize",
        lambda name: not left_alone(name) and (not entries or _part_of_all(runtime, name, entries)),
    )


def _packed_modules(checkpoint: Checkpoint | None) -> list[str]:
    names = [] if checkpoint is None else checkpoint.tensor_names
    return sorted({name.rpartition(".")[0] for name in names if checkpoint and checkpoint.dtype(name) not in _FLOATS})


def _compressed_tensors(runtime: Runtime, config: Mapping[str, Any]) -> Rule:
    groups = config.get("config_groups") or {}
    targets = [target for group in groups.values() for target in _texts(group.get("targets"))]
    ignore = _texts(config.get("ignore"))
    if runtime is VLLM:
        # only what looks like a path is renamed
        targets, ignore = ([_renamed(runtime, entry) for entry in entries] for entries in (targets, ignore))
    part = runtime is SGLANG

    def matches(name: str, entries: Sequence[str], part: bool = False) -> bool:
        return any(_equal_or_pattern(name, entry, part) for entry in entries)

    def ignored(name: str) -> bool:
        module, parts = runtime.module(name), runtime.parts(name)
        if matches(module, ignore, part) or runtime is SGLANG:
            return matches(module, ignore, part)
        found = {matches(one, ignore) for one in parts}
        if len(found) > 1:
            raise MixedError(name)
        return found.pop()

    def targeted(name: str) -> bool:
        if any(_is_class(runtime, target) for target in targets) or matches(runtime.module(name), targets):
            return True
        return all(matches(one, targets) for one in runtime.parts(name))

    return Rule("ignore", lambda name: targeted(name) and not ignored(name))


def _renamed(runtime: Runtime, entry: str) -> str:
    return runtime.rename(entry) if "." in entry and not entry.startswith("re:") else entry


def _equal_or_pattern(name: str, entry: str, part: bool) -> bool:
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), name) is not None
    return entry.lower() in name.lower() if part else entry == name


def _is_class(runtime: Runtime, target: str) -> bool:
    """Whether a target names the class of a linear: ``Linear``, or in vLLM and SGLang a part of their longer names."""
    if runtime is TRANSFORMERS:
        return target == "Linear"
    return not target.startswith("re:") and target.lower() in "mergedcolumnparallellinear"


def _bitsandbytes(runtime: Runtime, config: Mapping[str, Any]) -> Rule:
    field = "llm_int8_skip_modules"
    given = config.get(field)
    skip = ["lm_head"] if given is None else _texts(given)
    if runtime is TRANSFORMERS:
        return Rule(field, lambda name: not transformers_skips(name, skip))

    def skipped(name: str) -> bool:
        components = runtime.module(name).split(".")
        leading = {".".join(components[: count + 1]) for count in range(len(components))}
        return any(entry in components or entry in leading for entry in skip)

    return Rule(field, lambda name: not skipped(name))


def _texts(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list | tuple) else []


def _flat(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text for entry in value for text in (_flat(entry) if isinstance(entry, list) else _texts([entry]))]
