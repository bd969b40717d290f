"""The statistics pass: one stream through the model, a block at a time, that gathers all a method needs of the data.

For every distinct linear input X [tokens, in] the pass accumulates, split into text and vision tokens, the Gram matrix
``X^T X`` (float32), ``sum |x|`` a channel (float64), the token count and the largest ``|x|``. The Gram matrix is what
GPTQ calls its Hessian (arXiv:2210.17323) and its diagonal is llama.cpp's importance matrix; here AWQ's search runs on
it as well, so no forward pass happens inside a search.

Weights are read from the checkpoint when their block's turn comes and dropped after it. What stays is the hidden state
of each sample. The modules are transformers' own, so the activations are those of inference.

Short samples of like length go through the blocks together, each on a row of its own. Nothing is joined along time, so
no attention, convolution or recurrent state reaches from one sample into another; rows are padded on the right, where
causality hides the padding from what comes before it. Padding is zero before every block and counts in no statistic.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from quantkit.errors import QuantkitError
from quantkit.model import EMBEDDING, HEAD, LAYERS_PREFIX, NORM_KINDS, Block, ModelMap

if TYPE_CHECKING:
    from quantkit.calibration import Sample
    from quantkit.checkpoint import Checkpoint

log = logging.getLogger(__name__)

MODALITIES = ("text", "vision")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PANEL = 512  # columns a matrix product fills at once; only panels on and above the diagonal are computed
_FLUSH_TOKENS = 2048  # rows gathered before they are multiplied: long products run near peak speed
BATCH_TOKENS = 512  # padded tokens a batch; more gained nothing at tiny's width and lost at the published one

Progress = Callable[[str, int, int], None]  # what, done, of


@dataclass
class ModalityStatistics:
    """Sums over the tokens of one modality: gram float32 [in, in], abs_sum float64 [in], tokens, abs_max; drift: sum of
    ``(x - x~) x~^T``, float32 [in, in], where the inputs x~ lie behind quantized blocks and x are the float model's."""

    gram: Tensor
    abs_sum: Tensor
    tokens: int = 0
    abs_max: float = 0.0
    drift: Tensor | None = None


@dataclass
class InputStatistics:
    """What is known of one linear input, by modality."""

    by_modality: dict[str, ModalityStatistics]

    @property
    def gram(self) -> Tensor:
        """``X^T X`` over all tokens, float32 [in, in]."""
        return torch.stack([part.gram for part in self.by_modality.values()]).sum(0)

    @property
    def drift(self) -> Tensor | None:
        """Sum of ``(x - x~) x~^T`` over all tokens, float32 [in, in]; None where nothing was quantized before."""
        found = [part.drift for part in self.by_modality.values() if part.drift is not None]
        return torch.stack(found).sum(0) if found else None

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.by_modality.values())

    @property
    def mean_abs(self) -> Tensor:
        """Mean ``|x|`` a channel over all tokens, float32 [in]."""
        total = torch.stack([part.abs_sum for part in self.by_modality.values()]).sum(0)
        return (total / max(self.tokens, 1)).float()

    @property
    def abs_max(self) -> float:
        return max(part.abs_max for part in self.by_modality.values())


@dataclass
class BlockStatistics:
    """The inputs of one block's groups, by group name."""

    index: int
    inputs: dict[str, InputStatistics] = field(default_factory=dict)


