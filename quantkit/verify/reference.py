"""The reference pass: run once, kept on disk, with the reference's own noise floor.

What is kept of each scored position is the final hidden state. Its product with the output head, which is read from the
checkpoint again, gives the very logits, so every KL figure is exact at any vocabulary (error bound 0), for a
`vocabulary / hidden` part of the logits' size: 4 KB instead of 1 MB a position for the real model in float32. The usual
form, top-k and log-sum-exp, takes as much room at k = 512 and leaves the tail unknown (scripts/LOG.md has the figures).

    CACHE/KEY/pass.safetensors   states [all positions, hidden], layers.NAME [rows, channels]
    CACHE/KEY/pass.json          answers, noise floor, seconds, checksum of the other file

KEY covers the checkpoint's fingerprint, every input tensor (hence the data, the processor and its options), the options
that decide the figures, the versions of torch and transformers, and the source code of the passes. A damaged or
half-written entry is made again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantkit import grid
from quantkit.calibration import fingerprint as samples_fingerprint
from quantkit.calibration.conversations import MODALITIES
from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import FORMATS
from quantkit.model import EMBEDDING, HEAD
from quantkit.verify import compare, forward, layers, metrics
from quantkit.verify.engines import local
from quantkit.verify.engines.local import DTYPES, load_dequantized
from quantkit.verify.ggufset import file_fingerprint, files_run
from quantkit.verify.report import CacheInfo, NoiseRow
from quantkit.verify.task import Answer, Observed, States, Target, Task, Tick

log = logging.getLogger(__name__)

NOISE_ITEMS = 8
CODE = (
    forward.__file__,
    layers.__file__,
    local.__file__,
    compare.__file__,
    metrics.__file__,
    *(str(layout.__file__) for layout in FORMATS.values()),
    grid.__file__,
    __file__,
)


@dataclass
class ReferencePass:
    """The reference's observations, its noise floor, and where they are kept."""

    observed: Observed
    noise: list[NoiseRow]
    cache: CacheInfo | None
    seconds: float  # of the pass itself, when it was made


def reference_pass(
    checkpoint: Checkpoint, task: Task, dtype: str, device: str, folder: Path | None, noise: bool, tick: Tick
) -> ReferencePass:
    """The stored pass where there is a whole one under this key, else a new one, stored where `folder` is given."""
    key = cache_key(checkpoint, task, dtype, device, noise)
    entry = folder / "reference" / key if folder is not None else None
    if entry is not None and entry.is_dir():
        found = _read(entry, key, checkpoint, task, dtype)
        if found is not None:
            tick(units(task, noise))
            return found
    clock = time.perf_counter()
    observed, rows = _run(checkpoint, task, dtype, device, noise, tick)
    made = ReferencePass(observed, rows, None, time.perf_counter() - clock)
    if entry is not None:
        _write(entry, made)
        made.cache = _describe(entry, key, hit=False, positions=_count(task))
    return made


def units(task: Task, noise: bool) -> int:
    """How many ticks a reference pass takes."""
    return len(task.samples) * (2 if task.generate else 1) + (len(noise_items(task)) if noise else 0)


def cache_key(checkpoint: Checkpoint, task: Task, dtype: str, device: str, noise: bool) -> str:
    """SHA-256 over all that decides the pass."""
    digest = hashlib.sha256()
    parts = {
        "reference": _content_hash(checkpoint),
        "data": samples_fingerprint(task.samples),
        "stop": sorted(task.stop_ids),
        "options": [dtype, device.partition(":")[0], task.max_new_tokens, task.generate, noise],
        "versions": [version("torch"), version("transformers")],
        "code": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in CODE],
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _content_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over the config and all bytes of the weights: a fingerprint samples, and a cache must not be fooled."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file in sorted({checkpoint.info(name).file for name in checkpoint.tensor_names}):
        digest.update(f"{file.name} {_sha256(file)}".encode())
    return digest.hexdigest()


def head_of(checkpoint: Checkpoint, dtype: str) -> Tensor:
    """The output head [V, hidden] as the model holds it: the embedding, where the two are tied."""
    tied = checkpoint.config.get("tie_word_embeddings", False)
    name = EMBEDDING if tied or HEAD not in checkpoint else HEAD
    return checkpoint.load(name, DTYPES[dtype])


def target_files(target: Target) -> list[Path]:
    """The files of a target that is no checkpoint's folder, as they are run: text in all its parts, vision."""
    return [file for file in files_run(target.path, target.mmproj) if file.is_file()]


def target_fingerprint(target: Target) -> str:
    """A candidate's fingerprint, as report.json records it; "unknown" where only a server has its files."""
    if target.checkpoint is not None:
        return target.checkpoint.fingerprint()
    files = target_files(target)
    return file_fingerprint(files) if files else "unknown"


# ---- running ---------------------------------------------------------------------------------------------------------


