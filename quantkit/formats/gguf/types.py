"""ggml's tensor types: numbers, block lengths and sizes, as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
and ggml's headers number them.

A row of a tensor is cut into blocks of ``block`` values, each stored in ``nbytes`` bytes; a type whose block does not
divide a row cannot hold it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """number: in the file. block: values that are stored together. nbytes: of one block."""

    name: str
    number: int
    block: int
    nbytes: int

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of ``width`` values; the block must divide it."""
        return width // self.block * self.nbytes

    def fits(self, width: int) -> bool:
        return width % self.block == 0

    @property
    def bits(self) -> float:
        """Bits a value, scales included."""
        return 8 * self.nbytes / self.block


_ROWS = (
    ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2),
    ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210), ("IQ4_NL", 20, 32, 18), ("IQ4_XS", 23, 256, 136),
)  # fmt: skip
TYPES = {row[0]: TensorType(*row) for row in _ROWS}

# types that quantkit reads the size of, and does not write
_OTHERS = (
    ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50), ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82),
    ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8), ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
    ("Q8_K", 15, 256, 292), ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18),
)  # fmt: skip
BY_NUMBER = {kind.number: kind for kind in (*TYPES.values(), *(TensorType(*row) for row in _OTHERS))}

# what a whole file is called -> general.file_type
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
    "BF16": 32,
}  # fmt: skip
