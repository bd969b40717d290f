"""Accelerators, and whether the installed torch is built for them; torch itself is not imported."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.doctor.packages import Packages
from quantkit.doctor.probes import Answer
from quantkit.doctor.rows import Row, gigabytes

PROGRAMS = {
    "nvidia-smi": ("nvidia-smi",),  # its heading names the driver and the newest CUDA that it runs
    "gpus": (
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,compute_cap",
        "--format=csv,noheader,nounits",
    ),
}
Kind = Literal["cpu", "cuda", "mps"]
_MIB = 1 << 20
# both words of each were renamed in driver 610
_CUDA = re.compile(r"CUDA (?:UMD )?Version\s*:\s*([0-9]+)\.([0-9]+)")
_DRIVER = re.compile(r"(?:Driver|KMD) Version\s*:\s*([0-9][0-9.]*)")
_BUILD = re.compile(r"^(cuda|hip)\b[^=]*=\s*'([^']+)'", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver names it; bytes, None where it does not say. capability: "9.0"."""

    name: str
    total: int | None
    free: int | None
    capability: str


@dataclass(frozen=True)
class Devices:
    """kind: the fastest that this torch can use here, as far as can be told without asking it. cuda: what torch is
    built for ("13.2"), None for a build without it."""

    kind: Kind
    gpus: tuple[Gpu, ...]
    cuda: str | None
    rows: tuple[Row, ...]

    @property
    def capability(self) -> str:
        return self.gpus[0].capability if self.gpus else ""


def examine_devices(packages: Packages, answers: dict[str, Answer]) -> Devices:
    """The devices here; `answers` to `PROGRAMS`."""
    gpus = read_gpus(answers["gpus"].text or "")
    build = torch_build(packages)
    cuda = build.get("cuda")
    if gpus:
        heading = answers["nvidia-smi"].text or ""
        driver = _DRIVER.search(heading)
        rows = [_gpu_row(number, gpu, driver[1] if driver else "?") for number, gpu in enumerate(gpus)]
        fault = _mismatch(heading, build)
        usable = fault is None and packages.version("torch") is not None
        return Devices("cuda" if usable else "cpu", gpus, cuda, (*rows, *([fault] if fault else [])))
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if apple:
        row = Row("GPU", "note", "Apple's, as torch's device mps; quantkit has not been run on it")
        return Devices("mps", (), cuda, (row,))
    return Devices("cpu", (), cuda, (_none_row(answers, build),))


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """The GPUs in the answer of `nvidia-smi --query-gpu`."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 4 and re.fullmatch(r"[0-9]+\.[0-9]+", words[3]):
            total, free = (int(word) * _MIB if word.isdigit() else None for word in words[1:3])
            found.append(Gpu(words[0], total, free, words[3]))
    return tuple(found)


def torch_build(packages: Packages) -> dict[str, str]:
    """What the installed torch is built for, as its version.py says: {"cuda": "13.2"}; empty for a CPU build."""
    found = packages.distribution("torch")
    try:
        text = Path(str(found.locate_file("torch/version.py"))).read_text(encoding="utf-8") if found else ""
    except OSError:
        text = ""
    return dict(_BUILD.findall(text))


def _gpu_row(number: int, gpu: Gpu, driver: str) -> Row:
    size = "memory not known"
    if gpu.total is not None:
        size = gigabytes(gpu.total) if gpu.free is None else f"{gigabytes(gpu.free)} free of {gigabytes(gpu.total)}"
    said = f"{gpu.name}, {size}; compute capability {gpu.capability}, driver {driver}"
    values = {"name": gpu.name, "total": gpu.total, "free": gpu.free, "driver": driver}
    return Row(f"GPU {number}", "ok", said, None, values | {"capability": gpu.capability})


def _mismatch(heading: str, build: dict[str, str]) -> Row | None:
    """Why torch cannot use the GPUs that are here; None where nothing speaks against it."""
    if "cuda" not in build:
        kind = "for AMD GPUs" if "hip" in build else "for the CPU alone"
        said = f"torch is built {kind}: no --device cuda; install its build for CUDA (pytorch.org/get-started)"
        return Row("GPU and torch", "note", said)
    driver = _CUDA.search(heading)
    if driver and int(driver[1]) < int(build["cuda"].partition(".")[0]):
        runs = f"{driver[1]}.{driver[2]}"
        said = f"torch is built for CUDA {build['cuda']}, the driver runs {runs} at most: update the driver, or install"
        return Row("GPU and torch", "note", f"{said} a torch for CUDA {driver[1]}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Row("GPU and torch", "note", "CUDA_VISIBLE_DEVICES hides every GPU from torch")
    return None


def _none_row(answers: dict[str, Answer], build: dict[str, str], root: Path = Path("/")) -> Row:
    if answers["gpus"].path is not None:
        return Row("GPU", "note", "nvidia-smi is here, but names no GPU: no driver, no GPU, or no answer in time")
    names = [_name(path) for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))]
    if names:
        return Row("GPU", "note", f"{', '.join(names)}, but there is no nvidia-smi to ask: try quantkit doctor --deep")
    built = f"; torch is built for CUDA {build['cuda']}" if "cuda" in build else ""
    return Row("GPU", "none", f"none found (no nvidia-smi): quantkit runs on the CPU{built}")


def _name(path: Path) -> str:
    match = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match[1].strip() if match else "an NVIDIA GPU"
