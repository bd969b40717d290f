"""Engines behind a URL, against a server that says what a test tells it to."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import chat, image_part, text_part, write_mixed, write_rows
from PIL import Image

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.verify.engines import server
from quantkit.verify.engines.server import run_server
from quantkit.verify.engines.server_messages import ollama_messages, openai_messages
from quantkit.verify.engines.server_replies import Vocabulary
from quantkit.verify.forward import scored
from quantkit.verify.task import NotRun, Observed, Target, Task, TopK

STOP = {1005, 1007}
FLAVORS = ["vllm", "sglang", "llama.cpp", "ollama"]
GENERATED = ["sglang", "llama.cpp", "ollama"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(open_checkpoint("tiny").path)


@pytest.fixture(scope="module")
def task(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Eight items: three of text (0, 2, 4), pictures (1, 5), several (3), a video (7), and more text (6)."""
    return make_task(write_mixed(tmp_path_factory.mktemp("data"), 8), processor)


def make_task(source: Path, processor: Any, mode: str = "16x") -> Task:
    conversations = load_conversations(source)
    samples = prepare(conversations, processor, PrepareOptions(downsample_mode=mode))
    places = [scored(sample, STOP) for sample in samples]
    return Task(conversations, samples, places, processor, STOP, 1024, max_new_tokens=16)


def expected(task: Task, index: int) -> list[int]:
    """Tokens of an item's own answer, its stop token included."""
    return task.places[index].targets[task.places[index].answer].tolist()


# ---- the server ------------------------------------------------------------------------------------------------------

Reply = tuple[int, str, bytes]


class Fake:
    """A server; `answer(path, body)` gives what it says to a POST: an object, or status, content type and bytes."""

    def __init__(self, answer: Callable[[str, dict], Any], models: tuple[str, ...] = ("tiny",)) -> None:
        self.answer, self.models = answer, models
        self.key: str | None = None
        self.bodies: list[dict] = []
        self.seen: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(fake.get(self.path, self.headers.get("Authorization")))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                fake.seen.append(self.path)
                self.reply(fake.answer(self.path, body))

            def reply(self, found: Any) -> None:
                status, kind, content = (
                    found if isinstance(found, tuple) else (200, "application/json", json.dumps(found))
                )
                data = content if isinstance(content, bytes) else content.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def get(self, path: str, key: str | None) -> Any:
        if self.key is not None and key != f"Bearer {self.key}":
            return error(401, "Unauthorized")
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name} for name in self.models]}
        if path in ("/version", "/api/version", "/get_server_info"):
            return {"version": "1.2.3"}
        return error(404, "Not Found")


def error(status: int, message: str) -> Reply:
    return status, "application/json", json.dumps({"error": {"message": message}}).encode()


@pytest.fixture
def serve() -> Iterator[Callable[..., Fake]]:
    started: list[Fake] = []

    def start(answer: Callable[[str, dict], Any], **options: Any) -> Fake:
        started.append(Fake(answer, **options))
        return started[-1]

    yield start
    for fake in started:
        fake.http.shutdown()
        fake.http.server_close()


