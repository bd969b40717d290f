"""Which grids a runtime can read at all, and whether it takes each linear for the bits and groups it is stored in.

The skip list says which linears are quantized; this says what each runtime takes them for. Read in the runtimes'
sources: optimum 2.3 builds every linear of a GPTQ file from one ``bits`` and ``group_size`` and never looks at
``dynamic``; vLLM 0.32 (``auto_gptq.py``) has kernels for symmetric grids of 4 and 8 bits, refuses ``desc_act`` beside
groups, and looks ``dynamic`` up by its own names, in which neighbours are one module.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.errors import QuantkitError
from quantkit.integrity.findings import Finding, some, warning
from quantkit.integrity.runtimes import TRANSFORMERS, VLLM, Runtime
from quantkit.integrity.stated import Stated, dynamic_rules, stated
from quantkit.integrity.subject import Linear, Subject

NAME = "skip list"
_VLLM_GPTQ = ((4, True), (8, True))


def grids_read(subject: Subject, runtime: Runtime, layout: str) -> Iterator[Finding]:
    """What ``runtime`` cannot load or takes for another grid, though it agrees on which linears are quantized."""
    if layout not in ("gptq", "compressed-tensors"):
        return
    try:
        if layout == "gptq" and runtime is TRANSFORMERS:
            yield from _optimum(subject)
        else:
            yield from _taken_otherwise(subject, runtime, layout)
        if layout == "gptq" and runtime is VLLM:
            yield from _vllm_gptq(subject)
    except QuantkitError:
        return  # `config` reports the pattern that is none


def _optimum(subject: Subject) -> Iterator[Finding]:
    config = subject.quantization
    one = stated("gptq", {name: value for name, value in config.items() if name != "dynamic"}, [])
    others = [name for name in subject.packed if _other(stated("gptq", config, [name]), one)]
    if others:
        words = f"Transformers reads one bits and group_size for all: it cannot load {len(others)} linears with others"
        yield warning(NAME, some(others), f"{words} (quantization_config.dynamic)")


def _other(said: Stated | None, one: Stated | None) -> bool:
    return said is not None and one is not None and (said.bits, said.group_size) != (one.bits, one.group_size)


def _taken_otherwise(subject: Subject, runtime: Runtime, layout: str) -> Iterator[Finding]:
    field = "dynamic" if layout == "gptq" else "config_groups"
    if layout == "gptq" and not dynamic_rules(subject.quantization):
        return  # `config` holds the one grid against the tensors
    wrong = []
    for name, linear in subject.packed.items():
        names = [runtime.module(name)] if layout == "gptq" else [runtime.module(name), runtime.rename(name)]
        here, there = stated(layout, subject.quantization, [name]), stated(layout, subject.quantization, names)
        # where a reader of the checkpoint's own names goes wrong as well, `config` says so
        if here is not None and there is not None and _fits(here, linear) and not _fits(there, linear):
            wrong.append((name, there))
    if wrong:
        name, there = wrong[0]
        words = f"{runtime.name} takes {len(wrong)} linears for {_words(there)} by quantization_config.{field}"
        found = _words(Stated(subject.packed[name].bits, subject.packed[name].group_size))
        yield Finding(runtime.severity, NAME, some(name for name, _ in wrong), f"{words}, they are stored in {found}")


def _fits(said: Stated, linear: Linear) -> bool:
    bits = said.bits is None or linear.bits is None or said.bits == linear.bits
    return bits and (
        said.group_size is None
        or linear.group_size is None
        or said.group_size == linear.group_size
        or (linear.group_size == -1 and said.group_size == linear.in_features)
    )


def _words(grid: Stated) -> str:
    group = "whole rows" if grid.group_size == -1 else f"groups of {grid.group_size}"
    return f"{grid.bits} bits and {group}"


def _vllm_gptq(subject: Subject) -> Iterator[Finding]:
    config = subject.quantization
    found: dict[tuple[int | None, bool | None], list[str]] = {}
    for name in subject.packed:
        said = stated("gptq", config, [VLLM.module(name)])
        if said is not None and (said.bits, said.symmetric) not in _VLLM_GPTQ:
            found.setdefault((said.bits, said.symmetric), []).append(name)
    for (bits, symmetric), names in found.items():
        kind = "symmetric grids" if symmetric else "grids with zero points"
        words = f"vLLM 0.32 does not load GPTQ's {kind} of {bits} bits: symmetric ones of 4 and 8 bits alone"
        yield warning(NAME, some(names), words)
    if config.get("desc_act") and config.get("group_size") != -1:
        yield warning(NAME, "quantization_config.desc_act", "vLLM 0.32 does not load groups ordered by activation")
