"""Tuning from end to end: what all layers together lose, not each by itself.

Rounding looks at one linear at a time. What errors of many linears do to each other and to the answer only the whole
model tells, so here scales and codes (zero points stay) follow the gradient of the KL divergence between the float
model and the quantized one, on the calibration conversations, at every position whose next token is text.

*Scales*, a value for 32 to 128 weights, take Adam's steps in their logarithms: ``scale <- scale * exp(-step)``.

*Codes* go by ones. A code's neighbour is ``scale`` away; the gradient ``m`` (a running mean of the steps') and the
curvature ``v`` say how far the best value is. Of all codes, the share whose best value is the most codes away,

    |m_rj| / (v_rj scale),        v_rj = E[g_r^2] E[g_j^2] / E[g^2],

moves by one in each step. ``v`` is the steps' mean squared gradient, as a product of rows and columns (as in Adafactor,
arXiv:1804.04235); by the Fisher information it stands for the curvature up to a factor, which ranking does not need.

Every eighth conversation is withheld; if the tuned model is not nearer to the float model on these, everything stays as
it was. Worth most at 2 and 3 bits (scripts/LOG.md). Training of a quantizer's scales is known from LSQ
(arXiv:1902.08153), and from end to end for language models from EfficientQAT (arXiv:2407.11062); that few codes at a
time should move, from PV-Tuning (arXiv:2405.14852).

Blocks go through memory one at a time, forwards and backwards; the inputs of each are kept for one step's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantkit.blockwise import QuantizedBlock
from quantkit.errors import QuantkitError
from quantkit.grid import LARGEST_SCALE, SCALE_DTYPE, SMALLEST_SCALE, QuantizedWeight
from quantkit.model import LANGUAGE_PREFIX, Block, ModelMap
from quantkit.statistics import Batch, CalibrationPass

if TYPE_CHECKING:
    from quantkit.calibration import Sample
    from quantkit.checkpoint import Checkpoint

RATE = 5e-3  # of Adam, in logarithms of a scale
BETAS = (0.9, 0.95)
MOVING = 3e-4  # the share of codes that moves in a step, at first; falls along the same cosine as the rate
CODES_BETA = 0.99  # of the running mean that moves codes: a few rounds over the conversations
_FIRST = 4  # steps before any code moves
_LOOKED_AT = 1 << 20  # codes by which a step finds how far off the share that moves is
STEP_TOKENS = 1024  # padded, a step
WITHHELD = 8  # one conversation of so many
_LOGITS = 1 << 25  # elements of logits at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuning:
    """What came of it. before, after: mean KL in nats a prediction on the withheld conversations; taken: whether the
    tuned blocks were."""

    before: float
    after: float
    withheld: int
    taken: bool


def tune_blocks(
    checkpoint: Checkpoint,
    model_map: ModelMap,
    samples: Sequence[Sample],
    blocks: list[QuantizedBlock],
    *,
    epochs: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[QuantizedBlock], Tuning]:
    """``blocks`` with other scales and codes, where these are better, and what was measured. The blocks given are not
    changed.

    samples: prepared calibration conversations. Raises QuantkitError for fewer than nine, and what `CalibrationPass`
    raises.
    """
    progress = progress or (lambda what, done, total: None)
    check_samples(samples)
    withheld = list(samples[::WITHHELD])
    seen = [sample for number, sample in enumerate(samples) if number % WITHHELD]
    student = _Student(model_map, [_copy(done) for done in blocks])
    runs = [CalibrationPass(checkpoint, model_map, part, device=device, dtype=dtype) for part in (seen, withheld)]
    head = runs[0].head()
    train, test = (_Side(run, head) for run in runs)
    before = test.loss(student)
    optimizer = torch.optim.Adam(student.moves.values(), lr=RATE, betas=BETAS)
    generator = torch.Generator().manual_seed(seed)
    steps = list(_steps(train.batches))
    for done in range(epochs * len(steps)):
        if done % len(steps) == 0:
            order = torch.randperm(len(steps), generator=generator).tolist()
        falling = 0.5 * (1 + math.cos(math.pi * done / (epochs * len(steps))))
        optimizer.param_groups[0]["lr"] = RATE * falling
        train.step(student, steps[order[done % len(steps)]])
        optimizer.step()
        optimizer.zero_grad()
        if done >= _FIRST:
            student.move_codes(MOVING * falling)
        progress("tuning", done + 1, epochs * len(steps))
    tuned = student.result()
    after = test.loss(_Student(model_map, tuned))  # as it is stored
    found = Tuning(before, after, len(withheld), after < before)
    return (tuned if found.taken else blocks), found


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise QuantkitError where there are too few to withhold one and learn from the others."""
    if len(samples) <= WITHHELD:
        raise QuantkitError(
            f"--tune: {len(samples)} conversations, {WITHHELD + 1} needed; raise --samples or --token-budget"
        )