class Script:
    """Says of each item what `steps` gives: its own answer, unless a test says otherwise."""

    def __init__(self, task: Task, flavor: str) -> None:
        self.task, self.flavor = task, flavor
        self.steps: dict[int, list[tuple[int, float, list[tuple[int, float]]]]] = {}
        self.logprobs = True
        self.prompt_ids: dict[int, list[int]] = {}

    def __call__(self, path: str, body: dict) -> Any:
        index = self.index(body)
        if "prompt_logprobs" in body:
            return self.whole(index)
        steps = self.steps.get(index) or [(token, -0.1, [(token, -0.1), (7, -3.0)]) for token in self.own(index)]
        steps = steps[: body.get("max_tokens") or body["options"]["num_predict"]]
        tokens = [token for token, _, _ in steps if token not in STOP]
        stopped = len(tokens) < len(steps)
        text = self.task.processor.tokenizer.decode(tokens)
        if self.flavor in ("llama.cpp", "ollama"):
            steps = [step for step in steps if step[0] not in STOP]  # they do not list the stop token
        content = [
            {**self.spell(t), "logprob": p, "top_logprobs": [self.entry(*o) for o in top]} for t, p, top in steps
        ]
        asked = self.logprobs and body.get("logprobs")
        reason = "stop" if stopped else "length"
        if self.flavor == "ollama":
            reply = {"message": {"role": "assistant", "content": text}, "done_reason": reason, "prompt_eval_count": 1}
            return reply | ({"logprobs": content} if asked else {})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        choice["logprobs"] = {"content": content} if asked else None
        count = self.task.samples[index].prompt_length
        reply = {"choices": [choice], "usage": {"prompt_tokens": count}}
        if self.flavor == "vllm":
            choice["token_ids"] = [token for token, _, _ in steps]
            own = self.task.samples[index].input_ids[0, :count].tolist()
            reply["prompt_token_ids"] = self.prompt_ids.get(index, own)
        return reply

    def own(self, index: int) -> list[int]:
        return expected(self.task, index)

    def index(self, body: dict) -> int:
        text = json.dumps([message["content"] for message in body["messages"] if message["role"] == "user"])
        return next(i for i in range(len(self.task.samples)) if f"number {i}?" in text)

    def entry(self, token: int, logp: float) -> dict:
        return {**self.spell(token), "logprob": logp}

    def spell(self, token: int) -> dict:
        """A token as this kind of server writes it."""
        text = self.task.processor.tokenizer.decode([token])
        if self.flavor == "vllm":
            return {"token": f"token_id:{token}", "bytes": list(text.encode())}
        if self.flavor == "llama.cpp":
            return {"id": token, "token": "wrong on purpose", "bytes": [1]}
        return {"token": text, "bytes": list(text.encode())}

    def whole(self, index: int) -> dict:
        ids = self.task.samples[index].input_ids[0].tolist()
        rows: list[Any] = [None]
        for token in ids[1:]:
            rows.append({str(token): {"logprob": -9.0, "rank": 500}, "3": {"logprob": -1.5, "rank": 2}})
            rows[-1]["4"] = {"logprob": -0.5, "rank": 1}
        reply = {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}]}
        return reply | {"prompt_logprobs": rows, "prompt_token_ids": ids}


def ask(task: Task, fake: Fake, flavor: str, **options: Any) -> Observed:
    ticks: list[int] = []
    target = Target(Path("."), url=fake.url, **{"timeout": 20.0, **options})
    found = run_server(task, target, ticks.append, flavor)
    assert sum(ticks) == len(task.samples) * (1 + task.generate)
    assert len(found.predictions) == len(found.answers) == len(task.samples)
    return found


