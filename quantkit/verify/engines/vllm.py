"""The candidate in vLLM, offline, in vLLM's own environment.

vLLM pins its own torch and Transformers, so it runs in another process with another Python: `vllm_worker.py`, which is
given texts and pictures and gives back token ids and log-probabilities. vLLM tokenizes the text and places the pictures
itself. An item whose tokens, placeholders included, are not those of the reference's processor is left out: its
figures would compare two different prompts.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantkit.calibration import Conversation
from quantkit.calibration.images import Decoder
from quantkit.errors import QuantkitError
from quantkit.verify.engines.vllm_worker import EXIT_MISSING, PROGRESS
from quantkit.verify.task import Answer, NotRun, Observed, Target, Task, Tick, TopK

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger(__name__)

TOP = 64  # log-probabilities a position
BATCHED_TOKENS = 1024  # at most, in one step: the whole vocabulary's log-probabilities of each are held in float32
SEQUENCES = 16  # that run together
TOKENS_DIFFER = "vLLM makes other prompt tokens of it than the reference's processor"
LOG_LINES = 400  # of the worker, kept to find its error in
HOW = "give the Python of an environment that has it: --engine-python DIR/bin/python"


def run_vllm(task: Task, target: Target, tick: Tick) -> Observed:
    """Top-k log-probabilities of whole conversations (teacher forcing) and greedy answers, by vLLM's own kernels.

    `tick` counts an item once for its log-probabilities and once for its answer. Where the target asks for float32,
    vLLM takes the checkpoint's own dtype, as it does for its users: neither its recurrent layers (on the CPU) nor its
    kernels for packed weights know float32. `Observed.kernel` names the dtype that ran.
    Raises `NotRun` where there is no vLLM, `QuantkitError` where it stops: at an error, or after `target.timeout`
    seconds in which nothing was finished.
    """
    python = _python(target)
    if not target.path.is_dir():
        raise NotRun(f"engine 'vllm': {target.path} is no checkpoint folder")
    with tempfile.TemporaryDirectory(prefix="quantkit-vllm-") as name:
        folder = Path(name)
        job = _job(task, target, folder)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _work(python, folder, target.timeout, tick)
        return _observed(task, folder)


def _python(target: Target) -> Path:
    if target.python is not None:
        if not target.python.is_file():
            raise NotRun(f"engine 'vllm': there is no Python at {target.python}; {HOW}")
        return target.python
    if importlib.util.find_spec("vllm") is None:
        raise NotRun(f"engine 'vllm': vLLM is not installed here; {HOW}")
    return Path(sys.executable)


# ---- the job ---------------------------------------------------------------------------------------------------------


def _job(task: Task, target: Target, folder: Path) -> dict[str, Any]:
    """What the worker needs; the pictures are written into the folder."""
    pictures = _Pictures(folder)
    items = [
        _item(task, index, pictures) | {"places": (place.positions + 1).tolist()}
        for index, place in enumerate(task.places)
    ]
    longest = max(sample.input_ids.shape[1] for sample in task.samples)
    return {
        "model": str(target.path.resolve()),
        "dtype": "auto" if target.dtype == "float32" else target.dtype,
        "max_model_len": longest + max(task.max_new_tokens, 1),
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": BATCHED_TOKENS,
        "top": min(TOP, task.vocab_size),
        "limits": {kind: max(len(item[f"{kind}s"]) for item in items) for kind in ("image", "video")},
        "max_new_tokens": task.max_new_tokens,
        "stop_ids": sorted(task.stop_ids),
        "generate": task.generate,
        "items": items,
    }


def _item(task: Task, index: int, pictures: _Pictures) -> dict[str, Any]:
    conversation = task.conversations[index]
    decoder = Decoder(conversation.source)
    parts = [part for message in conversation.messages for part in message["content"]]
    answered = conversation.messages[-1]["role"] == "assistant"
    return {
        "whole": render(task, conversation, answered=answered),
        "prompt": render(task, conversation, answered=False),
        "mode": task.samples[index].downsample_mode,
        "images": [pictures.write(decoder.image(part["image"])) for part in parts if part["type"] == "image"],
        "videos": [
            [pictures.write(frame) for frame in decoder.frames(part, task.processor.video_processor)]
            for part in parts
            if part["type"] == "video"
        ],
    }


def render(task: Task, conversation: Conversation, answered: bool) -> str:
    """Text of a conversation by the reference's chat template, just as `calibration.prepare` renders it.

    answered: with its last answer; otherwise the prompt that an answer is to follow.
    """
    messages = conversation.messages
    if not answered and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    template = str(task.processor.chat_template)
    return str(
        task.processor.apply_chat_template(
            [{**message, "content": [dict(part) for part in message["content"]]} for message in messages],
            tools=conversation.tools,
            tokenize=False,
            add_generation_prompt=not answered,
            **({"enable_thinking": False} if "enable_thinking" in template else {}),
        )
    )


class _Pictures:
    """Writes each distinct picture once, as PNG: no pixel changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[tuple[tuple[int, int], bytes], str] = {}

    def write(self, picture: Picture) -> str:
        """File name in the folder."""
        key = picture.size, hashlib.sha256(picture.tobytes()).digest()
        if key not in self.names:
            self.names[key] = f"{len(self.names)}.png"
            picture.save(self.folder / self.names[key], compress_level=1)
        return self.names[key]


