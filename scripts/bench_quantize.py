"""What `quantkit awq` costs: seconds as a multiple of one plain forward pass, and peak memory, beside a peer's.

    python scripts/bench_quantize.py --size full --peer-python PYTHON --json figures.json

Measured in one run, each thing in a process of its own, all with the same number of threads:

* one plain BF16 forward pass of transformers over the calibration samples, the passes alone (`bench_reference.py`);
* `quantkit awq` over the same samples as a user types it: the whole command, imports included. Its record of the
  calibration data must have the fingerprint of the samples that the forward pass saw, or the run fails;
* gptqmodel's AWQ on a few of these samples over one text layer of each kind, times the number of such layers
  (`bench_peers.py`). Where it cannot run, the table says "not run" and why.

This process itself stays small, so that the peak memory of the others is right (`bench_process.py`): it imports neither
torch nor quantkit. A full-size run needs 7 GB of disk in the folder for temporary files ($TMPDIR moves it).
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_process import Child, Failed, Runner, describe_machine, environment
from rich.console import Console
from rich.table import Table

NOT_RUN = "not run"
PHASE = re.compile(r"([a-z]+) ([0-9]+\.[0-9]+) s\b")


@dataclass(frozen=True)
class Forward:
    """The plain pass. seconds: of the passes alone; wall: of its whole process."""

    seconds: float
    wall: float
    peak: int
    samples: int
    tokens: int
    modalities: dict[str, int]


@dataclass(frozen=True)
class Command:
    """`quantkit awq`. ratio: its wall seconds over the plain pass's; phases: seconds as it printed them."""

    seconds: float
    ratio: float
    cpu: float
    peak: int
    phases: dict[str, float]


@dataclass(frozen=True)
class Peer:
    """gptqmodel's AWQ. layers: seconds a layer by kind; whole: extrapolated to all layers; ratio: over `forward`."""

    status: str
    reason: str = ""
    samples: int = 0
    tokens: int = 0
    layers: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    forward: float = 0.0  # seconds of the plain pass over the same samples
    ratio: float = 0.0
    peak: int = 0
    dtype: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """All that was measured in one run."""

    model: str
    parameters: int
    layers: dict[str, int]  # text layers by kind
    threads: int
    forward: Forward
    quantkit: Command
    peer: Peer
    versions: dict[str, str]
    machine: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.model and options.keep_model:
        parser().error("--keep-model keeps a checkpoint that is made here: leave out --model")
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="quantkit-bench-") as work:
            figures = bench(options, Path(work))
    except Failed as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    show(figures, Console())
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """Every option, once."""
    result = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = result.add_argument
    source = result.add_mutually_exclusive_group()
    source.add_argument("--model", help="a checkpoint: a folder, a hub id or tiny")
    source.add_argument("--size", choices=("full", "small"), default="full", help="make one with random weights")
    add("--keep-model", type=Path, metavar="DIR", help="make it there and keep it")
    add("--samples", type=_positive, default=64, help="conversations to calibrate on")
    add("--calib", default="bundled", help="as quantkit awq takes it")
    add("--seed", type=int, default=0)
    add("--threads", type=_positive, default=2, help="threads of every process")
    add("--peer-python", type=Path, help="Python of an environment with gptqmodel [default: this one]")
    add("--peer-samples", type=_positive, default=4, help="conversations that the peer calibrates on")
    add("--skip-peer", action="store_true", help="leave the peer out")
    add("--timeout", type=float, default=7200, help="seconds one process may take")
    add("--json", type=Path, metavar="OUT", help="write the figures there")
    return result


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def bench(options: argparse.Namespace, work: Path) -> Figures:
    """Everything in the order of the table. Raises Failed."""
    runner = Runner(work, environment(options.threads, work), options.timeout)
    machine = describe_machine()
    model = make_model(options, runner)
    job = {name: getattr(options, name) for name in ("calib", "samples", "seed", "peer_samples")}
    job |= {"model": model, "peer_inputs": str(inputs(work))}
    passes = runner.worker("bench_reference.py", "forward", job=job)
    forward = read_forward(passes.child, passes.result)
    command = run_quantkit(model, options, runner, forward, passes.result["fingerprint"])
    peer = run_peer(model, options, runner, passes.result)
    machine["load after"] = round(os.getloadavg()[0], 2)
    name = options.model or f"random weights, {options.size} size"
    return Figures(
        model=name,
        parameters=passes.result["parameters"],
        layers=passes.result["layers"],
        threads=options.threads,
        forward=forward,
        quantkit=command,
        peer=peer,
        versions=passes.result["versions"],
        machine=machine,
    )


