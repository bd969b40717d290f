"""Options of each method: what `quantkit awq`, `gptq`, `rtn`, `bnb`, `gguf` and `imatrix` ask."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from quantkit.errors import QuantkitError
from quantkit.recipe.common import StatisticsOptions, WriteOptions
from quantkit.recipe.fields import DATA, GRID, RUN, flag_of, option, parse_budget, parse_size, parse_widths

Solver = Literal["rtn", "gptq", "refine"]
MethodFormat = Literal["awq", "gptq", "compressed-tensors"]
BnbType = Literal["nf4", "fp4", "int8"]
MmprojType = Literal["f32", "f16", "bf16", "q8_0", "none"]
GgufSolver = Literal["rtn", "imatrix", "refine"]
Mixture = Literal["quantkit", "llama.cpp"]
Preset = Literal["linear-attention"]

BLOCK_SIZES = (32, 64, 128, 256, 512)
_BLOCK_WORDS = "32, 64, 128, 256 or 512"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEPT_BITS = 16  # of what stays as it is, in --budget-bits


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(StatisticsOptions):
    """Everything that decides the bytes of a quantized checkpoint, and where they go."""

    method: str = "awq"

    bits: int = option(4, "Bits a weight: 4 in AWQ's layout; 2, 3, 4 or 8 in the others.", GRID)
    budget: str | None = option(
        None,
        "Mixed precision: bits a weight of the language model's linears (but those under --keep), scales included "
        "(4.5bpw), or the size of all weights (1.7GB); what each layer would lose decides its bits.",
        GRID,
    )
    budget_bits: str | None = option(
        None,
        "Bits that --budget chooses from; 16 leaves a layer as it is. (default: 4,8,16; 4,16 in AWQ's layout)",
        GRID,
    )
    group_size: int = option(128, "Input channels that share a scale: 128, 64, 32, or -1 for a whole row.", GRID)
    symmetric: bool | None = option(
        None,
        "Fixed or free zero point. (default: free; fixed where readers ask for it: GPTQ of 4 and 8 bits, which vLLM "
        "reads in no other way, and compressed-tensors, which Transformers does not load otherwise)",
        GRID,
        flag="--symmetric/--zero-point",
    )
    method_format: MethodFormat | None = option(
        None,
        "Layout of the file: awq (4 bits), gptq or compressed-tensors. (default: the method's own; compressed-tensors "
        "for gptq with --budget, since Transformers reads one width in a file of GPTQ's layout)",
        GRID,
        choices=("awq", "gptq", "compressed-tensors"),
    )
    solver: Solver = option(
        "refine",
        "Rounding: rtn takes the nearest code; gptq feeds each column's error into the next ones; refine chooses the "
        "scales on the way and descends further from there.",
        GRID,
        choices=("rtn", "gptq", "refine"),
    )
    sequential: bool = option(
        False,
        "Let each block see what the quantized blocks before it give, and correct the drift.",
        GRID,
    )
    tune: int = option(
        0,
        "Then tune the scales and codes of all layers together, from end to end, so many times over the conversations: "
        "worth it at 2 and 3 bits; takes about 4 forward passes each time.",
        GRID,
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequential and (self.save_stats is not None or self.stats is not None):
            raise QuantkitError(
                "--sequential: its statistics belong to one variant; leave out --save-stats and --stats"
            )
        if self.tune and self.method == "rtn":
            raise QuantkitError("--tune: needs conversations, and rtn looks at no data; use awq or gptq")
        self._check_budget()

    def _check_budget(self) -> None:
        if self.budget is None:
            if self.budget_bits is not None:
                raise QuantkitError("--budget-bits: is what --budget chooses from; add --budget, or use --bits")
            return
        parse_budget(self.budget)
        if self.bits != type(self).bits:
            raise QuantkitError(f"--bits {self.bits}: --budget chooses the bits; name those it may take: --budget-bits")
        if self.method == "rtn":
            raise QuantkitError("--budget: needs what each layer loses, and rtn looks at no data; use awq or gptq")
        if self.sequential:
            raise QuantkitError("--sequential: --budget measures every layer before it chooses; leave one of them out")
        if len(self.widths) < 2:
            raise QuantkitError(f"--budget-bits {self.budget_bits}: name two widths or more, or use --bits")

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits that a linear may get, in ascending order; 16 leaves it as it is."""
        if self.budget is None:
            return (self.bits,)
        if self.budget_bits is None:
            return (4, KEPT_BITS) if self.layout == "awq" else (4, 8, KEPT_BITS)
        return parse_widths(self.budget_bits)

    @property
    def layout(self) -> str:
        """The file layout: the one asked for, or the method's own."""
        if self.method == "gptq" and self.method_format is None:
            return "gptq" if self.budget is None else "compressed-tensors"
        return self.method_format or "awq"

    @property
    def fixed_zero(self) -> bool:
        """Whether the zero point is fixed: as asked for, or as the layout's readers need it."""
        if self.symmetric is not None:
            return self.symmetric
        packed = set(self.widths) - {KEPT_BITS}
        return self.layout == "compressed-tensors" or (self.layout == "gptq" and packed <= {4, 8})

    def provenance(self) -> dict[str, object]:
        return super().provenance() | {"method_format": self.layout, "symmetric": self.fixed_zero}


