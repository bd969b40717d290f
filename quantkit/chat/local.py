"""Folders of safetensors, run here by Transformers.

Packed weights run through their method's kernels where Transformers can load them, and are else unpacked into the
reference model ("dequantized"), which needs no kernels; `load` says which. Plain weights need none, so they are put
into the same model tensor by tensor: one that is missing is an error, where `from_pretrained` would make it up.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import time
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from quantkit.calibration import Conversation, load_processor
from quantkit.calibration.conversations import modality_of
from quantkit.calibration.images import Decoder
from quantkit.calibration.prepare import PrepareOptions, Preparer, Ready, Sample
from quantkit.chat.reply import HALTED, LENGTH, STOP, Halt, Message, Reply, Tell, Thought
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.recipe import ChatOptions
from quantkit.verify import forward
from quantkit.verify.engines.local import kernels, load_dequantized, load_transformers
from quantkit.verify.options import check_device
from quantkit.verify.run import stop_ids
from quantkit.verify.task import NotRun

log = logging.getLogger(__name__)

WHERE = "chat"
UNLIMITED = 1 << 40  # tokens; a conversation that is too long is refused here, not shortened


class LocalEngine:
    """One checkpoint in this process."""

    def __init__(self, model: Any, options: ChatOptions) -> None:
        self.options = options
        self.checkpoint = open_checkpoint(model, verify_checksums=False)
        self.name = self.checkpoint.name
        self.processor = load_processor(self.checkpoint.path)
        self.stops = stop_ids(self.checkpoint, self.processor)
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(self.device)
        own = getattr(self.processor.image_processor, "downsample_mode", None)
        self.mode: str = options.downsample_mode or own or "16x"
        self.preparer = Preparer(self.processor, _prepare_options(options, self.mode))
        if options.enable_thinking and not self.preparer.has_thinking:
            raise QuantkitError(f"--enable-thinking: the chat template of {self.name} has no reasoning part")
        self.context = _context(self.checkpoint.config)
        self.model: Any = None

    # ---- the model ----

    def load(self) -> str:
        checkpoint, options = self.checkpoint, self.options
        method = checkpoint.quantization_method
        if method is None and options.engine == "auto":
            self.model = load_dequantized(checkpoint, options.dtype, self.device)
            how = "plain weights through Transformers"
        elif options.engine == "dequantized":
            self.model = load_dequantized(checkpoint, options.dtype, self.device)
            how = f"{method or 'plain'} weights in the reference model"
        else:
            how = self._load_kernels(method)
        # the file's own settings (sampling, penalties) would fill whatever a question leaves open
        self.model.generation_config = GenerationConfig()
        return f"{self.name}: {how}; {options.dtype}, {self.device}"

    def _load_kernels(self, method: str | None) -> str:
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:  # gptqmodel's banner is no answer
                self.model = load_transformers(self.checkpoint, self.options.dtype, self.device)
            log.debug("%s", said.getvalue())
        except QuantkitError as problem:
            if self.options.engine != "auto":
                raise
            self.model = load_dequantized(self.checkpoint, self.options.dtype, self.device)
            why = "no kernels" if isinstance(problem, NotRun) else "its kernels do not load it"
            return f"{method} weights dequantized into the reference model ({why}: {problem})"
        used = ", ".join(sorted(kernels(self.model)))
        return f"{method or 'plain'} weights through Transformers" + (f", {used}" if used else "")

    def close(self) -> None:
        self.model = None
        gc.collect()

    # ---- questions ----

    def look(self, parts: list[Message], decoder: Decoder) -> None:
        options = self.options
        decoder.chat(
            [{"role": "user", "content": parts}],
            getattr(self.processor, "video_processor", None),
            options.max_num_frames,
            options.stack_frames,
        )

    def answer(self, messages: list[Message], decoder: Decoder, tell: Tell, halt: Halt) -> Reply:
        began = time.perf_counter()
        sample = self._sample(messages, decoder)
        room = self._room(sample)
        pad = self.processor.tokenizer.pad_token_id
        pad = min(self.stops) if pad is None else pad
        inputs = forward.collate([sample], prompts=True, pad_id=pad, device=self.model.device)
        thought = Thought(self.options.enable_thinking, tell)
        stream = _Stream(self.processor.tokenizer, self.stops, thought)
        torch.manual_seed(self.options.seed)
        try:
            self.model.generate(
                **inputs,
                generation_config=self._generation(room, pad),
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([_Halting(halt)]),
            )
        except torch.OutOfMemoryError as error:
            raise QuantkitError(
                f"{self.name}: {self.device} has too little memory for this; ask with fewer or smaller pictures"
            ) from error
        except RuntimeError as error:  # NaN among the probabilities, an unsupported device operation
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise QuantkitError(f"{self.name}: cannot answer ({first})") from error
        ended = STOP if stream.stopped else HALTED if halt() else LENGTH
        seconds = time.perf_counter() - began
        return Reply(thought.answer.rstrip(), thought.reasoning.strip() or None, len(stream.tokens), seconds, ended)

    def _sample(self, messages: list[Message], decoder: Decoder) -> Sample:
        conversation = Conversation(WHERE, modality_of(messages), "", messages, None, WHERE)
        sample = self.preparer.build(conversation, Ready(decoder, None), self.mode)
        assert sample is not None  # nothing is too long for UNLIMITED
        return sample

    def _room(self, sample: Sample) -> int:
        """Tokens that an answer may have."""
        length = sample.input_ids.shape[1]
        if self.context is None:
            return self.options.max_new_tokens
        if length >= self.context:
            raise QuantkitError(
                f"{self.name}: the conversation has {length} tokens, its context {self.context}; begin a new one"
            )
        return min(self.options.max_new_tokens, self.context - length)

    def _generation(self, room: int, pad: int) -> GenerationConfig:
        options = self.options
        temperature = options.sampling_temperature
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature is not None:
            sampling = {"do_sample": True, "temperature": float(temperature)}
            sampling |= {"top_p": float(options.top_p or 1.0), "top_k": options.top_k or 0}
        return GenerationConfig(
            max_new_tokens=room, eos_token_id=sorted(self.stops), pad_token_id=pad, use_cache=True, **sampling
        )


def _prepare_options(options: ChatOptions, mode: str) -> PrepareOptions:
    return PrepareOptions(
        max_tokens=UNLIMITED,
        downsample_mode=mode,
        max_slice_nums=options.max_slice_nums,
        max_num_frames=options.max_num_frames,
        stack_frames=options.stack_frames,
        use_image_id=options.use_image_id,
        enable_thinking=options.enable_thinking,
    )


def _context(config: dict[str, Any]) -> int | None:
    """The positions that a model was made for, where its config says."""
    text = config.get("text_config")
    found = text.get("max_position_embeddings") if isinstance(text, dict) else None
    return found if isinstance(found, int) and found > 0 else None


class _Halting(StoppingCriteria):
    def __init__(self, halt: Halt) -> None:
        self.halt = halt

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.halt(), dtype=torch.bool, device=input_ids.device)


class _Stream(BaseStreamer):
    """Takes tokens as `generate` makes them and hands their text on, whole characters only."""

    def __init__(self, tokenizer: Any, stops: set[int], thought: Thought) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.thought = thought
        self.tokens: list[int] = []
        self.given = ""
        self.prompt_seen = self.stopped = False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.stopped = token in self.stops
            if not self.stopped:
                self.tokens.append(token)
        self._hand_on(final=False)

    def end(self) -> None:
        self._hand_on(final=True)
        self.thought.finish()

    def _hand_on(self, final: bool) -> None:
        text = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))
        if text.endswith("\ufffd") and not final:
            return  # inside a character
        if len(text) > len(self.given):
            piece, self.given = text[len(self.given) :], text
            self.thought.feed(piece)