def _run(
    checkpoint: Checkpoint, task: Task, dtype: str, device: str, noise: bool, tick: Tick
) -> tuple[Observed, list[NoiseRow]]:
    model = load_dequantized(checkpoint, dtype, device)
    observed = forward.observe(model, task, tick, trust_teacher=True)
    for prediction, sample in zip(observed.predictions, task.samples, strict=True):
        if isinstance(prediction, States) and not torch.isfinite(prediction.states).all():
            raise QuantkitError(f"{checkpoint.path}: the final hidden states of item '{sample.id}' hold NaN or Inf")
    rows: list[NoiseRow] = []
    if noise:
        chosen = noise_items(task)
        part = replace(
            task, samples=[task.samples[i] for i in chosen], places=[task.places[i] for i in chosen], conversations=[]
        )
        expected = [observed.predictions[i] for i in chosen]
        single = forward.hidden_states(model, part.samples, part.places, lambda count: None, batch_samples=1)
        del model  # before any logits are made
        gc.collect()
        what = "one item at a time against batches"
        rows += _noise("single", what, part, expected, single, observed.head, observed.head)
        other = "bfloat16" if dtype == "float32" else "float32"
        model = load_dequantized(checkpoint, other, device)
        states = forward.hidden_states(model, part.samples, part.places, tick)
        head = model.get_output_embeddings().weight.detach().cpu()
        what = f"{other} against {dtype}"
        rows += _noise(other, what, part, expected, states, observed.head, head)
    del model
    gc.collect()
    return observed, rows


def noise_items(task: Task) -> list[int]:
    """At most NOISE_ITEMS items, taken in turn from each modality."""
    queues = [[i for i, sample in enumerate(task.samples) if sample.modality == modality] for modality in MODALITIES]
    chosen: list[int] = []
    for place in range(NOISE_ITEMS):
        for queue in queues:
            if place < len(queue) and len(chosen) < NOISE_ITEMS:
                chosen.append(queue[place])
    return sorted(chosen)


def _noise(
    name: str,
    what: str,
    task: Task,
    expected: list[Any],
    found: list[Tensor],
    head: Tensor | None,
    other: Tensor | None,
) -> list[NoiseRow]:
    """One row over all text, and one over the answers' tokens where there are any."""
    assert head is not None and other is not None
    tokens = compare.compare_states(torch.cat([e.states for e in expected]), torch.cat(found), head, other, task.places)
    rows = []
    for positions in ("answer", "text"):
        part = tokens[torch.cat([place.answer for place in task.places])] if positions == "answer" else tokens
        if part.kl.numel():
            rows.append(_noise_row(name, what, positions, len(task.samples), part))
    return rows


def _noise_row(name: str, what: str, positions: Any, items: int, tokens: metrics.TokenMetrics) -> NoiseRow:
    kl = tokens.kl.double()
    return NoiseRow(
        name=name,
        what=what,
        positions=positions,
        items=items,
        tokens=kl.numel(),
        kl_mean=float(kl.mean()),
        kl_p99=float(torch.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=float(tokens.agree.double().mean()),
        logit_rms=float(tokens.logit_square.double().mean().sqrt()),
    )


# ---- keeping ---------------------------------------------------------------------------------------------------------


def _count(task: Task) -> int:
    return sum(place.positions.numel() for place in task.places)


def _write(entry: Path, made: ReferencePass) -> None:
    """Store a pass; the folder takes its name only when both files are in it. A full disk costs the cache, no more."""
    partial = entry.with_name(f".{entry.name}.partial-{os.getpid()}")
    states = [prediction.states for prediction in made.observed.predictions if isinstance(prediction, States)]
    tensors = {f"layers.{name}": rows.contiguous() for name, rows in made.observed.layers.items()}
    tensors["states"] = torch.cat(states).contiguous()
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / "pass.safetensors")
        content = {
            "sha256": _sha256(partial / "pass.safetensors"),
            "layers": list(made.observed.layers),  # in the model's order, which the other file does not keep
            "answers": [asdict(answer) if answer else None for answer in made.observed.answers],
            "noise": [row.model_dump() for row in made.noise],
            "seconds": made.seconds,
        }
        (partial / "pass.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        if entry.exists():
            shutil.rmtree(entry)
        partial.rename(entry)
    except (OSError, SafetensorError) as error:
        log.warning("%s: the reference pass could not be kept (%s)", entry.parent, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(entry: Path, key: str, checkpoint: Checkpoint, task: Task, dtype: str) -> ReferencePass | None:
    """The stored pass, None where it is damaged (which is logged)."""
    try:
        content = json.loads((entry / "pass.json").read_text(encoding="utf-8"))
        if _sha256(entry / "pass.safetensors") != content["sha256"]:
            raise ValueError("checksum of pass.safetensors")
        tensors = load_file(entry / "pass.safetensors")
        lengths = [place.positions.numel() for place in task.places]
        states = tensors.pop("states").split(lengths)
        probed = {name: tensors[f"layers.{name}"] for name in content["layers"]}
        seconds = float(content["seconds"])
        answers = [Answer(**answer) if answer else None for answer in content["answers"]]
        noise = [NoiseRow.model_validate(row) for row in content["noise"]]
        if len(answers) != len(task.samples):
            raise ValueError("number of answers")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        log.warning("%s: damaged (%s), the reference runs again", entry, error)
        return None
    observed = Observed(
        predictions=[States(state) for state in states],
        answers=answers,
        head=head_of(checkpoint, dtype),
        layers=probed,
    )
    cache = _describe(entry, key, hit=True, positions=_count(task))
    return ReferencePass(observed, noise, cache, seconds)


def _describe(entry: Path, key: str, hit: bool, positions: int) -> CacheInfo | None:
    if not entry.is_dir():
        return None
    size = sum(file.stat().st_size for file in entry.iterdir())
    return CacheInfo(
        key=key,
        hit=hit,
        bytes=size,
        positions=positions,
        bytes_per_position=size / max(1, positions),
        kl_error_bound=0.0,
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
