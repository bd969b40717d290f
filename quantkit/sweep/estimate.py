"""What a sweep will take: time by the rates that `quantkit doctor` knows, disk for the shared statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quantkit.checkpoint import Checkpoint
from quantkit.doctor.estimate import RANGE, REST, estimated_seconds, words
from quantkit.plan import source_map
from quantkit.recipe import SAMPLES
from quantkit.statistics import MODALITIES
from quantkit.sweep.local import shared_statistics
from quantkit.sweep.plan import Cell, Sweep
from quantkit.sweep.work import Planned

HELD_OUT = 410  # items of the default evaluation


@dataclass(frozen=True)
class Foretold:
    """cells: seconds of each, its verification included; passes: keys of the shared calibration passes."""

    cells: dict[str, float]
    passes: list[str]
    seconds: float
    statistics_bytes: int

    @property
    def words(self) -> str:
        """The time, with the range of the estimate."""
        low, high = (share * self.seconds for share in RANGE)
        return f"{words(self.seconds)} ({words(low)} to {words(high)}) one after the other, on two cores of a server"


def estimate(
    checkpoint: Checkpoint,
    sweep: Sweep,
    cells: Sequence[Cell],
    planned: Mapping[str, Planned],
    made: Collection[str] = (),
) -> Foretold:
    """Time and disk of ``cells``; those in ``made`` are only measured. A pass of verification is reckoned as one of
    calibration over as many items."""
    model_map = source_map(checkpoint)
    weights = sum(out * inputs for out, inputs in model_map.linears().values())
    parameters = checkpoint.num_parameters()
    measured = 0 if sweep.verify.quick else sweep.verify.samples or HELD_OUT
    verify = _pass(parameters, measured)
    shared = shared_statistics([cell for cell in cells if cell.name not in made], planned)
    seconds = {}
    for cell in cells:
        if cell.name in made:
            seconds[cell.name] = verify
            continue
        looks_at_data = planned[cell.name].statistics is not None
        own = looks_at_data and planned[cell.name].statistics not in shared
        search = estimated_seconds(parameters, weights if looks_at_data else 0, 0) - REST
        seconds[cell.name] = search + verify + (_pass(parameters, _samples(cell)) if own else 0.0)
    passes = sum(_pass(parameters, _samples(cell)) for cell in shared.values())
    started = REST + verify if cells else 0.0  # imports, the reference's own pass
    total = started + passes + sum(seconds.values())
    squares = sum(group.in_features**2 for block in model_map.blocks for group in block.groups)
    return Foretold(seconds, list(shared), total, len(shared) * len(MODALITIES) * squares * 2)


def _pass(parameters: int, samples: int) -> float:
    return estimated_seconds(parameters, 0, samples) - REST


def _samples(cell: Cell) -> int:
    return getattr(cell.options, "samples", None) or SAMPLES