# ---- the steps -------------------------------------------------------------------------------------------------------


def make_model(options: argparse.Namespace, runner: Runner) -> str:
    """The checkpoint to measure on, as an argument for `--model`."""
    if options.model:
        folder = Path(options.model)
        return str(folder.resolve()) if folder.is_dir() else options.model
    folder = (options.keep_model or runner.work / "model").resolve()
    runner.script("make_checkpoint.py", "--size", options.size, "--out", str(folder))
    return str(folder)


def inputs(work: Path) -> Path:
    """Where the forward pass leaves the peer's samples."""
    return work / "inputs.pt"


def read_forward(child: Child, result: Mapping[str, Any]) -> Forward:
    """The plain pass's figures from its worker's result."""
    modalities = result["modalities"]
    return Forward(
        seconds=sum(result["seconds"]),
        wall=child.wall,
        peak=child.peak,
        samples=len(result["tokens"]),
        tokens=sum(result["tokens"]),
        modalities={name: modalities.count(name) for name in dict.fromkeys(modalities)},
    )


def run_quantkit(
    model: str, options: argparse.Namespace, runner: Runner, forward: Forward, fingerprint: str
) -> Command:
    """The command as a user types it; its output is looked into and removed."""
    program = Path(sys.executable).with_name("quantkit")
    start = [str(program)] if program.exists() else [sys.executable, "-m", "quantkit"]
    out = runner.work / "quantized"
    words = ["awq", "--model", model, "--out", str(out), "--samples", str(options.samples), "--seed", str(options.seed)]
    child = runner.run("quantkit awq", [*start, *words, "--calib", options.calib])
    record = json.loads((out / "quantkit.json").read_text(encoding="utf-8"))
    if record["calibration"]["fingerprint"] != fingerprint:
        raise Failed("quantkit awq calibrated on other samples than the forward pass saw: the ratio would mean nothing")
    shutil.rmtree(out)
    return Command(child.wall, child.wall / forward.seconds, child.cpu, child.peak, parse_phases(child.stdout))


def parse_phases(text: str) -> dict[str, float]:
    """Seconds by phase from what `quantkit awq` prints after the sizes on disk. Raises Failed where there are none."""
    _, found, rest = text.partition(" on disk;")
    phases = {name: float(seconds) for name, seconds in PHASE.findall(rest.partition("next:")[0])}
    if not found or not phases:
        raise Failed("quantkit awq printed no seconds by phase")
    return phases


def run_peer(model: str, options: argparse.Namespace, runner: Runner, passes: Mapping[str, Any]) -> Peer:
    """gptqmodel's AWQ, or why it did not run."""
    if options.skip_peer:
        return Peer(NOT_RUN, "left out with --skip-peer")
    python = options.peer_python or Path(sys.executable)
    if not python.exists():
        return Peer(NOT_RUN, f"{python}: no such Python")
    folder = runner.work / "layers"
    kinds = runner.worker("bench_reference.py", "cut", job={"model": model, "out": str(folder)}).result["kinds"]
    job = {"model": str(folder), "inputs": str(inputs(runner.work)), "bits": 4, "group_size": 128}
    try:
        answer = runner.worker("bench_peers.py", job=job, python=python)
    except Failed as error:
        return Peer(NOT_RUN, str(error))
    return read_peer(answer.child, answer.result, kinds, passes)


