"""The file layouts, one a file. An entry of ``FORMATS`` is all a new one needs.

A format module has ``check_spec``, ``check_linear``, ``tensor_specs``, ``pack``, ``unpack``, ``quantization_config``,
``quantized_names`` and ``spec_of``, as in ``formats/awq.py``. It packs integers and never rounds.
"""

from __future__ import annotations

from types import ModuleType

from quantkit.formats import awq

FORMATS: dict[str, ModuleType] = {awq.NAME: awq}
