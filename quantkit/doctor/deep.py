"""The packages' own word: `worker` imports them, this side reads what it says and gives up on it after a while."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from quantkit.doctor.packages import Packages
from quantkit.doctor.rows import Row
from quantkit.doctor.worker import ARCHITECTURE

PATIENCE = 420.0  # seconds: gptqmodel's extension took 124 to compile
# module -> the distribution that brings it; what quantkit itself needs comes first
MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    ARCHITECTURE: "transformers",
    "safetensors": "safetensors",
    "compressed_tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "xllamacpp": "xllamacpp",
    "datasets": "datasets",
    "av": "av",
    "optimum": "optimum",
    "gptqmodel": "gptqmodel",
}


@dataclass(frozen=True)
class Said:
    """rows: an import each; kernels: gptqmodel's choice by format; devices: torch's names."""

    rows: list[Row]
    kernels: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)


def ask(packages: Packages, patience: float = PATIENCE) -> Said:
    """Import everything that is installed, in another process, and report what it said."""
    there = [module for module, name in MODULES.items() if packages.version(name) is not None]
    lines, ended = _run(there, patience)
    done = {line["done"]: line for line in lines if "done" in line}
    last = next((line["start"] for line in reversed(lines) if "start" in line), None)
    rows = [_row(module, done.get(module), module == last, ended, packages) for module in there]
    kernels = done.get("gptqmodel", {}).get("kernels", {})
    return Said(rows, kernels, done.get("torch", {}).get("devices", {}))


def _run(modules: list[str], patience: float) -> tuple[list[dict[str, Any]], str]:
    """What the worker said, and how it ended where it did not end well."""
    command = [sys.executable, "-m", "quantkit.doctor.worker", *modules]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=patience)
        ended = f"ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        ended = f"no answer within {patience:.0f} s"
    finally:
        _end(process)
    if ended.startswith("no"):
        out, _ = process.communicate()
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], ended


def _end(process: subprocess.Popen[str]) -> None:
    """The worker and the compilers that it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _row(module: str, line: dict[str, Any] | None, last: bool, ended: str, packages: Packages) -> Row:
    name = MODULES[module]
    what = "MiniCPM-V 4.6 in transformers" if module == ARCHITECTURE else f"import {module}"
    state = "fault" if name in packages.needed else "note"
    if line is None:
        said = ended if last else "not tried: an import before it never came back"
        return Row(what, state, said, packages.upgrade(name) if last else None)  # type: ignore[arg-type]
    if "error" in line:
        return Row(what, state, line["error"], packages.upgrade(name), {"error": line["error"]})  # type: ignore[arg-type]
    devices = "".join(f"; {device}: {title}" for device, title in line.get("devices", {}).items())
    said = f"{line['seconds']} s{devices}" + (f"; {line['said']}" if "said" in line else "")
    return Row(what, "ok", said, None, {key: value for key, value in line.items() if key != "done"})