# ---- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavor", FLAVORS)
def test_answers_in_order(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    fake = serve(Script(task, flavor))
    found = ask(task, fake, flavor)
    video = 7
    assert found.left_out == ({} if flavor == "vllm" else {video: server.NO_VIDEO})
    for index in range(len(task.samples)):
        if index in found.left_out:
            assert found.predictions[index] is found.answers[index] is None
            continue
        own = expected(task, index)[:-1]
        answer, prediction = found.answers[index], found.predictions[index]
        assert answer is not None
        assert (answer.tokens, answer.text, answer.finished) == (own, f"Number {index}.", True)
        assert isinstance(prediction, TopK)
    assert found.versions["model"] == "tiny"
    assert found.versions.get(flavor) == (None if flavor == "llama.cpp" else "1.2.3")


@pytest.mark.parametrize("flavor", GENERATED)
def test_rows_end_at_the_first_other_token(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    script = Script(task, flavor)
    own = expected(task, 2)
    known, missing, other = own[0], own[1], 300
    assert other not in own
    script.steps[2] = [
        (known, -0.25, [(known, -0.25), (301, -2.0)]),
        (other, -0.5, [(other, -0.5), (302, -1.5)]),  # what should follow is not listed
        (own[2], -0.1, [(own[2], -0.1)]),  # its context is another one
    ]
    prediction = ask(task, serve(script), flavor).predictions[2]
    assert isinstance(prediction, TopK)
    first = int(torch.nonzero(task.places[2].answer)[0])
    assert prediction.rows.tolist() == [first, first + 1]
    assert prediction.ids.tolist() == [[known, 301], [other, 302]]
    assert prediction.logp.tolist() == [[-0.25, -2.0], [-0.5, -1.5]]
    assert prediction.target_logp[0] == -0.25
    assert math.isnan(prediction.target_logp[1])
    assert missing != other


def test_all_rows_of_a_right_answer(task: Task, serve: Callable[..., Fake]) -> None:
    """SGLang lists the stop token too, so the row that predicts it is there; llama-server does not."""
    rows = {}
    for flavor in ("sglang", "llama.cpp"):
        prediction = ask(task, serve(Script(task, flavor)), flavor).predictions[0]
        assert isinstance(prediction, TopK)
        rows[flavor] = prediction.rows.tolist()
    answer = torch.nonzero(task.places[0].answer)[:, 0].tolist()
    assert rows == {"sglang": answer, "llama.cpp": answer[:-1]}


def test_a_token_that_the_reference_lacks(task: Task, serve: Callable[..., Fake]) -> None:
    """It ends the rows, stands nowhere among the listed, and leaves an answer of text alone."""
    script = Script(task, "sglang")
    own = expected(task, 0)

    def answer(path: str, body: dict) -> Any:
        reply = script(path, body)
        if script.index(body) == 0:
            entries = reply["choices"][0]["logprobs"]["content"]
            strange = {"token": "\ufffd", "bytes": list("\ufffd".encode()), "logprob": -0.3}
            entries[1] = {**strange, "top_logprobs": [strange, script.entry(own[1], -2.5)]}
        return reply

    found = ask(task, serve(answer), "sglang")
    prediction, said = found.predictions[0], found.answers[0]
    assert isinstance(prediction, TopK) and said is not None
    assert said.tokens is None and said.text == "Number 0."
    assert prediction.ids.tolist() == [[own[0], 7], [own[1], -1]]
    assert prediction.logp[1].tolist() == [-2.5, float("-inf")]
    assert prediction.target_logp.tolist() == pytest.approx([-0.1, -2.5])


def test_whole_conversation_from_vllm(task: Task, serve: Callable[..., Fake]) -> None:
    fake = serve(Script(task, "vllm"))
    prediction = ask(task, fake, "vllm").predictions[3]
    assert isinstance(prediction, TopK)
    count = task.places[3].positions.numel()
    assert prediction.rows.tolist() == list(range(count))
    targets = task.places[3].targets.tolist()
    for row, token in enumerate(targets):
        if token not in (3, 4):
            assert prediction.ids[row].tolist() == [4, 3]  # by rank; rank 500 is known, but not among the first
            assert prediction.logp[row].tolist() == [-0.5, -1.5]
            assert prediction.target_logp[row] == -9.0
    whole = next(body for body in fake.bodies if "prompt_logprobs" in body)
    assert (whole["max_tokens"], whole["add_generation_prompt"]) == (1, False)
    assert whole["messages"][-1]["role"] == "assistant"
    asked = next(body for body in fake.bodies if "prompt_logprobs" not in body)
    assert (asked["max_tokens"], asked["add_generation_prompt"]) == (16, True)
    assert asked["messages"][-1]["role"] == "user"


def test_other_prompt_tokens_leave_an_item_out(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "vllm")
    script.prompt_ids[1] = [5, 6]

    def answer(path: str, body: dict) -> Any:
        reply = script(path, body)
        if "prompt_logprobs" in body and script.index(body) == 2:
            del reply["prompt_token_ids"]  # an older server; the row then tells it
            target = int(task.places[2].targets[4])
            del reply["prompt_logprobs"][int(task.places[2].positions[4]) + 1][str(target)]
        if "prompt_logprobs" in body and script.index(body) == 3:
            reply["prompt_logprobs"].append({})
        if "prompt_logprobs" in body and script.index(body) == 4:
            reply["prompt_token_ids"][0] += 1
        return reply

    found = ask(task, serve(answer), "vllm")
    assert found.left_out == dict.fromkeys((1, 2, 3, 4), server.TOKENS_DIFFER)
    assert [answer is None for answer in found.answers] == [index in (1, 2, 3, 4) for index in range(8)]


@pytest.mark.parametrize("flavor", ["sglang", "llama.cpp"])
def test_other_count_of_text_tokens_leaves_an_item_out(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    script = Script(task, flavor)

    def answer(path: str, body: dict) -> Any:
        reply = script(path, body)
        if script.index(body) in (1, 2):  # how such a server counts a picture (1) is its own affair
            reply["usage"]["prompt_tokens"] += 4
        return reply

    assert ask(task, serve(answer), flavor).left_out == {2: server.TOKENS_DIFFER, 7: server.NO_VIDEO}


def test_tokens_that_are_not_the_text_are_not_believed(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "ollama")

    def answer(path: str, body: dict) -> Any:
        reply = script(path, body)
        reply["message"]["content"] = "Something else."
        return reply

    found = ask(task, serve(answer), "ollama")
    assert [answer and (answer.text, answer.tokens) for answer in found.answers[:2]] == [("Something else.", None)] * 2
    assert found.predictions[:2] == [None, None]


# ---- what is sent ----------------------------------------------------------------------------------------------------


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.rpartition(",")[2]))).convert("RGB"))


