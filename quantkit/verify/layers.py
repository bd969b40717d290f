"""Where the error grows: relative output error of the vision tower, each block and each linear.

    error = ||candidate - reference||_F / ||reference||_F        over the probed positions, each model on its own inputs

A few items are run one by one with hooks on the modules; of each output a few rows are kept, evenly spaced. A linear
whose rows feed a scaled input (`up_proj`, `v_proj`) may differ from the reference by an exact positive scale a channel,
so that scale is fitted (least squares) before its error is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration import Sample
from quantkit.verify.report import LayerError

ITEMS_A_MODALITY = 1
ROWS = 16  # kept of each output and item
LARGEST = 1e4  # of an error: a ruined model's is capped, so that it can be written
ROW_SCALED = ("mlp.up_proj", "self_attn.v_proj")
_BLOCK = re.compile(r"model\.language_model\.layers\.(\d+)")
_LINEAR = re.compile(r"model\.language_model\.layers\.(\d+)\.((?:self_attn|linear_attn|mlp)\.\w+_proj\w*)")
_VISION = re.compile(r"model\.vision_tower\.encoder\.layers\.(\d+)")
_MERGERS = ("model.vision_tower.vit_merger", "model.merger")


def probed(samples: Sequence[Sample]) -> list[int]:
    """Indices of the items that are looked into: the first of each modality."""
    seen: dict[str, int] = {}
    chosen = []
    for index, sample in enumerate(samples):
        if seen.get(sample.modality, 0) < ITEMS_A_MODALITY:
            seen[sample.modality] = seen.get(sample.modality, 0) + 1
            chosen.append(index)
    return chosen


def kind_of(name: str) -> tuple[str, int | None] | None:
    """(kind, layer) of a module that is probed, None for any other."""
    if name in _MERGERS:
        return "merger", None
    for kind, pattern in (("linear", _LINEAR), ("block", _BLOCK), ("vision", _VISION)):
        match = pattern.fullmatch(name)
        if match:
            return kind, int(match[1])
    return None


@torch.inference_mode()
def collect(model: Any, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Outputs of every probed module, float32 [rows, channels] on the CPU, by module name."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            # a block gives (states, ...), the merger a list with one tensor a picture
            tensors = output if isinstance(output, list) else [output[0] if isinstance(output, tuple) else output]
            rows = torch.cat([tensor.detach().reshape(-1, tensor.shape[-1]) for tensor in tensors])
            chosen = torch.linspace(0, rows.shape[0] - 1, min(ROWS, rows.shape[0]), device=rows.device).long()
            found.setdefault(name, []).append(rows[chosen].float().cpu())

        return hook

    handles = [
        module.register_forward_hook(keep(name)) for name, module in model.named_modules() if kind_of(name) is not None
    ]
    try:
        for sample in samples:
            inputs = {name: tensor.to(model.device) for name, tensor in sample.inputs.items()}
            model.model(**inputs, downsample_mode=sample.downsample_mode, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def relative_error(reference: Tensor, candidate: Tensor, fit_channels: bool = False) -> float:
    """||candidate - reference|| / ||reference||, [rows, channels] each; 0 where both are zero, at most `LARGEST`."""
    reference, candidate = reference.double(), candidate.double()
    if fit_channels:
        scale = (reference * candidate).sum(0) / candidate.square().sum(0).clamp_min(1e-300)
        candidate = candidate * scale.clamp_min(0)
    norm = float(reference.norm())
    difference = float((candidate - reference).norm())
    if difference == 0:
        return 0.0
    error = difference / norm if norm else LARGEST
    return min(error, LARGEST) if math.isfinite(error) else LARGEST


def errors(reference: dict[str, Tensor], candidate: dict[str, Tensor]) -> list[LayerError]:
    """One row a module, in the model's order; blocks also say how much their error grew over the block before."""
    rows: list[LayerError] = []
    previous = 0.0
    for name, expected in reference.items():
        place = kind_of(name)
        if place is None or name not in candidate or candidate[name].shape != expected.shape:
            continue
        kind, layer = place
        error = relative_error(expected, candidate[name], fit_channels=name.endswith(ROW_SCALED))
        growth = None
        if kind == "block":
            growth, previous = error - previous, error
        rows.append(LayerError(name=name, kind=kind, layer=layer, error=error, growth=growth))  # type: ignore[arg-type]
    order = {"vision": 0, "merger": 1, "block": 2, "linear": 3}
    return sorted(rows, key=lambda row: order[row.kind])
