"""The candidate behind a running server: vLLM, SGLang, llama-server (OpenAI's chat API) or Ollama (its own).

Ollama's OpenAI route tears a message with a picture into several and cannot switch the repetition penalty off, hence
`/api/chat` there. Pictures travel as PNG, so no pixel changes.

What can be compared depends on what a server tells. vLLM scores the whole conversation (`prompt_logprobs`), and says
which tokens it made of it. The others give the log-probabilities of the tokens they generate: at the j-th, the context
is the teacher-forced one as long as the tokens before it are the sample's own answer, so there are rows for the
answer's positions up to the first that differs, and including it. A server that gives none gives answers alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from quantkit.calibration import Sample
from quantkit.errors import QuantkitError
from quantkit.verify.engines.server_http import Client, Refused, Unreachable
from quantkit.verify.engines.server_messages import longest_video, ollama_messages, openai_messages, text_before_picture
from quantkit.verify.engines.server_replies import Generated, Reader, Vocabulary
from quantkit.verify.task import Answer, NotRun, Observed, Scored, Target, Task, Tick, TopK

log = logging.getLogger(__name__)

TOP = 20  # the most that OpenAI's API knows, and what vLLM allows unless told otherwise
REQUESTS = 4  # at a time
WHOLE, GENERATED, NOTHING = "whole", "generated", "nothing"  # what a server gives log-probabilities of
TOKENS_DIFFER = "the server makes other prompt tokens of it than the reference's processor"
NO_VIDEO = "this server takes no video frames"
OTHER_MODE = "the server's model runs in the other compression mode"
MODE_REFUSED = "the server takes no compression mode from a request: start vLLM with --trust-request-mm-kwargs"
PICTURE_ORDER = "Ollama puts pictures before a message's text"


@dataclass(frozen=True)
class Flavor:
    """How one kind of server is spoken to."""

    start: str  # a command that starts one
    version: tuple[str, str]  # address and field of its version
    fixed: dict[str, Any] = field(default_factory=dict)  # fields of every request
    gives: tuple[str, ...] = (GENERATED, NOTHING)  # log-probabilities, the best first
    counts: tuple[str, ...] = ()  # modalities whose prompt tokens it counts as the reference's processor does
    video: bool = False
    modes: bool = False  # takes the compression mode in a request
    native: bool = False  # Ollama's API


_NEUTRAL = {"repetition_penalty": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
FRAMES = 32  # of a video that vLLM takes unless told otherwise
FLAVORS = {
    "vllm": Flavor(
        start="vllm serve MODEL --port 8000",
        version=("/version", "version"),
        fixed={**_NEUTRAL, "return_token_ids": True, "return_tokens_as_token_ids": True},
        gives=(WHOLE, GENERATED, NOTHING),
        counts=("text", "image", "images", "video"),
        video=True,
        modes=True,
    ),
    "sglang": Flavor(
        start="python -m sglang.launch_server --model-path MODEL --port 30000",
        version=("/get_server_info", "version"),
        fixed=_NEUTRAL,
        counts=("text",),
    ),
    "llama.cpp": Flavor(
        start="llama-server -m MODEL.gguf --mmproj MMPROJ.gguf --jinja --port 8080",
        version=("/props", "build_info"),
        fixed={"repeat_penalty": 1.0, "cache_prompt": False},
        counts=("text",),
    ),
    "ollama": Flavor(start="ollama serve", version=("/api/version", "version"), native=True),
}


def run_server(task: Task, target: Target, tick: Tick, flavor: str) -> Observed:
    """Ask the server at `target.url` about every item; four requests run at a time, results stand in the items' order.

    `tick` counts an item once for its log-probabilities and once for its answer. `Observed.predictions` is None for all
    where the server gives no log-probabilities; see the top of this file for the rows otherwise. Raises `NotRun` where
    no server answers, `QuantkitError` where one refuses or fails, naming the item.
    """
    if flavor not in FLAVORS:
        raise QuantkitError(f"engine '{flavor}': no such server; known are {', '.join(FLAVORS)}")
    kind = FLAVORS[flavor]
    if target.url is None:
        raise NotRun(f"engine '{flavor}' needs a running server's URL; start one with `{kind.start}`")
    client = Client(target.url, target.api_key, target.timeout)
    try:
        model = _model(client, target.served_name, flavor)
        version = _version(client, kind)
    except Unreachable as error:
        why = f"engine '{flavor}': no server answers at {client.url} ({error}): start one with `{kind.start}`"
        raise NotRun(why) from error
    observed = _Run(task, client, model, flavor).observe(tick)
    observed.versions = {"model": model} | ({flavor: version} if version else {})
    return observed


def _model(client: Client, wanted: str | None, flavor: str) -> str:
    """The name the server knows its model by."""
    try:
        listed = client.get("/v1/models").get("data") or []
        names = [str(entry["id"]) for entry in listed]
    except Refused as error:
        raise QuantkitError(f"engine '{flavor}': {client.url} does not list its models: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise QuantkitError(f"engine '{flavor}': {client.url}/v1/models is no list of models") from error
    if wanted is not None:
        # Ollama's "name" is its "name:latest"
        if wanted not in names and f"{wanted}:latest" not in names:
            raise QuantkitError(f"engine '{flavor}': the server has no model '{wanted}'; it has {', '.join(names)}")
        return wanted
    if len(names) != 1:
        found = f"{len(names)} models ({', '.join(names)}): say which with --served-name" if names else "no model"
        raise QuantkitError(f"engine '{flavor}': the server at {client.url} has {found}")
    return names[0]


def _version(client: Client, kind: Flavor) -> str | None:
    path, name = kind.version
    try:
        found = client.get(path)
    except (Refused, Unreachable) as error:
        log.info("the server does not tell its version: %s", error)
        return None
    return str(found[name]) if isinstance(found, dict) and name in found else None


class _Run:
    """The items on their way through one server."""

    def __init__(self, task: Task, client: Client, model: str, flavor: str) -> None:
        self.task, self.client, self.model, self.flavor = task, client, model, flavor
        self.kind = FLAVORS[flavor]
        self.reader = Reader(Vocabulary(task.processor.tokenizer), self.kind.native)
        self.level = self.kind.gives[0]
        self.thinking = "enable_thinking" in str(task.processor.chat_template)
        longest = max(sample.input_ids.shape[1] for sample in task.samples)
        # without this, Ollama cuts long prompts silently; the slack is for pictures that it may count otherwise
        self.context = max(4096, longest + task.max_new_tokens + 512)

    def observe(self, tick: Tick) -> Observed:
        """All items; the first that runs alone, to find out what the server gives."""
        task = self.task
        found = Observed([None] * len(task.samples), [None] * len(task.samples))
        found.left_out = {i: why for i in range(len(task.samples)) if (why := self._obstacle(i)) is not None}
        indices = [index for index in range(len(task.samples)) if index not in found.left_out]
        tick((1 + task.generate) * len(found.left_out))
        for index, (prediction, answer, why) in zip(indices, self._results(indices), strict=True):
            found.predictions[index], found.answers[index] = prediction, answer
            if why is not None:
                found.left_out[index] = why
            tick(1 + task.generate)
        return found

    def _results(self, indices: list[int]) -> Iterator[tuple[TopK | None, Answer | None, str | None]]:
        waiting = iter(indices)
        for index in waiting:
            yield (result := self._first(index))
            if result[2] is None:
                break  # what the server gives is known
        pool = ThreadPoolExecutor(REQUESTS)
        try:
            yield from pool.map(self._item, waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _obstacle(self, index: int) -> str | None:
        """Why this kind of server cannot run the item."""
        sample = self.task.samples[index]
        if sample.modality == "video" and not self.kind.video:
            return NO_VIDEO
        if not self.kind.modes and self._other_mode(sample):
            return OTHER_MODE
        if self.kind.native and text_before_picture(self.task.conversations[index].messages):
            return PICTURE_ORDER
        return None

    def _other_mode(self, sample: Sample) -> bool:
        """Whether the item needs another compression mode than the one that the processor's files name."""
        own = getattr(self.task.processor.image_processor, "downsample_mode", "16x")
        return sample.modality != "text" and sample.downsample_mode != own

    def _first(self, index: int) -> tuple[TopK | None, Answer | None, str | None]:
        """The first item; goes down to what the server gives."""
        for level in self.kind.gives:
            self.level = level
            if level == NOTHING and not self.task.generate:
                break
            try:
                return self._ask(index)
            except _NoLogprobs as error:
                log.info("%s: %s; asking for less", self.flavor, error)
            except Refused as error:
                if level == NOTHING or "logprob" not in str(error).lower():
                    raise self._fault(index, error) from error
                log.info("%s refuses log-probabilities: %s", self.flavor, error)
            except Unreachable as error:
                raise self._fault(index, error) from error
        raise NotRun(f"engine '{self.flavor}': the server gives no log-probabilities, and no answers are asked for")

    def _item(self, index: int) -> tuple[TopK | None, Answer | None, str | None]:
        try:
            return self._ask(index)
        except (Refused, Unreachable) as error:
            raise self._fault(index, error) from error
        except _NoLogprobs as error:
            raise self._fault(index, QuantkitError(f"{error}, which it gave before")) from error

    def _fault(self, index: int, error: Exception) -> QuantkitError:
        return QuantkitError(f"engine '{self.flavor}': item {self.task.samples[index].id}: {error}")

    def _ask(self, index: int) -> tuple[TopK | None, Answer | None, str | None]:
        """Prediction and answer of one item, or why it is left out."""
        try:
            return self._asked(index)
        except Refused as error:
            if self._other_mode(self.task.samples[index]) and "mm_processor_kwargs" in str(error):
                return None, None, MODE_REFUSED
            raise

    def _asked(self, index: int) -> tuple[TopK | None, Answer | None, str | None]:
        task, sample, place = self.task, self.task.samples[index], self.task.places[index]
        prediction = None
        if self.level == WHOLE:
            reply = self._post(index, answered=True, max_tokens=1, extra={"prompt_logprobs": TOP})
            entries = self.reader.prompt_logprobs(reply)
            if entries is None:
                raise _NoLogprobs("the server gives no log-probabilities of a prompt")
            told = self.reader.prompt_ids(reply)
            prediction = whole_rows(entries, sample, place)
            if prediction is None or (told is not None and told != sample.input_ids[0].tolist()):
                return None, None, TOKENS_DIFFER
            if not task.generate:
                return prediction, None, None
        asked = self.level == GENERATED
        limit = task.max_new_tokens if task.generate else max(1, int(place.answer.sum()))
        reply = self._post(index, answered=False, max_tokens=limit, extra=self._logprobs() if asked else {})
        if self._prompt_differs(reply, sample):
            return None, None, TOKENS_DIFFER
        generated = self.reader.generated(reply, task)
        if asked:
            if generated.steps is None and generated.answer.text:
                raise _NoLogprobs("the server gives no log-probabilities")
            prediction = generated_rows(generated, place)
        return prediction, generated.answer if task.generate else None, None

    def _prompt_differs(self, reply: dict[str, Any], sample: Sample) -> bool:
        ids = self.reader.prompt_ids(reply)
        if ids is not None:
            return ids != sample.input_ids[0, : sample.prompt_length].tolist()
        count = self.reader.prompt_count(reply)
        return sample.modality in self.kind.counts and count is not None and count != sample.prompt_length

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": TOP}

    def _post(self, index: int, answered: bool, max_tokens: int, extra: dict[str, Any]) -> dict[str, Any]:
        """The server's reply about one item. answered: the whole conversation is given, otherwise its prompt."""
        build = self._native_body if self.kind.native else self._body
        path = "/api/chat" if self.kind.native else "/v1/chat/completions"
        reply = self.client.post(path, build(index, answered, max_tokens) | extra)
        self.reader.check(reply)
        return reply

    def _body(self, index: int, answered: bool, max_tokens: int) -> dict[str, Any]:
        conversation, sample = self.task.conversations[index], self.task.samples[index]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": openai_messages(conversation, answered, getattr(self.task.processor, "video_processor", None)),
            "temperature": 0,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "max_tokens": max_tokens,
            "stream": False,
            **self.kind.fixed,
        }
        if self.thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        if conversation.tools:
            body["tools"] = conversation.tools
        if self.flavor in ("vllm", "sglang"):
            body["stop_token_ids"] = sorted(self.task.stop_ids)
        if self.flavor == "vllm":
            ended = answered and conversation.messages[-1]["role"] == "assistant"
            body["add_generation_prompt"] = not ended
            if conversation.tools:
                body["tool_choice"] = "none"  # the text as it comes; "auto" needs a server set up for it
            if self._other_mode(sample):
                body["mm_processor_kwargs"] = {"downsample_mode": sample.downsample_mode}
            if longest_video(body["messages"]) > FRAMES:
                body["media_io_kwargs"] = {"video": {"num_frames": -1}}  # all of them
        return body

    def _native_body(self, index: int, answered: bool, max_tokens: int) -> dict[str, Any]:
        conversation = self.task.conversations[index]
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": max_tokens, "num_ctx": self.context}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": ollama_messages(conversation),
            "stream": False,
            "think": False,
            "options": options,
        }
        return body | ({"tools": conversation.tools} if conversation.tools else {})