def picture(task: Task, index: int) -> np.ndarray:
    part = next(p for p in task.conversations[index].messages[0]["content"] if p["type"] == "image")
    return np.asarray(Image.open(part["image"]).convert("RGB"))


@pytest.mark.parametrize("flavor", FLAVORS)
def test_requests_are_greedy_and_carry_the_pixels(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    script = Script(task, flavor)
    fake = serve(script)
    ask(task, fake, flavor)
    body = next(b for b in fake.bodies if "prompt_logprobs" not in b and script.index(b) == 1)
    content = body["messages"][0]
    if flavor == "ollama":
        assert set(fake.seen) == {"/api/chat"}
        options = body["options"]
        assert (options["temperature"], options["num_predict"], options["repeat_penalty"]) == (0, 16, 1.0)
        assert options["num_ctx"] >= 4096 and body["think"] is False
        assert content["content"] == "What is number 1?"
        assert np.array_equal(pixels("," + content["images"][0]), picture(task, 1))
    else:
        assert set(fake.seen) == {"/v1/chat/completions"}
        assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 16, False)
        assert body["model"] == "tiny"
        assert [part["type"] for part in content["content"]] == ["image_url", "text"]
        uri = content["content"][0]["image_url"]["url"]
        assert uri.startswith("data:image/png;base64,")
        assert np.array_equal(pixels(uri), picture(task, 1))
        penalty = "repeat_penalty" if flavor == "llama.cpp" else "repetition_penalty"
        assert body[penalty] == 1.0
    assert "mm_processor_kwargs" not in body
    if flavor != "vllm":
        assert (body["logprobs"], body["top_logprobs"]) == (True, 20)


def test_thinking_is_off_where_the_template_knows_it(task: Task, serve: Callable[..., Fake]) -> None:
    for template, wanted in (("{{ enable_thinking }}", {"enable_thinking": False}), ("{{ messages }}", None)):

        class Processor:
            tokenizer = task.processor.tokenizer
            image_processor = task.processor.image_processor
            chat_template = template

        other = replace(task, processor=Processor())
        fake = serve(Script(other, "sglang"))
        ask(other, fake, "sglang")
        assert {json.dumps(body.get("chat_template_kwargs")) for body in fake.bodies} == {json.dumps(wanted)}


