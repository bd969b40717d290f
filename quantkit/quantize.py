"""The way of the data for one quantized checkpoint: plan, calibrate, search, fold, round, pack, write.

    checkpoint -> model map -> samples -> statistics -> method -> format -> files

One block of the language model is in memory at a time; its packed tensors are written as soon as they exist, into a
folder that takes the target's name only when everything in it is complete.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import quantkit
from quantkit import stats_file
from quantkit.calibration import Mix, Sample, build_from
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.fold import fold
from quantkit.formats import FORMATS, Contents
from quantkit.grid import QuantizedWeight
from quantkit.methods import METHODS, Factor, Rounding
from quantkit.methods.loss import relative_error
from quantkit.model import LAYERS_PREFIX
from quantkit.output import ShardWriter, atomic_output, check_target
from quantkit.plan import Plan, make_plan
from quantkit.recipe import QuantizeOptions
from quantkit.statistics import BlockStatistics, CalibrationPass, InputStatistics, build_skeleton

if TYPE_CHECKING:
    from quantkit.model import Block, Group

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class LayerRow:
    """One quantized linear in the final table. Errors are shares of the output's energy, NaN without statistics."""

    name: str
    bits: int
    error: float
    scaled_by: str
    tokens: int


@dataclass
class Outcome:
    """What a run did: rows by linear, sizes in bytes, seconds by phase."""

    source: str
    out: Path
    plan: Plan
    rows: list[LayerRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    skipped: int = 0  # bad rows that were left out

    @property
    def bytes_after(self) -> int:
        return sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())


def quantize(options: QuantizeOptions, progress: Progress | None = None) -> Outcome:
    """Run ``options`` from checkpoint to files.

    Raises QuantkitError, one line, for anything the user can mend; the target is untouched then.
    """
    progress = progress or (lambda what, done, total: None)
    if options.out is None:
        raise QuantkitError("--out is missing: name the folder to write")
    checkpoint = open_checkpoint(options.model, options.revision, options.token)
    plan = make_plan(checkpoint, options)
    target = check_target(options.out, options.overwrite, source=checkpoint.path)
    _check_statistics_folders(options, target, checkpoint.path)
    _check_device(options.device)
    _check_names(checkpoint, plan)
    outcome = Outcome(options.model, target, plan)
    clock = _Clock(outcome.seconds)
    needs_data = METHODS[options.method].needs_data
    mix = _samples(checkpoint, options, outcome, progress) if needs_data else None
    clock.lap("prepare")
    key = _key(checkpoint, mix, plan) if mix is not None else None
    with atomic_output(target, options.overwrite, source=checkpoint.path) as folder:
        with ShardWriter(folder, _writer_specs(plan), options.max_shard_bytes) as writer:
            statistics = _statistics(checkpoint, plan, options, mix.samples if mix else [], key, progress)
            for block, found in zip(plan.map.blocks, statistics, strict=True):
                clock.lap("statistics")
                _quantize_block(checkpoint, plan, options, block, found, writer, outcome)
                progress("blocks", block.index + 1, len(plan.map.blocks))
                clock.lap("search")
            _copy_rest(checkpoint, plan, writer)
            writer.finish()
        checkpoint.copy_side_files(folder)
        _write_config(checkpoint, plan, options, folder)
        _write_provenance(checkpoint, plan, options, mix, outcome, folder)
        clock.lap("write")
    return outcome


def _check_statistics_folders(options: QuantizeOptions, target: Path, source: Path) -> None:
    """--save-stats and --stats name folders apart from --out, and not both."""
    if options.save_stats is not None and options.stats is not None:
        raise QuantkitError("--stats and --save-stats exclude each other: statistics that are read need no saving")
    for option, folder in (("--save-stats", options.save_stats), ("--stats", options.stats)):
        if folder is None:
            continue
        path = folder.expanduser().absolute()
        if path == target or path in target.parents or target in path.parents:
            raise QuantkitError(f"{option} {folder}: overlaps --out {target}; give it a folder of its own")
    if options.save_stats is not None:
        check_target(options.save_stats, options.overwrite, source=source)