@dataclass(frozen=True, kw_only=True)
class GgufOptions(StatisticsOptions):
    """What goes into GGUF files: which types, how they are chosen and how they are rounded."""

    type: tuple[str, ...] = option(
        ("Q4_K_M",),
        "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, "
        "Q6_K, IQ4_NL or IQ4_XS. May be repeated: one file each.",
        GRID,
        short="-t",
    )
    mmproj_type: MmprojType = option(
        "f16",
        "Of the vision file: f32, f16, bf16 or q8_0; none writes none.",
        GRID,
        choices=("f32", "f16", "bf16", "q8_0", "none"),
    )
    solver: GgufSolver = option(
        "refine",
        "Rounding: rtn looks at no data; imatrix weighs each column by its mean square; refine feeds errors forward "
        "and descends on codes and scales, on the whole Gram matrix. With --imatrix: imatrix, and no scales.",
        GRID,
        choices=("rtn", "imatrix", "refine"),
    )
    imatrix: Path | None = option(
        None, "Weigh by this importance matrix of llama.cpp (.gguf or .dat) instead of calibrating.", DATA, place=True
    )
    mixture: Mixture = option(
        "quantkit",
        "Which tensor gets which type: llama.cpp is llama-quantize's choice to the letter; quantkit keeps ssm_alpha "
        "and ssm_beta at 8 bits on top of it.",
        GRID,
        choices=("quantkit", "llama.cpp"),
    )
    preset: Preset | None = option(
        None,
        "linear-attention: ssm_out, attn_qkv and attn_gate, where this family loses most, at 8 bits.",
        GRID,
        choices=("linear-attention",),
    )
    tensor_type: tuple[str, ...] = option(
        (), "PATTERN=TYPE, such as ssm_out=Q8_0: these tensors get that type. May be repeated.", GRID
    )
    budget: str | None = option(
        None,
        "Mixed types: bits a weight of the language model's linears (4.5bpw), or the size of the text file (500MB); "
        "what each would lose decides its type. --type says what all else is.",
        GRID,
    )
    budget_types: str | None = option(
        None, "Types that --budget chooses from. (default: Q3_K,Q4_K,Q5_K,Q6_K,Q8_0)", GRID
    )
    token_embedding_type: str | None = option(None, "Type of the embedding.", GRID)
    output_type: str | None = option(None, "Type of the head, or of the embedding where they are tied.", GRID)
    split_max_size: str | None = option(
        None, "Largest file, as 2GB or 500MB; larger ones become NAME-00001-of-00003.gguf. (default: one file)", RUN
    )
    name: str | None = option(None, "What files are called: NAME-Q4_K_M.gguf. (default: the model's name)", RUN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.type, str):
            object.__setattr__(self, "type", (self.type,))
        if self.imatrix is not None and self.solver == "refine":  # a diagonal is all there is
            object.__setattr__(self, "solver", "imatrix")
        if self.solver == "rtn" and (self.stats is not None or self.save_stats is not None):
            raise QuantkitError("--solver rtn: looks at no data; leave out --stats and --save-stats")
        if self.split_max_size is not None:
            parse_size(self.split_max_size, "--split-max-size")
        if self.name is not None and (not _FILE_NAME.fullmatch(self.name) or self.name.startswith("mmproj")):
            raise QuantkitError(
                f"--name {self.name!r}: use letters, digits, dots, dashes and underscores, and not mmproj in front"
            )
        if self.imatrix is not None and (self.stats is not None or self.save_stats is not None):
            raise QuantkitError("--imatrix: takes the place of calibration; leave out --stats and --save-stats")
        if self.imatrix is not None and self.solver == "rtn":
            raise QuantkitError("--solver rtn: looks at no data; leave out --imatrix")
        if self.budget is None and self.budget_types is not None:
            raise QuantkitError("--budget-types: is what --budget chooses from; add --budget")
        if self.budget is not None:
            parse_budget(self.budget)
            if not self.looks_at_data:
                raise QuantkitError("--budget: needs what each layer loses; leave out --solver rtn and --imatrix")

    def provenance(self) -> dict[str, object]:
        """Without what the command does not ask for, and of calibration only what was done."""
        left_out = {"keep", "dtype", "max_shard_size"}
        if not self.looks_at_data:
            names = {one.name for one in fields(StatisticsOptions)} - {one.name for one in fields(WriteOptions)}
            left_out |= names - {"downsample_mode"}
        return {name: value for name, value in super().provenance().items() if name not in left_out}

    @property
    def method(self) -> str:
        """What titles say."""
        return "gguf"

    @property
    def looks_at_data(self) -> bool:
        """Whether there is a calibration pass, where some tensor is to hold integers."""
        return self.solver != "rtn" and self.imatrix is None

    @property
    def split_bytes(self) -> int | None:
        return None if self.split_max_size is None else parse_size(self.split_max_size, "--split-max-size")