def test_video_frames_for_vllm(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "vllm")
    fake = serve(script)
    ask(task, fake, "vllm")
    body = next(b for b in fake.bodies if script.index(b) == 7)
    uri = body["messages"][0]["content"][0]["video_url"]["url"]
    header, *frames = uri.split(",")
    assert header == "data:video/jpeg;base64"
    paths = task.conversations[7].messages[0]["content"][0]["video"]
    assert len(frames) == len(paths) == 3
    for frame, path in zip(frames, paths, strict=True):
        assert np.array_equal(pixels("," + frame), np.asarray(Image.open(path).convert("RGB")))


def test_modes(processor: Any, task: Task, serve: Callable[..., Fake], tmp_path: Path) -> None:
    """vLLM is told the other mode, and may refuse it; the others run what their model was built for."""
    other = make_task(write_mixed(tmp_path, 8), processor, mode="4x")
    pictures = (1, 3, 5)
    found = ask(other, serve(Script(other, "sglang")), "sglang")
    assert found.left_out == {**dict.fromkeys(pictures, server.OTHER_MODE), 7: server.NO_VIDEO}
    script = Script(other, "vllm")
    fake = serve(script)
    assert ask(other, fake, "vllm").left_out == {}
    for body in fake.bodies:
        told = body.get("mm_processor_kwargs")
        assert told == ({"downsample_mode": "4x"} if script.index(body) in (*pictures, 7) else None)

    def refuse(path: str, body: dict) -> Any:
        if "mm_processor_kwargs" in body:
            return error(400, "Per-request mm_processor_kwargs are disabled")
        return script(path, body)

    found = ask(other, serve(refuse), "vllm")
    assert found.left_out == dict.fromkeys((*pictures, 7), server.MODE_REFUSED)


def test_an_item_left_out_tells_nothing_of_the_server(
    processor: Any, serve: Callable[..., Fake], tmp_path: Path
) -> None:
    """The first item is refused for its mode; only the second shows that there are no log-probabilities of prompts."""
    rows = json.loads(
        "[" + ",".join(write_mixed(tmp_path, 8).joinpath("manifest.jsonl").read_text().splitlines()) + "]"
    )
    pictures_first = make_task(write_rows(tmp_path / "some.jsonl", [rows[1], rows[0], rows[2]]), processor, mode="4x")

    class Named(Script):
        def index(self, body: dict) -> int:
            return {0: 1, 1: 0, 2: 2}[next(i for i in range(3) if f"number {i}?" in json.dumps(body["messages"]))]

    script = Named(pictures_first, "vllm")

    def answer(path: str, body: dict) -> Any:
        if "mm_processor_kwargs" in body:
            return error(400, "Per-request mm_processor_kwargs are disabled")
        return error(400, "no prompt_logprobs here") if "prompt_logprobs" in body else script(path, body)

    found = ask(pictures_first, serve(answer), "vllm")
    assert found.left_out == {0: server.MODE_REFUSED}
    assert [a and a.text for a in found.answers] == [None, "Number 0.", "Number 2."]


def test_picture_after_text_for_ollama(processor: Any, task: Task, serve: Callable[..., Fake], tmp_path: Path) -> None:
    write_mixed(tmp_path, 8)
    row = {"id": "after", "messages": chat(text_part("What is number 0?"), image_part("images/0.png"))}
    after = make_task(write_rows(tmp_path / "one.jsonl", [row]), processor)
    assert ask(after, serve(Script(after, "ollama")), "ollama").left_out == {0: server.PICTURE_ORDER}
    assert ask(after, serve(Script(after, "vllm")), "vllm").left_out == {}


