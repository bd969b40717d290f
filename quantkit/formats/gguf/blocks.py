"""ggml's blocks to the bit: the integers of `blockgrid` to bytes and back.

The layouts are those of ggml-common.h (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h); each
``_pack_*`` states its own. Nothing is rounded here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantkit.blockgrid import GRIDS, Blocks
from quantkit.formats.gguf.types import TYPES

# ---- bytes ----------------------------------------------------------------------------------------------------------


def pack(blocks: Blocks) -> Tensor:
    """The bytes of every row, uint8 [rows, row bytes]."""
    grid, rows = blocks.grid, len(blocks.codes)
    number = blocks.codes.shape[1] // grid.block
    parts = _LAYOUTS[grid.name][0](
        blocks.codes.reshape(rows * number, grid.block),
        None if blocks.scales is None else blocks.scales.reshape(rows * number, -1),
        None if blocks.mins is None else blocks.mins.reshape(rows * number, -1),
    )
    ends = {"d": blocks.d, "dmin": blocks.dmin, "m": None if blocks.dmin is None else -blocks.dmin}
    columns = [_half_bytes(ends[part]) if isinstance(part, str) else part for part in parts]
    return torch.cat(columns, dim=1).view(rows, -1)


def unpack(data: Tensor, name: str) -> Blocks:
    """The integers of rows of bytes, uint8 [rows, row bytes], of the type ``name``."""
    grid = GRIDS[name]
    rows, size = len(data), TYPES[name].nbytes
    blocks = data.shape[1] // size
    codes, scales, mins, ends = _LAYOUTS[name][1](data.reshape(rows * blocks, size))
    halves = {part: _halves(value).view(rows, blocks) for part, value in ends.items()}
    dmin = -halves["m"] if "m" in halves else halves.get("dmin")
    return Blocks(
        grid, codes.view(rows, -1), halves["d"],
        None if scales is None else scales.to(torch.int16).view(rows, -1), dmin,
        None if mins is None else mins.view(rows, -1),
    )  # fmt: skip


def _half_bytes(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.contiguous().view(-1, 1).view(torch.uint8)


def _halves(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16)


# A part of a packed block is a tensor of bytes [blocks, n], or the name of a float16: "d", "dmin" or "m".
_Parts = list["Tensor | str"]
_Unpacked = tuple[Tensor, "Tensor | None", "Tensor | None", dict[str, Tensor]]
_Pack = Callable[[Tensor, "Tensor | None", "Tensor | None"], _Parts]


def _nibbles(codes: Tensor, width: int) -> Tensor:
    """Pairs ``width`` apart share a byte, the first in its low half: [n, k * 2 * width] -> [n, k * width]."""
    pairs = codes.view(len(codes), -1, 2, width)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)


def _from_nibbles(data: Tensor, width: int) -> Tensor:
    parts = data.view(len(data), -1, 1, width)
    return torch.cat([parts & 15, parts >> 4], dim=2).flatten(1)


def _bits_to_bytes(bits: Tensor) -> Tensor:
    """[..., 8] of 0 and 1, least first -> bytes [...]."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits * weights).sum(-1, dtype=torch.uint8)


def _shifts(data: Tensor, amounts: range) -> Tensor:
    """``data >> amount`` for each amount, on a new last axis."""
    return data.unsqueeze(-1) >> torch.tensor(list(amounts), dtype=torch.uint8, device=data.device)


