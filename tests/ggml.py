"""ggml's own quantizer, out of the library that the package xllamacpp brings: the judge of our encoders."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
import xllamacpp

from quantkit.formats.gguf.blocks import unpack
from quantkit.formats.gguf.types import TYPES


@lru_cache(1)
def _library() -> ctypes.CDLL:
    place = next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))
    library = ctypes.CDLL(str(place))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantize(weight: torch.Tensor, name: str, importance: torch.Tensor | None = None) -> torch.Tensor:
    """What ggml's bytes of ``weight`` float32 [rows, width] stand for."""
    kind, weight = TYPES[name], weight.contiguous()
    data = torch.empty(len(weight), kind.row_bytes(weight.shape[1]), dtype=torch.uint8)
    written = _library().ggml_quantize_chunk(
        kind.number, ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(data.data_ptr()), ctypes.c_int64(0),
        ctypes.c_int64(len(weight)), ctypes.c_int64(weight.shape[1]),
        None if importance is None else ctypes.c_void_p(importance.data_ptr()),
    )  # fmt: skip
    assert written == data.numel()
    return unpack(data, name).dequantize()
