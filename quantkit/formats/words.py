"""Codes in 32-bit words, as GPTQ and compressed-tensors pack them: a little-endian stream of bits, ``bits`` a code.

Code ``i`` of a row lies at bits ``bits * i .. bits * i + bits - 1`` of the stream, whose word ``w`` holds bits
``32 w .. 32 w + 31``. For 2, 4 and 8 bits every code lies in one word; of 3 bits, 32 codes fill three words and two of
them lie across a border.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """uint8 [n, codes] with values below ``2^bits`` -> int32 [n, codes * bits / 32]; codes * bits a multiple of 32."""
    period, spans = _spans(bits)
    grouped = codes.reshape(codes.shape[0], -1, period).to(torch.int64)
    words = torch.zeros(*grouped.shape[:2], period * bits // WORD, dtype=torch.int64, device=codes.device)
    for place, (word, shift) in enumerate(spans):
        value = grouped[:, :, place]
        words[:, :, word] |= (value << shift) & 0xFFFFFFFF
        if shift + bits > WORD:
            words[:, :, word + 1] |= value >> (WORD - shift)
    words -= (words >> (WORD - 1)) << WORD  # the same 32 bits, read as a signed number
    return words.to(torch.int32).view(codes.shape[0], -1)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """int32 [n, words] -> uint8 [n, words * 32 / bits]."""
    period, spans = _spans(bits)
    grouped = words.reshape(words.shape[0], -1, period * bits // WORD).to(torch.int64) & 0xFFFFFFFF
    codes = torch.empty(*grouped.shape[:2], period, dtype=torch.uint8, device=words.device)
    for place, (word, shift) in enumerate(spans):
        value = grouped[:, :, word] >> shift
        if shift + bits > WORD:
            value = value | (grouped[:, :, word + 1] << (WORD - shift))
        codes[:, :, place] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.view(words.shape[0], -1)


def _spans(bits: int) -> tuple[int, list[tuple[int, int]]]:
    """How many codes fill whole words, and the word and bit where each begins."""
    period = WORD if WORD % bits else WORD // bits
    return period, [divmod(bits * place, WORD) for place in range(period)]
