"""quantkit.json: what made a variant, so that `quantkit reproduce` can make it again.

No path and no date; `seconds`, by phase, is the one entry that differs between two runs of the same recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import quantkit
from quantkit.recipe import recorded

if TYPE_CHECKING:
    from quantkit.calibration import Mix
    from quantkit.checkpoint import Checkpoint
    from quantkit.recipe import WriteOptions

PACKAGES = ("torch", "transformers")


def provenance(
    checkpoint: Checkpoint,
    options: WriteOptions,
    layout: str,
    mix: Mix | None,
    seconds: Mapping[str, float],
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """What every variant records: source, resolved recipe, file layout, data, versions, timings.

    seconds: by phase, of the run so far.
    """
    return {
        "quantkit": quantkit.__version__,
        "source": {
            # of a local folder only its own name
            "name": checkpoint.name if checkpoint.revision else Path(checkpoint.name).name,
            "revision": checkpoint.revision,
            "fingerprint": checkpoint.fingerprint(),
        },
        "recipe": recorded(options),
        "format": layout,
        "calibration": {
            "fingerprint": mix.fingerprint if mix else None,
            "samples": len(mix.samples) if mix else 0,
            "tokens": sum(sample.input_ids.numel() for sample in mix.samples) if mix else 0,
            # hashes, so that verify can refuse to measure on what was calibrated on
            "items": mix.items if mix else [],
            "pictures": mix.pictures if mix else [],
            "sources": [asdict(count) for count in mix.counts] if mix else [],
            "skipped": len(mix.skipped) if mix else 0,
        },
        "versions": {package: torch.__version__ if package == "torch" else version(package) for package in packages},
        "threads": torch.get_num_threads(),
        "seconds": {phase: round(count, 3) for phase, count in seconds.items()},
    }


def number(value: float) -> float | None:
    """Six digits; None where it is no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, UTF-8, with a last line's end."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