class _Clock:
    """Adds the seconds since the last lap to a phase."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise QuantkitError(f"--device {device}: torch cannot use it here ({str(error).splitlines()[0]})") from error


def _check_names(checkpoint: Checkpoint, plan: Plan) -> None:
    """Every tensor of the model is there and no other (a tied head may be stored as well)."""
    tied = {"lm_head.weight"} if plan.map.tied else set()
    expected = [name for name in build_skeleton(checkpoint).state_dict() if name not in tied]
    checkpoint.check_names(expected + [name for name in tied if name in checkpoint])


def _samples(checkpoint: Checkpoint, options: QuantizeOptions, outcome: Outcome, progress: Progress) -> Mix:
    mix = build_from(options, checkpoint.path, progress)
    outcome.samples, outcome.skipped = len(mix.samples), len(mix.skipped)
    outcome.tokens = sum(sample.input_ids.numel() for sample in mix.samples)
    return mix


def _key(checkpoint: Checkpoint, mix: Mix, plan: Plan) -> stats_file.Key:
    return stats_file.Key(checkpoint.fingerprint(), mix.fingerprint, plan.dtype)


def _statistics(
    checkpoint: Checkpoint,
    plan: Plan,
    options: QuantizeOptions,
    samples: list[Sample],
    key: stats_file.Key | None,
    progress: Progress,
) -> Iterator[BlockStatistics | None]:
    """Statistics block by block: from the pass, from a saved file, or none where the method looks at no data."""
    if key is None:
        yield from [None] * len(plan.map.blocks)
    elif options.stats is not None:
        yield from stats_file.read(options.stats, key, plan.map, options.device)
    else:
        dtype = getattr(torch, plan.dtype)
        run = CalibrationPass(checkpoint, plan.map, samples, device=options.device, dtype=dtype, progress=progress)
        found = iter(run)
        if options.save_stats is not None:
            found = stats_file.record(options.save_stats, options.overwrite, key, plan.map, found)
        yield from found
        if plan.dtype == "float16" and run.abs_max > FLOAT16_MAX / 2:
            raise QuantkitError(
                f"--dtype float16: activations reach {run.abs_max:.0f}, too near float16's limit of {FLOAT16_MAX:.0f}; "
                "use --dtype bfloat16"
            )


def _quantize_block(
    checkpoint: Checkpoint,
    plan: Plan,
    options: QuantizeOptions,
    block: Block,
    statistics: BlockStatistics | None,
    writer: ShardWriter,
    outcome: Outcome,
) -> None:
    method, layout = METHODS[options.method], FORMATS[plan.format]
    rounding = Rounding(options.solver if method.needs_data else "rtn", options.act_order, options.damping)
    tensors = _load_block(checkpoint, block, options.device)
    originals = dict(tensors)
    scaled_by: dict[str, str] = {}
    columns: dict[str, Tensor] = {}
    factors: dict[str, Factor | None] = {}
    for group in block.groups:
        chosen = _quantized_linears(block, group, plan)
        if statistics is None or not chosen:
            continue
        gram = statistics.inputs[group.name].gram
        factors[group.name] = factor = rounding.factor(gram)
        if not (method.scales and options.scales) or _feeder_is_kept(block, group, plan):
            continue
        weights = [originals[name + ".weight"] for name in chosen]
        search = method.find_scale(weights, gram, group.feeder, plan.grids[block.prefix + chosen[0]], factor)
        scaled_by[group.name] = search.origin
        if search.scale is not None:
            norm = getattr(torch, plan.dtype)
            if group.feeder.kind != "rows":
                norm = getattr(torch, plan.stored_dtype(f"{block.prefix}{group.feeder.module}.weight"))
            columns[group.name] = fold(tensors, group, search.scale, norm)
    for group in block.groups:
        scale = columns.get(group.name)
        gram, tokens = _folded_gram(group, statistics, scale, options.device)
        # of scaled inputs the order of importance is another one
        factor = factors.get(group.name) if scale is None else rounding.factor(gram)
        for name in _quantized_linears(block, group, plan):
            weight = tensors.pop(name + ".weight")
            grid = plan.grids[block.prefix + name]
            quantized = method.quantize(weight, gram, grid, rounding, factor)
            error = relative_error(quantized.dequantize(), weight, gram) if statistics else float("nan")
            outcome.rows.append(LayerRow(block.prefix + name, grid.bits, error, scaled_by.get(group.name, ""), tokens))
            _add_packed(writer, layout.pack(block.prefix + name, _to_cpu(quantized), plan.dtype))
    for name, tensor in tensors.items():
        writer.add(block.prefix + name, _stored(block.prefix + name, tensor, plan).cpu())


def _folded_gram(
    group: Group, statistics: BlockStatistics | None, columns: Tensor | None, device: str
) -> tuple[Tensor, int]:
    """The Gram matrix of the scaled input, ``H_ij / (s_i s_j)``, and its tokens."""
    if statistics is None:
        return torch.empty(0, 0, device=device), 0
    inputs: InputStatistics = statistics.inputs[group.name]
    gram = inputs.gram
    if columns is not None:
        gram = gram / columns.unsqueeze(0) / columns.unsqueeze(1)
    return gram, inputs.tokens


def _quantized_linears(block: Block, group: Group, plan: Plan) -> list[str]:
    return [name for name in group.linears if block.prefix + name in plan.quantized]


def _feeder_is_kept(block: Block, group: Group, plan: Plan) -> bool:
    """A linear that --keep leaves alone takes no scale of another group into its rows either."""
    return group.feeder.kind == "rows" and block.prefix + group.feeder.module in plan.kept


def _load_block(checkpoint: Checkpoint, block: Block, device: str) -> dict[str, Tensor]:
    """Every tensor of the block, float32, by its name inside the block."""
    names = [name for name in checkpoint.tensor_names if name.startswith(block.prefix)]
    return {
        name.removeprefix(block.prefix): checkpoint.load(name, check_finite=True).to(device, torch.float32)
        for name in names
    }


def _to_cpu(weight: QuantizedWeight) -> QuantizedWeight:
    return QuantizedWeight(weight.codes.cpu(), weight.scales.cpu(), weight.zeros.cpu(), weight.spec)


def _add_packed(writer: ShardWriter, packed: dict[str, Tensor]) -> None:
    for name, tensor in packed.items():
        writer.add(name, tensor)


def _stored(name: str, tensor: Tensor, plan: Plan) -> Tensor:
    """``tensor`` in the dtype that the plan stores it in; raises if a value does not fit."""
    dtype = getattr(torch, plan.stored_dtype(name))
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        raise QuantkitError(f"{name}: its values overflow {str(dtype).removeprefix('torch.')}; use --dtype bfloat16")
    return converted


def _copy_rest(checkpoint: Checkpoint, plan: Plan, writer: ShardWriter) -> None:
    """Vision tower, mergers, embedding and final norm go over one by one, as they are."""
    prefixes = tuple(block.prefix for block in plan.map.blocks)
    for name in checkpoint.tensor_names:
        if name in plan.specs and not name.startswith(prefixes):
            writer.add(name, _stored(name, checkpoint.load(name, check_finite=True), plan))


def _writer_specs(plan: Plan) -> dict[str, tuple[torch.dtype | str, tuple[int, ...]]]:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in plan.specs.items()}


def _write_config(checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, folder: Path) -> None:
    config: dict[str, Any] = dict(checkpoint.config)
    config.pop("torch_dtype", None)
    config["dtype"] = plan.dtype
    contents = Contents(
        plan.spec, plan.grids, plan.skipped_modules(), LAYERS_PREFIX, quantkit.__version__, options.damping
    )
    config["quantization_config"] = FORMATS[plan.format].quantization_config(contents)
    _write_json(folder / "config.json", config)
    for name, content in FORMATS[plan.format].other_files(contents).items():
        _write_json(folder / name, content)


def _write_provenance(
    checkpoint: Checkpoint,
    plan: Plan,
    options: QuantizeOptions,
    mix: Mix | None,
    outcome: Outcome,
    folder: Path,
) -> None:
    """quantkit.json: what made these files. No time and no path, so that the same run gives the same bytes."""
    _write_json(
        folder / "quantkit.json",
        {
            "quantkit": quantkit.__version__,
            "source": {
                # of a local folder only its own name
                "name": checkpoint.name if checkpoint.revision else Path(checkpoint.name).name,
                "revision": checkpoint.revision,
                "fingerprint": checkpoint.fingerprint(),
            },
            "options": options.provenance(),
            "format": plan.format,
            "calibration": {
                "fingerprint": mix.fingerprint if mix else None,
                "samples": outcome.samples,
                "tokens": outcome.tokens,
                # hashes, so that verify can refuse to measure on what was calibrated on
                "items": mix.items if mix else [],
                "pictures": mix.pictures if mix else [],
                "sources": [asdict(count) for count in mix.counts] if mix else [],
                "skipped": outcome.skipped,
            },
            "versions": {"torch": torch.__version__, "transformers": _version("transformers")},
            "kept": sorted(plan.kept),
            "layers": [
                {"name": row.name, "bits": row.bits, "error": _number(row.error), "scaled_by": row.scaled_by}
                for row in outcome.rows
            ],
        },
    )


def _number(value: float) -> float | None:
    return None if value != value else float(f"{value:.6g}")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