def read_peer(child: Child, result: Mapping[str, Any], kinds: Sequence[str], passes: Mapping[str, Any]) -> Peer:
    """The peer's figures. kinds: of the layers it was measured on; passes: the result of the plain forward pass."""
    if len(result["layers"]) != len(kinds):
        return Peer(NOT_RUN, f"gptqmodel quantized {len(result['layers'])} layers of {len(kinds)}")
    layers = dict(zip(kinds, result["layers"], strict=True))
    whole = sum(count * layers[kind] for kind, count in passes["layers"].items())
    forward = sum(passes["seconds"][place] for place in passes["peer"])
    return Peer(
        status="measured",
        samples=len(passes["peer"]),
        tokens=sum(passes["tokens"][place] for place in passes["peer"]),
        layers=layers,
        whole=whole,
        forward=forward,
        ratio=whole / forward,
        peak=child.peak,
        dtype=result["dtype"],
        versions=result["versions"],
    )


# ---- the table -------------------------------------------------------------------------------------------------------


def show(figures: Figures, console: Console) -> None:
    """One table; the notes, versions and machine below."""
    forward, command, peer = figures.forward, figures.quantkit, figures.peer
    title = f"{figures.model}: {figures.parameters:,} parameters; {forward.samples} samples, {forward.tokens} tokens"
    table = Table(title=f"{title}; {figures.threads} threads", title_justify="left")
    for heading in ("what", "seconds", "ratio", "peak memory"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    table.add_row("plain BF16 forward pass", f"{forward.seconds:.1f}", "1.00", gigabytes(forward.peak))
    table.add_row("quantkit awq, the whole command", f"{command.seconds:.1f}", f"{command.ratio:.2f}",
                  gigabytes(command.peak))  # fmt: skip
    rest = command.seconds - sum(command.phases.values())
    for phase, seconds in {**command.phases, "start, imports, exit": rest}.items():
        table.add_row(f"  {phase}", f"{seconds:.1f}", f"{seconds / forward.seconds:.2f}", "")
    add_peer(table, peer, sum(figures.layers.values()))
    console.print(table)
    print_notes(figures, console)


def add_peer(table: Table, peer: Peer, layers: int) -> None:
    """The peer's rows."""
    if peer.status == NOT_RUN:
        table.add_row("gptqmodel AWQ", NOT_RUN, "-", "-")
        return
    for kind, seconds in peer.layers.items():
        table.add_row(f"gptqmodel AWQ, a {kind} layer [1]", f"{seconds:.1f}", "", gigabytes(peer.peak))
    table.add_row(f"gptqmodel AWQ, {layers} layers, extrapolated [1]", f"{peer.whole:.1f}", f"{peer.ratio:.2f} [2]", "")


def print_notes(figures: Figures, console: Console) -> None:
    """How the rows came about, and on what."""
    peer = figures.peer

    def note(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if peer.status == NOT_RUN:
        note(f"gptqmodel: {NOT_RUN} - {peer.reason}")
    else:
        counted = ", ".join(f"{count} {kind}" for kind, count in figures.layers.items())
        note(
            f"[1] measured on {len(peer.layers)} layers of the same shapes, one of each kind, with {peer.samples} of "
            f"the samples ({peer.tokens} tokens) in {peer.dtype}; the whole model has {counted}"
        )
        note(f"[2] over the plain forward pass of these {peer.samples} samples, {peer.forward:.1f} s")
        note("peer: " + ", ".join(f"{name} {number}" for name, number in peer.versions.items()))
    modalities = ", ".join(f"{count} {name}" for name, count in figures.forward.modalities.items())
    note(f"samples: {modalities}")
    note("versions: " + ", ".join(f"{name} {number}" for name, number in figures.versions.items()))
    machine = figures.machine
    note(
        f"machine: {machine['processor']}, {machine['cores']} cores, {machine['memory']} GiB; load "
        f"{machine['load before']} before, {machine['load after']} after"
    )


def gigabytes(count: int) -> str:
    """Bytes in GB (10^9)."""
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