@dataclass(frozen=True, kw_only=True)
class ImatrixOptions(StatisticsOptions):
    """An importance matrix alone."""

    out: Path | None = option(None, "File to write. (default: ./MODEL-imatrix.gguf)", RUN, short="-o", place=True)

    @property
    def method(self) -> str:
        """What titles say."""
        return "imatrix"


@dataclass(frozen=True, kw_only=True)
class BnbOptions(WriteOptions):
    """What bitsandbytes rounds to, and what its layers compute in."""

    type: BnbType = option(
        "nf4",
        "nf4 or fp4 (4 bits: levels of a normal distribution, or of a small float), int8 (a scale a row, LLM.int8()).",
        GRID,
        choices=("nf4", "fp4", "int8"),
    )
    double_quant: bool = option(
        True, "Store the 4-bit types' scales in 8 bits.", GRID, flag="--double-quant/--no-double-quant"
    )
    block_size: int = option(64, f"Weights that share a scale, in the 4-bit types: {_BLOCK_WORDS}.", GRID)
    compute_dtype: str = option(
        "bfloat16",
        "What the 4-bit layers multiply in: bfloat16, float16 or float32.",
        GRID,
        choices=("bfloat16", "float16", "float32"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size not in BLOCK_SIZES:
            raise QuantkitError(f"--block-size {self.block_size}: use {_BLOCK_WORDS}")
        for name in ("double_quant", "block_size", "compute_dtype"):
            if self.type == "int8" and getattr(self, name) != getattr(BnbOptions, name):
                flag = "--no-double-quant" if name == "double_quant" else flag_of(name)
                raise QuantkitError(f"{flag}: is for nf4 and fp4; --type int8 has one float32 scale a row")

    @property
    def method(self) -> str:
        """What titles and default names say."""
        return self.type

    @property
    def bits(self) -> int:
        return 8 if self.type == "int8" else 4
