"""`verify`: data, two passes, metrics, report."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration import Conversation, PrepareOptions, Sample, load_conversations, load_processor, prepare
from quantkit.calibration import fingerprint as samples_fingerprint
from quantkit.calibration.conversations import MODALITIES
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.verify import forward
from quantkit.verify.engines import DTYPES, ENGINES
from quantkit.verify.metrics import TokenMetrics, exact_match, summarize, token_metrics
from quantkit.verify.report import Report, environment

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # stage, done, total
LOGIT_ELEMENTS = 1 << 26  # of one model's logits at a time: 256 MiB in float32

# what two configs must agree on for their models to be comparable
SHARED_SETTINGS = (
    ("architectures",),
    ("model_type",),
    ("text_config", "vocab_size"),
    ("text_config", "hidden_size"),
    ("image_token_id",),
    ("video_token_id",),
)


@dataclass(frozen=True)
class VerifyOptions:
    """What decides the figures, besides the two models and the data."""

    # "dequantized": our reading of the weights in the reference architecture; "transformers": the real kernels
    engine: str = "dequantized"
    samples: int | None = None  # None: every item
    max_tokens: int = 2048  # an item longer than that is left out
    downsample_mode: str = "16x"  # "16x", "4x", or "both" (alternating within each modality)
    max_slice_nums: int | None = None  # None: the processor's own
    seed: int = 0  # of the selection
    dtype: str = "float32"  # "float32" shows quantization alone; in "bfloat16" its own rounding is added
    device: str = "cpu"
    generate: bool = True  # answers, for exact match
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        for name, known in (("engine", ENGINES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise QuantkitError(f"{name} '{getattr(self, name)}' is unknown to verify: use {' or '.join(known)}")
        if self.max_new_tokens < 1:
            raise QuantkitError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Task:
    """Everything both passes share."""

    samples: list[Sample]
    places: list[forward.Scored]
    answers: list[str | None]
    processor: Any
    stop_ids: set[int]
    options: VerifyOptions


@dataclass(frozen=True)
class Pass:
    """What is kept of a model once it has run."""

    states: list[Tensor]  # a sample: [P, hidden]
    head: Tensor  # [V, hidden]
    texts: list[str | None]  # generated, where the item states its answer


def verify(
    reference: str | Path,
    candidate: str | Path,
    data: str | Path = "heldout",
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Measure what `candidate` lost against `reference` on the conversations of `data`.

    Both are a folder, a hub id or "tiny"; `data` is what `load_conversations` takes. `options` are the fields of
    `VerifyOptions`: `engine`, `samples`, `dtype` and so on. `progress` is told (stage, items done, items in all), the
    stages being "reference" and "candidate". Raises `QuantkitError` for input it cannot work with.
    """
    settings = VerifyOptions(**options)
    tell = progress or (lambda stage, done, total: None)
    checkpoints = {"reference": open_checkpoint(reference), "candidate": open_checkpoint(candidate)}
    _check_compatible(*checkpoints.values())
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    conversations = load_conversations(data)
    task = _task(conversations, checkpoints["reference"], settings)
    passes = {}
    for stage, checkpoint in checkpoints.items():
        seconds["prepare" if stage == "reference" else "reference"] = time.perf_counter() - clock
        clock = time.perf_counter()
        passes[stage] = _run(task, checkpoint, stage, tell)
    seconds["candidate"] = time.perf_counter() - clock
    clock = time.perf_counter()
    metrics = _compare(passes["reference"], passes["candidate"], task.places, settings.device)
    seconds["metrics"] = time.perf_counter() - clock
    source = {"source": str(data), "available": len(conversations)}
    return _report(task, checkpoints, source, passes, metrics, seconds)


def _check_compatible(reference: Checkpoint, candidate: Checkpoint) -> None:
    """Raise unless both configs describe one architecture over one vocabulary."""
    for path in SHARED_SETTINGS:
        found = []
        for checkpoint in (reference, candidate):
            value: Any = checkpoint.config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            found.append(value)
        if found[0] != found[1]:
            raise QuantkitError(
                f"{candidate.path}: config.json's {'.'.join(path)} is {found[1]}, the reference's is {found[0]}; "
                "only variants of one model can be compared"
            )


