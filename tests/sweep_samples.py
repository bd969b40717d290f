"""Rows of a sweep made by hand, plausible in every field: some sixty variants of several methods, seeds, failures."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from quantkit.report.sweep.rows import Estimate, Figures, SweepRow, unfinished

QUALITY = {"awq": 1.0, "gptq": 1.2, "rtn": 6.0, "gguf": 0.9, "bnb": 4.0}
MODALITIES = {"text": 0.55, "image": 0.9, "images": 1.25, "video": 1.6}
GGUF = {"Q2_K": 2.6, "Q3_K_S": 3.0, "Q3_K_M": 3.4, "Q4_0": 4.5, "Q4_K_M": 4.8, "Q5_K_M": 5.7, "Q6_K": 6.56, "Q8_0": 8.5}
MEASURED = {"reference": "openbmb/MiniCPM-V-4.6", "data": "heldout", "data fingerprint": "sha256:4be1"}


def spread(value: float, part: float) -> Estimate:
    return Estimate(value, value * (1 - part), value * (1 + 1.4 * part))


def figures(kl: float, items: int, chance: random.Random) -> Figures:
    """The figures that go with a mean KL."""
    top1 = max(0.3, 1 - 1.2 * math.sqrt(kl))
    lost = -0.24 * math.sqrt(kl) + chance.uniform(-0.004, 0.004)
    same = max(0.1, 1 - 3 * math.sqrt(kl))
    return Figures(
        items, spread(kl, 0.22), spread(kl * 14, 0.3), spread(kl * 1.6, 0.18),
        Estimate(top1, top1 - 0.008, min(1.0, top1 + 0.006)), 0.7317, 0.7317 + lost,
        Estimate(lost, lost - 0.019, lost + 0.018), Estimate(same, same - 0.03, min(1.0, same + 0.03)),
    )  # fmt: skip


def errors(kl: float, blocks: int, chance: random.Random) -> dict[str, float]:
    """What each linear loses."""
    found = {}
    for layer in range(blocks):
        kinds = ("q_proj", "k_proj", "v_proj", "o_proj") if layer % 4 == 3 else ("in_proj_qkv", "in_proj_z", "out_proj")
        room = "self_attn" if layer % 4 == 3 else "linear_attn"
        names = [*(f"{room}.{kind}" for kind in kinds), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        for name in names:
            worse = 3 if name.endswith("out_proj") else 1
            found[f"model.language_model.layers.{layer}.{name}"] = kl * worse * chance.uniform(0.3, 1.2)
    return found


def row(
    name: str, method: str, axes: Mapping[str, Any], bits: float, chance: random.Random, blocks: int = 24
) -> SweepRow:
    """A variant that is done; `bits` decides its size and, with the method, its loss."""
    nbytes = int(1.62e9 + bits * 62e6 + chance.uniform(-2e6, 2e6))
    kl = 0.6 * math.exp(-1.45 * bits) * QUALITY.get(method, 2.0) * chance.uniform(0.85, 1.2)
    found = {"all": figures(kl, 410, chance)}
    found |= {name_: figures(kl * factor, 102, chance) for name_, factor in MODALITIES.items()}
    lost = errors(kl, blocks, chance)
    return SweepRow(
        name, method, "done", dict(axes), None, nbytes, 8 * nbytes / 1_300_428_016,
        None if method == "gguf" else bits, {"search": chance.uniform(20, 90), "verify": 190.0},
        int(2.3e9 * chance.uniform(0.9, 1.2)), found, "answer", 2.1e-5, {} if method == "rtn" else lost,
        {} if method == "gguf" else {one: math.sqrt(error) for one, error in lost.items()},
        "llama.cpp" if method == "gguf" else "dequantized", "measured", MEASURED, f"sha256:{nbytes:016x}",
        f"variants/{name}/report.html",
    )  # fmt: skip


def rows(seed: int = 5) -> list[SweepRow]:
    """Some sixty variants: two solvers, groups, three seeds of some settings, GGUF types; two failed, one not run."""
    chance = random.Random(seed)
    made = []
    for method, bits, group, solver in itertools.product(("awq", "gptq"), (2, 3, 4, 8), (32, 128), ("gptq", "refine")):
        if method == "awq" and bits != 4:
            continue
        for one in (0, 1, 2) if bits in (3, 4) and solver == "refine" else (0,):
            axes = {"bits": bits, "group_size": group, "solver": solver, "seed": one}
            worse = 0.1 if solver == "gptq" else 0.0
            name = f"{method}-w{bits}g{group}-{solver}-s{one}"
            made.append(row(name, method, axes, bits + 16 / group - worse, chance))
    for bits, group in itertools.product((2, 3, 4, 8), (32, 64, 128)):
        made.append(row(f"rtn-w{bits}g{group}", "rtn", {"bits": bits, "group_size": group}, bits + 16 / group, chance))
    made += [
        row(f"gguf-{kind}", "gguf", {"type": kind, "solver": "refine"}, bits, chance) for kind, bits in GGUF.items()
    ]
    made += [
        row(f"bnb-{kind}", "bnb", {"type": kind}, 8.1 if kind == "int8" else 4.5, chance) for kind in ("nf4", "int8")
    ]
    axes = {"bits": 2, "group_size": 16, "solver": "refine", "seed": 0}
    made.append(unfinished("gptq-w2g16-refine-s0", "gptq", "--group-size 16: use 32, 64, 128 or -1", axes=axes))
    made.append(
        unfinished(
            "awq-w4g64", "awq", "out of memory: 2.1 GB asked for", axes=axes | {"bits": 4}, seconds={"search": 12.1}
        )
    )
    made.append(unfinished("gguf-Q5_0", "gguf", "the time limit came first", status="not run", axes={"type": "Q5_0"}))
    return made
