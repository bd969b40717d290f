"""What quantization costs on the held-out set: each solver against round-to-nearest and against peers; from one run.

    python scripts/bench_quality.py [--model tiny] [--bits 4] [--group-size 128] [--seeds 0 1 2] [--json OUT]
        [--peer gptqmodel=PYTHON] [--peer llmcompressor=PYTHON] [--peer auto-round=PYTHON] [--only-default] [--tune 10]

4 bits go into AWQ's layout, others into GPTQ's, both with zero points. A peer runs in the Python named for it, which
has its package (they exclude each other): bench_peer_quality.py, on the same conversations, same bits and group.

Each seed chooses the calibration conversations anew (half of the bundled set), so the spread says what a difference is
worth. Everything is measured by `quantkit verify` in float32, on the bundled held-out items, which no calibration sees.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from quantkit.calibration import build_from
from quantkit.checkpoint import open_checkpoint
from quantkit.methods import SOLVERS
from quantkit.quantize import quantize
from quantkit.recipe import SAMPLES, QuantizeOptions
from quantkit.verify import load_dequantized, verify
from quantkit.verify.report import environment

Row = dict[str, Any]


def measure(options: QuantizeOptions, folder: Path) -> Row:
    """Quantize and verify one variant; KL is over the answers' tokens, and over all text tokens ("text")."""
    out = folder / f"{options.method}-{options.solver}-{options.tune}-{options.seed}"
    outcome = quantize(replace(options, **{"out": out}))
    return judge(options.model, out) | {
        "method": "rtn" if options.method == "rtn" else f"{options.solver}, tuned" if options.tune else options.solver,
        "seed": options.seed,
        "bytes": outcome.bytes_after,
        "seconds": sum(outcome.seconds.values()),
    }


def judge(model: str, out: Path, data: Path | None = None) -> Row:
    """What `quantkit verify` says of a variant; on other ``data`` than the held-out set no answer is generated."""
    report = verify(model, out, "heldout" if data is None else data, generate=data is None, noise=data is None)
    group = report.group()
    assert group is not None and group.answer is not None and group.text is not None
    answer, text, accuracy = group.answer, group.text, group.accuracy
    exact = {} if accuracy is None else {"exact_reference": accuracy.reference, "exact": accuracy.candidate}
    return exact | {
        "kl_answer": answer.kl_mean.value,
        "kl_answer_p99": answer.kl_p99.value,
        "kl_text": text.kl_mean.value,
        "top1": answer.top1.value,
        "by_modality": {
            one.value: one.answer.model_dump()
            for one in report.engine().groups
            if one.by == "modality" and one.answer is not None
        },
    }


class Embedded(Exception):
    """Ends a forward pass where the language model would begin."""


def peer_inputs(options: QuantizeOptions, path: Path) -> None:
    """Write the prepared samples of ``options`` with the `inputs_embeds` that the whole model makes of each."""
    checkpoint = open_checkpoint(options.model)
    samples = build_from(options, checkpoint.path).samples
    model = load_dequantized(checkpoint, "bfloat16")
    seen: list[torch.Tensor] = []

    def see(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        seen.append(named["inputs_embeds"].clone())
        raise Embedded

    model.model.language_model.register_forward_pre_hook(see, with_kwargs=True)
    with torch.inference_mode():
        for sample in samples:
            with suppress(Embedded):
                model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False)
    given = [
        {name: value.clone() for name, value in sample.inputs.items()} | {"inputs_embeds": embeddings.clone()}
        for sample, embeddings in zip(samples, seen, strict=True)
    ]
    torch.save(given, path)


def measure_peer(peer: str, python: str, options: QuantizeOptions, inputs: Path, folder: Path) -> Row:
    """Quantize with a peer in its own environment, and verify what it made."""
    out, work = folder / f"{peer}-{options.seed}", folder / f"{peer}-{options.seed}-work"
    work.mkdir()
    job = {
        "peer": peer, "model": str(open_checkpoint(options.model).path), "inputs": str(inputs), "bits": options.bits,
        "group_size": options.group_size, "symmetric": False, "iterations": 200, "out": str(out),
    }  # fmt: skip
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    worker = Path(__file__).with_name("bench_peer_quality.py")
    environment = dict(os.environ) | {"GPTQMODEL_CPU_WORKERS": "4", "TOKENIZERS_PARALLELISM": "false"}
    with open(work / "log", "wb") as log:
        status = subprocess.run(
            [python, str(worker), "job.json", "result.json"], cwd=work, env=environment, stdout=log, stderr=log
        ).returncode
    if status:
        last = (work / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{peer} stopped with status {status}: {' '.join(last)}")
    result = json.loads((work / "result.json").read_text(encoding="utf-8"))
    row = judge(options.model, out) | {"method": peer, "seed": options.seed, "seconds": result["seconds"], "bytes": 0}
    shutil.rmtree(out)
    return row | {"peer": result}


def summarise(rows: list[Row]) -> dict[str, float]:
    """The figures of the README: mean KL of the default over rounding's and over the best peer's (by mean), and points
    of exact match lost."""
    means = {
        method: {
            kind: statistics.mean(row[kind] for row in rows if row["method"] == method)
            for kind in ("kl_answer", "kl_text")
        }
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    ours = [row for row in rows if row["method"] == "refine"]
    tuned = "refine, tuned"
    peers = [method for method in means if method not in ("rtn", tuned, *SOLVERS)]
    found = {"exact_lost_points": max(100 * (row["exact_reference"] - row["exact"]) for row in ours)}
    for kind in ("kl_answer", "kl_text"):
        if "rtn" in means:
            found[f"{kind}_over_rounding"] = means["refine"][kind] / means["rtn"][kind]
        if peers:
            found[f"{kind}_over_best_peer"] = means["refine"][kind] / min(means[peer][kind] for peer in peers)
        if tuned in means:
            found[f"{kind}_tuned_over_untuned"] = means[tuned][kind] / means["refine"][kind]
    return found


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
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be repeated")
    parser.add_argument("--only-default", action="store_true", help="of ours the default solver alone")
    parser.add_argument("--tune", type=int, default=0, help="the default with --tune as well")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    options = QuantizeOptions(
        model=arguments.model, bits=arguments.bits, group_size=arguments.group_size, samples=arguments.samples,
        method="gptq", method_format="awq" if arguments.bits == 4 else "gptq", symmetric=False, no_cache=True,
    )  # fmt: skip
    peers = dict(peer.split("=", 1) for peer in arguments.peer)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        if arguments.json:
            content = {"bits": arguments.bits, "rows": rows, "environment": environment()}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add(measure(replace(options, **{"method": "rtn", "solver": "rtn"}), folder))
        for solver in ("refine",) if arguments.only_default else SOLVERS:
            for seed in arguments.seeds:
                add(measure(replace(options, **{"seed": seed, "solver": solver}), folder))
        for seed in arguments.seeds if arguments.tune else ():
            add(measure(replace(options, **{"seed": seed, "tune": arguments.tune}), folder))
        for seed in arguments.seeds if peers else ():
            peer_inputs(replace(options, **{"seed": seed}), folder / "inputs.pt")
            for peer, python in peers.items():
                add(measure_peer(peer, python, replace(options, **{"seed": seed}), folder / "inputs.pt", folder))
    console = Console(width=120)
    title = f"{arguments.model}, W{arguments.bits} g{arguments.group_size}, {arguments.samples} conversations"
    console.print(to_table(rows, title))
    console.print(", ".join(f"{name} {value:.4f}" for name, value in summarise(rows).items()))
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")


if __name__ == "__main__":
    main()
