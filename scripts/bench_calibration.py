"""What calibrating on pictures is worth: AWQ at 3 bits on multimodal conversations against AWQ on text alone.

    python scripts/bench_calibration.py [--model tiny] [--bits 3] [--group-size 64] [--tokens 6000] [--seeds 0 1 2 3 4]

Both calibrations take the same number of tokens from the bundled set: all modalities, or its text conversations alone.
Each seed chooses anew. Measured is the mean KL divergence to the unquantized model over the tokens of the answers, on
the bundled held-out items, by modality, with the items' own intervals left aside: the spread is over the seeds.

The variants are those of `quantkit awq` in GPTQ's layout, which holds 3 bits, with free zero points.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from quantkit.calibration import load_conversations
from quantkit.calibration.sources import parse_source
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.verify import verify
from quantkit.verify.report import environment

GROUPS = ("image", "images", "video", "text")
Row = dict[str, Any]


def measure(options: QuantizeOptions, name: str, folder: Path) -> Row:
    """Quantize and verify one variant."""
    out = folder / f"{name}-{options.seed}"
    outcome = quantize(replace(options, out=out))
    report = verify(options.model, out, generate=False, noise=False, cache=folder / "cache")
    assert report.engines, report.verdict.headline
    groups = {one.value: one for one in report.engines[0].groups if one.by == "modality"}
    row: Row = {"calibration": name, "seed": options.seed, "tokens": outcome.tokens, "samples": outcome.samples}
    for group in GROUPS:
        row[f"kl_{group}"] = groups[group].answer.kl_mean.value
    row["kl_all"] = report.group().answer.kl_mean.value
    return row


def text_rows(folder: Path) -> Path:
    """The bundled set's conversations of text alone, as a file."""
    kept = {one.id for one in load_conversations("bundled") if one.modality == "text"}
    rows = [raw.value for raw in parse_source("bundled").raw_rows() if raw.value["id"] in kept]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def to_table(rows: Sequence[Row], title: str) -> Table:
    """Mean over the seeds, and the least and largest."""
    table = Table(title=title)
    for heading in ("calibration", "tokens", *(f"KL {group}" for group in GROUPS), "KL all"):
        table.add_column(heading, justify="left" if heading == "calibration" else "right")
    for name in dict.fromkeys(row["calibration"] for row in rows):
        own = [row for row in rows if row["calibration"] == name]
        cells = [name, f"{statistics.mean(row['tokens'] for row in own):.0f}"]
        for key in (*(f"kl_{group}" for group in GROUPS), "kl_all"):
            values = [row[key] for row in own]
            cells.append(f"{statistics.mean(values):.4f} [{min(values):.4f}, {max(values):.4f}]")
        table.add_row(*cells)
    return table


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--solver", default=QuantizeOptions.solver)
    parser.add_argument("--more", nargs="*", default=[], help="further sources, each a calibration of its own")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("quantkit").setLevel(logging.ERROR)
    options = QuantizeOptions(
        model=arguments.model, bits=arguments.bits, group_size=arguments.group_size, solver=arguments.solver,
        token_budget=arguments.tokens, allow_overlap=False, method_format="gptq", symmetric=False,
    )  # fmt: skip
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources = {"multimodal": "bundled", "text alone": str(text_rows(folder))} | {one: one for one in arguments.more}
        jobs = [(name, source, seed) for seed in arguments.seeds for name, source in sources.items()]
        for name, source, seed in track(jobs, "variants", transient=True):
            rows.append(measure(replace(options, calib=(source,), seed=seed), Path(name).name, folder))
    console = Console(width=150)
    title = f"{arguments.model}, W{arguments.bits} g{arguments.group_size}, {len(arguments.seeds)} seeds: nats a token"
    console.print(to_table(rows, title))
    paired = [
        (one["kl_image"], other["kl_image"])
        for one, other in zip(rows[:: len(sources)], rows[1 :: len(sources)], strict=True)
    ]
    console.print("image KL, multimodal / text alone, by seed: " + ", ".join(f"{a / b:.2f}" for a, b in paired))
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
