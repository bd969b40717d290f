"""What a sweep costs beside its solvers: twelve variants of `tiny`, verification included, and a second run of it.

    python scripts/bench_sweep.py [--samples 410]

Prints the wall time of `quantkit sweep` in a process of its own, the sum of the solvers' seconds and of one pass of
statistics as the sweep recorded them, their ratio (at most 2 is asked for), and what a second run takes that finds all
finished. The cache of reference passes is new, so the reference's own pass is in the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = """\
model: tiny
variants:
  - method: [awq, gptq]
    group_size: [32, 64, 128]
  - method: gptq
    bits: [2, 3]
    seed: [0]
  - method: gguf
    type: [Q2_K, Q3_K_M, Q4_K_M, Q6_K]
    mmproj_type: f16
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="items of each verification (default: all)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        verify = "{}" if arguments.samples is None else f"{{samples: {arguments.samples}}}"
        (folder / "s.yaml").write_text(f"{SWEEP}verify: {verify}\n")
        first, second = run(folder), run(folder)
        records = [json.loads(path.read_text())["seconds"] for path in (folder / "out/cells").glob("*.json")]
        solvers = sum(one.get("search", 0.0) + one.get("quantize", 0.0) for one in records)
        verifying = sum(one["verify"] for one in records)
        gathered = sum(json.loads((folder / "out/passes.json").read_text()).values())
    print(f"{len(records)} variants: {first:.1f} s; solvers {solvers:.1f} s, statistics {gathered:.1f} s")
    print(f"ratio {first / (solvers + gathered):.2f}; of it verification {verifying:.1f} s; again {second:.1f} s")


def run(folder: Path) -> float:
    """Seconds of the command, imports included."""
    started = time.perf_counter()
    environment = os.environ | {"QUANTKIT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "quantkit", "sweep", str(folder / "s.yaml"), "--out", str(folder / "out")]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
