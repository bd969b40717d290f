"""Options of `quantkit verify`: what is measured, on what, in which engines, and where the report goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.recipe.common import DownsampleMode
from quantkit.recipe.fields import ENGINES, GATES, ITEMS, REPORTS, RUN, Options, option

MeasureDtype = Literal["bfloat16", "float32"]
_LIMIT = "May be repeated, GROUP=NUMBER for one modality, mode or language."


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Options):
    """What decides the figures, besides the two models and the data, and where engines are found."""

    samples: int | None = option(None, "Items to take, by modality. (default: all)", ITEMS, least=1)
    max_tokens: int = option(2048, "Longer items are left out.", ITEMS, least=1)
    downsample_mode: DownsampleMode = option(
        "16x", "Visual token compression: 16x, 4x or both, by turns.", ITEMS, choices=("16x", "4x", "both")
    )
    max_slice_nums: int | None = option(
        None, "Most slices an image is cut into. (default: the processor's)", ITEMS, least=1
    )
    seed: int = option(0, "Decides which items are taken.", ITEMS)
    quick: bool = option(False, "Check the files only: seconds, no model is run.", RUN)
    max_new_tokens: int = option(64, "Longest greedy answer.", RUN, least=1)
    dtype: MeasureDtype = option(
        "float32",
        "float32 shows quantization alone; bfloat16 adds its own rounding.",
        RUN,
        choices=("bfloat16", "float32"),
    )
    device: str = option("cpu", "cpu, cuda, cuda:1.", RUN)
    cache: Path | None = option(None, "Where reference passes are kept. (default: ~/.cache/quantkit)", RUN, place=True)
    engine_python: Path | None = option(None, "Python of the environment that has vLLM.", ENGINES, place=True)
    url: str | None = option(None, "A running server: http://localhost:8000.", ENGINES, place=True)
    served_name: str | None = option(None, "The model's name at that server.", ENGINES, place=True)
    api_key: str | None = option(
        None, "Key of that server, or $QUANTKIT_API_KEY.", ENGINES, envvar="QUANTKIT_API_KEY", place=True
    )
    timeout: float = option(600.0, "Seconds without progress.", ENGINES, least=1, place=True)
    mmproj: Path | None = option(None, "The vision file of a .gguf, where it cannot be told.", ENGINES, place=True)


@dataclass(frozen=True, kw_only=True)
class VerifyCommandOptions(MeasureOptions):
    """`quantkit verify` as it is typed."""

    data: str = option(
        "heldout",
        "heldout, anything --calib takes (answers are scored where given), or a benchmark: MMBench, OCRBench, "
        "HallusionBench, MMMU, RefCOCO, Video-MME; NAME:SPLIT=FOLDER for a local copy.",
        ITEMS,
    )
    no_cache: bool = option(False, "Neither use nor keep a reference pass.", RUN, place=True)
    engine: tuple[str, ...] = option(
        (),
        "dequantized: the file's weights in the reference model; transformers, vllm, llama.cpp, sglang, ollama: the "
        "real runtime. May be repeated. (default: dequantized, llama.cpp for a .gguf)",
        ENGINES,
    )
    max_kl: tuple[str, ...] = option((), f"Largest mean KL, nats. {_LIMIT}", GATES)
    max_kl_p99: tuple[str, ...] = option((), f"Largest 99th percentile of KL, nats. {_LIMIT}", GATES)
    min_top1: tuple[str, ...] = option((), f"Smallest share of equal first choices. {_LIMIT}", GATES)
    max_accuracy_drop: tuple[str, ...] = option((), f"Largest loss of score, as a share. {_LIMIT}", GATES)
    min_agreement: tuple[str, ...] = option((), f"Smallest share of equal greedy answers. {_LIMIT}", GATES)
    recipe: Path | None = option(None, "YAML with a section gates; options here come first.", GATES, place=True)
    report: Path | None = option(
        None,
        "Folder (or .json) for report.json, .md and .html. (default: QUANT, ./ for a hub id or .gguf)",
        REPORTS,
        place=True,
    )
    junit: Path | None = option(None, "Write the gates and checks as JUnit XML.", REPORTS, place=True)


LIMITS = ("max_kl", "max_kl_p99", "min_top1", "max_accuracy_drop", "min_agreement")
