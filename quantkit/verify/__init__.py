"""What quantization cost: the reference's multimodal forward pass against the quantized one.

    import quantkit
    report = quantkit.verify("tiny", "tiny-AWQ", engine="dequantized")     # this module may be called
    print(report.verdict.headline, report.group().answer.kl_mean)
    report.save("report.json")

    integrity -> prepare -> reference pass (cached) -> engines -> metrics -> gates -> Report

The two models are never in memory together. What is kept of the reference is the final hidden state of every scored
position: with the output head it gives the very logits again (see `reference`).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.verify.engines import ENGINES
    from quantkit.verify.engines.local import load_dequantized, load_transformers
    from quantkit.verify.gates import Gate
    from quantkit.verify.options import VerifyOptions
    from quantkit.verify.report import Report
    from quantkit.verify.run import verify
    from quantkit.verify.table import to_table

# imported on first use: reading or drawing a report needs no torch
_PLACES = {
    "ENGINES": "engines",
    "Gate": "gates",
    "Report": "report",
    "VerifyOptions": "options",
    "load_dequantized": "engines.local",
    "load_transformers": "engines.local",
    "to_table": "table",
    "verify": "run",
}
__all__ = [
    "ENGINES",
    "Gate",
    "Report",
    "VerifyOptions",
    "load_dequantized",
    "load_transformers",
    "to_table",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


class _Callable(ModuleType):
    """`quantkit.verify(...)` is `quantkit.verify.verify(...)`."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        from quantkit.verify.run import verify

        return verify(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
