"""What verification costs beyond the forward passes it cannot do without.

    python scripts/bench_verify.py --model tiny --candidate tiny-AWQ
    python scripts/bench_verify.py --model FULL --candidate FULL-AWQ --samples 64

Imports are not counted on either side. Bare: both models loaded one after the other, teacher-forced logits of every
scored position, and the same greedy answers. Verify: everything, from the integrity checks and preparing the data to
the figures (no stored reference pass), with and without the reference's noise floor. Each in a process of its own, so
that peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def bare(model: str, candidate: str, samples: int | None, new_tokens: int) -> float:
    """Seconds of the passes alone."""
    from quantkit.calibration import load_conversations
    from quantkit.checkpoint import open_checkpoint
    from quantkit.verify import VerifyOptions, load_dequantized
    from quantkit.verify.compare import logits
    from quantkit.verify.forward import observe
    from quantkit.verify.run import make_task
    from quantkit.verify.task import States

    source = open_checkpoint(model)
    options = VerifyOptions(samples=samples, max_new_tokens=new_tokens)
    task = make_task(load_conversations("heldout"), source, options)
    clock = time.perf_counter()
    for one in (source, open_checkpoint(candidate)):
        network = load_dequantized(one)
        observed = observe(network, task, lambda count: None, trust_teacher=True)
        for prediction in observed.predictions:
            if isinstance(prediction, States) and observed.head is not None:
                logits(prediction.states, observed.head)
        del network, observed
    return time.perf_counter() - clock


def whole(model: str, candidate: str, samples: int | None, new_tokens: int, noise: bool) -> float:
    """Seconds of `verify`."""
    from quantkit.calibration import load_processor
    from quantkit.checkpoint import open_checkpoint
    from quantkit.verify import verify

    load_processor(open_checkpoint(model).path)  # imports some nine seconds of Transformers and torchvision
    clock = time.perf_counter()
    verify(model, candidate, samples=samples, max_new_tokens=new_tokens, noise=noise)
    return time.perf_counter() - clock


def measured(job: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one job in a process of its own: seconds, peak bytes."""
    command = [sys.executable, __file__, "--job", job, "--model", arguments.model, "--candidate", arguments.candidate]
    command += ["--max-new-tokens", str(arguments.max_new_tokens)]
    command += ["--samples", str(arguments.samples)] if arguments.samples else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run_job(arguments: argparse.Namespace) -> None:
    """The child's part."""
    given = (arguments.model, arguments.candidate, arguments.samples, arguments.max_new_tokens)
    seconds = bare(*given) if arguments.job == "bare" else whole(*given, noise=arguments.job == "verify")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    """Measure, print, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", choices=("bare", "verify", "verify without noise floor"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        run_job(arguments)
        return
    found = {job: measured(job, arguments) for job in ("bare", "verify", "verify without noise floor")}
    table = Table(title=f"verify {arguments.model} {arguments.candidate}")
    for heading in ("", "seconds", "ratio", "peak memory"):
        table.add_column(heading, justify="right" if heading else "left")
    for job, row in found.items():
        ratio = row["seconds"] / found["bare"]["seconds"]
        table.add_row(job, f"{row['seconds']:.1f}", f"{ratio:.2f}", f"{row['peak'] / 1e9:.2f} GB")
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
