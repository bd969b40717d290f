"""One schema for every option: the command line fills it, and its defaults are the defaults everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DownsampleMode = Literal["16x", "4x", "both"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Solver = Literal["rtn", "gptq"]


class QuantizeOptions(BaseModel):
    """Everything that decides the bytes of a quantized checkpoint, and where they go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "awq"
    model: str = "tiny"
    out: Path | None = None
    revision: str | None = None
    token: str | None = Field(default=None, repr=False)

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    solver: Solver = "gptq"
    keep: tuple[str, ...] = ()

    calib: str = "bundled"
    samples: int = 128
    max_tokens: int = 2048
    downsample_mode: DownsampleMode = "16x"
    max_slice_nums: int | None = None
    seed: int = 0

    device: str = "cpu"
    dtype: Dtype = "auto"
    max_shard_bytes: int = 5_000_000_000
    overwrite: bool = False
    save_stats: Path | None = None
    stats: Path | None = None

    def provenance(self) -> dict[str, object]:
        """What ``quantkit.json`` records: the options that decide the bytes, none that names a place or a secret."""
        places = {"out", "token", "overwrite", "save_stats", "stats", "model", "device"}
        return self.model_dump(mode="json", exclude=places) | {"calib": Path(self.calib).name}


DEFAULTS = QuantizeOptions()
