"""The way of the data for one quantized checkpoint: plan, calibrate, search, fold, round, pack, write.

    checkpoint -> model map -> samples -> statistics -> method -> format -> files

One block of the language model is in memory at a time; its packed tensors are written as soon as they exist, into a
folder that takes the target's name only when everything in it is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import quantkit
from quantkit.blockwise import LayerRow, QuantizedBlock, quantize_block
from quantkit.budget import Choice, allocate
from quantkit.calibration import Mix, Sample
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS, Contents
from quantkit.gather import (
    Clock,
    Data,
    Progress,
    Statistics,
    check_statistics_folders,
    drop_statistics,
    gather,
    keep_statistics,
)
from quantkit.grid import QuantizedWeight
from quantkit.methods import METHODS, Rounding
from quantkit.model import LAYERS_PREFIX, fused_name
from quantkit.output import ShardWriter, atomic_output, check_target
from quantkit.plan import Plan, make_plan
from quantkit.provenance import PACKAGES, number, provenance, write_json
from quantkit.recipe import KEPT_BITS, QuantizeOptions, WriteOptions
from quantkit.sensitivity import expected_losses, output_sensitivity
from quantkit.statistics import build_skeleton
from quantkit.tune import Tuning, check_samples, tune_blocks

if TYPE_CHECKING:
    from quantkit.model import Block

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spending:
    """What a budget was spent on. bits: by unit, the linears that read one input; losses: nats a prediction that each
    unit would lose, by bits; bits_per_weight: of all linears, those that stayed as they are included."""

    asked: str
    bits: dict[str, int]
    losses: dict[str, dict[int, float]]
    bits_per_weight: float

    @property
    def expected_loss(self) -> float:
        """Nats a prediction that all units lose together, if losses add up."""
        return sum(self.losses[unit][bits] for unit, bits in self.bits.items())


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
    spending: Spending | None = None  # where a budget chose the bits
    tuning: Tuning | None = None

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
    check_statistics_folders(options, target, checkpoint.path)
    check_device(options.device)
    check_names(checkpoint, plan)
    outcome = Outcome(options.model, target, plan)
    clock = Clock(outcome.seconds)
    data = gather(checkpoint, options, plan.dtype, progress) if METHODS[options.method].needs_data else None
    if data is not None:
        outcome.samples, outcome.tokens, outcome.skipped = len(data.samples), data.tokens, len(data.mix.skipped)
    clock.lap("prepare")
    samples = data.samples if data else []
    if options.tune:
        check_samples(samples)
    with atomic_output(target, options.overwrite, source=checkpoint.path) as folder:
        if plan.allowance is not None and data is not None:
            options, kept = keep_statistics(options, folder)
            outcome.plan = plan = _spend(checkpoint, plan, options, data, outcome, clock, progress)
            options = replace(options, stats=kept, save_stats=None)
        with ShardWriter(folder, writer_specs(plan), options.max_shard_bytes) as writer:
            source = Statistics(checkpoint, plan.map, data, options, plan.dtype, progress, options.sequential)
            held: list[QuantizedBlock] = []  # all of them, where they are to be tuned together
            for block, found in zip(plan.map.blocks, source, strict=True):
                clock.lap("statistics")
                tensors = load_block(checkpoint, block, options.device)
                done = quantize_block(tensors, block, found, plan, options)
                outcome.rows += done.rows
                state = _state(block, done, plan)
                source.replace(state)
                if options.tune:
                    held.append(done)
                else:
                    _write_block(block, done, state, plan, writer)
                progress("blocks", block.index + 1, len(plan.map.blocks))
                clock.lap("search")
            if options.tune:
                _tune(checkpoint, plan, options, samples, held, outcome, writer, progress)
                clock.lap("tuning")
            copy_rest(checkpoint, plan, writer)
            writer.finish()
        drop_statistics(folder)
        checkpoint.copy_side_files(folder)
        _write_config(checkpoint, plan, options, folder)
        write_provenance(checkpoint, plan, options, data.mix if data else None, outcome, folder)
        clock.lap("write")
    return outcome


def check_device(device: str) -> None:
    """Raise QuantkitError unless torch can use ``device`` here."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise QuantkitError(f"--device {device}: torch cannot use it here ({str(error).splitlines()[0]})") from error