class _Accumulator:
    """Gathers the rows of one input and multiplies them in large pieces."""

    def __init__(self, in_features: int, device: torch.device, drifts: bool) -> None:
        self._parts = {
            name: ModalityStatistics(
                torch.zeros(in_features, in_features, device=device),
                torch.zeros(in_features, dtype=torch.float64, device=device),
                drift=torch.zeros(in_features, in_features, device=device) if drifts else None,
            )
            for name in MODALITIES
        }
        self._waiting: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in MODALITIES}

    def add(self, rows: Tensor, places: dict[str, Tensor], exact: Tensor | None = None) -> None:
        """``rows`` [B * T, in]; ``places`` int64, which of them are of each modality (padding is of none); ``exact``:
        the float model's rows, where these are not."""
        for name, chosen in places.items():
            if not len(chosen):
                continue
            waiting = self._waiting[name]
            waiting.append((rows.index_select(0, chosen), None if exact is None else exact.index_select(0, chosen)))
            if sum(len(found) for found, _ in waiting) >= _FLUSH_TOKENS:
                self._flush(name)

    def _flush(self, name: str) -> None:
        waiting = self._waiting[name]
        if not waiting:
            return
        part, rows = self._parts[name], torch.cat([found for found, _ in waiting]).float()
        exact = [found for _, found in waiting if found is not None]
        waiting.clear()
        magnitude = rows.abs()
        part.abs_sum += magnitude.sum(0, dtype=torch.float64)
        part.abs_max = max(part.abs_max, float(magnitude.max()))
        part.tokens += len(rows)
        for start in range(0, rows.shape[1], _PANEL):
            panel = rows[:, start : start + _PANEL]
            part.gram[start : start + _PANEL, start:].addmm_(panel.T, rows[:, start:])
        if part.drift is not None:
            part.drift.addmm_((torch.cat(exact).float() - rows).T, rows)

    def finish(self) -> InputStatistics:
        for name, part in self._parts.items():
            self._flush(name)
            upper = part.gram.triu_()
            upper += upper.triu(1).T
        return InputStatistics(self._parts)


