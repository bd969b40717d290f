"""What quantizing a model will take: memory and sizes from the plan, time from what the README measured.

Time is a straight line through two runs of `quantkit awq` with two cores: the full-size checkpoint (README, "What it
takes": 26394 tokens, statistics 257 s, search 263 s, the rest 17 s) and `tiny` (35369 tokens, 12.9 s, 4.9 s; one core,
2026-11-27). Another machine is faster or slower by a factor that nobody has measured: hence a wide range. The plan's
memory counts pictures of some hundred tokens; pictures of up to 2000 pixels took a third more at full size (3.55 GB).
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.doctor import hub
from quantkit.doctor.machine import Memory
from quantkit.doctor.rows import Row, gigabytes, tidy
from quantkit.errors import QuantkitError
from quantkit.plan import Plan, make_plan
from quantkit.recipe import SAMPLES, QuantizeOptions
from quantkit.source import TINY

TOKENS_PER_CONVERSATION = 412  # of the bundled set in pictures of up to 2000 pixels, as in the README's run
REST = 17.0  # seconds: imports, preparing, writing
A_TOKEN, A_TOKEN_PARAMETER = 3.2e-4, 7.2e-12  # seconds of statistics
A_WEIGHT = 5.3e-7  # seconds of search
RANGE = 0.5, 2.0
LARGE_PICTURES = 1.4  # times the plan's peak


def estimate_rows(model: str, memory: Memory) -> list[Row]:
    """Memory, disk and time of `quantkit awq --model MODEL`; one row that says why, where there is nothing to read."""
    try:
        checkpoint = _open(model)
        if checkpoint is None:
            return [_not_here(model)]
        plan = make_plan(checkpoint, QuantizeOptions(model=model))
    except QuantkitError as error:
        return [Row("model", "fault", str(error))]
    return [
        _size_row(model, checkpoint, plan),
        _memory_row(plan, memory),
        _disk_row(plan, Path.cwd()),
        _time_row(checkpoint, plan),
    ]


def _open(model: str) -> Checkpoint | None:
    """The checkpoint by its headers; None for a hub id that is not in the cache. Nothing is downloaded."""
    if (
        model == TINY
        or os.path.lexists(model)
        or model.startswith((".", "/", "~"))
        or not hub.MODEL_ID.fullmatch(model)
    ):
        return open_checkpoint(model, verify_checksums=False)
    folder = hub.cached_snapshot(model)
    return None if folder is None else open_checkpoint(folder, verify_checksums=False)


def _not_here(model: str) -> Row:
    where = hub.hub_cache()
    said = f"{model}: not in the cache {tidy(where) if where else ''}; its headers are needed for an estimate"
    if hub.is_offline():
        return Row("model", "fault", f"{said}, and HF_HUB_OFFLINE is set")
    return Row("model", "note", said, f"hf download {model}")


def _size_row(model: str, checkpoint: Checkpoint, plan: Plan) -> Row:
    before, after = plan.bytes_before, plan.bytes_after
    said = f"{model}: {checkpoint.num_parameters() / 1e6:.1f} M parameters; {_size(before)} -> {_size(after)} (awq)"
    values = {"parameters": checkpoint.num_parameters(), "bytes_before": before, "bytes_after": after}
    return Row("model", "ok", said, None, values)


def _memory_row(plan: Plan, memory: Memory) -> Row:
    least, most = plan.peak_memory, round(plan.peak_memory * LARGE_PICTURES)
    values = {"peak": least, "peak_with_large_pictures": most, "phases": dict(plan.memory)}
    said = (
        f"about {gigabytes(least)} at the peak, {gigabytes(most)} with large pictures; libraries included, an estimate"
    )
    if memory.most is not None and least > memory.most:
        return Row("memory", "fault", f"{said}: more than the {gigabytes(memory.most)} here", None, values)
    if memory.available is not None and most > memory.available:
        return Row("memory", "note", f"{said}: {gigabytes(memory.available)} are free now", None, values)
    return Row("memory", "ok", said, None, values)


def _disk_row(plan: Plan, place: Path) -> Row:
    free = shutil.disk_usage(place).free
    said = f"{_size(plan.bytes_after)} for the variant, {_size(free)} free here"
    values = {"needed": plan.bytes_after, "free": free}
    return Row("disk", "ok" if free > plan.bytes_after else "fault", said, None, values)


def _time_row(checkpoint: Checkpoint, plan: Plan) -> Row:
    seconds = estimated_seconds(checkpoint.num_parameters(), sum(o * i for o, i in plan.quantized.values()))
    low, high = (share * seconds for share in RANGE)
    said = (
        f"about {words(seconds)} ({words(low)} to {words(high)}) for {SAMPLES} conversations: scaled from runs on two "
        "cores of a server's CPU, not measured here"
    )
    return Row("time", "ok", said, None, {"seconds": round(seconds), "low": round(low), "high": round(high)})


def estimated_seconds(parameters: int, weights: int, samples: int = SAMPLES) -> float:
    """Seconds of `quantkit awq`: parameters of the model, weights that are quantized, conversations."""
    tokens = samples * TOKENS_PER_CONVERSATION
    return REST + tokens * (A_TOKEN + parameters * A_TOKEN_PARAMETER) + weights * A_WEIGHT


def words(seconds: float) -> str:
    """``90`` -> "2 min"; below a minute and a half in seconds."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{math.ceil(seconds / 60)} min"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
