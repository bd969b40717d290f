"""The file layouts, one a file. An entry of ``FORMATS`` is all a new one needs.

A layout packs integers and never rounds. Its module has ``LEAST_ZERO`` (the smallest zero point it can hold),
``check_spec``, ``check_linear``, ``tensor_specs``, ``pack``, ``read``, ``dequantize``, ``quantization_config`` and
``other_files``, as in ``formats/gptq.py``.
"""

from __future__ import annotations

from types import ModuleType

from quantkit.formats import awq, compressed_tensors, gptq
from quantkit.formats.contents import Contents

FORMATS: dict[str, ModuleType] = {module.NAME: module for module in (awq, gptq, compressed_tensors)}

__all__ = ["FORMATS", "Contents"]
