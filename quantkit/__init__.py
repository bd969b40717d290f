"""quantkit: quantized variants of MiniCPM-V 4.6 that people can trust. See README.md for the way of the data."""

import importlib
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    """`quantkit.verify`, which may be called, is imported when it is first asked for."""
    if name != "verify":
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    return importlib.import_module("quantkit.verify")
