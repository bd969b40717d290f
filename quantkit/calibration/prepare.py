"""From a conversation to model inputs, by the checkpoint's own processor and nothing else.

A `Sample` holds exactly what `model.forward` takes for one conversation, the assistant's answer included (so that its
tokens are calibrated and can be teacher-forced). Every knob goes to the processor as it does at inference. Over-long
conversations are shortened (`cuts`) or left out, never cut inside a picture's placeholders. The tokenizer leaves as it
came: truncation and padding settings are put back.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.cuts import Cut, longest_fit
from quantkit.calibration.images import Access, Decoded, Decoder
from quantkit.calibration.pixels import pack, packed_digest
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

MODES = ("16x", "4x")
# what a processor, or the template of its chats, meets a row with that it was not written for
_REFUSALS: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError, MemoryError),
    TemplateError,
)
FORWARD_INPUTS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "target_sizes",
    "pixel_values_videos",
    "target_sizes_videos",
)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What decides the samples, besides the conversations and the processor. None: as the processor has it."""

    samples: int | None = None  # at most; None: all of them
    token_budget: int | None = None  # for all samples together, visual tokens included
    max_tokens: int = 2048  # per sample, visual tokens included
    downsample_mode: str = "16x"  # "16x", "4x", or "both" (by a hash of the conversation, half and half)
    max_slice_nums: int | None = None
    max_num_frames: int | None = None  # of a video file, or of a list of frames that states its rate
    stack_frames: int | None = None
    use_image_id: bool | None = None
    enable_thinking: bool | None = None  # None: where the last answer carries its reasoning, and only there
    seed: int = 0

    def __post_init__(self) -> None:
        if self.downsample_mode not in (*MODES, "both"):
            raise QuantkitError(f"downsample mode '{self.downsample_mode}' is unknown: use 16x, 4x or both")
        for name in ("samples", "token_budget", "max_tokens", "max_slice_nums", "max_num_frames", "stack_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QuantkitError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Sample:
    """One conversation as the model sees it."""

    id: str
    modality: str
    language: str
    downsample_mode: str  # to be given to `model.forward` beside `inputs`
    inputs: Mapping[str, Tensor]  # the other arguments of `model.forward`; read from disk at each look where cached
    prompt_length: int  # tokens before the last assistant answer; the whole length where there is none
    vision_mask: Tensor  # [T] bool, image and video placeholder tokens
    source: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)  # what it was made of, shortened or not
    sizes: tuple[tuple[int, int], ...] = ()  # width and height of each picture, and of each clip's frames
    shortened: bool = False  # cut to fit `max_tokens`

    @property
    def input_ids(self) -> Tensor:
        """Token ids, [1, T] int64."""
        return self.inputs["input_ids"]


def load_processor(path: str | Path) -> Any:
    """The processor of a checkpoint folder, from its own files alone (no network, no code of its own is run)."""
    from transformers import AutoProcessor

    folder = Path(path)
    if not folder.is_dir():
        raise QuantkitError(f"{folder}: no such checkpoint folder")
    try:
        processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise QuantkitError(f"{folder}: its processor and tokenizer files are missing or damaged ({first})") from error
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise QuantkitError(f"{folder}: the processor lacks an image processor or a chat template; copy the side files")
    return processor


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over every input tensor (as packed: name, dtype, shape, bytes) and mode of the samples, in order."""
    return joined_digest(sample_digest(sample) for sample in samples)


def sample_digest(sample: Sample, packed: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over the inputs and the mode of one sample; `packed`: its tensors, where they are packed already."""
    packed = packed_sample(sample) if packed is None else packed
    return packed_digest(packed, f"{sample.downsample_mode};{sample.prompt_length};")


def packed_sample(sample: Sample) -> dict[str, Tensor]:
    """All tensors of a sample, as they are hashed and kept."""
    return {"vision_mask": sample.vision_mask, **pack(sample.inputs)}