def test_tools(processor: Any, tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "Rain.", "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row = {"id": "t", "messages": messages, "tools": tools}
    conversation = load_conversations(write_rows(tmp_path / "tools.jsonl", [row]))[0]
    sent = openai_messages(conversation, answered=True)
    assert [message["content"] for message in sent] == ["Weather?", "", "Rain.", "It rains."]
    function = sent[1]["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"city": "Köln"}
    native = ollama_messages(conversation)
    assert [message["role"] for message in native] == ["user", "assistant", "tool"]
    assert native[1]["tool_calls"] == calls  # Ollama wants an object


# ---- servers that give less ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("how", ["absent", "refused"])
def test_answers_alone(task: Task, serve: Callable[..., Fake], flavor: str, how: str) -> None:
    script = Script(task, flavor)
    script.logprobs = False

    def answer(path: str, body: dict) -> Any:
        if how == "refused" and ("logprobs" in body or "prompt_logprobs" in body):
            return error(400, "Requested logprobs are not supported")
        if "prompt_logprobs" in body:
            return script(path, {**body, "max_tokens": 1}) | {"prompt_logprobs": None}
        return script(path, body)

    fake = serve(answer)
    found = ask(task, fake, flavor)
    assert found.predictions == [None] * 8
    assert [a is not None and a.text for a in found.answers[:3]] == ["Number 0.", "Number 1.", "Number 2."]
    assert found.answers[0] is not None
    assert (found.answers[0].tokens is None) == (flavor != "vllm")  # which tells ids apart from log-probabilities
    assert found.answers[0].finished
    with pytest.raises(NotRun, match="gives no log-probabilities, and no answers"):
        ask(replace(task, generate=False), fake, flavor)


def test_vllm_without_prompt_logprobs(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "vllm")

    def answer(path: str, body: dict) -> Any:
        if "prompt_logprobs" in body:
            return error(400, "prompt_logprobs of 20 is more than max_logprobs")
        return script(path, body)

    prediction = ask(task, serve(answer), "vllm").predictions[0]
    assert isinstance(prediction, TopK)
    assert prediction.rows.tolist() == torch.nonzero(task.places[0].answer)[:, 0].tolist()


@pytest.mark.parametrize("flavor", FLAVORS)
def test_no_answers_asked_for(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    fake = serve(Script(task, flavor))
    found = ask(replace(task, generate=False, max_new_tokens=1), fake, flavor)
    assert found.answers == [None] * 8
    prediction = found.predictions[0]
    assert isinstance(prediction, TopK)
    assert prediction.rows.numel() >= 3  # as many as the answer has, not as max_new_tokens allows


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavor", FLAVORS)
def test_no_server(task: Task, serve: Callable[..., Fake], flavor: str) -> None:
    fake = serve(Script(task, flavor))
    fake.http.shutdown()
    fake.http.server_close()
    with pytest.raises(NotRun, match=f"engine '{flavor}': no server answers at http.*start one with `"):
        run_server(task, Target(Path("."), url=fake.url), lambda done: None, flavor)
    with pytest.raises(NotRun, match="needs a running server's URL; start one"):
        run_server(task, Target(Path(".")), lambda done: None, flavor)


def third_fails(script: Script, reply: Any) -> Callable[[str, dict], Any]:
    return lambda path, body: reply if script.index(body) == 2 else script(path, body)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (error(500, "CUDA error:\n out of memory"), "status 500: CUDA error: out of memory$"),
        (error(400, "the request exceeds the context size"), "status 400: the request exceeds the context size$"),
        ((400, "application/json", b'{"error": "image input is not supported"}'), "status 400: image input is not"),
        ((422, "application/json", b'{"detail": [{"msg": "bad"}]}'), "status 422: .*bad"),
        ((502, "text/html", b""), "status 502: Bad Gateway"),
        ((200, "application/json", b'{"choices": [{'), "damaged JSON"),
        ((200, "text/html", b"<html>"), "answers with text/html, not JSON"),
        ({"choices": []}, "holds no message"),
        ({"error": {"message": "no slot"}}, "holds no message .*no slot"),
        ([1], "holds no message"),
        ((302, "text/html", b""), "status 302"),
    ],
)
def test_a_failure_in_the_middle_names_the_item(task: Task, serve: Callable[..., Fake], reply: Any, says: str) -> None:
    script = Script(task, "sglang")
    fake = serve(third_fails(script, reply))
    with pytest.raises(QuantkitError, match=f"engine 'sglang': item m-002: .*{says}") as caught:
        ask(task, fake, "sglang")
    assert not isinstance(caught.value, NotRun)
    assert "\n" not in str(caught.value)
    assert "/elsewhere" not in fake.seen


def test_a_refusal_at_the_start_is_no_lack_of_logprobs(task: Task, serve: Callable[..., Fake]) -> None:
    for flavor in FLAVORS:
        script = Script(task, flavor)

        def answer(path: str, body: dict, script: Script = script) -> Any:
            asks = "logprobs" in body or "prompt_logprobs" in body
            return error(400, "no more memory") if asks else script(path, body)

        with pytest.raises(QuantkitError, match="item m-000: status 400: no more memory"):
            ask(task, serve(answer), flavor)


def test_malformed_logprobs(task: Task, serve: Callable[..., Fake]) -> None:
    for flavor in ("vllm", "sglang"):
        script = Script(task, flavor)

        def answer(path: str, body: dict, script: Script = script) -> Any:
            reply = script(path, body)
            if script.index(body) == 2 and "prompt_logprobs" in body:
                reply["prompt_logprobs"][3] = {"x": 1}
            elif script.index(body) == 2:
                reply["choices"][0]["logprobs"] = {"content": [{"token": "a"}]}
            return reply

        with pytest.raises(QuantkitError, match=r"item m-002: .*malformed"):
            ask(task, serve(answer), flavor)


def test_logprobs_that_stop_coming(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "sglang")

    def answer(path: str, body: dict) -> Any:
        script.logprobs = script.index(body) == 0
        return script(path, body)

    with pytest.raises(QuantkitError, match=r"item m-00\d: the server gives no log-probabilities, which it gave"):
        ask(task, serve(answer), "sglang")


def test_a_server_that_hangs(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "sglang")
    release = threading.Event()

    def answer(path: str, body: dict) -> Any:
        if script.index(body) == 2:
            release.wait(10)
        return script(path, body)

    started = time.monotonic()
    try:
        with pytest.raises(QuantkitError, match=r"item m-002: no answer within 0.5 s; raise --timeout"):
            ask(task, serve(answer), "sglang", timeout=0.5)
    finally:
        release.set()
    assert time.monotonic() - started < 5


def test_a_server_that_goes_away(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "sglang")

    def answer(path: str, body: dict) -> Any:
        if script.index(body) == 2:
            raise ConnectionAbortedError
        return script(path, body)

    fake = serve(answer)
    fake.http.handle_error = lambda request, address: None  # type: ignore[method-assign]
    with pytest.raises(QuantkitError, match="item m-002: ") as caught:
        ask(task, fake, "sglang")
    assert not isinstance(caught.value, NotRun)


def test_models(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "ollama")
    with pytest.raises(QuantkitError, match=r"2 models \(a:latest, b:latest\): say which with --served-name"):
        ask(task, serve(script, models=("a:latest", "b:latest")), "ollama")
    with pytest.raises(QuantkitError, match="no model 'c'; it has a:latest, b:latest"):
        ask(task, serve(script, models=("a:latest", "b:latest")), "ollama", served_name="c")
    with pytest.raises(QuantkitError, match="has no model"):
        ask(task, serve(script, models=()), "ollama")
    found = ask(task, serve(script, models=("a:latest", "b:latest")), "ollama", served_name="b")
    assert found.versions["model"] == "b"


def test_key(task: Task, serve: Callable[..., Fake]) -> None:
    fake = serve(Script(task, "sglang"))
    fake.key = "secret-key"
    for wrong in (None, "wrong-key"):
        with pytest.raises(QuantkitError, match=r"status 401: Unauthorized.*--api-key") as caught:
            ask(task, fake, "sglang", api_key=wrong)
        assert not isinstance(caught.value, NotRun)
        assert "wrong-key" not in str(caught.value)
    ask(task, fake, "sglang", api_key="secret-key")


def test_addresses(task: Task, serve: Callable[..., Fake]) -> None:
    fake = serve(Script(task, "sglang"))
    for suffix in ("/", "/v1", "/v1/"):
        run_server(task, Target(Path("."), url=fake.url + suffix), lambda done: None, "sglang")
    for wrong in ("file:///etc/passwd", "ftp://localhost/x", "localhost:8000", "http://"):
        with pytest.raises(QuantkitError, match="is no server's address: give one such as http"):
            run_server(task, Target(Path("."), url=wrong), lambda done: None, "sglang")
    with pytest.raises(QuantkitError, match="does not list its models: status 404"):
        run_server(task, Target(Path("."), url=fake.url + "/else"), lambda done: None, "sglang")
    with pytest.raises(QuantkitError, match="engine 'tgi': no such server"):
        run_server(task, Target(Path("."), url=fake.url), lambda done: None, "tgi")


def test_four_requests_at_a_time(task: Task, serve: Callable[..., Fake]) -> None:
    script = Script(task, "sglang")
    lock, running, most = threading.Lock(), 0, 0

    def answer(path: str, body: dict) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05 + 0.02 * (7 - script.index(body)))  # later items are done first
        with lock:
            running -= 1
        return script(path, body)

    found = ask(task, serve(answer), "sglang")
    assert 2 <= most <= 4
    assert [a and a.text for a in found.answers[:7]] == [f"Number {index}." for index in range(7)]


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_vocabulary(processor: Any) -> None:
    vocabulary = Vocabulary(processor.tokenizer)
    tokenizer = processor.tokenizer
    text = "Ein Käse <|im_end|> für 3 €,\n\t日本 😀"
    ids = tokenizer(text)["input_ids"]
    spelled = b"".join(next(key for key, value in vocabulary.ids.items() if value == number) for number in ids)
    assert spelled.decode() == text
    for number in ids:
        piece = tokenizer.decode([number])
        if "\ufffd" not in piece:
            assert vocabulary.find({"token": piece}) == number
            assert vocabulary.find({"token": "?", "bytes": list(piece.encode())}) == number
    assert vocabulary.find({"token": "<|im_end|>"}) in STOP
    assert vocabulary.find({"token": "\ufffd"}) is None
    assert vocabulary.find({"token": "no such token at all"}) is None
    assert vocabulary.find({"token": "token_id:17"}) == 17
    assert vocabulary.find({"token": "token_id:x"}) is None
    assert vocabulary.find({"id": 18, "token": "x"}) == 18
    assert vocabulary.find({}) is None


def test_two_tokens_of_the_same_bytes_have_no_id() -> None:
    class Tokenizer:
        def get_added_vocab(self) -> dict[str, int]:
            return {"ab": 2}

        def get_vocab(self) -> dict[str, int]:
            return {"ab": 2, "c": 1, "Ġab": 3} | {"aĢ": 4}

    vocabulary = Vocabulary(Tokenizer())
    assert vocabulary.find({"token": "ab"}) == 2
    assert vocabulary.find({"token": " ab"}) == 3
    assert vocabulary.find({"bytes": [0x61, 0x80]}) == 4

    class Twice(Tokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {" ab": 5, **super().get_vocab()}

    assert Vocabulary(Twice()).find({"token": " ab"}) is None