def check_names(checkpoint: Checkpoint, plan: Plan) -> None:
    """Every tensor of the model is there and no other (a tied head may be stored as well)."""
    tied = {"lm_head.weight"} if plan.map.tied else set()
    expected = [name for name in build_skeleton(checkpoint).state_dict() if name not in tied]
    checkpoint.check_names(expected + [name for name in tied if name in checkpoint])


def _spend(
    checkpoint: Checkpoint,
    plan: Plan,
    options: QuantizeOptions,
    data: Data,
    outcome: Outcome,
    clock: Clock,
    progress: Progress,
) -> Plan:
    """Measure what every unit would lose at every width, and plan with the widths that the budget affords."""
    room = plan.allowance
    assert room is not None
    sensitivity = output_sensitivity(
        checkpoint, plan.map, data.samples, device=options.device, seed=options.seed, progress=progress,
        dtype=torch.bfloat16 if plan.dtype == "float16" else getattr(torch, plan.dtype),  # gradients need the range
    )  # fmt: skip
    clock.lap("sensitivity")
    rounding = Rounding(options.solver, options.act_order, options.damping)
    members: dict[str, list[str]] = {}
    losses: dict[str, dict[int, float]] = {}
    source = Statistics(checkpoint, plan.map, data, options, plan.dtype, progress)
    for block, found in zip(plan.map.blocks, source, strict=True):
        clock.lap("statistics")
        assert found is not None
        for group in block.groups:
            names = [name for name in group.linears if block.prefix + name in room.sizes]
            if not names:
                continue
            weights = {
                name: checkpoint.load(f"{block.prefix}{name}.weight", check_finite=True).to(
                    options.device, torch.float32
                )
                for name in names
            }
            unit = block.prefix + group.name
            members[unit] = [block.prefix + name for name in names]
            losses[unit] = expected_losses(
                weights,
                found.inputs[group.name],
                {name: sensitivity[block.prefix + name] for name in names},
                [plan.spec_of(bits) for bits in options.widths if bits != KEPT_BITS],
                options.method,
                rounding,
            ) | {bits: 0.0 for bits in options.widths if bits == KEPT_BITS}
        progress("losses", block.index + 1, len(plan.map.blocks))
        clock.lap("losses")
    choices = {
        unit: [
            Choice(bits, sum(room.sizes[name][bits] for name in members[unit]), loss) for bits, loss in by_bits.items()
        ]
        for unit, by_bits in losses.items()
    }
    taken = {unit: choice.width for unit, choice in allocate(choices, room.bytes).items()}
    chosen = {name: bits for unit, bits in taken.items() for name in members[unit]}
    outcome.spending = Spending(room.asked, taken, losses, room.bits_per_weight(room.of(chosen)))
    return make_plan(checkpoint, options, chosen)