def _task(conversations: Sequence[Conversation], reference: Checkpoint, options: VerifyOptions) -> Task:
    processor = load_processor(reference.path)
    for name in ("image_token_id", "video_token_id"):
        configured, used = reference.config.get(name), getattr(processor, name)
        if configured != used:
            raise QuantkitError(f"{reference.path}: config.json's {name} is {configured}, its tokenizer's is {used}")
    prepared = prepare(
        conversations,
        processor,
        PrepareOptions(
            options.samples, options.max_tokens, options.downsample_mode, options.max_slice_nums, options.seed
        ),
    )
    stated = {conversation.id: conversation.answer for conversation in conversations}
    stop_ids = _stop_ids(reference, processor)
    return Task(
        samples=prepared,
        places=[forward.scored(sample, stop_ids) for sample in prepared],
        answers=[stated[sample.id] for sample in prepared],
        processor=processor,
        stop_ids=stop_ids,
        options=options,
    )


def _stop_ids(reference: Checkpoint, processor: Any) -> set[int]:
    """The tokens that end an answer: the generation config's, the config's and the tokenizer's."""
    from transformers import GenerationConfig

    found = [reference.config.get("eos_token_id"), processor.tokenizer.eos_token_id]
    if (reference.path / "generation_config.json").is_file():
        found.append(GenerationConfig.from_pretrained(str(reference.path), local_files_only=True).eos_token_id)
    ids = {token for value in found for token in (value if isinstance(value, list) else [value]) if token is not None}
    if not ids:
        raise QuantkitError(f"{reference.path}: no config names an end-of-sequence token (eos_token_id)")
    return ids


def _run(task: Task, checkpoint: Checkpoint, stage: str, tell: Progress) -> Pass:
    """Load a model, run it over every item, and free it."""
    options = task.options
    # a checkpoint that is not quantized is the same on every engine
    engine = options.engine if checkpoint.is_quantized else "dequantized"
    model = ENGINES[engine](checkpoint, options.dtype, options.device)
    asked = [i for i, answer in enumerate(task.answers) if options.generate and answer is not None]
    done, total = 0, len(task.samples) + len(asked)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        tell(stage, done, total)

    tell(stage, 0, total)
    states = forward.hidden_states(model, task.samples, task.places, tick)
    texts = _answers(model, task, states, asked, engine, tick)
    head = model.get_output_embeddings().weight.detach().cpu()  # keeps this one tensor of the model
    del model
    gc.collect()
    _check_finite(states, task.samples, checkpoint)
    return Pass(states, head, texts)


def _answers(
    model: Any, task: Task, states: list[Tensor], asked: list[int], engine: str, tick: forward.Tick
) -> list[str | None]:
    """What the model answers to each item of `asked`, generated only where teacher forcing cannot tell."""
    limit = task.options.max_new_tokens
    texts: list[str | None] = [None] * len(task.samples)
    running = []
    for index in asked:
        place = task.places[index]
        # other kernels may serve one token than many: there, nothing is taken for granted
        known = engine == "dequantized" and forward.repeats_answer(model, states[index], place, task.stop_ids)
        if known:
            texts[index] = _decode(task, place.targets[place.answer].tolist()[:-1][:limit])
            tick(1)
        else:
            running.append(index)
    pad = task.processor.tokenizer.pad_token_id
    pad = min(task.stop_ids) if pad is None else pad
    chosen = [task.samples[index] for index in running]
    for index, tokens in zip(running, forward.greedy(model, chosen, limit, task.stop_ids, pad, tick), strict=True):
        texts[index] = _decode(task, tokens)
    return texts


def _decode(task: Task, tokens: list[int]) -> str:
    return task.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _check_finite(states: list[Tensor], samples: list[Sample], checkpoint: Checkpoint) -> None:
    for state, sample in zip(states, samples, strict=True):
        if not torch.isfinite(state).all():
            raise QuantkitError(f"{checkpoint.path}: the final hidden states of item '{sample.id}' hold NaN or Inf")


