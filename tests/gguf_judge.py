"""GGUF files of `tiny` by `quantkit gguf`, run by llama.cpp, measured against Transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantkit.calibration import Conversation, PrepareOptions, load_conversations, load_processor, prepare
from quantkit.gguf.quantize import quantize_gguf
from quantkit.recipe import GgufOptions
from quantkit.source import tiny_folder
from quantkit.verify.engines.llamacpp import run_llamacpp
from quantkit.verify.forward import scored
from quantkit.verify.task import Observed, Target, Task, TopK

TINY = tiny_folder()
STOP_IDS = {1005, 1007}
# of the held-out set: whole pictures, wide, tall and large ones in slices, two at once, frames of a video, text; both
# languages. Answers in Chinese hold characters of several tokens.
ONE, SLICES, TWO, FRAMES = (1, 2, 21, 27), (36, 72, 174, 12), (315, 322), (343, 345)
TEXTS = (371, 372, 373, 374, 385, 403, 405, 377)
ITEMS = (*ONE, *SLICES, *TWO, *FRAMES, *TEXTS)

runtime = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the package xllamacpp (llama.cpp in a wheel)"
)


def write(out: Path, **settings: Any) -> Path:
    """A folder of `quantkit gguf`: float16 of `tiny` unless `settings` say otherwise, rounded without data."""
    given: dict[str, Any] = {"model": "tiny", "out": out, "type": ("F16",), "solver": "rtn", "no_cache": True}
    quantize_gguf(GgufOptions(**given | settings))
    return out


def conversations(items: tuple[int, ...]) -> list[Conversation]:
    """Some held-out items by number, in the set's order."""
    wanted = {f"test-{number:04}" for number in items}
    return [item for item in load_conversations("heldout") if item.id in wanted]


def make_task(mode: str = "16x", items: tuple[int, ...] | list[Conversation] = ITEMS, *, generate: bool = True) -> Task:
    """Held-out items by number, or conversations, prepared by tiny's processor."""
    chosen = items if isinstance(items, list) else conversations(items)
    processor = load_processor(TINY)
    samples = prepare(chosen, processor, PrepareOptions(downsample_mode=mode))
    places = [scored(sample, STOP_IDS) for sample in samples]
    return Task(chosen, samples, places, processor, STOP_IDS, 1024, 24, generate)  # type: ignore[arg-type]


def run(task: Task, path: Path, **settings: Any) -> Observed:
    return run_llamacpp(task, Target(path, timeout=60, **settings), lambda done: None)


def reference(model: Any, task: Task) -> list[Tensor]:
    """The reference's log-probabilities at every item's scored positions, [P, V] each."""
    found = []
    for sample, place in zip(task.samples, task.places, strict=True):
        with torch.no_grad():
            logits = model(**sample.inputs, downsample_mode=sample.downsample_mode).logits[0]
        found.append(logits[place.positions].float().log_softmax(-1))
    return found


def divergences(expected: list[Tensor], observed: Observed) -> Tensor:
    """KL of every position that the engine gave; what lies outside its largest entries counts as one more token."""
    found = []
    for logp, seen in zip(expected, observed.predictions, strict=True):
        if not isinstance(seen, TopK):
            continue
        for row, place in enumerate(seen.rows):
            kept = seen.ids[row] >= 0
            theirs = seen.logp[row, kept].double()
            ours = logp[place, seen.ids[row, kept]].double()
            rest = [(1 - part.exp().sum()).clamp_min(1e-6).log()[None] for part in (ours, theirs)]
            # llama.cpp's probabilities are float32 and sum to 1 within 1e-5 only
            ours, theirs = (torch.cat(pair).log_softmax(0) for pair in zip((ours, theirs), rest, strict=True))
            found.append((ours.exp() * (ours - theirs)).sum())
    return torch.stack(found)


def check_answers(task: Task, expected: list[Tensor], observed: Observed) -> int:
    """Greedy answers are the reference's for as long as it says what is given; how many of them end as given."""
    whole = 0
    for answer, place, logp in zip(observed.answers, task.places, expected, strict=True):
        first, given = logp[place.answer].argmax(-1), place.targets[place.answer]
        same = first == given
        length = len(same) - 1 if same.all() else int(torch.nonzero(~same)[0]) + 1
        assert answer is not None and answer.tokens is not None
        assert answer.tokens[:length] == first[:length].tolist()
        if same.all():
            assert answer.finished and answer.text == task.decode(first[:-1].tolist())
            whole += 1
    return whole
