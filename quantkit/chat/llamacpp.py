"""GGUF files, run by llama.cpp's server in a process of its own (`quantkit.verify.engines.llamacpp`).

The prompt is llama.cpp's: the file's chat template, its own preprocessing of pictures. Frames of a clip are sent as
pictures, evenly taken, for a GGUF file holds no rule for them. What llama.cpp cannot be told is refused.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibration.images import Decoder
from quantkit.chat.reply import ANSWER, HALTED, LENGTH, REASONING, STOP, Halt, Message, Reply, Tell
from quantkit.errors import QuantkitError
from quantkit.gguf.inventory import take_gguf_inventory
from quantkit.recipe import ChatOptions
from quantkit.verify.engines.llamacpp import gguf_files, local_server
from quantkit.verify.task import Target

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from quantkit.verify.engines.llamacpp import Link

CONTEXT = 8192  # tokens for pictures, turns and answer; less where the model was made for less
REFUSED = {
    "max_slice_nums": "llama.cpp decides on slices itself",
    "stack_frames": "llama.cpp stacks no frames",
}
EVENT = "data:"


class LlamaEngine:
    """One GGUF file and its mmproj file."""

    def __init__(self, path: Path, options: ChatOptions) -> None:
        self.options = options
        for field, why in REFUSED.items():
            if getattr(options, field) is not None:
                raise QuantkitError(f"--{field.replace('_', '-')}: {why}; leave it out for {path.name}")
        if not path.exists():
            raise QuantkitError(f"{path}: no such file")
        self.model, self.mmproj = gguf_files(Target(path, mmproj=_mmproj(path, options)))
        self.name = self.model.stem
        facts = take_gguf_inventory(self.model).facts
        if facts.kind != "model":
            raise QuantkitError(f"{self.model}: is {facts.kind}, no text model; name the text model's file")
        self.file_type = facts.file_type or "GGUF"
        self.context = min(CONTEXT + options.max_new_tokens, facts.context_length or CONTEXT + options.max_new_tokens)
        self.mode = self._vision_mode()
        self.held = ExitStack()
        self.link: Link | None = None

    def _vision_mode(self) -> str | None:
        """The compression mode of the mmproj file; raises where another is asked for."""
        if self.mmproj is None:
            return None
        mode = take_gguf_inventory(self.mmproj).facts.downsample_mode
        wanted = self.options.downsample_mode
        if wanted is not None and mode not in (None, wanted):
            raise QuantkitError(
                f"--downsample-mode {wanted}: {self.mmproj.name} is made for {mode}; name the other file with --mmproj"
            )
        return mode

    # ---- the server ----

    def load(self) -> str:
        options = self.options
        target = Target(self.model, mmproj=self.mmproj, device=options.device or "cpu")
        self.link, version = self.held.enter_context(local_server(self.model, self.mmproj, self.context, target))
        sees = f"{self.mmproj.name}{f' ({self.mode})' if self.mode else ''}" if self.mmproj else "no mmproj: text alone"
        return f"{self.name}: {self.file_type} through llama.cpp (xllamacpp {version}), {sees}; {target.device}"

    def close(self) -> None:
        self.link = None
        self.held.close()

    # ---- questions ----

    def look(self, parts: list[Message], decoder: Decoder) -> None:
        self._content(parts, decoder, [])

    def answer(self, messages: list[Message], decoder: Decoder, tell: Tell, halt: Halt) -> Reply:
        began = time.perf_counter()
        texts = {REASONING: "", ANSWER: ""}
        tokens, ended = 0, HALTED
        for event in self._events(self._body(messages, decoder)):
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                for kind, piece in ((REASONING, delta.get("reasoning_content")), (ANSWER, delta.get("content"))):
                    if piece:
                        texts[kind] += piece
                        tell(kind, piece)
                if choice.get("finish_reason"):
                    ended = LENGTH if choice["finish_reason"] == "length" else STOP
            if halt() and ended == HALTED:
                break  # leaving the stream ends the server's work as well
        tokens -= ended == STOP and tokens > 0  # the stop token is counted there
        return Reply(
            texts[ANSWER].strip(), texts[REASONING].strip() or None, tokens, time.perf_counter() - began, ended
        )

    def _body(self, messages: list[Message], decoder: Decoder) -> dict[str, Any]:
        options = self.options
        numbers: list[int] = []
        temperature = options.sampling_temperature
        return {
            "messages": [
                {"role": one["role"], "content": self._content(one["content"], decoder, numbers)} for one in messages
            ],
            "max_tokens": options.max_new_tokens,
            "temperature": temperature or 0.0,
            # 1, 0, 0 and 1 switch a sampler off; llama.cpp's own defaults do not
            "top_p": options.top_p or 1.0,
            "top_k": options.top_k or 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "seed": options.seed,
            "chat_template_kwargs": {"enable_thinking": options.enable_thinking},
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _content(self, parts: list[Message], decoder: Decoder, numbers: list[int]) -> list[dict[str, Any]]:
        """Parts as OpenAI's API has them; `numbers` grows by one a picture, over the whole conversation."""
        found: list[dict[str, Any]] = []
        for part in parts:
            if part["type"] == "text":
                found.append(part)
                continue
            if self.mmproj is None:
                raise QuantkitError(f"{self.name}: there is no mmproj file, so it sees no pictures; see --mmproj")
            is_image = part["type"] == "image"
            frames = [decoder.image(part["image"])] if is_image else self._frames(part, decoder)
            for picture in frames:
                if self.options.use_image_id and is_image:
                    found.append({"type": "text", "text": f"<image_id>{len(numbers)}</image_id>"})
                    numbers.append(len(numbers))
                found.append({"type": "image_url", "image_url": {"url": _uri(picture)}})
        return found

    def _frames(self, part: Message, decoder: Decoder) -> list[Picture]:
        return decoder.frames(part, max_num_frames=self.options.max_num_frames)

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The server's events as they come."""
        assert self.link is not None, "load first"
        request = urllib.request.Request(
            f"{self.link.url}/v1/chat/completions", json.dumps(body).encode(), self.link.headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.link.timeout) as lines:
                for line in lines:
                    text = line.decode("utf-8", errors="replace").strip()
                    if text.startswith(EVENT) and text != "data: [DONE]":
                        event = json.loads(text.removeprefix(EVENT))
                        if "error" in event:
                            raise QuantkitError(f"{self.name}: llama.cpp cannot answer ({_message(event)})")
                        yield event
        except urllib.error.HTTPError as error:
            raise QuantkitError(f"{self.name}: llama.cpp refuses this ({_message(_json(error.read()))})") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise QuantkitError(f"{self.name}: llama.cpp broke off ({why}); start the chat again") from error


def _mmproj(path: Path, options: ChatOptions) -> Path | None:
    """The mmproj file that is stated, or, of several beside a model, the one for the mode that is asked for."""
    if options.mmproj is not None:
        return options.mmproj
    folder = path if path.is_dir() else path.parent
    beside = sorted(folder.glob("mmproj*.gguf"))
    if len(beside) < 2:
        return None
    wanted = options.downsample_mode or "16x"
    fitting = [file for file in beside if take_gguf_inventory(file).facts.downsample_mode == wanted]
    if len(fitting) != 1:
        names = ", ".join(file.name for file in beside)
        raise QuantkitError(f"{folder}: holds several mmproj files ({names}); name one with --mmproj")
    return fitting[0]


def _uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"error": body[:200].decode(errors="replace")}


def _message(event: dict[str, Any]) -> str:
    found = event.get("error")
    return " ".join(str(found.get("message", found) if isinstance(found, dict) else found).split())[:300]
