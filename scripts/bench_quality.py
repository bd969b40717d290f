"""What quantization costs on the held-out set: AWQ, with each solver, against round-to-nearest; all from one run.

    python scripts/bench_quality.py [--model tiny] [--group-size 128] [--seeds 0 1 2] [--json OUT]

Each seed chooses the calibration conversations anew (half of the bundled set), so the spread says what a difference is
worth. Everything is measured by `quantkit verify` in float32, on the bundled held-out items, which no calibration sees.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.quantize import quantize
from quantkit.recipe import SAMPLES, QuantizeOptions
from quantkit.verify import verify
from quantkit.verify.report import environment

Row = dict[str, Any]


def measure(options: QuantizeOptions, folder: Path) -> Row:
    """Quantize and verify one variant; KL is over the answers' tokens, and over all text tokens ("text")."""
    out = folder / f"{options.method}-{options.solver}-{options.seed}"
    outcome = quantize(replace(options, **{"out": out}))
    report = verify(options.model, out)
    group = report.group()
    assert group is not None and group.answer is not None and group.text is not None and group.accuracy is not None
    answer, text, accuracy = group.answer, group.text, group.accuracy
    return {
        "method": "rtn" if options.method == "rtn" else f"{options.method}, {options.solver}",
        "seed": options.seed,
        "kl_answer": answer.kl_mean.value,
        "kl_answer_p99": answer.kl_p99.value,
        "kl_text": text.kl_mean.value,
        "top1": answer.top1.value,
        "exact_reference": accuracy.reference,
        "exact": accuracy.candidate,
        "by_modality": {
            one.value: one.answer.model_dump()
            for one in report.engine().groups
            if one.by == "modality" and one.answer is not None
        },
        "bytes": outcome.bytes_after,
        "seconds": sum(outcome.seconds.values()),
    }


def summarise(rows: list[Row]) -> dict[str, float]:
    """The figures of the README: the default's ratios of mean KL to rounding's, and points of exact match lost."""
    rtn = next(row for row in rows if row["method"] == "rtn")
    awq = [row for row in rows if row["method"] == "awq, refine"]
    ratios = [row["kl_answer"] / rtn["kl_answer"] for row in awq]
    return {
        "kl_ratio_answer": statistics.mean(ratios),
        "kl_ratio_answer_worst": max(ratios),
        "kl_ratio_text": statistics.mean(row["kl_text"] / rtn["kl_text"] for row in awq),
        "exact_lost_points": max(100 * (row["exact_reference"] - row["exact"]) for row in awq),
    }


def to_table(rows: list[Row], title: str) -> Table:
    """One line a variant."""
    table = Table(title=title)
    for heading in ("method", "seed", "KL answers", "p99", "KL all text", "top-1", "exact match", "MB", "s"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            str(row["seed"]),
            f"{row['kl_answer']:.5f}",
            f"{row['kl_answer_p99']:.4f}",
            f"{row['kl_text']:.5f}",
            f"{100 * row['top1']:.2f} %",
            f"{100 * row['exact_reference']:.2f} -> {100 * row['exact']:.2f} %",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['seconds']:.1f}",
        )
    return table


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = QuantizeOptions(model=arguments.model, group_size=arguments.group_size, samples=arguments.samples)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        rows.append(measure(replace(options, **{"method": "rtn"}), Path(folder)))
        for solver in ("rtn", "gptq", "refine"):
            for seed in arguments.seeds:
                rows.append(measure(replace(options, **{"seed": seed, "solver": solver}), Path(folder)))
    console = Console(width=120)
    console.print(to_table(rows, f"{arguments.model}, W4 g{arguments.group_size}, {arguments.samples} conversations"))
    summary = summarise(rows)
    console.print(", ".join(f"{name} {value:.4f}" for name, value in summary.items()))
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "summary": summary}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