def _steps(batches: Sequence[Batch]) -> list[list[int]]:
    """Batches that make up a step together."""
    steps: list[list[int]] = [[]]
    used = 0
    for index, batch in enumerate(batches):
        tokens = batch.padding.numel()
        if steps[-1] and used + tokens > STEP_TOKENS:
            steps.append([])
            used = 0
        steps[-1].append(index)
        used += tokens
    return steps


@dataclass
class _Pull:
    """What moves one linear's codes: running means of the gradient [out, in], and of its square by row and column."""

    mean: Tensor
    rows: Tensor
    columns: Tensor

    @staticmethod
    def nothing(weight: QuantizedWeight) -> _Pull:
        codes = weight.codes
        return _Pull(*(torch.zeros(size, device=codes.device) for size in (codes.shape, *codes.shape)))

    def add(self, gradient: Tensor) -> None:
        """gradient float32 [out, in]."""
        self.mean.lerp_(gradient, 1 - CODES_BETA)
        squares = gradient.square()
        self.rows.lerp_(squares.mean(1), 1 - BETAS[1])
        self.columns.lerp_(squares.mean(0), 1 - BETAS[1])

    def distances(self, weight: QuantizedWeight, scales: Tensor) -> Tensor:
        """How many codes off the best value is, up to a factor that all linears share; 0 where there is no such code.

        scales float32 [out, groups] -> [out, in].
        """
        curvature = torch.outer(self.rows / self.rows.mean().clamp(min=1e-30), self.columns).clamp_(min=1e-30)
        found = self.mean.abs().div_(curvature).view(*scales.shape, -1).div_(scales.unsqueeze(-1)).view_as(curvature)
        there = torch.where(self.mean > 0, weight.codes > 0, weight.codes < weight.spec.max_code)
        return found.mul_(there)


