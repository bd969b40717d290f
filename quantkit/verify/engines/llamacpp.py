"""Engine `llama.cpp`: a GGUF file under the runtime itself, its own kernels, tokenizer and picture preprocessing.

A process of its own (`llamacpp_worker`) holds llama.cpp's server through the package xllamacpp; this side speaks to its
native HTTP interface (`/props`, `/tokenize`, `/completion`:
https://github.com/ggml-org/llama.cpp/tree/master/tools/server). `ask_server` is that half alone, for any llama-server.

The reference's processor rendered the prompts. Text goes over as token ids. With pictures it goes over as text, each
picture with its slices as one marker; llama.cpp cuts and encodes the picture, and writes the same `<image>` and
`<slice>` tokens around it. Frames of a video are sent as pictures. Items whose tokens or number of tokens come out
otherwise are left out, with that reason.

Answers are greedy. A generated position's distribution equals the teacher-forced one as long as every token before it
equals the given answer's; after a token that differs, generation starts again from the given answer's tokens.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from quantkit.calibration import Conversation, Sample
from quantkit.calibration.images import Decoder
from quantkit.errors import QuantkitError
from quantkit.verify.task import Answer, NotRun, Observed, Scored, Target, Task, Tick, TopK

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger(__name__)

TOP = 256  # largest log-probabilities kept a position
RESTARTS = 16  # an item; after so many differing tokens its later positions stay unknown
UNDERFLOW = -100.0  # below that llama.cpp's float32 probabilities are zero and their logarithm means nothing
ENGINE = "engine 'llama.cpp'"
MISSING = f"{ENGINE}: needs the package xllamacpp; run pip install xllamacpp, or give --url of a running llama-server"
WORKER = Path(__file__).with_name("llamacpp_worker.py")


Entries = list[dict[str, Any]]  # the largest log-probabilities of one position, as the server gives them


class _LeftOut(Exception):
    """One item that the runtime cannot be given, or that it refuses; the message is the reason."""


# ---- the engine -----------------------------------------------------------------------------------------------------


def run_llamacpp(task: Task, target: Target, tick: Tick) -> Observed:
    """Every item of `task` through llama.cpp on this machine; `tick` is told after each.

    `target.path`: a .gguf file, or a folder with one text model and at most one mmproj*.gguf; `target.mmproj` names
    that file otherwise. Raises `NotRun` where xllamacpp is missing, `QuantkitError` with llama.cpp's own words for a
    file that it cannot load.
    """
    model, mmproj = gguf_files(target)
    longest = max((sample.input_ids.shape[1] for sample in task.samples), default=0)
    context = -(-(longest + task.max_new_tokens + 64) // 256) * 256
    with local_server(model, mmproj, context, target) as (link, version):
        observed = _observe(task, link, tick)
    observed.versions["xllamacpp"] = version
    return observed


def ask_server(task: Task, url: str, tick: Tick, *, api_key: str | None = None, timeout: float = 600.0) -> Observed:
    """Every item of `task` through a running llama-server; raises `QuantkitError` where it does not answer as one."""
    return _observe(task, Link(url.rstrip("/"), api_key, timeout), tick)


def gguf_files(target: Target) -> tuple[Path, Path | None]:
    """The text model and the mmproj file of a target, which is the only one beside it unless it is named; raises
    `QuantkitError` where they cannot be told."""
    model, mmproj = target.path, target.mmproj
    if model.is_dir():
        files = sorted(model.glob("*.gguf"))
        texts = [file for file in files if not file.name.startswith("mmproj")]
        first = [file for file in texts if re.search(r"-00001-of-\d+\.gguf$", file.name)]  # the rest follows by itself
        texts = first if first else texts
        others = [file for file in files if file.name.startswith("mmproj")]
        if len(texts) != 1 or (mmproj is None and len(others) > 1):
            names = ", ".join(file.name for file in files) or "no .gguf file"
            raise QuantkitError(f"{model}: expected one text model and one mmproj*.gguf, found {names}; give the file")
        model, mmproj = texts[0], mmproj or next(iter(others), None)
    elif mmproj is None and model.is_file():
        beside = sorted(model.parent.glob("mmproj*.gguf"))
        mmproj = beside[0] if len(beside) == 1 else None
    for file in (model, mmproj):
        if file is not None and not file.is_file():
            raise QuantkitError(f"{file}: no such file")
    return model, mmproj


def _observe(task: Task, link: Link, tick: Tick) -> Observed:
    count = len(task.samples)
    observed = Observed([None] * count, [None] * count)
    properties = link.properties()
    observed.kernel = f"ggml, {properties['model_ftype']}" if properties.get("model_ftype") else "ggml"
    observed.versions["llama.cpp"] = str(properties.get("build_info", "unknown"))
    template = properties.get("chat_template")
    if template and template.strip() != str(task.processor.chat_template).strip():
        log.warning("the GGUF file's chat template is not the reference's; the reference's is used here")
    pictures = _Pictures(task, str(properties.get("media_marker", "<__media__>")), properties)
    for index, sample in enumerate(task.samples):
        try:
            run = _Item(task, link, sample, task.places[index], pictures.prompt(task.conversations[index], sample))
            observed.predictions[index], answer = run.observe()
            observed.answers[index] = answer if task.generate else None
        except _LeftOut as reason:
            observed.left_out[index] = f"{ENGINE}: {reason}"
        except QuantkitError as error:
            raise QuantkitError(f"{task.conversations[index].source}: {error}") from error
        tick(1)
    return observed


# ---- one item -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prompt:
    """A prompt as text with one marker a picture, and the pictures as base64 PNG."""

    text: str
    pictures: list[str]


class _Item:
    """One item on its way through the server."""

    def __init__(self, task: Task, link: Link, sample: Sample, place: Scored, prompt: _Prompt) -> None:
        self.task = task
        self.link = link
        self.prompt = prompt
        self.prompt_ids = sample.input_ids[0, : sample.prompt_length].tolist()
        self.rows = torch.nonzero(place.answer)[:, 0]
        self.given = place.targets[place.answer].tolist()
        self.top = min(TOP, task.vocab_size)

    def observe(self) -> tuple[TopK, Answer]:
        """The distributions at the answer's positions, in order, and the free answer."""
        if not self._tokens_agree([]):
            raise _LeftOut("its tokenizer makes other tokens of this prompt than the reference's")
        limit = self.task.max_new_tokens if self.task.generate else 0
        reply = self._complete([], max(limit, len(self.given), 1))
        seen: dict[int, Entries] = {}
        position = self._read(reply, 0, seen)
        for _ in range(RESTARTS):
            if position >= len(self.given):
                break
            forced = self.given[:position]
            if self._inside_character(forced):
                position += 1
            elif self._tokens_agree(forced):
                position = self._read(self._complete(forced, len(self.given) - position), position, seen)
            else:
                break
        self._fill(seen, position)
        return self._top_k(seen), self._answer(reply)

    def _read(self, reply: dict[str, Any], start: int, seen: dict[int, Entries]) -> int:
        """Enter a reply's distributions from the answer's position `start` on, the first differing token's included.

        Returns the position after it. The server gives no distribution where the text so far ends inside a character.
        """
        steps = iter(reply.get("completion_probabilities") or [])
        step = next(steps, None)
        tokens = reply["tokens"]
        position = start
        for number, (token, given) in enumerate(zip(tokens, self.given[start:], strict=False)):
            again = tokens[number + 1 : number + 2] == [token]
            if step and step["id"] == token and not (again and self._inside_character(tokens[: number + 1])):
                seen[position] = step["top_logprobs"]
                step = next(steps, None)
            position += 1
            if token != given:
                break
        return position

    def _fill(self, seen: dict[int, Entries], end: int) -> None:
        """Ask for what is missing before the position `end`, one by one: with a stop token forced, the text is whole.

        The distributions are the model's own; the bias acts on the choice alone.
        """
        for position in sorted(set(range(end)) - set(seen)):
            forced = self.given[:position]
            # text cannot say a part of a character, so with pictures these positions stay unknown
            if not self.prompt.pictures or (not self._inside_character(forced) and self._tokens_agree(forced)):
                steps = self._complete(forced, 1, {min(self.task.stop_ids): 1e6}).get("completion_probabilities")
                if steps:
                    seen[position] = steps[0]["top_logprobs"]

    def _inside_character(self, tokens: list[int]) -> bool:
        return self._text(tokens).endswith("\ufffd")

    def _complete(self, forced: list[int], count: int, bias: dict[int, float] | None = None) -> dict[str, Any]:
        """`count` greedy tokens after the prompt and `forced`; checks that both sides mean the same tokens."""
        expected = len(self.prompt_ids) + len(forced)
        prompt: Any = self.prompt_ids + forced
        if self.prompt.pictures:
            text = self.prompt.text + self._text(forced)
            prompt = {"prompt_string": text, "multimodal_data": self.prompt.pictures}
        reply = self.link.complete(prompt, count, self.top, bias)
        if reply.get("truncated") or reply.get("tokens_evaluated") != expected:
            raise _LeftOut(
                f"its prompt has {reply.get('tokens_evaluated')} tokens, the reference's {expected}: the pictures are "
                "cut otherwise, or the mmproj file is of the other downsample mode"
            )
        return reply

    def _tokens_agree(self, forced: list[int]) -> bool:
        """Whether the server reads the text of the prompt and of `forced` as these very tokens."""
        if forced and not self.prompt.pictures:
            return True  # sent as ids
        ids = self.prompt_ids + forced
        return self.link.tokenize(self._text(ids)) == ids

    def _text(self, ids: list[int]) -> str:
        return str(self.task.processor.tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""

    def _answer(self, reply: dict[str, Any]) -> Answer:
        tokens = reply["tokens"]
        ended = reply.get("stop_type") == "eos"
        if ended:
            tokens = tokens[:-1]
        if len(tokens) >= self.task.max_new_tokens:
            tokens, ended = tokens[: self.task.max_new_tokens], False
        stop = next((place for place, token in enumerate(tokens) if token in self.task.stop_ids), None)
        if stop is not None:
            tokens, ended = tokens[:stop], True
        return Answer(self.task.decode(tokens), tokens, ended)

    def _top_k(self, seen: dict[int, Entries]) -> TopK:
        positions = sorted(seen)
        ids = torch.full((len(seen), self.top), -1)
        logp = torch.full((len(seen), self.top), -torch.inf)
        follows = torch.full((len(seen),), torch.nan)
        for row, position in enumerate(positions):
            if any(entry["logprob"] is None for entry in seen[position]):  # how its JSON writes NaN
                raise QuantkitError("llama.cpp computes NaN with this file: its weights, or their range, are broken")
            kept = {entry["id"]: entry["logprob"] for entry in seen[position] if entry["logprob"] > UNDERFLOW}
            if not all(0 <= token < self.task.vocab_size for token in kept):
                raise QuantkitError("llama.cpp's vocabulary is larger than the reference's: a file of another model")
            ids[row, : len(kept)] = torch.tensor(list(kept), dtype=torch.int64)
            logp[row, : len(kept)] = torch.tensor(list(kept.values()))
            follows[row] = kept.get(self.given[position], torch.nan)
        return TopK(self.rows[torch.tensor(positions, dtype=torch.int64)], ids, logp, follows)


class _Pictures:
    """Turns the processor's prompts, pictures expanded to placeholders, back into text with one marker a picture."""

    def __init__(self, task: Task, marker: str, properties: dict[str, Any]) -> None:
        processor = task.processor
        self.tokenizer, self.video_processor = processor.tokenizer, processor.video_processor
        self.marker = marker
        self.vision = properties.get("modalities", {}).get("vision", False)
        name = {
            part: re.escape(str(getattr(self.tokenizer, f"{part}_token", None) or default))
            for part, default in (
                ("image_start", "<image>"),
                ("image_end", "</image>"),
                ("slice_start", "<slice>"),
                ("slice_end", "</slice>"),
            )
        }
        ids = [processor.image_token_id, processor.video_token_id]
        filler = "(?:" + "|".join(re.escape(token) for token in self.tokenizer.convert_ids_to_tokens(ids)) + ")+"
        slices = f"(?:{name['slice_start']}{filler}{name['slice_end']})+(?:\n(?={name['slice_start']}))?"
        self.picture = re.compile(f"{name['image_start']}{filler}{name['image_end']}(?:{slices})*")

    def prompt(self, conversation: Conversation, sample: Sample) -> _Prompt:
        """The prompt to send; raises `_LeftOut` where it has pictures and the server has no eyes."""
        ids = sample.input_ids[0, : sample.prompt_length].tolist()
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        text, count = self.picture.subn(lambda _: self.marker, text)
        if not count and not bool(sample.vision_mask.any()):
            return _Prompt(text, [])
        if not self.vision:
            raise _LeftOut("no mmproj file was given, so it sees no pictures")
        decoder = Decoder(conversation.source)
        parts = [part for message in conversation.messages for part in message["content"]]
        pictures = [picture for part in parts for picture in self._pictures(part, decoder)]
        if len(pictures) < count or not count:  # more: the conversation was shortened to fit
            raise _LeftOut("the pictures of its prompt cannot be told apart")
        return _Prompt(text, [_png(picture) for picture in pictures[:count]])

    def _pictures(self, part: dict[str, Any], decoder: Decoder) -> list[Picture]:
        if part["type"] == "image":
            return [decoder.image(part["image"])]
        return decoder.frames(part, self.video_processor) if part["type"] == "video" else []


def _png(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


# ---- the server -----------------------------------------------------------------------------------------------------


class Link:
    """llama-server's native HTTP interface."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self.url = url
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"

    def properties(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._ask("/props", None)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are read as such, none is added."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return list(self._ask("/tokenize", body)["tokens"])

    def complete(self, prompt: Any, count: int, top: int, bias: dict[int, float] | None = None) -> dict[str, Any]:
        """`count` greedy tokens after a prompt, with the `top` largest log-probabilities at each.

        `bias` is added to tokens' logits for the choice, not in the log-probabilities.
        """
        body = {
            "prompt": prompt,
            "n_predict": count,
            "n_probs": top,
            "temperature": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
            "logit_bias": list((bias or {}).items()),
        }
        reply = self._ask("/completion", body)
        if not isinstance(reply.get("tokens"), list) or not reply["tokens"]:
            raise QuantkitError(f"{self.url}: /completion gives no token ids; a recent llama-server was expected")
        return reply

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                reply = json.loads(response.read())
        except urllib.error.HTTPError as error:
            message = _message(error.read())
            if path == "/completion":  # this item's own; the server goes on
                raise _LeftOut(f"it refuses this prompt ({message})") from error
            raise QuantkitError(f"{self.url}{path}: HTTP {error.code} ({message})") from error
        except ValueError as error:
            raise QuantkitError(f"{self.url}{path}: not an answer of llama-server ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            raise QuantkitError(f"{self.url}: no answer ({getattr(error, 'reason', error)})") from error
        if not isinstance(reply, dict):
            raise QuantkitError(f"{self.url}{path}: not an answer of llama-server")
        return reply


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


@contextmanager
def local_server(model: Path, mmproj: Path | None, context: int, target: Target) -> Iterator[tuple[Link, str]]:
    """A server of our own for one run, and xllamacpp's version; a crash becomes a `QuantkitError`."""
    key = secrets.token_hex(16)
    settings = {
        "model": str(model.resolve()),
        "mmproj": str(mmproj.resolve()) if mmproj else None,
        "context": context,
        "api_key": key,
        "cpu": target.device == "cpu",
    }
    with tempfile.TemporaryFile() as errors:
        command = [str(target.python or sys.executable), str(WORKER)]
        # threads that wait in a loop take the cores from others: ten times slower on a busy machine
        environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        try:
            started = _handshake(process, settings, target.timeout)
            if "missing" in started:
                raise NotRun(MISSING)
            if "address" not in started:
                also = f" with {mmproj}" if mmproj else ""
                raise QuantkitError(f"{model}: llama.cpp cannot load it{also} ({_telling_line(errors)})")
            if target.device != "cpu":
                check_cuda(f"{ENGINE}: xllamacpp", started["devices"])
            try:
                yield Link(started["address"], key, target.timeout), started["version"]
            except QuantkitError as error:
                if not _ended(process):
                    raise
                raise QuantkitError(f"{model}: llama.cpp crashed ({_telling_line(errors)}); {error}") from error
        finally:
            process.kill()
            process.communicate()


def check_cuda(what: str, devices: Sequence[str]) -> None:
    """llama.cpp takes the CPU where there is no GPU, and warns in its log alone: a record of it would be false."""
    if not any(re.fullmatch(r"(CUDA|ROCm)\d+", name) for name in devices):
        found = ", ".join(devices) or "the CPU alone"
        raise NotRun(f"{what} has no CUDA device here ({found}); leave --device out, or take a build that has")


def _handshake(process: subprocess.Popen[bytes], settings: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Settings to the worker; its answer, empty where it died or did not answer in time."""
    assert process.stdin and process.stdout
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = b""
    finally:
        timer.cancel()
    return dict(json.loads(line)) if line else {}


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process is gone, or goes within a second: its socket closes a little earlier than it ends."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


GENERIC = re.compile("Failed to load CLIP model|failed to get memory usage|failed to load multimodal|exiting due to")


def _telling_line(errors: IO[bytes]) -> str:
    """llama.cpp's first error of its log that says more than that loading failed; time and level are left out."""
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    marked = [match[1] for line in lines if (match := re.match(r"[\d.]+ E (.*)", line))]
    chosen = [line for line in marked if not GENERIC.search(line)] or marked or lines[-1:] or ["no word in its log"]
    return re.sub(r"\s+", " ", chosen[0]).strip()[:300]
