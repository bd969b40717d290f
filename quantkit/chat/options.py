"""What decides an answer, besides the question and the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.calibration.prepare import MODES
from quantkit.errors import QuantkitError
from quantkit.verify.options import DTYPES

ENGINES = ("auto", "transformers", "dequantized", "llama.cpp")


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Every field is described at the command line; None: as the model's own files, or the runtime, have it."""

    downsample_mode: str | None = None
    max_slice_nums: int | None = None
    max_num_frames: int | None = None
    stack_frames: int | None = None
    use_image_id: bool | None = None
    enable_thinking: bool = False
    system: str | None = None
    max_new_tokens: int = 512
    temperature: float | None = None  # None: greedy, unless top_p or top_k is given, then 1
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    engine: str = "auto"
    device: str | None = None  # None: cuda where torch finds one
    dtype: str = "bfloat16"
    mmproj: Path | None = None

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--downsample-mode", self.downsample_mode, (*MODES, None)),
            ("--engine", self.engine, ENGINES),
            ("--dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise QuantkitError(f"{flag} {value}: unknown; use {' or '.join(name for name in known if name)}")
        for name in ("max_slice_nums", "max_num_frames", "stack_frames", "max_new_tokens", "top_k"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise QuantkitError(f"--{name.replace('_', '-')} must be at least 1, not {count}")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise QuantkitError(f"--temperature must be 0 (greedy) or above, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise QuantkitError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise QuantkitError("--temperature 0 is greedy: leave --top-p and --top-k out")

    @property
    def sampling_temperature(self) -> float | None:
        """The temperature to sample at; None: greedy."""
        if self.temperature is not None:
            return self.temperature or None
        return 1.0 if self.top_p is not None or self.top_k is not None else None
