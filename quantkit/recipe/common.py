"""Options that several methods share: the model, what is written, the conversations, the statistics of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.errors import QuantkitError
from quantkit.recipe.fields import DATA, GRID, MODEL, PICTURES, RUN, Options, option, parse_size

DownsampleMode = Literal["16x", "4x", "both"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]

SAMPLES = 128  # conversations, where neither a count nor a token budget is asked for


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which checkpoint."""

    model: str = option("tiny", "A folder, a hub id (openbmb/MiniCPM-V-4.6), or tiny.", MODEL, short="-m", place=True)
    revision: str | None = option(None, "Branch, tag or commit of a hub id.", MODEL)
    token: str | None = option(None, "Hub token. (default: the hub's own login)", MODEL, envvar="HF_TOKEN", place=True)


@dataclass(frozen=True, kw_only=True)
class WriteOptions(ModelOptions):
    """What every command that writes a checkpoint asks: where to, what stays unquantized and in which dtype."""

    out: Path | None = option(None, "Folder to write. (default: ./MODEL-METHOD)", RUN, short="-o", place=True)
    keep: tuple[str, ...] = option(
        (), "Leave these layers unquantized: a part of their name, * allowed. May be repeated.", GRID
    )
    device: str = option("cpu", "cpu, cuda, cuda:1.", RUN, place=True)
    dtype: Dtype = option(
        "auto",
        "Of what stays unquantized, and of the calibration pass: auto (the source's), bfloat16, float16, float32.",
        RUN,
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    max_shard_size: str = option("5GB", "Largest weight file, as 5GB or 500MB.", RUN)
    overwrite: bool = option(False, "Replace an existing folder, once the new one is complete.", RUN, place=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.max_shard_size, "--max-shard-size")

    @property
    def max_shard_bytes(self) -> int:
        return parse_size(self.max_shard_size, "--max-shard-size")


@dataclass(frozen=True, kw_only=True)
class PictureOptions(Options):
    """How pictures and clips are cut up; None: as the checkpoint's processor has it."""

    max_slice_nums: int | None = option(
        None, "Most slices an image is cut into. (default: the processor's)", PICTURES, least=1
    )
    max_num_frames: int | None = option(
        None, "Most frames taken of a clip. (default: the processor's)", PICTURES, least=1
    )
    stack_frames: int | None = option(
        None, "Frames of a second stacked into one picture. (default: the processor's)", PICTURES, least=1
    )
    use_image_id: bool | None = option(None, "Number the pictures in the prompt. (default: the processor's)", PICTURES)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(PictureOptions, ModelOptions):
    """Which conversations, and how the model sees them."""

    calib: tuple[str, ...] = option(
        ("bundled",),
        "bundled, photos, a folder of images, a .jsonl, .json, .parquet or .csv of chats, or a data set's id; with "
        ",weight=2 and other settings behind commas (see README). May be repeated.",
        DATA,
    )
    samples: int | None = option(
        None, f"Conversations to calibrate on. (default: {SAMPLES}, or as the budget allows)", DATA, least=1
    )
    token_budget: int | None = option(None, "Tokens to calibrate on in all, visual ones included.", DATA, least=1)
    max_tokens: int = option(2048, "Longest conversation, visual tokens included.", DATA, least=1)
    seed: int = option(0, "Decides which conversations are taken.", DATA)
    skip_bad: bool = option(False, "Leave bad rows out and count them, instead of stopping at the first.", DATA)
    eval_data: str = option(
        "heldout",
        "The data that the variant will be measured on, as in --calib (no benchmark's name); nothing of it is used.",
        DATA,
    )
    allow_overlap: bool = option(False, "Calibrate although some of it is in --eval-data.", DATA)
    private_urls: bool = option(False, "Fetch pictures from addresses of a private network, too.", DATA, place=True)
    cache: Path | None = option(None, "Where prepared samples are kept. (default: ~/.cache/quantkit)", DATA, place=True)
    no_cache: bool = option(False, "Neither use nor keep prepared samples.", DATA, place=True)

    downsample_mode: DownsampleMode = option(
        "16x",
        "Visual token compression: 16x, 4x or both, half of the samples each.",
        PICTURES,
        choices=("16x", "4x", "both"),
    )
    enable_thinking: bool | None = option(
        None, "Prompt for a reasoning part. (default: where the answer carries one)", PICTURES
    )

    def __post_init__(self) -> None:
        if isinstance(self.calib, str):
            object.__setattr__(self, "calib", (self.calib,))
        if self.samples is None and self.token_budget is None:
            object.__setattr__(self, "samples", SAMPLES)
        super().__post_init__()

    def provenance(self) -> dict[str, object]:
        return super().provenance() | {
            "calib": [_public(source) for source in self.calib],
            "eval_data": _public(self.eval_data),
        }


def _public(source: str) -> str:
    """Of local data only its own name; what can be had anywhere as it is."""
    pieces = source.split(",")
    local = source.startswith((".", "/", "~")) or any(
        is_path(",".join(pieces[:count])) for count in range(1, len(pieces) + 1)
    )
    return Path(source).name if local else source


def is_path(text: str) -> bool:
    """Whether there is something of that name on this machine."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such home
        return False


@dataclass(frozen=True, kw_only=True)
class StatisticsOptions(CalibrationOptions, WriteOptions):
    """What every method asks that looks at the statistics of linear inputs."""

    scales: bool = option(
        True,
        "Fold activation-aware scales (AWQ) into what feeds each input.",
        GRID,
        flag="--scales/--no-scales",
        late=True,
    )
    act_order: bool = option(
        True,
        "Round important columns first; groups stay where they are.",
        GRID,
        flag="--act-order/--no-act-order",
        late=True,
    )
    damping: float = option(0.01, "Added to the Gram matrix, as a share of its mean diagonal.", GRID, late=True)
    save_stats: Path | None = option(None, "Keep the calibration statistics in this folder.", DATA, place=True)
    stats: Path | None = option(
        None, "Use statistics kept by --save-stats: no pass is made for them.", DATA, place=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping < 1:
            raise QuantkitError(f"--damping {self.damping}: must lie between 0 and 1")
        if self.save_stats is not None and self.stats is not None:
            raise QuantkitError("--stats and --save-stats exclude each other: statistics that are read need no saving")