def joined_digest(digests: Iterable[str]) -> str:
    """The fingerprint of samples whose digests are known."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass
class Ready:
    """A conversation whose pictures and clips are decoded; `whole` is used up by the first look at it."""

    decoder: Decoder
    whole: Decoded | None


class Preparer:
    """Turns one conversation into one sample; counts what it had to shorten and what did not fit."""

    def __init__(self, processor: Any, options: PrepareOptions, access: Access | None = None) -> None:
        self.processor = processor
        self.options = options
        self.access = access or Access()
        self.shortened = self.too_long = 0
        self.has_thinking = "enable_thinking" in str(processor.chat_template)

    def decode(self, conversation: Conversation) -> Ready:
        """Everything that the conversation refers to, decoded; safe to call from any thread. Raises `QuantkitError`."""
        decoder = Decoder(conversation.source, self.access)
        return Ready(decoder, self._decoded(decoder, self._messages(conversation), None))

    def build(self, conversation: Conversation, ready: Ready, mode: str) -> Sample | None:
        """The sample in one compression mode, or None where no cut fits. Raises `QuantkitError` naming the row."""
        last: tuple[Cut, Sample] | None = None

        def fits(cut: Cut) -> bool:
            nonlocal last
            last = cut, self._process(cut, ready, mode)
            return last[1].input_ids.shape[1] <= self.options.max_tokens

        try:
            with unchanged_tokenizer(self.processor):
                cut = longest_fit(conversation, fits, self.options.max_num_frames)
                if cut is not None and (last is None or last[0] != cut):
                    last = cut, self._process(cut, ready, mode)
        except _REFUSALS as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise QuantkitError(f"{conversation.source}: the processor refuses this row ({first})") from error
        if cut is None or last is None:
            self.too_long += 1
            log.info("%s: left out, longer than %d tokens", conversation.source, self.options.max_tokens)
            return None
        shortened = cut.conversation is not conversation or cut.frames is not None
        self.shortened += shortened
        return replace(last[1], shortened=shortened)

    def _decoded(self, decoder: Decoder, messages: list[dict[str, Any]], frames: int | None) -> Decoded:
        most = frames if frames is not None else self.options.max_num_frames
        return decoder.chat(messages, self.processor.video_processor, most, self.options.stack_frames)

    def _process(self, cut: Cut, ready: Ready, mode: str) -> Sample:
        conversation = cut.conversation
        messages = self._messages(conversation)
        answered = messages[-1]["role"] == "assistant"
        # the template engine writes into what it is given, so what was decoded ahead serves once
        decoded, ready.whole = ready.whole, None
        if decoded is None:
            decoded = self._decoded(ready.decoder, messages, cut.frames)
        sizes = _sizes(decoded.messages)
        batch = self.processor.apply_chat_template(
            decoded.messages,
            tools=conversation.tools,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=not answered,
            processor_kwargs=self._knobs(mode, decoded.kwargs),
            **self._template(conversation),
        )
        inputs = {name: batch[name] for name in FORWARD_INPUTS if name in batch}
        ids = inputs["input_ids"][0]
        placeholders = torch.tensor([self.processor.image_token_id, self.processor.video_token_id])
        return Sample(
            id=conversation.id,
            modality=conversation.modality,
            language=conversation.language,
            downsample_mode=mode,
            inputs=inputs,
            prompt_length=self._prompt_length(conversation, messages, ids) if answered else ids.numel(),
            vision_mask=torch.isin(ids, placeholders),
            source=conversation.source,
            messages=conversation.messages,
            sizes=sizes,
        )

    def _knobs(self, mode: str, of_clips: dict[str, Any]) -> dict[str, Any]:
        """What the processor takes beside the messages, only where it is stated."""
        knobs = {"max_slice_nums": self.options.max_slice_nums, "use_image_id": self.options.use_image_id}
        stated = {name: value for name, value in knobs.items() if value is not None}
        return {"downsample_mode": mode, "padding": False, **stated, **of_clips}

    # ---- thinking ----

    def _thinks(self, conversation: Conversation) -> bool:
        if self.options.enable_thinking is not None:
            return self.options.enable_thinking
        return bool(conversation.messages[-1].get("reasoning_content"))

    def _template(self, conversation: Conversation) -> dict[str, Any]:
        return {"enable_thinking": self._thinks(conversation)} if self.has_thinking else {}

    def _messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The messages; without the last answer's reasoning where thinking is off, as the model would then answer."""
        *before, last = conversation.messages
        if self._thinks(conversation) or "reasoning_content" not in last:
            return conversation.messages
        return [*before, {key: value for key, value in last.items() if key != "reasoning_content"}]

    def _prompt_length(self, conversation: Conversation, messages: list[dict[str, Any]], ids: Tensor) -> int:
        """Tokens before the last answer: the prompt that inference would send must be the beginning of the whole.

        Compared before pictures are expanded: their placeholders are special tokens, across which no token merges, so
        the answer has the same tokens at the end of both; that end is compared with `ids` too. A token that holds the
        prompt's end and the answer's beginning counts as the answer's.
        """
        whole_text = self._rendered(conversation, messages, generation=False)
        prompt_text = self._rendered(conversation, messages[:-1], generation=True)
        whole, prompt = self._tokens(whole_text), self._tokens(prompt_text)
        shared = next(
            (at for at, pair in enumerate(zip(whole, prompt, strict=False)) if pair[0] != pair[1]), len(prompt)
        )
        answer = whole[shared:]
        if not whole_text.startswith(prompt_text) or not answer or ids[-len(answer) :].tolist() != answer:
            raise QuantkitError(
                f"{conversation.source}: the chat template renders the prompt differently once it is answered, so the "
                "answer's tokens cannot be told; mend the template, or drop the last answer"
            )
        return ids.numel() - len(answer)

    def _rendered(self, conversation: Conversation, messages: list[dict[str, Any]], generation: bool) -> str:
        return self.processor.apply_chat_template(
            [{**message, "content": list(message["content"])} for message in messages],
            tools=conversation.tools,
            tokenize=False,
            add_generation_prompt=generation,
            **self._template(conversation),
        )

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, padding=False, truncation=False)["input_ids"]


def _sizes(messages: list[dict[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Width and height of every decoded picture, and of the frames of every clip ([n, 3, height, width])."""
    found = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                found.append(part["image"].size)
            elif part["type"] == "video":
                found.append((part["video"].shape[3], part["video"].shape[2]))
    return tuple(found)


@contextmanager
def unchanged_tokenizer(processor: Any) -> Iterator[None]:
    """Put truncation and padding back: a call of a fast tokenizer changes what `save_pretrained` writes."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
        backend.no_padding() if padding is None else backend.enable_padding(**padding)
