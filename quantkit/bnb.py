"""`quantkit bnb`: one checkpoint through bitsandbytes, tensor by tensor, without any data.

    checkpoint -> model map -> bitsandbytes -> files

`from_pretrained(quantization_config=...)` followed by `save_pretrained` gives the same tensors, but holds the model in
memory, quantizes the vision tower unless told which names to skip, and forgets the side files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import bnb
from quantkit.gather import Clock, Progress
from quantkit.grid import GridSpec
from quantkit.model import EMBEDDING, select_kept
from quantkit.output import ShardWriter, atomic_output, check_target
from quantkit.plan import Plan, lay_out, plain_dtype, source_map
from quantkit.provenance import write_json
from quantkit.quantize import (
    LayerRow,
    Outcome,
    check_device,
    check_names,
    stored,
    write_provenance,
    writer_specs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from quantkit.checkpoint import Checkpoint
    from quantkit.recipe import BnbOptions

_WORKING_BYTES = 28  # a weight, while bitsandbytes rounds it on the CPU, as measured


def quantize_bnb(options: BnbOptions, progress: Progress | None = None) -> Outcome:
    """Run ``options`` from checkpoint to files.

    Raises QuantkitError, one line, for anything the user can mend; the target is untouched then.
    """
    progress = progress or (lambda what, done, total: None)
    if options.out is None:
        raise QuantkitError("--out is missing: name the folder to write")
    bnb.check_package()
    checkpoint = open_checkpoint(options.model, options.revision, options.token)
    plan = plan_bnb(checkpoint, options)
    target = check_target(options.out, options.overwrite, source=checkpoint.path)
    check_device(options.device)
    check_names(checkpoint, plan)
    outcome = Outcome(options.model, target, plan)
    clock = Clock(outcome.seconds)
    with atomic_output(target, options.overwrite, source=checkpoint.path) as folder:
        held = {} if options.type == bnb.INT8 else _hold(checkpoint, plan, options, progress)
        outcome.plan = plan = replace(plan, specs=_true_specs(plan, held))
        clock.lap("quantize")
        with ShardWriter(folder, writer_specs(plan), options.max_shard_bytes) as writer:
            _write_tensors(checkpoint, plan, options, held, writer, progress)
            writer.finish()
        outcome.rows += [LayerRow(name, options.bits, float("nan"), "", 0) for name in plan.quantized]
        checkpoint.copy_side_files(folder)
        _write_config(checkpoint, plan, options, folder)
        write_provenance(checkpoint, plan, options, None, outcome, folder, ("torch", "transformers", "bitsandbytes"))
        clock.lap("write")
    return outcome


def plan_bnb(checkpoint: Checkpoint, options: BnbOptions) -> Plan:
    """Check the options against the checkpoint and lay out the output, from headers alone.

    The length of a 4-bit type's quant states is an estimate, off by a few bytes each. Raises QuantkitError as
    `make_plan` does.
    """
    model_map = source_map(checkpoint)
    spec = _spec(options)
    kept, along = select_kept(model_map, options.keep)
    quantized = {name: shape for name, shape in model_map.linears().items() if name not in kept}
    if not quantized:
        raise QuantkitError("no linear is left to quantize: drop a pattern of --keep")
    for name, shape in quantized.items():
        bnb.check_linear(name, *shape, spec)
    dtype = plain_dtype(checkpoint, options)
    specs = lay_out(
        checkpoint, model_map, quantized, lambda name, out, inputs: bnb.tensor_specs(name, out, inputs, spec), options
    )
    grid = GridSpec(options.bits, -1 if options.type == bnb.INT8 else options.block_size)
    weights = [out * inputs for out, inputs in quantized.values()]
    held = 0 if options.type == bnb.INT8 else sum(weights) * 9 // 16
    memory = {
        "embedding": held + 2 * checkpoint.nbytes(EMBEDDING),
        "packed linears and one at work": held + max(weights) * _WORKING_BYTES,
    }
    return Plan(
        model_map, grid, bnb.NAME, dtype, quantized, dict.fromkeys(quantized, grid), kept, along, specs,
        checkpoint.total_bytes, memory,
    )  # fmt: skip


def _spec(options: BnbOptions) -> bnb.BnbSpec:
    return bnb.BnbSpec(options.type, options.double_quant, options.block_size, options.compute_dtype)


def _pack(checkpoint: Checkpoint, plan: Plan, options: BnbOptions, name: str) -> dict[str, Tensor]:
    weight = checkpoint.load(f"{name}.weight", check_finite=True)
    if options.dtype != "auto":
        weight = weight.to(getattr(torch, plan.dtype))
        if not torch.isfinite(weight).all():
            raise QuantkitError(f"{name}.weight: its values overflow {plan.dtype}; use --dtype bfloat16")
    return bnb.pack(name, weight, _spec(options), options.device)


def _hold(checkpoint: Checkpoint, plan: Plan, options: BnbOptions, progress: Progress) -> dict[str, dict[str, Tensor]]:
    """Every packed linear, as a shard's header needs the quant states' lengths, which only the rounding tells.

    All of them together take half the memory of the embedding.
    """
    held = {}
    for done, name in enumerate(plan.quantized, 1):
        held[name] = _pack(checkpoint, plan, options, name)
        progress("linears", done, len(plan.quantized))
    return held


def _true_specs(plan: Plan, held: dict[str, dict[str, Tensor]]) -> dict[str, tuple[str, list[int]]]:
    """The plan's tensors with the lengths that came out."""
    shapes = {name: list(tensor.shape) for tensors in held.values() for name, tensor in tensors.items()}
    return {name: (dtype, shapes.get(name, shape)) for name, (dtype, shape) in plan.specs.items()}


def _write_tensors(
    checkpoint: Checkpoint,
    plan: Plan,
    options: BnbOptions,
    held: dict[str, dict[str, Tensor]],
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """One tensor of the source after the other; a linear that is not held is packed on the way."""
    total = len(checkpoint.tensor_names)
    for done, name in enumerate(checkpoint.tensor_names, 1):
        linear = name.removesuffix(".weight")
        if linear in plan.quantized:
            packed = held.pop(linear, None) or _pack(checkpoint, plan, options, linear)
            for part, tensor in packed.items():
                writer.add(part, tensor)
        elif name in plan.specs:
            tensor = checkpoint.load(name, check_finite=True)
            writer.add(name, tensor if options.dtype == "auto" else stored(name, tensor, plan))
        progress("tensors", done, total)


def _write_config(checkpoint: Checkpoint, plan: Plan, options: BnbOptions, folder: Path) -> None:
    config: dict[str, Any] = dict(checkpoint.config)
    config.pop("torch_dtype", None)
    config["dtype"] = plan.dtype
    config["quantization_config"] = bnb.quantization_config(_spec(options), plan.skipped_modules())
    write_json(folder / "config.json", config)