@torch.inference_mode()
def _compare(reference: Pass, candidate: Pass, places: list[forward.Scored], device: str) -> list[TokenMetrics]:
    """The metrics of each item, a bounded number of logits at a time."""
    states = [torch.cat(one.states) for one in (reference, candidate)]  # [all P, hidden]
    heads = [one.head.to(device) for one in (reference, candidate)]
    targets = torch.cat([place.targets for place in places])
    parts = []
    for rows in torch.arange(len(targets)).split(max(1, LOGIT_ELEMENTS // heads[0].shape[0])):
        first, second = (_logits(state[rows].to(device), head) for state, head in zip(states, heads, strict=True))
        parts.append(token_metrics(first, second, targets[rows].to(device)).cpu())
    return TokenMetrics.cat(parts).split([place.targets.numel() for place in places])


def _logits(state: Tensor, head: Tensor, rows: int = 1 << 14) -> Tensor:
    """state [P, hidden] times head [V, hidden] in float32, [P, V]; the head is widened a few rows at a time."""
    parts = [state.float() @ part.float().T for part in head.split(rows)]
    return torch.cat(parts, dim=-1)


def _report(
    task: Task,
    checkpoints: dict[str, Checkpoint],
    source: dict[str, Any],
    passes: dict[str, Pass],
    metrics: list[TokenMetrics],
    seconds: dict[str, float],
) -> Report:
    groups = {m: [i for i, s in enumerate(task.samples) if s.modality == m] for m in MODALITIES}
    groups = {modality: members for modality, members in groups.items() if members}
    groups["all"] = list(range(len(task.samples)))
    texts = {stage: one.texts for stage, one in passes.items()}
    models = {stage: _describe(checkpoint) for stage, checkpoint in checkpoints.items()}
    return Report(
        reference=models["reference"],
        candidate=models["candidate"],
        data={
            **source,
            "fingerprint": samples_fingerprint(task.samples),
            "items": len(task.samples),
            "answers": sum(answer is not None for answer in task.answers),
        },
        options=asdict(task.options),
        metrics={group: _positions(task, metrics, members) for group, members in groups.items()},
        accuracy=_accuracies(task, texts, groups),
        items=[_item(task, texts, metrics[index], index) for index in groups["all"]],
        environment=environment(),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )


def _positions(task: Task, metrics: list[TokenMetrics], members: list[int]) -> dict[str, dict[str, Any] | None]:
    whole = TokenMetrics.cat([metrics[index] for index in members])
    answer = torch.cat([task.places[index].answer for index in members])
    return {"answer": summarize(whole[answer]), "text": summarize(whole)}


def _accuracies(
    task: Task, texts: dict[str, list[str | None]], groups: dict[str, list[int]]
) -> dict[str, dict[str, Any]]:
    """Exact match of both models, by modality; a modality without a generated answer is left out."""
    result = {}
    for group, members in groups.items():
        asked = [i for i in members if texts["reference"][i] is not None]
        if asked:
            result[group] = {
                "items": len(asked),
                **{
                    stage: sum(exact_match(texts[stage][i] or "", task.answers[i] or "") for i in asked) / len(asked)
                    for stage in ("reference", "candidate")
                },
                "same_text": sum(texts["reference"][i] == texts["candidate"][i] for i in asked) / len(asked),
            }
    return result


def _item(task: Task, texts: dict[str, list[str | None]], metrics: TokenMetrics, index: int) -> dict[str, Any]:
    sample, answer = task.samples[index], metrics.kl[task.places[index].answer]
    return {
        "id": sample.id,
        "modality": sample.modality,
        "downsample_mode": sample.downsample_mode,
        "tokens": metrics.kl.numel(),
        "kl_mean": float(metrics.kl.double().mean()),
        "kl_answer_mean": float(answer.double().mean()) if answer.numel() else None,
        "answer": task.answers[index],
        "reference": texts["reference"][index],
        "candidate": texts["candidate"][index],
    }


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "fingerprint": checkpoint.fingerprint(),
        "bytes": checkpoint.total_bytes,
        "quantization": checkpoint.config.get("quantization_config"),
    }
