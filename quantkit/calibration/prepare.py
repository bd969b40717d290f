"""From conversations to model inputs, by the checkpoint's own processor and nothing else.

A `Sample` holds exactly what `model.forward` takes for one conversation, the assistant's answer included (so that its
tokens are calibrated and can be teacher-forced). The selection is stratified by modality and depends on the seed alone.
Over-long conversations are shortened at message boundaries or skipped, never cut inside a picture's placeholders. The
tokenizer leaves as it came: truncation and padding settings are put back.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration.conversations import MODALITIES, Conversation, modality_of
from quantkit.calibration.images import Decoder
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)

MODES = ("16x", "4x")
FORWARD_INPUTS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "target_sizes",
    "pixel_values_videos",
    "target_sizes_videos",
)


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the samples, besides the conversations and the processor."""

    samples: int | None = None  # None: all of them
    max_tokens: int = 2048  # per sample, visual tokens included
    downsample_mode: str = "16x"  # "16x", "4x", or "both" (alternating within each modality)
    max_slice_nums: int | None = None  # None: the processor's own
    seed: int = 0

    def __post_init__(self) -> None:
        if self.downsample_mode not in (*MODES, "both"):
            raise QuantkitError(f"downsample mode '{self.downsample_mode}' is unknown: use 16x, 4x or both")
        for name in ("samples", "max_tokens", "max_slice_nums"):
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
    inputs: dict[str, Tensor]  # the other arguments of `model.forward`
    prompt_length: int  # tokens before the last assistant answer; the whole length where there is none
    vision_mask: Tensor  # [T] bool, image and video placeholder tokens
    source: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)  # what it was made of, shortened or not

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