def _tune(
    checkpoint: Checkpoint,
    plan: Plan,
    options: QuantizeOptions,
    samples: list[Sample],
    held: list[QuantizedBlock],
    outcome: Outcome,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Tune all blocks together, and write them."""
    tuned, outcome.tuning = tune_blocks(
        checkpoint, plan.map, samples, held, epochs=options.tune, device=options.device,
        dtype=getattr(torch, plan.dtype), seed=options.seed, progress=progress,
    )  # fmt: skip
    for block, done in zip(plan.map.blocks, tuned, strict=True):
        _write_block(block, done, _state(block, done, plan), plan, writer)


def _state(block: Block, done: QuantizedBlock, plan: Plan) -> dict[str, Tensor]:
    """A block's parameters as a runtime will have them, by name inside it."""
    state = {f"{name}.weight": weight.dequantize() for name, weight in done.weights.items()}
    return state | {name: stored(block.prefix + name, tensor, plan) for name, tensor in done.plain.items()}


def _write_block(block: Block, done: QuantizedBlock, state: dict[str, Tensor], plan: Plan, writer: ShardWriter) -> None:
    for name, weight in done.weights.items():
        packed = FORMATS[plan.format].pack(block.prefix + name, _to_cpu(weight), plan.dtype)
        for full, tensor in packed.items():
            writer.add(full, tensor)
    for name in done.plain:
        writer.add(block.prefix + name, state[name].cpu())


def load_block(checkpoint: Checkpoint, block: Block, device: str) -> dict[str, Tensor]:
    """Every tensor of the block, float32, by its name inside the block."""
    names = [name for name in checkpoint.tensor_names if name.startswith(block.prefix)]
    return {
        name.removeprefix(block.prefix): checkpoint.load(name, check_finite=True).to(device, torch.float32)
        for name in names
    }


def _to_cpu(weight: QuantizedWeight) -> QuantizedWeight:
    return QuantizedWeight(weight.codes.cpu(), weight.scales.cpu(), weight.zeros.cpu(), weight.spec)


def stored(name: str, tensor: Tensor, plan: Plan) -> Tensor:
    """``tensor`` in the dtype that the plan stores it in; raises if a value does not fit."""
    dtype = getattr(torch, plan.stored_dtype(name))
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        raise QuantkitError(f"{name}: its values overflow {str(dtype).removeprefix('torch.')}; use --dtype bfloat16")
    return converted


def copy_rest(checkpoint: Checkpoint, plan: Plan, writer: ShardWriter) -> None:
    """Vision tower, mergers, embedding and final norm go over one by one, as they are."""
    prefixes = tuple(block.prefix for block in plan.map.blocks)
    for name in checkpoint.tensor_names:
        if name in plan.specs and not name.startswith(prefixes):
            writer.add(name, stored(name, checkpoint.load(name, check_finite=True), plan))


def writer_specs(plan: Plan) -> dict[str, tuple[torch.dtype | str, tuple[int, ...]]]:
    """The plan's tensors as `ShardWriter` wants them declared."""
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in plan.specs.items()}


def _write_config(checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, folder: Path) -> None:
    config: dict[str, Any] = dict(checkpoint.config)
    config.pop("torch_dtype", None)
    config["dtype"] = plan.dtype
    contents = Contents(
        plan.spec, plan.grids, plan.skipped_modules(), LAYERS_PREFIX, quantkit.__version__, options.damping,
        {name: fused_name(name) for name in plan.grids},
    )  # fmt: skip
    config["quantization_config"] = FORMATS[plan.format].quantization_config(contents)
    write_json(folder / "config.json", config)
    for name, content in FORMATS[plan.format].other_files(contents).items():
        write_json(folder / name, content)


def write_provenance(
    checkpoint: Checkpoint,
    plan: Plan,
    options: WriteOptions,
    mix: Mix | None,
    outcome: Outcome,
    folder: Path,
    packages: Sequence[str] = PACKAGES,
) -> None:
    """quantkit.json: what made these files."""
    content = provenance(checkpoint, options, plan.format, mix, outcome.seconds, packages) | {
        "kept": sorted(plan.kept),
        **_spent(outcome.spending),
        **_tuned(outcome.tuning),
        "layers": [
            {"name": row.name, "bits": row.bits, "error": number(row.error), "scaled_by": row.scaled_by}
            | ({"notes": list(row.notes)} if row.notes else {})
            for row in outcome.rows
        ],
    }
    write_json(folder / "quantkit.json", content)


def _spent(spending: Spending | None) -> dict[str, Any]:
    if spending is None:
        return {}
    return {
        "budget": {
            "asked": spending.asked,
            "bits_per_weight": number(spending.bits_per_weight),
            "expected_kl": number(spending.expected_loss),
            "units": {
                unit: {
                    "bits": bits,
                    "expected_kl": {str(width): number(loss) for width, loss in spending.losses[unit].items()},
                }
                for unit, bits in spending.bits.items()
            },
        }
    }


def _tuned(tuning: Tuning | None) -> dict[str, Any]:
    if tuning is None:
        return {}
    return {
        "tuning": {
            "withheld": tuning.withheld,
            "kl_before": number(tuning.before),
            "kl_after": number(tuning.after),
            "taken": tuning.taken,
        }
    }
