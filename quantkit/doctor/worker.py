"""Imports what is installed, in a process of its own, and asks it: a package that crashes or hangs ends this alone.

Run as `python -m quantkit.doctor.worker PACKAGE...`. Every line of its output is one JSON object; `start` comes before
each import, so that whoever reads knows what it was that never came back. Nothing of a checkpoint is read.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any

ARCHITECTURE = "transformers.models.minicpmv4_6"


def main(packages: list[str]) -> None:
    """Import and ask each package, in this order."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # banners go elsewhere: gptqmodel prints one
        for package in packages:
            _tell(out, {"start": package})
            started = time.monotonic()
            try:
                module = importlib.import_module(package)
                found = QUESTIONS.get(package, lambda _: {})(module)
                _tell(out, {"done": package, "seconds": round(time.monotonic() - started, 1), **found})
            except BaseException as error:  # noqa: BLE001 - whatever ends a package's import is what was asked for
                reason = " ".join(str(error).split())[:300] or "no reason given"
                _tell(out, {"done": package, "error": f"{type(error).__name__}: {reason}"})


def _tell(out: IO[str], content: dict[str, Any]) -> None:
    out.write(json.dumps(content) + "\n")
    out.flush()


# ---- what each is asked ---------------------------------------------------------------------------------------------


def _torch(torch: Any) -> dict[str, Any]:
    """Multiplies on every device it names: a device that is listed and cannot compute is no device."""
    names = {}
    for number in range(torch.cuda.device_count()):
        names[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    if torch.backends.mps.is_available():
        names["mps"] = "Apple GPU"
    for device in ("cpu", *names):
        ones = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
        if float((ones @ ones)[0, 0]) != 64:
            raise ArithmeticError(f"{device} multiplies wrongly")
    return {"devices": names}


def _gptqmodel(_: Any) -> dict[str, Any]:
    """The kernels that it chooses for quantkit's defaults. This builds its extension, as loading would."""
    import torch
    from gptqmodel.utils.importer import hf_select_quant_linear_v2 as select

    device = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    common = {"bits": 4, "group_size": 128, "desc_act": False, "pack": False, "device_map": device, "backend": "auto"}
    awq = select(sym=False, zero_point=True, format="gemm", quant_method="awq", **common)
    gptq = select(sym=True, format="gptq", quant_method="gptq", **common)
    return {"kernels": {"AWQ": awq.__name__, "GPTQ": gptq.__name__}}


def _xllamacpp(module: Any) -> dict[str, Any]:
    devices = [str(one.get("name")) for one in module.get_device_info()]
    return {"said": f"{', '.join(devices)}; {' '.join(module.get_system_info().split())}"}


QUESTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _torch,
    "gptqmodel": _gptqmodel,
    "xllamacpp": _xllamacpp,
}

if __name__ == "__main__":
    main(sys.argv[1:])
