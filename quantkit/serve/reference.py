"""What Transformers makes of the card's messages, and how far from it a server's answer lies.

A folder's weights are unpacked into the reference architecture, or run by the kernels that Transformers itself takes
(engine `transformers`). A GGUF file's are unpacked into it as well: text model and mmproj, by the same table of names
that writes them, backwards. So the judge runs the very weights that the server runs, and what is left between the two
is kernels and prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from quantkit.calibration import Conversation
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.blocks import unpack
from quantkit.formats.gguf.reader import GgufFile
from quantkit.gguf import names
from quantkit.serve.candidate import Candidate
from quantkit.serve.requests import MAX_TOKENS, CardRequest, data_url
from quantkit.verify import forward
from quantkit.verify.engines.local import LOADERS, load_dequantized
from quantkit.verify.options import VerifyOptions
from quantkit.verify.run import make_task
from quantkit.verify.task import Scored, Task

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Expected:
    """The reference's greedy answer. raw: with special tokens; text: without, as servers give it."""

    text: str
    raw: str
    finished: bool
    prompt_tokens: int


@dataclass(frozen=True)
class Shortfall:
    """Where an answer is least like the reference: a token (its text), `nats` below the reference's choice there."""

    nats: float
    token: str
    choice: str


class Reference:
    """The model that judges, over the requests' prompts. note: what it is, for the record."""

    def __init__(self, candidate: Candidate, requests: Sequence[CardRequest], png: bytes, engine: str) -> None:
        mode: Any = candidate.mode
        options = VerifyOptions(downsample_mode=mode, max_new_tokens=MAX_TOKENS)
        conversations = [conversation(request, png) for request in requests]
        self.task: Task = make_task(conversations, candidate.source, options)
        self._places = {sample.id: place for place, sample in enumerate(self.task.samples)}
        if candidate.is_gguf:
            self.model = load_gguf(candidate)
        else:
            self.model = LOADERS[engine](candidate.source, "float32")
        how = "its own kernels" if engine == "transformers" and not candidate.is_gguf else "the file's weights unpacked"
        self.note = f"Transformers {version('transformers')}, {how}, float32"

    def expect(self, tick: Callable[[int], None]) -> dict[str, Expected]:
        """The greedy answer to each request, by its name."""
        task, tokenizer = self.task, self.task.processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(task.stop_ids)
        found = forward.greedy(self.model, task.samples, MAX_TOKENS, task.stop_ids, pad, tick)
        return {
            sample.id: Expected(
                text=task.decode(tokens),
                raw=tokenizer.decode(tokens, skip_special_tokens=False),
                finished=finished,
                prompt_tokens=sample.prompt_length,
            )
            for sample, (tokens, finished) in zip(task.samples, found, strict=True)
        }

    def shortfall(self, name: str, text: str, finished: bool) -> Shortfall:
        """How far, at the worst of its tokens, an answer to a request lies below the reference's own choice there.

        Given the answer's tokens before. `finished`: the end counts too, as any of the tokens that end an answer.
        A server gives text, not tokens: where the reference's choice is the same text cut otherwise, it is no gap, nor
        are spaces at the end, which servers may strip.
        """
        sample = self.task.samples[self._places[name]]
        tokenizer = self.task.processor.tokenizer
        ids = tokenizer(text.rstrip("\ufffd"), add_special_tokens=False)["input_ids"]
        stops = sorted(self.task.stop_ids)
        whole = torch.cat([sample.input_ids[0, : sample.prompt_length], torch.tensor(ids, dtype=torch.int64)])
        count = len(ids) + int(finished)
        if not count:
            return Shortfall(0.0, "", "")
        positions = torch.arange(count) + sample.prompt_length - 1
        place = Scored(positions, torch.zeros_like(positions), torch.ones(count, dtype=torch.bool))
        forced = replace(sample, inputs={**sample.inputs, "input_ids": whole[None]})
        logp = self._logp(forward.hidden_states(self.model, [forced], [place], lambda done: None)[0])
        given = [logp[row, token] for row, token in enumerate(ids)]
        given += [logp[-1, stops].max()] if finished else []
        gaps = logp.max(-1).values - torch.stack(given)
        choices = [tokenizer.decode([token]) for token in logp.argmax(-1).tolist()]
        for row, choice in enumerate(choices):
            if _is_same_text(choice, tokenizer.decode(ids[row:]), finished):
                gaps[row] = 0
        worst = int(gaps.argmax())
        token = tokenizer.decode([ids[worst]]) if worst < len(ids) else "the end"
        return Shortfall(float(gaps[worst]), token, choices[worst])

    @torch.inference_mode()
    def _logp(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(states).float().log_softmax(-1).cpu()


def _is_same_text(choice: str, rest: str, finished: bool) -> bool:
    """Whether an answer whose remainder is ``rest`` goes on with the text of the token ``choice``."""
    if "\ufffd" in choice:  # a part of a character
        return False
    if rest and choice and rest.startswith(choice):
        return True
    return finished and choice.rstrip() == rest.rstrip() and choice != rest


def conversation(request: CardRequest, png: bytes) -> Conversation:
    """The request's chat in the normal form of `quantkit.calibration`."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": request.question}]
    if request.picture is not None:
        parts.insert(0, {"type": "image", "image": data_url(png)})
    modality = "image" if request.picture is not None else "text"
    messages = [{"role": "user", "content": parts}]
    tools = list(request.tools) or None
    return Conversation(request.name, modality, "en", messages, None, f"request {request.name}", tools)


# ---- a GGUF file in the reference architecture -----------------------------------------------------------------------


def load_gguf(candidate: Candidate) -> Any:
    """The source's architecture with what the GGUF files stand for, in float32; raises `QuantkitError` for a tensor
    that is missing, of another shape, or of a type that is not read here."""
    source = candidate.source
    model = load_dequantized(source, "float32")
    parameters = dict(model.named_parameters())
    heads = names.Heads.of(source.config)
    _fill(parameters, names.text_tensors(source), GgufFile(candidate.model), heads)
    if candidate.mmproj is not None:
        _fill(parameters, names.vision_tensors(source, candidate.mode), GgufFile(candidate.mmproj), heads)
    return model


def _fill(parameters: dict[str, Tensor], rows: Sequence[names.Conversion], file: GgufFile, heads: names.Heads) -> None:
    for row in rows:
        parameters[row.source].data.copy_(
            _source_values(row, file_values(file, row), parameters[row.source].shape, heads)
        )


def file_values(file: GgufFile, row: names.Conversion) -> Tensor:
    """A tensor's values in float32, in the file's own order."""
    info = file.tensors.get(row.name)
    if info is None:
        raise QuantkitError(f"{file.path}: has no tensor {row.name}; is it of another model than --reference?")
    if tuple(info.shape) != tuple(row.shape):
        raise QuantkitError(
            f"{file.path}: {row.name} has shape {list(info.shape)}, --reference gives it {list(row.shape)}: two models"
        )
    raw = torch.from_numpy(file.raw(row.name).copy())
    if info.type.name in _FLOATS:
        return raw.view(_FLOATS[info.type.name]).float()
    try:
        return unpack(raw.view(-1, info.type.row_bytes(info.shape[-1])), info.type.name).dequantize()
    except KeyError as error:
        raise QuantkitError(f"{file.path}: {row.name} is {info.type.name}, which is not read here") from error


def _source_values(row: names.Conversion, values: Tensor, shape: torch.Size, heads: names.Heads) -> Tensor:
    """The table's transform backwards: first what it does to values, then where it puts them."""
    moved = row.transform
    if row.transform is names.plus_one:
        values, moved = values - 1, names.keep
    elif row.transform is names.decay:
        values, moved = (-values).log(), names.per_head
    places = moved(torch.arange(shape.numel(), dtype=torch.float64).view(shape), heads).long()
    return torch.empty(shape.numel()).scatter_(0, places.flatten(), values.flatten()).view(shape)
