"""Options of `quantkit chat`: what decides an answer, besides the question and the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.recipe.common import PictureOptions
from quantkit.recipe.fields import ANSWERS, ASK, PICTURES, RUN, option
from quantkit.recipe.measure import MeasureDtype

LARGEST_SEED = 2**32 - 2


@dataclass(frozen=True, kw_only=True)
class ChatOptions(PictureOptions):
    """None: as the model's own files, or the runtime, have it."""

    system: str | None = option(None, "The system prompt.", ASK)
    downsample_mode: str | None = option(
        None, "Visual token compression: 16x or 4x. (default: the processor's)", PICTURES, choices=("16x", "4x")
    )
    enable_thinking: bool = option(False, "Let the model reason before it answers.", ANSWERS)
    max_new_tokens: int = option(512, "Longest answer.", ANSWERS, least=1)
    temperature: float | None = option(
        None, "Sample at this temperature. (default: greedy; 1 with --top-p, --top-k)", ANSWERS
    )
    top_p: float | None = option(None, "Sample among the likeliest that make up this share.", ANSWERS)
    top_k: int | None = option(None, "Sample among so many likeliest tokens.", ANSWERS, least=1)
    seed: int = option(0, "Of sampling, for each answer anew.", ANSWERS, least=0)
    engine: str = option(
        "auto",
        "auto: the method's kernels where installed, else dequantized (the file's weights in the reference model); "
        "transformers, dequantized; llama.cpp for GGUF.",
        RUN,
        choices=("auto", "transformers", "dequantized", "llama.cpp"),
    )
    device: str | None = option(None, "cpu, cuda, cuda:1. (default: cuda where there is one)", RUN)
    dtype: MeasureDtype = option("bfloat16", "bfloat16 or float32.", RUN, choices=("bfloat16", "float32"))
    mmproj: Path | None = option(None, "The vision file of a .gguf, where it cannot be told.", RUN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise QuantkitError(f"--temperature must be 0 (greedy) or above, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise QuantkitError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise QuantkitError("--temperature 0 is greedy: leave --top-p and --top-k out")
        if self.seed > LARGEST_SEED:
            raise QuantkitError(f"--seed {self.seed}: must be at most {LARGEST_SEED}")

    @property
    def sampling_temperature(self) -> float | None:
        """The temperature to sample at; None: greedy."""
        if self.temperature is not None:
            return self.temperature or None
        return 1.0 if self.top_p is not None or self.top_k is not None else None
