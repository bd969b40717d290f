"""What mixed precision is worth: `--budget` against one width for all, on the held-out set; all from one run.

    python scripts/bench_budget.py [--model tiny] [--group-size 128] [--seeds 0 1 2] [--json OUT]

Everything in compressed-tensors' layout (symmetric). Bits a weight are of the linears, scales included. KL is over the
answers' tokens and over all text tokens, in nats, by `quantkit verify` in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_quality import judge
from rich.console import Console
from rich.table import Table

from quantkit.checkpoint import open_checkpoint
from quantkit.integrity.inventory import take_inventory
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.verify.report import environment

VARIANTS: dict[str, dict[str, Any]] = {
    "3 bits": {"bits": 3},
    "--budget 3.5bpw --budget-bits 2,3,4,8,16": {"budget": "3.5bpw", "budget_bits": "2,3,4,8,16"},
    "4 bits": {"bits": 4},
    "--budget 4.5bpw": {"budget": "4.5bpw"},
    "--budget 5bpw": {"budget": "5bpw"},
    "--budget 6bpw": {"budget": "6bpw"},
    "8 bits": {"bits": 8},
}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in arguments.seeds:
            base = QuantizeOptions(
                model=arguments.model, method="gptq", method_format="compressed-tensors", seed=seed, overwrite=True,
                group_size=arguments.group_size, no_cache=True, out=folder / "out",
            )  # fmt: skip
            quantize(replace(base, save_stats=folder / "stats"))
            for variant, changes in VARIANTS.items():
                outcome = quantize(replace(base, stats=folder / "stats", **changes))
                row = judge(arguments.model, outcome.out)
                spent = outcome.spending
                if spent is None:
                    bits = take_inventory(open_checkpoint(outcome.out)).bits_per_quantized_weight
                else:
                    bits = spent.bits_per_weight
                seconds = outcome.seconds | {"all": sum(outcome.seconds.values())}
                rows.append(row | {"variant": variant, "seed": seed, "bits_per_weight": bits, "seconds": seconds})
    table = Table(title=f"{arguments.model}, group {arguments.group_size}, seeds {arguments.seeds}")
    for heading in ("variant", "bits a weight", "KL answers", "KL all text"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant in VARIANTS:
        found = [row for row in rows if row["variant"] == variant]
        bits = statistics.mean(row["bits_per_weight"] for row in found)
        table.add_row(variant, f"{bits:.2f}", *(_spread([row[kind] for row in found]) for kind in KINDS))
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


KINDS = ("kl_answer", "kl_text")


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.5f} [{min(values):.5f}, {max(values):.5f}]"


if __name__ == "__main__":
    main()
