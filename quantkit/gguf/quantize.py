"""`quantkit gguf`: one checkpoint to GGUF files, as many types as asked for from one read.

    checkpoint -> model map -> samples -> statistics -> scales, rounding -> blocks -> files

One block of the language model is in memory at a time. AWQ's scales are folded before anything is rounded, into norms,
which GGUF keeps in float32, and into the rows of `up_proj` and `v_proj`; they are searched on one grid for all types (4
bits, a scale for 32 columns), so that a file does not depend on what else was asked for. Statistics follow the columns
where llama.cpp wants them in another order (`names.input_order`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantkit.blockwise import LEAST_TOKENS
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.fold import fold
from quantkit.formats.gguf.container import GgufWriter
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
from quantkit.gguf.budget import Spent, check_budget, spend
from quantkit.gguf.encode import Encoded, Knowledge, encode
from quantkit.gguf.imatrix import Imatrix, check, read_imatrix
from quantkit.gguf.modelfile import modelfile
from quantkit.gguf.names import Conversion, input_order, keep
from quantkit.gguf.plan import FLOATS, GgufPlan, pass_dtype, plan_gguf
from quantkit.grid import GridSpec
from quantkit.methods import METHODS
from quantkit.methods.blockfit import one_thread_each
from quantkit.methods.blockrefine import SHRINKAGE
from quantkit.methods.solver import Factor, factorise
from quantkit.output import atomic_output, check_target, require_free_space
from quantkit.provenance import number, provenance, write_json
from quantkit.quantize import check_device, load_block

if TYPE_CHECKING:
    from quantkit.model import Block, Group
    from quantkit.recipe import GgufOptions
    from quantkit.statistics import BlockStatistics

SCALE_GRID = GridSpec(4, 32)  # what scales are searched on, whatever the types
_ROWS = 1 << 24  # values of a large table that are converted at once


@dataclass(frozen=True)
class TensorRow:
    """One quantized tensor of one text file. error: share of the output's energy, NaN without a Gram matrix."""

    file: str
    name: str
    kind: str
    error: float
    notes: tuple[str, ...] = ()