def _pack_4(ends: tuple[str, ...]) -> tuple[_Pack, Callable[[Tensor], _Unpacked]]:
    """Q4_0, Q4_1, IQ4_NL: float16 ends, then 16 bytes: value j in the low half of byte j, value j + 16 in the high."""
    size = 2 * len(ends)

    def write(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
        return [*ends, _nibbles(codes, 16)]

    def read(data: Tensor) -> _Unpacked:
        halves = {name: data[:, 2 * place : 2 * place + 2] for place, name in enumerate(ends)}
        return _from_nibbles(data[:, size:].contiguous(), 16), None, None, halves

    return write, read


def _pack_5(ends: tuple[str, ...]) -> tuple[_Pack, Callable[[Tensor], _Unpacked]]:
    """Q5_0, Q5_1: float16 ends, fifth bits (bit j: value j), then the low four as in Q4_0."""
    size = 2 * len(ends)

    def write(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
        high = _bits_to_bytes((codes >> 4).view(-1, 4, 8))
        return [*ends, high, _nibbles(codes & 15, 16)]

    def read(data: Tensor) -> _Unpacked:
        halves = {name: data[:, 2 * place : 2 * place + 2] for place, name in enumerate(ends)}
        high = (_shifts(data[:, size : size + 4], range(8)) & 1).flatten(1)
        return _from_nibbles(data[:, size + 4 :].contiguous(), 16) | (high << 4), None, None, halves

    return write, read


def _pack_q8_0(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """float16 d, then int8 values."""
    return ["d", codes ^ 128]


def _read_q8_0(data: Tensor) -> _Unpacked:
    return data[:, 2:] ^ 128, None, None, {"d": data[:, :2]}


def _pack_quarters(codes: Tensor) -> Tensor:
    """Low two bits: of each 128 values, value l + 32 j in bits 2j of byte l."""
    four = codes.view(-1, 2, 4, 32)
    return (four[:, :, 0] | (four[:, :, 1] << 2) | (four[:, :, 2] << 4) | (four[:, :, 3] << 6)).flatten(1)


def _from_quarters(data: Tensor) -> Tensor:
    """[n, 64] -> [n, 256], as `_pack_quarters` lays them."""
    return (_shifts(data.view(-1, 2, 32), range(0, 8, 2)) & 3).transpose(2, 3).flatten(1)


def _pack_q2_k(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """16 bytes: scale in the low half, min in the high; 64 bytes of codes; d; dmin."""
    assert scales is not None and mins is not None
    return [scales.to(torch.uint8) | (mins << 4), _pack_quarters(codes), "d", "dmin"]


def _read_q2_k(data: Tensor) -> _Unpacked:
    ends = {"d": data[:, 80:82], "dmin": data[:, 82:84]}
    return _from_quarters(data[:, 16:80].contiguous()), data[:, :16] & 15, data[:, :16] >> 4, ends


def _pack_q3_k(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """32 bytes of third bits (value l + 32 j in bit j of byte l); 64 bytes of the low two; 12 bytes of scales + 32
    (bytes 0 to 7: low halves of scale j and j + 8; 8 to 11: two high bits of scales j, j + 4, j + 8, j + 12); d."""
    assert scales is not None
    high = _bits_to_bytes((codes >> 2).view(-1, 8, 32).transpose(1, 2))
    raised = (scales + 32).to(torch.uint8)
    tops = (raised >> 4).view(-1, 4, 4)
    packed = tops[:, 0] | (tops[:, 1] << 2) | (tops[:, 2] << 4) | (tops[:, 3] << 6)
    return [high, _pack_quarters(codes & 3), _nibbles(raised & 15, 8), packed, "d"]


def _read_q3_k(data: Tensor) -> _Unpacked:
    high = (_shifts(data[:, :32], range(8)) & 1).transpose(1, 2).flatten(1)
    tops = (_shifts(data[:, 104:108], range(0, 8, 2)) & 3).transpose(1, 2).flatten(1)
    scales = (_from_nibbles(data[:, 96:104].contiguous(), 8) | (tops << 4)).to(torch.int16) - 32
    return _from_quarters(data[:, 32:96].contiguous()) | (high << 2), scales, None, {"d": data[:, 108:110]}


def _pack_six(scales: Tensor, mins: Tensor) -> Tensor:
    """8 scales and 8 mins of 6 bits in 12 bytes: 0 to 3 whole in bytes 0 to 3 and 4 to 7, of 4 to 7 the low halves in
    bytes 8 to 11 (min above) and the two high bits on top of bytes 0 to 7."""
    scales = scales.to(torch.uint8)
    return torch.cat(
        [
            scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
            mins[:, :4] | ((mins[:, 4:] >> 4) << 6),
            (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4),
        ],
        dim=1,
    )


def _read_six(data: Tensor) -> tuple[Tensor, Tensor]:
    first, second, last = data[:, :4], data[:, 4:8], data[:, 8:12]
    scales = torch.cat([first & 63, (last & 15) | ((first >> 6) << 4)], dim=1)
    return scales, torch.cat([second & 63, (last >> 4) | ((second >> 6) << 4)], dim=1)


def _pack_q4_k(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """d; dmin; 12 bytes of scales and mins; of each 64 values 32 bytes: value l in the low half, l + 32 in the high."""
    assert scales is not None and mins is not None
    return ["d", "dmin", _pack_six(scales, mins), _nibbles(codes, 32)]


def _read_q4_k(data: Tensor) -> _Unpacked:
    scales, mins = _read_six(data[:, 4:16])
    return _from_nibbles(data[:, 16:].contiguous(), 32), scales, mins, {"d": data[:, :2], "dmin": data[:, 2:4]}


def _pack_q5_k(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """As Q4_K, with 32 bytes of fifth bits (value l + 32 j in bit j of byte l) before the low halves."""
    assert scales is not None and mins is not None
    high = _bits_to_bytes((codes >> 4).view(-1, 8, 32).transpose(1, 2))
    return ["d", "dmin", _pack_six(scales, mins), high, _nibbles(codes & 15, 32)]


def _read_q5_k(data: Tensor) -> _Unpacked:
    scales, mins = _read_six(data[:, 4:16])
    high = (_shifts(data[:, 16:48], range(8)) & 1).transpose(1, 2).flatten(1)
    codes = _from_nibbles(data[:, 48:].contiguous(), 32) | (high << 4)
    return codes, scales, mins, {"d": data[:, :2], "dmin": data[:, 2:4]}


def _pack_q6_k(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """128 bytes of low halves (of each 128 values, value l low and l + 64 high in byte l), 64 bytes of the two high
    bits (value l + 32 j in bits 2j of byte l), 16 scales of int8, d."""
    assert scales is not None
    return [_nibbles(codes & 15, 64), _pack_quarters(codes >> 4), scales.to(torch.int8).view(torch.uint8), "d"]


def _read_q6_k(data: Tensor) -> _Unpacked:
    codes = _from_nibbles(data[:, :128].contiguous(), 64) | (_from_quarters(data[:, 128:192].contiguous()) << 4)
    return codes, data[:, 192:208].contiguous().view(torch.int8), None, {"d": data[:, 208:210]}


def _pack_iq4_xs(codes: Tensor, scales: Tensor | None, mins: Tensor | None) -> _Parts:
    """d; two bytes: two high bits of each scale + 32; 4 bytes: their low halves, the even run's below; codes of each
    run as in Q4_0."""
    assert scales is not None
    raised = (scales + 32).to(torch.uint8)
    tops = (raised >> 4).view(-1, 2, 4)
    high = tops[..., 0] | (tops[..., 1] << 2) | (tops[..., 2] << 4) | (tops[..., 3] << 6)
    return ["d", high, _nibbles(raised & 15, 1), _nibbles(codes, 16)]


def _read_iq4_xs(data: Tensor) -> _Unpacked:
    high = (_shifts(data[:, 2:4], range(0, 8, 2)) & 3).flatten(1)
    scales = (_from_nibbles(data[:, 4:8].contiguous(), 1) | (high << 4)).to(torch.int16) - 32
    return _from_nibbles(data[:, 8:].contiguous(), 16), scales, None, {"d": data[:, :2]}


_LAYOUTS: dict[str, tuple[_Pack, Callable[[Tensor], _Unpacked]]] = {
    "Q4_0": _pack_4(("d",)),
    "Q4_1": _pack_4(("d", "m")),
    "IQ4_NL": _pack_4(("d",)),
    "Q5_0": _pack_5(("d",)),
    "Q5_1": _pack_5(("d", "m")),
    "Q8_0": (_pack_q8_0, _read_q8_0),
    "Q2_K": (_pack_q2_k, _read_q2_k),
    "Q3_K": (_pack_q3_k, _read_q3_k),
    "Q4_K": (_pack_q4_k, _read_q4_k),
    "Q5_K": (_pack_q5_k, _read_q5_k),
    "Q6_K": (_pack_q6_k, _read_q6_k),
    "IQ4_XS": (_pack_iq4_xs, _read_iq4_xs),
}