class _Recorder(nn.Module):
    """Stands in for a decoder layer while the inputs of the first one are computed: passes on, remembers the rest."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seen: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.seen = kwargs
        return hidden_states


@dataclass
class Batch:
    """Samples on their way through the blocks, one a row, and each layer kind's other arguments.

    hidden [B, T, hidden]; drifted: the same behind quantized blocks; padding bool [B, T]; places: see
    `_Accumulator.add`.
    """

    members: list[int]  # which of the pass's samples
    hidden: Tensor
    padding: Tensor
    places: dict[str, Tensor]
    arguments: dict[str, dict[str, Any]]
    drifted: Tensor | None = None


class CalibrationPass:
    """Streams ``samples`` through the language model of ``checkpoint``; iterate it for one BlockStatistics a block.

    dtype is that of the weights and activations (the Gram matrices are float32 whatever it is). Samples run together up
    to ``batch_tokens`` tokens, padding included (1: each alone, with the bits of transformers' forward).

    sequential: inputs are those behind the quantized blocks; hand each one back with `replace` before the next is
    asked for. The float model's own hidden states go along, for the drift between the two. Raises QuantkitError for a
    tensor that is missing, misshaped, NaN or Inf, and for an activation that is NaN or Inf (layer
    and sample).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model_map: ModelMap,
        samples: Sequence[Sample],
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch_tokens: int = BATCH_TOKENS,
        sequential: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if not samples:
            raise QuantkitError("no calibration samples: nothing is left of the set given with --calib")
        self.checkpoint, self.map, self.samples = checkpoint, model_map, samples
        self.device, self.dtype, self.batch_tokens = torch.device(device), dtype, batch_tokens
        self.progress = progress or (lambda what, done, total: None)
        self.skeleton = build_skeleton(checkpoint)
        self.layers = list(self.skeleton.model.language_model.layers)
        self.sequential = sequential
        self.abs_max = 0.0
        self._replacement: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[BlockStatistics]:
        with torch.no_grad():
            running = self.embed()
        for block in self.map.blocks:
            with torch.no_grad():
                found = self._run_block(block, running)
            yield found
            if self.sequential:
                with torch.no_grad():
                    self._follow(block, running)

    def replace(self, state: dict[str, Tensor]) -> None:
        """Hand back the block that was just given out as it is quantized: its parameters by name inside the block."""
        self._replacement = state

    def _follow(self, block: Block, running: list[Batch]) -> None:
        """Take the drifted hidden states through the quantized block."""
        if self._replacement is None:
            raise RuntimeError("a sequential pass needs each block back, quantized, before the next")
        if block.index + 1 == len(self.map.blocks):
            return
        layer = self.layers[block.index]
        state = {name: tensor.to(self.device, self.dtype) for name, tensor in self._replacement.items()}
        layer.load_state_dict(state, assign=True)
        self._replacement = None
        for batch in running:
            assert batch.drifted is not None
            hidden = layer(batch.drifted, **batch.arguments[block.kind])
            batch.drifted = hidden.masked_fill_(batch.padding[..., None], 0)
            members = [self.samples[index] for index in batch.members]
            _require_finite(batch.drifted, f"quantized layer {LAYERS_PREFIX}{block.index}", members)
        layer.to("meta")

    def final_hidden(self) -> list[Tensor]:
        """Hidden states [1, T, hidden] after the last block (before the final norm), for checking the pass itself."""
        with torch.no_grad():
            running = self.embed()
            for block in self.map.blocks:
                self._run_block(block, running)
        found = {
            index: batch.hidden[row, ~batch.padding[row]][None]
            for batch in running
            for row, index in enumerate(batch.members)
        }
        return [found[index] for index in range(len(self.samples))]

    def embed(self) -> list[Batch]:
        """Vision tower, mergers and embedding of every sample, with the model's own forward around them."""
        outer = self.skeleton.model
        language = outer.language_model
        recorders = [_Recorder(block.kind) for block in self.map.blocks]
        parts = {
            "model.vision_tower.": outer.vision_tower,
            "model.merger.": outer.merger,
            "model.language_model.embed_tokens.": language.embed_tokens,
        }
        norm, language.norm = language.norm, nn.Identity()
        language.layers = nn.ModuleList(recorders)
        try:
            for prefix, module in parts.items():
                self.materialise(module, prefix)
            language.rotary_emb = type(language.rotary_emb)(config=language.config).to(self.device)
            running: list[Batch] = []
            done = 0
            for members in batches([len(sample.vision_mask) for sample in self.samples], self.batch_tokens):
                self.progress("vision", done, len(self.samples))
                running.append(self._embed_batch(outer, members, recorders))
                done += len(members)
            self.progress("vision", done, len(self.samples))
            return running
        finally:
            for module in parts.values():
                module.to("meta")
            language.norm, language.layers = norm, nn.ModuleList(self.layers)

    def _embed_batch(self, outer: Any, members: list[int], recorders: list[_Recorder]) -> Batch:
        """Pictures go through the tower a sample at a time: memory peaks there, and attention takes one at a time."""
        samples = [self.samples[index] for index in members]
        rows = [self._embed_one(outer, sample) for sample in samples]
        hidden = pad_sequence(rows, batch_first=True)
        if len(rows) > 1:  # a sample alone has left its arguments in the recorders
            outer.language_model(inputs_embeds=hidden, use_cache=False)
        padding = pad_sequence([torch.zeros_like(s.vision_mask) for s in samples], batch_first=True, padding_value=1)
        vision = pad_sequence([sample.vision_mask for sample in samples], batch_first=True)
        places = {
            name: torch.nonzero(mask.flatten())[:, 0].to(self.device)
            for name, mask in zip(MODALITIES, (~vision & ~padding, vision), strict=True)
        }
        arguments = {recorder.kind: recorder.seen for recorder in recorders}
        return Batch(members, hidden, padding.to(self.device), places, arguments)

    def _embed_one(self, outer: Any, sample: Sample) -> Tensor:
        """What one sample gives to the first block, [T, hidden]."""
        inputs = {name: value.to(self.device) for name, value in sample.inputs.items()}
        hidden = outer(**inputs, downsample_mode=sample.downsample_mode, use_cache=False).last_hidden_state
        _require_finite(hidden, "the vision tower and embedding", [sample])
        _trim_memory()
        return hidden[0]

    def _run_block(self, block: Block, running: list[Batch]) -> BlockStatistics:
        layer = self.layers[block.index]
        self.materialise(layer, block.prefix)
        check_norms(layer, block)
        drifts = any(batch.drifted is not None for batch in running)
        accumulators = {group.name: _Accumulator(group.in_features, self.device, drifts) for group in block.groups}
        seen: dict[str, Tensor] = {}

        def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen[name] = args[0].flatten(0, -2)

            return hook

        with ExitStack() as stack:
            for group in block.groups:
                linear = layer.get_submodule(group.linears[0])
                stack.callback(linear.register_forward_pre_hook(hook_for(group.name)).remove)
            done = 0
            for batch in running:
                self.progress(f"layer {block.index}", done, len(self.samples))
                hidden = layer(batch.hidden, **batch.arguments[block.kind])
                exact: dict[str, Tensor] = {}
                if batch.drifted is not None:
                    exact = dict(seen)
                    layer(batch.drifted, **batch.arguments[block.kind])
                for name, accumulator in accumulators.items():
                    accumulator.add(seen[name], batch.places, exact.get(name))
                if self.sequential and batch.drifted is None:
                    batch.drifted = batch.hidden  # nothing is quantized before the first block
                batch.hidden = hidden.masked_fill_(batch.padding[..., None], 0)
                members = [self.samples[index] for index in batch.members]
                _require_finite(batch.hidden, f"layer {LAYERS_PREFIX}{block.index}", members)
                done += len(members)
        self.progress(f"layer {block.index}", done, len(self.samples))
        layer.to("meta")
        _trim_memory()
        statistics = BlockStatistics(block.index, {name: acc.finish() for name, acc in accumulators.items()})
        self.abs_max = max(self.abs_max, *(part.abs_max for part in statistics.inputs.values()))
        return statistics

    def advance(self, block: Block, running: list[Batch]) -> None:
        """Take hidden states through one block of the float model; the tensors that went in are not changed."""
        layer = self.layers[block.index]
        self.materialise(layer, block.prefix)
        for batch in running:
            batch.hidden = self.through(block, batch, batch.hidden)
        layer.to("meta")

    def through(self, block: Block, batch: Batch, hidden: Tensor) -> Tensor:
        """What a block, whose weights are there, makes of ``hidden`` in the place of ``batch.hidden``."""
        leaving: Tensor = self.layers[block.index](hidden, **batch.arguments[block.kind])
        return leaving.masked_fill(batch.padding[..., None], 0)

    def predicting(self, batch: Batch) -> Tensor:
        """int64: positions, in the flattened batch, whose next token is text."""
        following = torch.zeros_like(batch.padding)
        for row, member in enumerate(batch.members):
            vision = self.samples[member].vision_mask
            following[row, : len(vision) - 1] = ~vision[1:].to(self.device)
        return torch.nonzero(following.flatten())[:, 0]

    def head(self) -> Tensor:
        """The output head, [vocabulary, hidden] on the pass's device and in its dtype."""
        name = EMBEDDING if self.map.tied else HEAD
        return self.checkpoint.load(name, check_finite=True).to(self.device, self.dtype)

    def materialise(self, module: nn.Module, prefix: str) -> None:
        """Give ``module`` the weights that the checkpoint has under ``prefix``."""
        state = {}
        for name, empty in module.state_dict().items():
            tensor = self.checkpoint.load(prefix + name, check_finite=True)
            if tensor.shape != empty.shape:
                raise QuantkitError(
                    f"{prefix}{name} has shape {list(tensor.shape)}, config.json says {list(empty.shape)}"
                )
            state[name] = tensor.to(self.device, self.dtype)
        module.load_state_dict(state, assign=True)
        module.eval()


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of samples that run together, shortest first: at most ``most`` tokens with padding, or one sample."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[index] > most:  # sorted, so the newest is the longest
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps what lies between pieces in use, 1.5 GB after 64 pictures of
    many sizes at full size. Does nothing under another C library."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _require_finite(hidden: Tensor, where: str, samples: Sequence[Sample]) -> None:
    """``hidden`` [B, T, hidden], a row for each of ``samples``."""
    finite = torch.isfinite(hidden).all(-1).all(-1)
    if not finite.all():
        sample = samples[int(finite.int().argmin())]
        raise QuantkitError(
            f"activation of {where} is NaN or Inf for calibration sample {sample.id}; try --dtype float32"
        )


def check_norms(layer: nn.Module, block: Block) -> None:
    """Raise unless each norm that feeds a group is of the exact class the map was written for."""
    for group in block.groups:
        if group.feeder.kind == "rows":
            continue
        norm = type(layer.get_submodule(group.feeder.module)).__name__
        if NORM_KINDS.get(norm) != group.feeder.kind:
            raise QuantkitError(
                f"{block.prefix}{group.feeder.module} is a {norm}, a norm quantkit does not know how to fold into; "
                "this version of transformers differs from those quantkit was written for"
            )


def build_skeleton(checkpoint: Checkpoint) -> Any:
    """The model's modules without weights (meta device), from config.json alone; the attention is SDPA."""
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

    config = MiniCPMV4_6Config.from_dict(checkpoint.config)
    with torch.device("meta"):
        return MiniCPMV4_6ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
