"""What decides the figures, besides the two models and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.verify.engines import ENGINES
from quantkit.verify.gates import Gate

DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class VerifyOptions:
    """Options of `verify`; every field is described at the command line as well."""

    engines: tuple[str, ...] = ("dequantized",)
    samples: int | None = None  # None: every item
    max_tokens: int = 2048  # an item longer than that is left out
    downsample_mode: str = "16x"  # "16x", "4x", or "both" (alternating within each modality)
    max_slice_nums: int | None = None  # None: the processor's own
    seed: int = 0  # of the selection
    dtype: str = "float32"  # "float32" shows quantization alone; in "bfloat16" its own rounding is added
    device: str = "cpu"
    generate: bool = True  # greedy answers of both models
    max_new_tokens: int = 64
    noise: bool = True  # the reference's own noise floor
    cache: Path | None = None  # folder of stored reference passes; None: none is kept
    quick: bool = False  # integrity checks only
    gates: tuple[Gate, ...] = ()
    # where engines outside this process are found
    url: str | None = None
    engine_python: Path | None = None
    mmproj: Path | None = None
    served_name: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for engine in self.engines:
            if engine not in ENGINES:
                raise QuantkitError(f"--engine {engine}: unknown; known are {', '.join(ENGINES)}")
        if not self.engines or len(set(self.engines)) != len(self.engines):
            raise QuantkitError("--engine: name at least one engine, and none twice")
        if self.dtype not in DTYPES:
            raise QuantkitError(f"dtype '{self.dtype}' is unknown to verify: use {' or '.join(DTYPES)}")
        check_device(self.device)
        if self.max_new_tokens < 1:
            raise QuantkitError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    def recorded(self) -> dict[str, object]:
        """What `report.json` says of them: no place, no secret."""
        names = (
            "engines", "samples", "max_tokens", "downsample_mode", "max_slice_nums", "seed", "dtype", "device",
            "generate", "max_new_tokens", "noise", "quick",
        )  # fmt: skip
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names}


def check_device(name: str) -> None:
    """Raise `QuantkitError` where torch has no such device."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise QuantkitError(f"--device {name}: torch cannot use it here ({str(error).splitlines()[0]})") from error