@dataclass
class GgufOutcome:
    """What a run did."""

    source: str
    out: Path
    plan: GgufPlan
    rows: list[TensorRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    data: Data | None = None
    spent: Spent | None = None  # where a budget chose the types
    scaled: int = 0  # inputs whose linears were scaled
    matrix: dict[str, str] = field(default_factory=dict)  # the importance matrix that was read: name, sha256
    notes: list[str] = field(default_factory=list)


def quantize_gguf(options: GgufOptions, progress: Progress | None = None) -> GgufOutcome:
    """Run ``options`` from checkpoint to files.

    Raises QuantkitError, one line, for anything the user can mend; the target is untouched then.
    """
    progress = progress or (lambda what, done, total: None)
    if options.out is None:
        raise QuantkitError("--out is missing: name the folder to write")
    checkpoint = open_checkpoint(options.model, options.revision, options.token)
    plan = plan_gguf(checkpoint, options)
    target = check_target(options.out, options.overwrite, source=checkpoint.path)
    check_statistics_folders(options, target, checkpoint.path)
    check_device(options.device)
    require_free_space(target, plan.nbytes)
    outcome = GgufOutcome(options.model, target, plan)
    imatrix = _read_matrix(options, plan, target, outcome)
    if options.budget is not None:
        check_budget(plan, options)
    modelfiles = _modelfiles(checkpoint, plan, outcome)
    clock = Clock(outcome.seconds)
    dtype = pass_dtype(checkpoint, options)
    if plan.quantizes and options.looks_at_data:
        outcome.data = gather(checkpoint, options, dtype, progress)
        clock.lap("prepare")
    with atomic_output(target, options.overwrite, source=checkpoint.path) as folder:
        if options.budget is not None and outcome.data is not None:
            options, kept = keep_statistics(options, folder)
            outcome.spent = spend(checkpoint, plan, options, outcome.data, progress)
            options = replace(options, stats=kept, save_stats=None)
            outcome.plan = plan = plan_gguf(checkpoint, options, outcome.spent.types)
            clock.lap("budget")
        with ExitStack() as stack:
            workers = torch.get_num_threads()
            if outcome.data is None:  # nothing but rounding, which shares rows and not operations
                stack.enter_context(one_thread_each())
            writers = [stack.enter_context(GgufWriter(folder, variant.files)) for variant in plan.variants]
            work = _Work(checkpoint, plan, options, imatrix, writers, outcome, workers)
            statistics = Statistics(checkpoint, plan.map, outcome.data, options, dtype, progress)
            for block, found in zip(plan.map.blocks, statistics, strict=True):
                clock.lap("statistics")
                work.write_block(block, found)
                progress("blocks", block.index + 1, len(plan.map.blocks))
                clock.lap("quantize")
            work.write_tables()
            clock.lap("quantize")
            work.write_vision()
            for writer in writers:
                writer.finish()
        drop_statistics(folder)
        for name, text in modelfiles.items():
            (folder / name).write_text(text, encoding="utf-8")
        _write_provenance(checkpoint, options, outcome, folder)
        clock.lap("write")
    return outcome


def _read_matrix(options: GgufOptions, plan: GgufPlan, target: Path, outcome: GgufOutcome) -> Imatrix | None:
    """The matrix that was given, checked against what is to be quantized."""
    if options.imatrix is None:
        return None
    path = options.imatrix.expanduser()
    if not plan.quantizes:
        raise QuantkitError("--imatrix: no --type asked for holds integers; leave it out")
    if path.absolute().is_relative_to(target):
        raise QuantkitError(f"--imatrix {path}: lies in --out {target}; move it, or choose another --out")
    imatrix = read_imatrix(path)
    widths = {
        row.name: row.shape[-1]
        for variant in plan.texts
        for row in variant.tensors
        if variant.types[row.name] not in FLOATS
    }
    if missing := check(imatrix, widths):
        outcome.notes.append(f"{path.name} says nothing of {', '.join(missing)}: rounded without it")
    outcome.matrix = {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return imatrix


class _Work:
    """The steps of a run, and what they know of each tensor."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: GgufPlan,
        options: GgufOptions,
        imatrix: Imatrix | None,
        writers: list[GgufWriter],
        outcome: GgufOutcome,
        workers: int,
    ) -> None:
        self.checkpoint, self.plan, self.options, self.imatrix = checkpoint, plan, options, imatrix
        self.outcome, self.workers = outcome, workers
        self.texts = list(zip(plan.texts, writers[: len(plan.texts)], strict=True))
        self.visions = list(zip(plan.visions, writers[len(plan.texts) :], strict=True))
        self.rows = {row.source: row for row in plan.texts[0].tensors}

    # ---- a block of the language model ----

    def write_block(self, block: Block, statistics: BlockStatistics | None) -> None:
        """Scale, round and write one block."""
        tensors = load_block(self.checkpoint, block, self.options.device)
        for name, tensor in tensors.items():  # files without integers hold the weights as they are
            self._write(self.rows[block.prefix + name], tensor, quantized=False)
        if not self.plan.quantizes:
            return
        columns = self._scale(tensors, block, statistics) if statistics is not None else {}
        for group in block.groups:
            known, notes = self._known(block, group, statistics, columns.get(group.name))
            for name in (*group.linears, *group.passengers):
                row = self.rows[f"{block.prefix}{name}.weight"]
                self._write(row, tensors.pop(f"{name}.weight"), True, known or self._of_matrix(row), notes)
        for name, tensor in tensors.items():
            self._write(self.rows[block.prefix + name], tensor, quantized=True)

    def _scale(self, tensors: dict[str, Tensor], block: Block, statistics: BlockStatistics) -> dict[str, Tensor]:
        """Fold AWQ's scales into ``tensors``; the scale of each group's input columns that got one."""
        if not self.options.scales:
            return {}
        originals, found = dict(tensors), {}
        for group in block.groups:
            inputs = statistics.inputs[group.name]
            if inputs.tokens < LEAST_TOKENS or not self._quantizes(block, group):
                continue
            weights = [originals[f"{name}.weight"] for name in group.linears]
            factor = self._factor(block, group, inputs.gram) if self.options.solver == "refine" else None
            search = METHODS["awq"].find_scale(weights, inputs.gram, group.feeder, SCALE_GRID, factor)
            if search.scale is not None:
                found[group.name] = fold(tensors, group, search.scale, inputs.gram.dtype)
                self.outcome.scaled += 1
        return found

    def _quantizes(self, block: Block, group: Group) -> bool:
        """Whether some file holds integers for a linear of the group."""
        names = [self.rows[f"{block.prefix}{name}.weight"].name for name in group.linears]
        return any(variant.types[name] not in FLOATS for variant in self.plan.texts for name in names)

    def _known(
        self, block: Block, group: Group, statistics: BlockStatistics | None, columns: Tensor | None
    ) -> tuple[Knowledge | None, tuple[str, ...]]:
        """What rounding may know of the group's input, columns in the file's order, and why that is less than asked."""
        if statistics is None:
            return None, ()
        inputs = statistics.inputs[group.name]
        if inputs.tokens < LEAST_TOKENS:
            return None, (f"{inputs.tokens} calibration tokens, {LEAST_TOKENS} needed: rounded without data",)
        gram = inputs.gram
        if columns is not None:
            gram = gram / columns.unsqueeze(0) / columns.unsqueeze(1)
        order = input_order(f"{block.prefix}{group.linears[0]}", self.plan.heads)
        if order is not None:
            gram = gram[order][:, order]
        costs = gram.diagonal() / inputs.tokens
        if self.options.solver == "imatrix":
            return Knowledge(costs), ()
        few = f"{inputs.tokens} calibration tokens for {group.in_features} channels: few"
        notes = [few] if inputs.tokens < group.in_features else []
        factor = self._factor(block, group, gram)
        if factor.damping > self.options.damping:
            notes.append(f"Gram matrix not positive definite: damping raised to {factor.damping:g}")
        return Knowledge(costs, gram, factor), tuple(notes)

    def _factor(self, block: Block, group: Group, gram: Tensor) -> Factor:
        try:
            return factorise(gram, self.options.damping, self.options.act_order, SHRINKAGE)
        except QuantkitError as error:
            raise QuantkitError(f"{block.prefix}{group.linears[0]}: its input: {error}") from error

    def _of_matrix(self, row: Conversion) -> Knowledge | None:
        """What the importance matrix that was given says of a tensor's columns."""
        if self.imatrix is None or row.name not in self.imatrix.sums:
            return None
        return Knowledge(self.imatrix.mean_squares(row.name).to(self.options.device))

    # ---- the rest ----

    def write_tables(self) -> None:
        """The tensors outside the blocks; the embedding and the head piece by piece."""
        prefixes = tuple(block.prefix for block in self.plan.map.blocks)
        for row in self.plan.texts[0].tensors:
            if not row.source.startswith(prefixes):
                tensor = self.checkpoint.load(row.source, check_finite=True)
                self._write(row, tensor, False)
                self._write(row, tensor, True, self._of_matrix(row))

    def write_vision(self) -> None:
        """Every mmproj file."""
        for variant, writer in self.visions:
            for row in variant.tensors:
                tensor = row.transform(self.checkpoint.load(row.source, check_finite=True), self.plan.heads)
                found = encode(row.name, _matrix(tensor), variant.types[row.name], workers=self.workers)
                writer.add(row.name, found.data)

    def _write(
        self,
        row: Conversion,
        tensor: Tensor,
        quantized: bool,
        known: Knowledge | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """One tensor into every text file that holds integers, or every one that holds none; once for each type."""
        texts = [(variant, writer) for variant, writer in self.texts if variant.quantizes == quantized]
        for kind in dict.fromkeys(variant.types[row.name] for variant, _ in texts):
            takers = [(variant, writer) for variant, writer in texts if variant.types[row.name] == kind]
            error = float("nan")
            for part in self._encoded(row, tensor, kind, known):
                error = part.error
                for _, writer in takers:
                    writer.add(row.name, part.data)
            if kind not in FLOATS:
                self.outcome.rows += [TensorRow(one.kind, row.name, kind, error, notes) for one, _ in takers]

    def _encoded(self, row: Conversion, tensor: Tensor, kind: str, known: Knowledge | None) -> Iterator[Encoded]:
        """A tensor's bytes, in pieces where it is a large table without a Gram matrix."""
        if row.transform is keep and tensor.numel() > _ROWS and (known is None or known.gram is None):
            for piece in tensor.split(max(1, _ROWS // tensor.shape[-1])):
                yield encode(row.name, piece.to(self.options.device).float(), kind, known, self.workers)
        else:
            found = row.transform(tensor.to(self.options.device).float(), self.plan.heads)
            yield encode(row.name, _matrix(found), kind, known, self.workers)


def _matrix(tensor: Tensor) -> Tensor:
    """[rows, width], as blocks run along the last axis."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() != 1 else tensor.unsqueeze(0)


# ---- beside the files -----------------------------------------------------------------------------------------------


def _modelfiles(checkpoint: Checkpoint, plan: GgufPlan, outcome: GgufOutcome) -> dict[str, str]:
    """Ollama's recipe for every text model, by name, with the mmproj file of the mode that comes first; none, and a
    note why, where the chat template cannot be said in Ollama's."""
    mmproj = plan.visions[0].files[0].name if plan.visions else None
    try:
        return {
            "Modelfile" if len(plan.texts) == 1 else f"Modelfile-{variant.kind}": modelfile(
                checkpoint, variant.files[0].name, mmproj
            )
            for variant in plan.texts
        }
    except QuantkitError as error:
        outcome.notes.append(f"no Modelfile: {error}")
        return {}


def _write_provenance(checkpoint: Checkpoint, options: GgufOptions, outcome: GgufOutcome, folder: Path) -> None:
    content = provenance(checkpoint, options, "gguf", outcome.data.mix if outcome.data else None, outcome.seconds)
    if outcome.matrix:
        content["imatrix"] = outcome.matrix
    if outcome.data is not None:
        content["scaled_inputs"] = outcome.scaled
    if outcome.spent is not None:
        spent = outcome.spent
        content["budget"] = {
            "asked": spent.asked,
            "bits_per_weight": number(spent.bits_per_weight),
            "expected_kl": number(spent.expected_loss),
        }
    content["files"] = {
        file.name: {"type": variant.kind, "bits_per_weight": number(variant.bits_per_weight)}
        for variant in outcome.plan.variants
        for file in variant.files
    }
    content["layers"] = [
        {"file": row.file, "name": row.name, "type": row.kind, "error": number(row.error)}
        | ({"notes": list(row.notes)} if row.notes else {})
        for row in outcome.rows
    ]
    write_json(folder / "quantkit.json", content)