class _NoLogprobs(Exception):
    """The reply lacks the log-probabilities that were asked for."""


def whole_rows(entries: list[dict[int, tuple[float, int]] | None], sample: Sample, place: Scored) -> TopK | None:
    """Every scored position, from log-probabilities {token: (logarithm, rank)} of each token of the conversation.

    None where the conversation had other tokens: each position also states the token that really stood there.
    """
    if len(entries) != sample.input_ids.shape[1]:
        return None
    rows, truths = [], []
    for position, token in zip(place.positions.tolist(), place.targets.tolist(), strict=True):
        entry = entries[position + 1]
        if entry is None or token not in entry:
            return None
        ranked = sorted((rank, found, logp) for found, (logp, rank) in entry.items() if rank <= TOP)
        rows.append([(found, logp) for _, found, logp in ranked])
        truths.append(entry[token][0])
    return _topk(list(range(len(rows))), rows, truths)


def generated_rows(generated: Generated, place: Scored) -> TopK | None:
    """The answer's positions at which the server had the teacher-forced context: up to the first other token."""
    rows, tops, truths = [], [], []
    answer = torch.nonzero(place.answer)[:, 0].tolist()
    for row, step in zip(answer, generated.steps or [], strict=False):
        target = int(place.targets[row])
        known = dict(step.top) | ({} if step.token is None else {step.token: step.logp})
        rows.append(row)
        tops.append(step.top or list(known.items()))
        truths.append(known.get(target, float("nan")))
        if step.token != target:
            break
    return _topk(rows, tops, truths) if rows else None


def _topk(rows: list[int], tops: list[list[tuple[int, float]]], truths: list[float]) -> TopK:
    width = max([1, *(len(top) for top in tops)])
    ids = torch.full((len(rows), width), -1, dtype=torch.int64)
    logp = torch.full((len(rows), width), float("-inf"), dtype=torch.float32)
    for number, top in enumerate(tops):
        for column, (token, value) in enumerate(top):
            ids[number, column], logp[number, column] = token, value
    return TopK(torch.tensor(rows, dtype=torch.int64), ids, logp, torch.tensor(truths, dtype=torch.float32))