# ---- the worker ------------------------------------------------------------------------------------------------------


def _work(python: Path, folder: Path, timeout: float, tick: Tick) -> None:
    """Run the worker to its end; what it writes to its streams is kept for its error alone."""
    # a copy: beside the original lies a module named vllm, which Python would find first
    script = shutil.copy(Path(__file__).with_name("vllm_worker.py"), folder)
    lines: deque[str] = deque(maxlen=LOG_LINES)
    started = time.monotonic()
    with _process([str(python), str(script), str(folder)]) as process:
        deadline = time.monotonic() + timeout
        for line in _lines(process):
            if line is not None and line.startswith(PROGRESS):
                tick(int(line.split()[1]))
                deadline = time.monotonic() + timeout
            elif line is not None:
                lines.append(line)
            if time.monotonic() > deadline:
                raise QuantkitError(f"engine 'vllm': nothing finished within {timeout:.0f} s; {_reason(lines)}")
        status = process.wait()
    if status == EXIT_MISSING:
        raise NotRun(f"engine 'vllm': {python} cannot import vLLM ({_reason(lines)}); {HOW}")
    if status != 0:
        raise QuantkitError(f"engine 'vllm': stopped with status {status}: {_reason(lines)}")
    log.info("vLLM took %.1f s", time.monotonic() - started)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, so that nothing of it stays behind, whatever ends the block."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise NotRun(f"engine 'vllm': {command[0]} cannot be started ({error.strerror}); {HOW}") from error
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines that the process writes, until it has closed its output; None each second in which there is none."""
    received: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                received.put(line.rstrip("\n"))
        received.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = received.get(timeout=1)
        except queue.Empty:
            if process.poll() is not None:
                return  # a child of its own still holds the pipe
            yield None
            continue
        if line is None:
            return
        yield line


def _reason(lines: deque[str]) -> str:
    """The line of a log that names the error: the first cause, not that the engine's start failed with it."""
    raised = re.compile(r"^(?:[\[(].*?[\])]:?\s+)?(?:ERROR .*?\] )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$")
    found = [match[1] for line in lines if (match := raised.match(line.strip()))]
    telling = [line for line in found if "root cause" not in line]
    if telling or found:
        return " ".join((telling or found)[-1].split())[:500]
    written = [line for line in lines if line.strip()]
    return f"its last line: {' '.join(written[-1].split())[:500]}" if written else "it wrote nothing"


# ---- the results -----------------------------------------------------------------------------------------------------


def _observed(task: Task, folder: Path) -> Observed:
    content = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    found = Observed([None] * len(task.samples), [None] * len(task.samples), versions=content["versions"])
    found.kernel = f"{content['kernel'] or 'unpacked weights'}, {content['dtype']}"
    with np.load(folder / "logprobs.npz", allow_pickle=False) as tables:
        for index, (record, sample) in enumerate(zip(content["items"], task.samples, strict=True)):
            ids = sample.input_ids[0].tolist()
            prompt = ids[: sample.prompt_length]
            if record["ids"] != ids or record.get("prompt_ids", prompt) != prompt:
                found.left_out[index] = TOKENS_DIFFER
                continue
            found.predictions[index] = TopK(
                torch.arange(task.places[index].positions.numel()),
                torch.from_numpy(tables[f"ids.{index}"]).long(),
                torch.from_numpy(tables[f"logp.{index}"]),
                torch.from_numpy(tables[f"target.{index}"]),
            )
            if task.generate:
                found.answers[index] = answer_of(record["tokens"], task)
    return found


def answer_of(tokens: list[int], task: Task) -> Answer:
    """The answer in generated tokens: what stands before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in task.stop_ids), len(tokens))
    return Answer(task.decode(tokens[:end]), tokens[:end], finished=end < len(tokens))