def prepare(conversations: Sequence[Conversation], processor: Any, options: PrepareOptions) -> list[Sample]:
    """Select and process conversations; the same arguments give the same samples, in the conversations' order.

    Each modality keeps its share of the source within one. A conversation that does not fit `max_tokens` gives its
    place to the next of its modality. Raises `QuantkitError` where nothing is left or a row cannot be processed.
    """
    wanted = _quotas(conversations, options.samples)
    builder = _Builder(processor, options)
    chosen: list[tuple[int, Sample]] = []
    skipped = 0
    with _unchanged_tokenizer(processor):
        for modality, quota in wanted.items():
            taken = 0
            for index in _shuffled(conversations, modality, options.seed):
                if taken == quota:
                    break
                mode = MODES[taken % 2] if options.downsample_mode == "both" else options.downsample_mode
                sample = builder.build(conversations[index], mode)
                if sample is None:
                    skipped += 1
                else:
                    taken += 1
                    chosen.append((index, sample))
            if taken < quota:
                log.warning("%s: %d of %d samples fit %d tokens", modality, taken, quota, options.max_tokens)
    if builder.shortened or skipped:
        log.warning("over-long conversations: %d shortened, %d skipped", builder.shortened, skipped)
    if not chosen:
        raise QuantkitError(
            f"no calibration tokens: none of {len(conversations)} conversations fits {options.max_tokens} tokens; "
            "raise max_tokens or give other data"
        )
    return [sample for _, sample in sorted(chosen, key=lambda pair: pair[0])]


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over every input tensor (name, dtype, shape, bytes) and mode of the samples, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.downsample_mode};{sample.prompt_length};".encode())
        for name, tensor in sorted(sample.inputs.items()):
            digest.update(f"{name};{tensor.dtype};{tuple(tensor.shape)};".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _quotas(conversations: Sequence[Conversation], samples: int | None) -> dict[str, int]:
    """How many samples of each modality: its share by largest remainders, so within one of the exact share."""
    counts = {m: sum(c.modality == m for c in conversations) for m in MODALITIES}
    counts = {modality: count for modality, count in counts.items() if count}
    total = sum(counts.values())
    if samples is None or samples >= total:
        if samples is not None and samples > total:
            log.warning("%d samples asked for, the data has %d", samples, total)
        return counts
    quotas = {modality: samples * count // total for modality, count in counts.items()}
    by_remainder = sorted(counts, key=lambda m: (-(samples * counts[m] % total), MODALITIES.index(m)))
    for modality in by_remainder[: samples - sum(quotas.values())]:
        quotas[modality] += 1
    return quotas


def _shuffled(conversations: Sequence[Conversation], modality: str, seed: int) -> list[int]:
    indices = [index for index, conversation in enumerate(conversations) if conversation.modality == modality]
    random.Random(f"{seed}/{modality}").shuffle(indices)
    return indices


class _Builder:
    """Turns one conversation into one sample; counts what it had to shorten."""

    def __init__(self, processor: Any, options: PrepareOptions) -> None:
        self.processor = processor
        self.options = options
        self.shortened = 0
        # Thinking off, as the model answers by default: with it on, the prompt is no prefix of a conversation.
        self.template = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}

    def build(self, conversation: Conversation, mode: str) -> Sample | None:
        """The sample, or None where no cut at a message boundary fits."""
        decoder = Decoder(conversation.source)
        for cut, messages in enumerate(_cuts(conversation)):
            try:
                part = replace(conversation, messages=messages, modality=modality_of(messages))
                sample = self._process(part, decoder, mode)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise QuantkitError(f"{conversation.source}: the processor refuses this row ({first})") from error
            if sample.input_ids.shape[1] <= self.options.max_tokens:
                self.shortened += cut > 0
                return sample
        log.info("%s: skipped, longer than %d tokens", conversation.source, self.options.max_tokens)
        return None

    def _process(self, conversation: Conversation, decoder: Decoder, mode: str) -> Sample:
        messages = conversation.messages
        answered = messages[-1]["role"] == "assistant"
        kwargs: dict[str, Any] = {"downsample_mode": mode, "padding": False}
        if self.options.max_slice_nums is not None:
            kwargs["max_slice_nums"] = self.options.max_slice_nums
        if conversation.modality == "video":
            kwargs["do_sample_frames"] = False  # the frames given are the frames meant
        batch = self.processor.apply_chat_template(
            decoder.messages(messages),
            tools=conversation.tools,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=not answered,
            processor_kwargs=kwargs,
            **self.template,
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
            prompt_length=self._prompt_length(conversation, ids) if answered else ids.numel(),
            vision_mask=torch.isin(ids, placeholders),
            source=conversation.source,
            messages=messages,
        )

    def _prompt_length(self, conversation: Conversation, ids: Tensor) -> int:
        """Tokens before the last answer: the prompt that inference would send must be a prefix of the conversation.

        Compared before pictures are expanded: their placeholders are special tokens, across which no token merges, so
        the answer has the same tokens at the end of both; that end is compared with `ids` too.
        """
        whole = self._tokens(conversation, conversation.messages, generation=False)
        prompt = self._tokens(conversation, conversation.messages[:-1], generation=True)
        answer = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or not answer or ids[-len(answer) :].tolist() != answer:
            raise QuantkitError(
                f"{conversation.source}: the chat template renders the prompt differently once it is answered, so the "
                "answer's tokens cannot be told; mend the template, or drop the last answer"
            )
        return ids.numel() - len(answer)

    def _tokens(self, conversation: Conversation, messages: list[dict[str, Any]], generation: bool) -> list[int]:
        text = self.processor.apply_chat_template(
            [{**message, "content": list(message["content"])} for message in messages],
            tools=conversation.tools,
            tokenize=False,
            add_generation_prompt=generation,
            **self.template,
        )
        return self.processor.tokenizer(text, padding=False, truncation=False)["input_ids"]


def _cuts(conversation: Conversation) -> Iterator[list[dict[str, Any]]]:
    """The whole conversation, then shorter ones that end after an earlier answer (none if the row states one)."""
    yield conversation.messages
    if conversation.answer is not None:
        return
    for end in range(len(conversation.messages) - 1, 1, -1):
        if conversation.messages[end - 1]["role"] == "assistant":
            yield conversation.messages[:end]


@contextmanager
def _unchanged_tokenizer(processor: Any) -> Iterator[None]:
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
