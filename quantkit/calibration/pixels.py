"""Inputs of a sample as they are hashed and kept: pixels as one byte each, wherever that gives the very bits back.

The processor makes float32 pixels of integers x, as ``(x - 127.5) / 127.5`` in one step or ``(x / 255 - 0.5) / 0.5`` in
two, or with another mean and deviation. So a tensor of pixels has at most 256 values (one mean and one deviation for
all channels, as SigLIP has): codes (uint8) and values ("palette", float32 [256]) hold it in a fourth of the size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

CODES = 256
PALETTE = ".palette"
_PIECE = 1 << 15  # elements at a time: a piece and its copies stay in the processor's cache
_RECIPES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.sub_(127.5).div_(127.5),
    lambda x: x.mul_(1 / 255).sub_(0.5).div_(0.5),
)


def pack(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their names, pixels as codes with their palette where that is exact."""
    packed: dict[str, Tensor] = {}
    for name, tensor in sorted(inputs.items()):
        tensor = tensor.contiguous()
        found = _codes(tensor) if name.startswith("pixel") and tensor.dtype == torch.float32 else None
        packed |= {name: tensor} if found is None else {name: found[0], name + PALETTE: found[1]}
    return packed


def unpack(tensor: Tensor, palette: Tensor | None) -> Tensor:
    """The tensor that was packed, bit by bit."""
    return tensor if palette is None else palette[tensor.int()]


def packed_digest(packed: Mapping[str, Tensor], start: str = "") -> str:
    """SHA-256 hex over names, dtypes, shapes and bytes, after the text `start`."""
    digest = hashlib.sha256(start.encode())
    for name, tensor in sorted(packed.items()):
        digest.update(f"{name};{tensor.dtype};{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _codes(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Codes and palette of a float32 tensor, or None where 256 values do not hold it."""
    flat = tensor.flatten()
    if not flat.numel():
        return None
    for recipe in _RECIPES:
        codes = _by_recipe(flat, recipe)
        if codes is not None:
            return codes.view(tensor.shape), recipe(torch.arange(CODES, dtype=torch.float32))
    found = _by_range(flat)
    return None if found is None else (found[0].view(tensor.shape), found[1])


def _by_recipe(flat: Tensor, recipe: Callable[[Tensor], Tensor]) -> Tensor | None:
    codes = torch.empty(flat.shape, dtype=torch.uint8)
    for piece, part in zip(flat.split(_PIECE), codes.split(_PIECE), strict=True):
        part.copy_(torch.add(piece, 1).mul_(127.5).round_().clamp_(0, CODES - 1))
        if not _same_bits(recipe(part.float()), piece):
            return None
    return codes


def _by_range(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """Codes evenly between the least and the largest value."""
    low, high = map(float, flat.aminmax())
    scale = (CODES - 1) / (high - low) if high > low else 0.0
    codes = ((flat - low) * scale).round_().clamp_(0, CODES - 1).to(torch.uint8)
    palette = torch.zeros(CODES)
    palette[codes.long()] = flat
    return (codes, palette) if _same_bits(palette[codes.int()], flat) else None


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))
