"""`quantkit imatrix`: the diagonals of the Gram matrices as llama.cpp's importance matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.gather import Progress, Statistics, check_statistics_folders, gather
from quantkit.gguf.imatrix import Imatrix, write_imatrix
from quantkit.gguf.names import Heads, input_order, text_tensors
from quantkit.gguf.plan import pass_dtype
from quantkit.output import check_target_file
from quantkit.plan import source_map
from quantkit.quantize import check_device

if TYPE_CHECKING:
    from quantkit.recipe import ImatrixOptions

CHUNK = 512  # tokens; llama-imatrix's own


@dataclass(frozen=True)
class Collected:
    """How much went into a matrix."""

    tensors: int
    samples: int
    tokens: int


def collect_imatrix(options: ImatrixOptions, progress: Progress | None = None) -> Collected:
    """Calibrate, and write the matrix to the file ``options.out``.

    Raises QuantkitError, one line, for anything the user can mend; a file of that name is untouched then.
    """
    progress = progress or (lambda what, done, total: None)
    if options.out is None:
        raise QuantkitError("--out is missing: name the file to write")
    path = check_target_file(options.out, options.overwrite)
    checkpoint = open_checkpoint(options.model, options.revision, options.token)
    check_statistics_folders(options, path, checkpoint.path)
    check_device(options.device)
    model_map = source_map(checkpoint)
    heads, rows = Heads.of(checkpoint.config, checkpoint.name), {row.source: row for row in text_tensors(checkpoint)}
    dtype = pass_dtype(checkpoint, options)
    data = gather(checkpoint, options, dtype, progress)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    source = Statistics(checkpoint, model_map, data, options, dtype, progress)
    for block, found in zip(model_map.blocks, source, strict=True):
        assert found is not None
        for group in block.groups:
            inputs = found.inputs[group.name]
            for name in (*group.linears, *group.passengers):
                row = rows[f"{block.prefix}{name}.weight"]
                order = input_order(row.source, heads)
                squares = inputs.gram.diagonal()
                sums[row.name] = (squares if order is None else squares[order]).contiguous().cpu()
                counts[row.name] = inputs.tokens
        progress("blocks", block.index + 1, len(model_map.blocks))
    datasets = tuple(f"quantkit:{count.source}" for count in data.mix.counts)
    write_imatrix(path, Imatrix(sums, counts, datasets, max(1, data.tokens // CHUNK), CHUNK))
    return Collected(len(sums), len(data.samples), data.tokens)
