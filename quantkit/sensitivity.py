"""What an error in a linear's output costs the whole model: KL divergence, to second order, from one backward pass.

If the outputs of a linear are off by ``d_t`` at token t, the distribution over the next tokens moves by about

    KL ~ 1/2 sum_t d_t^T F_t d_t,        F_t = E[g_t g_t^T],

``g_t`` being the gradient of the log-probability of labels drawn from the model itself (the Fisher information; with
drawn labels and not the data's, so that no trained model has gradients near zero). With ``F`` taken as diagonal and
independent of the inputs, the Gram matrix H of N tokens gives the cost of any candidate weight without another pass:

    KL a prediction ~ sum_r s_r (E H E^T)_rr / N,        s_r = sum_t g_tr^2 / (2 predictions).

On `tiny` the prediction for one unit alone is within a factor of 1.3 of what is measured (one standard deviation, 48
cases of 2 to 4 bits, correlation of the logarithms 0.97; scripts/LOG.md). HAWQ (arXiv:1911.03852) ranks layers by
traces of the Hessian; here the unit is that of the report, nats a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantkit.errors import QuantkitError
from quantkit.grid import GridSpec
from quantkit.methods import METHODS, Rounding
from quantkit.methods.loss import row_losses
from quantkit.model import LANGUAGE_PREFIX, Block, ModelMap
from quantkit.statistics import Batch, CalibrationPass

if TYPE_CHECKING:
    from quantkit.calibration import Sample
    from quantkit.checkpoint import Checkpoint
    from quantkit.statistics import InputStatistics

SAMPLES = 32  # of the calibration set, evenly spread
TOKENS = 16384  # of these at most: the inputs of every block are kept
_LOGITS = 1 << 25  # elements of logits at once

Progress = Callable[[str, int, int], None]


def output_sensitivity(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    samples: Sequence[Sample],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """``s`` of every quantizable linear by full name, float32 [out], nats a prediction and squared output.

    A forward pass over a `few` of the samples that keeps each block's inputs, then the blocks backwards, one in
    memory at a time. Raises what `CalibrationPass` raises, and QuantkitError for a gradient that is NaN or Inf.
    """
    progress = progress or (lambda what, done, total: None)
    run = CalibrationPass(checkpoint, model_map, few(samples), device=device, dtype=dtype)
    with torch.no_grad():
        batches = run.embed()
        inputs = []
        for block in model_map.blocks:
            inputs.append([batch.hidden for batch in batches])
            run.advance(block, batches)
            progress("sensitivity", block.index + 1, 2 * len(model_map.blocks))
    gradients, predictions = _at_the_end(run, batches, torch.Generator().manual_seed(seed))
    found: dict[str, Tensor] = {}
    for block in reversed(model_map.blocks):
        gradients = _backward(run, block, batches, inputs.pop(), gradients, found)
        progress("sensitivity", 2 * len(model_map.blocks) - block.index, 2 * len(model_map.blocks))
    for name, total in found.items():
        if not torch.isfinite(total).all():
            raise QuantkitError(f"{name}: the gradient at its output is NaN or Inf; try --dtype float32")
    return {name: (total / (2 * max(1, predictions))).float().cpu() for name, total in found.items()}


def few(samples: Sequence[Sample]) -> list[Sample]:
    """At most `SAMPLES` of ``samples``, evenly spread, of `TOKENS` tokens in all (but one sample in any case)."""
    chosen: list[Sample] = []
    used = 0
    count = min(SAMPLES, len(samples))
    for sample in (samples[number * len(samples) // count] for number in range(count)):
        used += len(sample.vision_mask)
        if chosen and used > TOKENS:
            break
        chosen.append(sample)
    return chosen


def _at_the_end(run: CalibrationPass, batches: list[Batch], generator: torch.Generator) -> tuple[list[Tensor], int]:
    """Gradients of the drawn labels' negative log-probability with respect to the last block's outputs, a batch each,
    and the number of predictions: positions whose next token is text."""
    norm = run.skeleton.model.language_model.norm
    run.materialise(norm, f"{LANGUAGE_PREFIX}norm.")
    head = run.head()
    gradients, predictions = [], 0
    for batch in batches:
        hidden = batch.hidden.requires_grad_(True)
        with torch.enable_grad():
            final = norm(hidden)
        chosen = run.predicting(batch)
        pull = torch.zeros_like(final).flatten(0, 1)
        states = final.detach().flatten(0, 1)
        for rows in chosen.split(max(1, _LOGITS // len(head))):
            probabilities = torch.softmax((states[rows] @ head.T).float(), dim=-1)
            labels = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(run.device)
            probabilities.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=probabilities.dtype))
            pull[rows] = probabilities.to(head.dtype) @ head
        final.backward(pull.view_as(final))
        assert hidden.grad is not None
        gradients.append(hidden.grad)
        batch.hidden = hidden.detach()
        predictions += len(chosen)
    norm.to("meta")
    return gradients, predictions


def _backward(
    run: CalibrationPass,
    block: Block,
    batches: list[Batch],
    inputs: list[Tensor],
    gradients: list[Tensor],
    found: dict[str, Tensor],
) -> list[Tensor]:
    """Take the gradients of the block's outputs to its inputs; add the squares at its linears' outputs to ``found``."""
    layer = run.layers[block.index]
    run.materialise(layer, block.prefix)
    layer.requires_grad_(False)
    before = []
    with ExitStack() as stack:
        for name in block.linears():
            hook = _squares(found, block.prefix + name)
            stack.callback(layer.get_submodule(name).register_forward_hook(hook).remove)
        for batch, hidden, gradient in zip(batches, inputs, gradients, strict=True):
            entering = hidden.detach().requires_grad_(True)
            with torch.enable_grad():
                leaving = run.through(block, batch, entering)
            leaving.backward(gradient)
            assert entering.grad is not None
            before.append(entering.grad)
    layer.to("meta")
    return before


def _squares(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def add(gradient: Tensor) -> None:
        squares = gradient.flatten(0, -2).double().square().sum(0)
        found[name] = found[name] + squares if name in found else squares

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(add)

    return hook


def expected_losses(
    weights: Mapping[str, Tensor],
    inputs: InputStatistics,
    sensitivity: Mapping[str, Tensor],
    specs: Iterable[GridSpec],
    method: str,
    rounding: Rounding,
) -> dict[int, float]:
    """Nats a prediction that linears which read one input lose together, by bits.

    weights: float32 [out, in] by name; sensitivity: of each, float32 [out]. As they are, without AWQ's scales, and
    without the descent after GPTQ: these take most of the time. For comparing widths, not for foretelling the total.
    """
    if rounding.solver == "refine":
        rounding = Rounding("gptq", rounding.act_order, rounding.damping)
    gram = inputs.gram
    factor = rounding.factor(gram)
    losses = {}
    for spec in specs:
        total = 0.0
        for name, weight in weights.items():
            found = METHODS[method].quantize(weight, gram, spec, rounding, factor)
            lost = row_losses(found.dequantize() - weight, gram).double()
            total += float((lost * sensitivity[name].to(lost.device)).sum())
        losses[spec.bits] = total / max(1, inputs.tokens)
    return losses
