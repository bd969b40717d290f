"""What will multiply a file's weights here, format by format.

Some of it is settled by what is installed (Transformers unpacks compressed-tensors into plain weights; bitsandbytes
loads the library built for torch's CUDA). The rest is a choice that gptqmodel and vLLM make when they load a file, by
the device, the bits and whether an extension compiles: then the row says what to expect and that loading decides, and
`--deep` asks gptqmodel itself. Read in gptqmodel 7.7, Transformers 5.24, bitsandbytes 0.50.
"""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from quantkit.doctor.devices import Devices
from quantkit.doctor.packages import Packages
from quantkit.doctor.probes import Answer
from quantkit.doctor.rows import Row
from quantkit.doctor.runtimes import VLLM

KNOWN_GPTQMODEL = "7."  # whose order of kernels this file knows
# without these gptqmodel does not try its kernel for AVX512-BF16; it also needs Linux and a C++ compiler
AVX512_BF16 = frozenset(("xsave", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_bf16"))
_COMPILERS = ("c++", "g++", "clang++")
_LOADING_DECIDES = "loading decides, --deep asks"


def kernel_rows(
    packages: Packages, devices: Devices, answers: dict[str, Answer], flags: frozenset[str], asked: dict[str, str]
) -> list[Row]:
    """A row a format. asked: what gptqmodel itself answered, by format, where it was asked."""
    rows = [
        _packed("AWQ", ("gptqmodel",), packages, devices, flags, asked),
        _packed("GPTQ", ("gptqmodel", "optimum"), packages, devices, flags, asked),
        _compressed(packages, devices),
        _bitsandbytes(packages, devices),
        _gguf(packages, answers),
    ]
    vllm = next((name for name in VLLM if packages.version(name)), None)
    if vllm:
        said = f"{vllm} chooses when it loads; verify --engine vllm names the choice"
        rows.append(Row("any, in vLLM", "ok", said))
    return rows


def _packed(
    what: str, wanted: tuple[str, ...], packages: Packages, devices: Devices, flags: frozenset[str],
    asked: dict[str, str],
) -> Row:  # fmt: skip
    missing = [name for name in (*wanted, "accelerate") if packages.version(name) is None]
    if missing:
        said = f"Transformers loads none without {', '.join(missing)}; the engine 'dequantized' needs nothing"
        return Row(what, "none", said, packages.install(*missing))
    if what in asked:
        said = f"Transformers on {devices.kind}: {asked[what]}, by gptqmodel's own choice (4 bits, group 128)"
        return Row(what, "ok", said, None, {"kernel": asked[what], "device": devices.kind})
    expected = expected_kernels(what, packages.version("gptqmodel") or "", devices, flags)
    if not expected:
        said = f"Transformers on {devices.kind}: a kernel of gptqmodel's; {_LOADING_DECIDES}"
        return Row(what, "ok", said, None, {"device": devices.kind})
    first, *others = expected
    builds = f" where its extension compiles (minutes, once), else {others[0]}" if others else ""
    rest = "; 2, 3 and 8 bits TorchLinear" if what == "GPTQ" else ""
    said = f"Transformers on cpu, 4 bits: {first}{builds}{rest}; {_LOADING_DECIDES}"
    return Row(what, "ok", said, None, {"expected": expected, "device": devices.kind})


def expected_kernels(what: str, version: str, devices: Devices, flags: frozenset[str]) -> list[str]:
    """The kernels of gptqmodel that may run a file of 4 bits and groups of 32 to 128, the likeliest first; none where
    that is not known: another version, another device than the CPU."""
    if devices.kind != "cpu" or not version.startswith(KNOWN_GPTQMODEL):
        return []
    name = "AwqLinear" if what == "AWQ" else "Linear"
    compiles = platform.system() == "Linux" and any(map(shutil.which, _COMPILERS))
    return [f"TorchCpuAvx512{name}"] * (compiles and flags >= AVX512_BF16) + [f"TorchAten{name}"]


def _compressed(packages: Packages, devices: Devices) -> Row:
    what = "compressed-tensors"
    missing = [name for name in (what, "accelerate") if packages.version(name) is None]
    if missing:
        return Row(what, "none", f"Transformers loads none without {', '.join(missing)}", packages.install(*missing))
    said = f"Transformers on {devices.kind}: no kernel: unpacked at the first pass, then torch's own, in plain size"
    return Row(what, "ok", said, None, {"kernel": "torch", "device": devices.kind})


def _bitsandbytes(packages: Packages, devices: Devices) -> Row:
    what = "bitsandbytes"
    missing = [name for name in (what, "accelerate") if packages.version(name) is None]
    if missing:
        return Row(what, "none", f"Transformers loads none without {', '.join(missing)}", packages.install(*missing))
    libraries = _libraries(packages)
    wanted = f"cuda{(devices.cuda or '').replace('.', '')}" if devices.kind == "cuda" else "cpu"
    values = {"libraries": sorted(libraries), "device": devices.kind}
    if devices.kind == "mps" or wanted in libraries:
        name = "its own" if devices.kind == "mps" else f"libbitsandbytes_{wanted}"
        return Row(what, "ok", f"Transformers on {devices.kind}: {name}", None, values)
    said = f"Transformers on {devices.kind}: no library for {wanted} in bitsandbytes {packages.version(what)}"
    return Row(what, "note", f"{said}; it has {', '.join(sorted(libraries)) or 'none'}", packages.upgrade(what), values)


def _libraries(packages: Packages) -> set[str]:
    """What the installed bitsandbytes has compiled code for: {"cpu", "cuda132"}."""
    found = packages.distribution("bitsandbytes")
    folder = Path(str(found.locate_file("bitsandbytes"))) if found else None
    names = [path.name for path in folder.glob("libbitsandbytes_*")] if folder and folder.is_dir() else []
    return {match[1] for name in names if (match := re.match(r"libbitsandbytes_(\w+)\.", name))}


def _gguf(packages: Packages, answers: dict[str, Answer]) -> Row:
    here = ["xllamacpp"] if packages.version("xllamacpp") else []
    here += [name for name in ("llama-server", "llama-cli", "llama-mtmd-cli", "ollama") if answers[name].path]
    if not here:
        said = "nothing here runs them; verify FILE.gguf wants xllamacpp, or --url of a llama-server"
        return Row("GGUF", "none", said, packages.install("xllamacpp"))
    said = f"ggml's, as each was built: {', '.join(here)}; its log names CPU features and devices when it loads"
    return Row("GGUF", "ok", said, None, {"programs": here})
