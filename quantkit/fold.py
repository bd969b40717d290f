"""Folding: moves a scale from the input channels of a group of linears into whatever feeds them.

``W -> W * s`` on the columns of every consumer, and the feeder divided by ``s`` (see ``quantkit.model``), so that the
float model computes what it did. A norm weight is stored in the model's dtype, and near ``1 + w = 0`` bfloat16 is
coarse; hence the norm is rounded *first*, and the consumers take the ratio that the rounded norm really has. The fold
is then exact whatever dtype the norm is stored in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.model import Feeder, Group


def expand(scale: Tensor, feeder: Feeder) -> Tensor:
    """A scale of the feeder's channels [channels] -> of the group's input channels [in]."""
    return scale if feeder.index is None else scale[torch.tensor(feeder.index, device=scale.device)]


def pool(values: Tensor, feeder: Feeder, reduce: str) -> Tensor:
    """A statistic of the input channels [in] -> of the feeder's channels [channels]; reduce: "mean" or "amax"."""
    if feeder.index is None:
        return values
    index = torch.tensor(feeder.index, device=values.device)
    empty = torch.zeros(feeder.channels, dtype=values.dtype, device=values.device)
    return empty.scatter_reduce(0, index, values, reduce, include_self=False)


def achievable_scale(scale: Tensor, feeder: Feeder, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The norm weight to store and the scale it really stands for.

    scale float32 [channels]; weight: the norm's, [channels]; dtype: what it is stored in. Returns the new weight
    (float32 values that ``dtype`` holds exactly) and the exact scale. A channel that the norm shuts off (gain 0) or
    whose new gain would round to 0 keeps its weight and scale 1.
    """
    offset = 1.0 if feeder.kind == "one_plus_weight" else 0.0
    gain = weight.float() + offset
    stored = (gain / scale - offset).to(dtype).float()
    new_gain = stored + offset
    usable = (gain != 0) & (new_gain != 0) & torch.isfinite(new_gain)
    stored = torch.where(usable, stored, weight.float())
    exact = torch.where(usable, gain / torch.where(usable, new_gain, 1.0), 1.0)
    return stored, exact


def fold(tensors: dict[str, Tensor], group: Group, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Fold ``scale`` float32 [feeder channels] of ``group`` into ``tensors`` (float32, names inside the block).

    Replaces entries of the dict, never changes a tensor in place. Returns the exact scale of the group's input
    channels [in].
    """
    feeder = group.feeder
    name = feeder.module + ".weight"
    if feeder.kind == "rows":
        tensors[name] = tensors[name] / scale.unsqueeze(1)
    else:
        tensors[name], scale = achievable_scale(scale, feeder, tensors[name], dtype)
    columns = expand(scale, feeder)
    for consumer in (*group.linears, *group.passengers):
        tensors[consumer + ".weight"] = tensors[consumer + ".weight"] * columns
    return columns