class _Student:
    """The quantized blocks, whose codes `move_codes` changes, with a move for every scale: float32 [out, groups], added
    to its logarithm."""

    def __init__(self, model_map: ModelMap, blocks: list[QuantizedBlock]) -> None:
        self.map, self.blocks = model_map, blocks
        self.moves = {
            (block.index, name): torch.zeros(weight.scales.shape, device=weight.scales.device, requires_grad=True)
            for block, done in zip(model_map.blocks, blocks, strict=True)
            for name, weight in done.weights.items()
        }
        self.pulls: dict[tuple[int, str], _Pull] = {}

    def scales(self, block: Block, name: str) -> Tensor:
        """float32 [out, groups], as they are at present."""
        move = self.moves[block.index, name].detach()
        return self.blocks[block.index].weights[name].scales.float() * move.exp()

    def state(self, block: Block, dtype: torch.dtype) -> dict[str, Tensor]:
        """All parameters of a block, by name inside it."""
        done = self.blocks[block.index]
        state = {name: tensor.to(dtype) for name, tensor in done.plain.items()}
        for name, weight in done.weights.items():
            scales = self.scales(block, name).unsqueeze(-1)
            state[f"{name}.weight"] = (_codes(weight) * scales).view(weight.codes.shape).to(dtype)
        return state

    def add_gradients(self, block: Block, gradients: Mapping[str, Tensor]) -> None:
        """Add to each move, and to what moves codes, what ``gradients`` [out, in] of the weights, by linear, make of
        it."""
        for name, found in gradients.items():
            gradient, weight = found.float(), self.blocks[block.index].weights[name]
            move, codes = self.moves[block.index, name], _codes(weight)
            slope = (gradient.view(codes.shape) * codes).sum(-1) * self.scales(block, name)
            move.grad = slope if move.grad is None else move.grad + slope
            if (block.index, name) not in self.pulls:
                self.pulls[block.index, name] = _Pull.nothing(weight)
            self.pulls[block.index, name].add(gradient)

    def move_codes(self, share: float) -> int:
        """Move the ``share`` of all codes whose best values are the farthest off by one; the number that moved."""
        total = sum(pull.mean.numel() for pull in self.pulls.values())
        stride = -(-total // _LOOKED_AT)
        seen = torch.cat([self._distances(key).flatten()[::stride].cpu() for key in self.pulls])
        least = seen.topk(max(1, int(share * len(seen)))).values[-1]
        moved = 0
        for (index, name), pull in self.pulls.items():
            distances = self._distances((index, name))
            far = (distances >= least.to(distances.device)) & (distances > 0)
            codes = self.blocks[index].weights[name].codes
            codes -= (pull.mean.sign() * far).to(torch.int8)
            pull.mean.masked_fill_(far, 0)
            moved += int(far.sum())
        return moved

    def _distances(self, key: tuple[int, str]) -> Tensor:
        index, name = key
        return self.pulls[key].distances(self.blocks[index].weights[name], self.scales(self.map.blocks[index], name))

    def result(self) -> list[QuantizedBlock]:
        """The blocks as they are now, their scales rounded to the format's numbers."""
        moved = []
        for block, done in zip(self.map.blocks, self.blocks, strict=True):
            weights = {}
            for name, weight in done.weights.items():
                scales = self.scales(block, name).clamp(SMALLEST_SCALE, LARGEST_SCALE)
                weights[name] = replace(weight, scales=scales.to(torch.bfloat16).to(SCALE_DTYPE))
            moved.append(replace(done, weights=weights))
        return moved


def _copy(done: QuantizedBlock) -> QuantizedBlock:
    """The same with codes of its own."""
    return replace(done, weights={name: replace(w, codes=w.codes.clone()) for name, w in done.weights.items()})


def _codes(weight: QuantizedWeight) -> Tensor:
    """``codes - zero``, float32 [out, groups, size]."""
    return weight.codes.view(*weight.scales.shape, -1).float() - weight.zeros.float().unsqueeze(-1)


class _Side:
    """Some conversations: what enters the first block, and the float model's last states at the predictions."""

    def __init__(self, run: CalibrationPass, head: Tensor) -> None:
        self.run, self.head = run, head
        with torch.no_grad():
            self.batches = run.embed()
            self.entering = [batch.hidden for batch in self.batches]
            for block in run.map.blocks:
                run.advance(block, self.batches)
            self.norm = run.skeleton.model.language_model.norm
            run.materialise(self.norm, f"{LANGUAGE_PREFIX}norm.")
            self.norm.requires_grad_(False)
            self.places = [run.predicting(batch) for batch in self.batches]
            self.teacher = [
                self.norm(batch.hidden).flatten(0, 1)[place]
                for batch, place in zip(self.batches, self.places, strict=True)
            ]
        for batch, entering in zip(self.batches, self.entering, strict=True):
            batch.hidden = entering  # the last states are not needed any more

    def _load(self, block: Block, student: _Student, learning: bool) -> None:
        layer = self.run.layers[block.index]
        layer.load_state_dict(student.state(block, self.run.dtype), assign=True)
        layer.eval().requires_grad_(False)
        for name in student.blocks[block.index].weights:
            layer.get_submodule(name).weight.requires_grad_(learning)

    def _forward(self, student: _Student, chosen: Sequence[int], keep: bool) -> list[list[Tensor]]:
        """The states after the last block, a list of batches; ``keep``: those before every block in front of them."""
        states = [[self.entering[index] for index in chosen]]
        with torch.no_grad():
            for block in self.run.map.blocks:
                self._load(block, student, False)
                if not keep:
                    del states[:-1]
                states.append(
                    [
                        self.run.through(block, self.batches[index], hidden)
                        for index, hidden in zip(chosen, states[-1], strict=True)
                    ]
                )
                self.run.layers[block.index].to("meta")
        return states

    def loss(self, student: _Student) -> float:
        """Mean KL a prediction."""
        chosen = range(len(self.batches))
        total = sum(
            self._divergence(index, hidden)[0]
            for index, hidden in zip(chosen, self._forward(student, chosen, keep=False)[-1], strict=True)
        )
        return total / max(1, sum(len(place) for place in self.places))

    def _divergence(self, index: int, hidden: Tensor) -> tuple[float, Tensor]:
        """The sum of KL over a batch's predictions and its gradient with respect to ``hidden`` [B, T, hidden]."""
        entering = hidden.detach().requires_grad_(True)
        with torch.enable_grad():
            final = self.norm(entering)
        states, place, teacher, total = final.detach().flatten(0, 1), self.places[index], self.teacher[index], 0.0
        pull = torch.zeros_like(states)
        size = max(1, _LOGITS // len(self.head))
        for rows, wanted in zip(place.split(size), teacher.split(size), strict=True):
            theirs = torch.log_softmax((wanted @ self.head.T).float(), dim=-1)
            ours = torch.log_softmax((states[rows] @ self.head.T).float(), dim=-1)
            total += float((theirs.exp() * (theirs - ours)).sum())
            pull[rows] = (ours.exp() - theirs.exp()).to(self.head.dtype) @ self.head
        final.backward(pull.view_as(final))
        assert entering.grad is not None
        return total, entering.grad

    def step(self, student: _Student, chosen: Sequence[int]) -> None:
        """Hand the student the gradients of the mean KL over the batches ``chosen``."""
        states = self._forward(student, chosen, keep=True)
        predictions = max(1, sum(len(self.places[index]) for index in chosen))
        pulls = [
            self._divergence(index, hidden)[1] / predictions for index, hidden in zip(chosen, states[-1], strict=True)
        ]
        for block in reversed(self.run.map.blocks):
            self._load(block, student, True)
            layer = self.run.layers[block.index]
            before = []
            for index, hidden, pull in zip(chosen, states[block.index], pulls, strict=True):
                entering = hidden.detach().requires_grad_(True)
                with torch.enable_grad():
                    leaving = self.run.through(block, self.batches[index], entering)
                leaving.backward(pull)
                assert entering.grad is not None
                before.append(entering.grad)
            pulls = before
            names = list(student.blocks[block.index].weights)
            student.add_gradients(block, {name: layer.get_submodule(name).weight.grad for name in names})
            layer.to("meta")
