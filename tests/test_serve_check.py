"""`quantkit serve-check`: right answers pass, wrong ones do not, and a server that fails is named and stopped.

Two runtimes run here for real, `transformers serve` and llama.cpp's server in xllamacpp; vLLM in tests/runtimes. Faults
are those of a stand-in, a program that speaks OpenAI's protocol and says what a test wants.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from caller import ANSWERS, CALLS, make_caller
from gguf_judge import runtime, write
from processes import refused

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.reader import GgufFile
from quantkit.gguf import names
from quantkit.serve import picture, process, record
from quantkit.serve.ask import Reply, ReplyCall
from quantkit.serve.calls import Call, calls_in, form_of
from quantkit.serve.candidate import find_candidate
from quantkit.serve.judge import TOLERANCE, judge
from quantkit.serve.record import FAILED, NOT_RUN, NOT_SHOWN, PASSED, Outcome, Run
from quantkit.serve.reference import Expected, Reference, Shortfall, _is_same_text, file_values, load_gguf
from quantkit.serve.requests import FUNCTION, REQUESTS, data_url
from quantkit.verify import verify

Command = Callable[..., tuple[int, str, str]]
BY_NAME = {request.name: request for request in REQUESTS}
CALL = ReplyCall(FUNCTION, '{"location": "Beijing"}')

serving = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="needs the extra serve",
)

# Stands for Python with a runtime, and for llama-server: answers each request as it is told, and notes how it was
# called and the process that it leaves behind.
STAND_IN = """#!{python}
import base64, http.server, json, os, subprocess, sys, time, urllib.request
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if sys.argv[1] == "--list-devices":
    sys.exit(print("Available devices:\\n  {devices}"))
replies, child = json.loads({replies!r}), subprocess.Popen(["sleep", "300"])
with open({note!r}, "w") as note:
    json.dump({{"arguments": sys.argv[1:], "child": child.pid, "offline": os.environ["HF_HUB_OFFLINE"]}}, note)
{first}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send({{"build_info": "b1", "status": "ok"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        address = content[0]["image_url"]["url"] if isinstance(content, list) else ""
        fetched = urllib.request.urlopen(address).read() if address else b""
        assert fetched.startswith(b"\\x89PNG") or not address
        name = "tool_call" if "tools" in body else "text"
        name = {{"http": "image_url", "data": "image_base64"}}.get(address[:4], name)
        reply = replies[name]
        if reply == "exit":
            print("RuntimeError: no more memory", flush=True)
            os._exit(9)
        if "status" in reply:
            return self.send(reply, reply["status"])
        if "raw" in reply:
            return self.send(reply["raw"])
        message = {{"role": "assistant", **reply}}
        choice = {{"index": 0, "message": message, "finish_reason": "stop"}}
        self.send({{"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}})

    def send(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_): ...

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def tiny() -> Reference:
    """What Transformers makes of the requests with `tiny`."""
    return Reference(find_candidate("tiny"), REQUESTS, picture.draw(), "dequantized")


@pytest.fixture(scope="module")
def expected(tiny: Reference) -> dict[str, Expected]:
    return tiny.expect(lambda count: None)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_caller(tmp_path_factory.mktemp("caller") / "caller")


@pytest.fixture(scope="module")
def caller_gguf(caller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("caller-gguf") / "caller-GGUF", model=str(caller), type=("Q8_0",))


def stand_in(folder: Path, replies: dict[str, Any], first: str = "", devices: str = "(none)") -> Path:
    note = str(folder / "note.json")
    path = folder / "stand-in"
    known = {"python": sys.executable, "replies": json.dumps(replies), "note": note, "first": first}
    text = STAND_IN.format(**known, devices=devices)
    path.write_text(text)
    path.chmod(0o755)
    return path


def noted(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "note.json").read_text()))


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def assert_stopped(folder: Path) -> None:
    wait_for(lambda: not is_running(noted(folder)["child"]))


def statuses(path: Path) -> dict[str, str]:
    (run,) = json.loads(path.read_text())["runs"]
    return {request["name"]: request["status"] for request in run["requests"]}


# ---- real runtimes ---------------------------------------------------------------------------------------------------


@serving
def test_transformers_serve(run: Command, caller: Path) -> None:
    code, out, err = run("serve-check", caller, "--runtime", "transformers-serve", "--timeout", 240)
    assert code == 0, out + err
    content = json.loads((caller / "runtimes.json").read_text())
    assert content["format"] == 1 and content["fingerprint"] == open_checkpoint(caller).fingerprint()
    (found,) = content["runs"]
    assert found["runtime"] == "transformers-serve" and found["device"] == "cpu" and found["passed"] is True
    assert found["version"] == importlib.metadata.version("transformers")
    details = {request["name"]: request["detail"] for request in found["requests"]}
    assert set(statuses(caller / "runtimes.json").values()) == {PASSED} and list(details) == list(BY_NAME)
    assert details["tool_call"] == 'get_weather({"location": "Beijing"}), as the reference'
    assert details["image_url"].startswith(f"'{ANSWERS['image_url']}'")
    assert "PASS 4 of 4" in out and "tool_call" in out


@runtime
@serving
def test_llamacpp(run: Command, caller: Path, caller_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no llama-server of this machine's
    arguments = ("serve-check", caller_gguf, "--runtime", "llama-server", "--reference", caller, "--timeout", 120)
    code, out, err = run(*arguments)
    assert code == 0, out + err
    content = json.loads((caller_gguf / "runtimes.json").read_text())
    (found,) = content["runs"]
    assert "xllamacpp" in found["note"] and found["passed"] is True
    assert set(statuses(caller_gguf / "runtimes.json").values()) == {PASSED}
    report = verify(caller, caller_gguf, quick=True, engine="llama.cpp")
    assert content["fingerprint"] == report.candidate.fingerprint
    code, out, err = run(*arguments, "--mmproj", caller_gguf / "none.gguf")
    assert code == 2 and "none.gguf: no such file" in err


@runtime
@serving
def test_a_gguf_file_without_eyes(run: Command, caller: Path, caller_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "caller-Q8_0.gguf"
    text.symlink_to(caller_gguf / "caller-Q8_0.gguf")
    code, out, err = run("serve-check", text, "--runtime", "llama-server", "--reference", caller)
    assert code == 3, out + err
    found = statuses(tmp_path / "caller-Q8_0.runtimes.json")
    assert found == {"text": PASSED, "image_url": NOT_RUN, "image_base64": NOT_RUN, "tool_call": PASSED}


# ---- the stand-in ----------------------------------------------------------------------------------------------------


def right(expected: dict[str, Expected]) -> dict[str, Any]:
    return {name: {"content": found.text} for name, found in expected.items()}


@serving
@pytest.mark.parametrize("engine", ["dequantized", "transformers"])
def test_right_answers(run: Command, engine: str, expected: dict[str, Expected], tmp_path: Path) -> None:
    python, out = stand_in(tmp_path, right(expected)), tmp_path / "record.json"
    arguments = ("--runtime", "transformers-serve", "--python", python, "--out", out, "--engine", engine)
    code, shown, err = run("serve-check", "tiny", *arguments)
    assert code == 0, shown + err
    assert statuses(out) == dict.fromkeys(BY_NAME, PASSED) | {"tool_call": NOT_SHOWN}
    assert "PASS 3 of 4" in shown and "the reference gives no tool call either" in " ".join(shown.split())
    assert noted(tmp_path)["offline"] == "1" and "127.0.0.1" in noted(tmp_path)["arguments"]
    assert_stopped(tmp_path)


@serving
def test_wrong_answers(run: Command, expected: dict[str, Expected], tmp_path: Path) -> None:
    """A picture by its address that the server took for another; all else is right."""
    out = tmp_path / "record.json"
    python = stand_in(tmp_path, right(expected) | {"image_url": {"content": "The digit is 3."}})
    code, shown, err = run("serve-check", "tiny", "--runtime", "transformers-serve", "--python", python, "--out", out)
    assert code == 3, shown + err
    assert statuses(out) == dict.fromkeys(BY_NAME, PASSED) | {"image_url": FAILED, "tool_call": NOT_SHOWN}
    assert json.loads(out.read_text())["runs"][0]["passed"] is False
    assert "FAIL 2 of 4" in shown


@serving
def test_a_server_that_ends_in_between(run: Command, expected: dict[str, Expected], tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    python = stand_in(tmp_path, right(expected) | {"image_url": {"status": 500, "x": 1}, "image_base64": "exit"})
    code, shown, err = run("serve-check", "tiny", "--runtime", "transformers-serve", "--python", python, "--out", out)
    assert code == 3, shown + err
    found = {"text": PASSED, "image_url": FAILED, "image_base64": FAILED, "tool_call": NOT_RUN}
    assert statuses(out) == found
    details = {one["name"]: one["detail"] for one in json.loads(out.read_text())["runs"][0]["requests"]}
    assert details["image_url"].startswith("HTTP 500") and "no more memory" in details["image_base64"]
    assert_stopped(tmp_path)


@serving
def test_a_server_that_ends_at_the_start(run: Command, tmp_path: Path) -> None:
    out, log = tmp_path / "record.json", tmp_path / "server.log"
    fault = 'print("loading"); print("ValueError: no such group size", flush=True); sys.exit(4)'
    python = stand_in(tmp_path, {}, fault)
    arguments = ("--runtime", "transformers-serve", "--python", python, "--out", out, "--log", log)
    result = run("serve-check", "tiny", *arguments)
    refused(result, "transformers serve ended with status 4", "ValueError: no such group size")
    assert not out.exists() and "no such group size" in log.read_text()
    assert_stopped(tmp_path)


@serving
def test_a_port_that_never_opens(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    python = stand_in(tmp_path, {}, 'print("still loading", flush=True); time.sleep(300)')
    arguments = ("--runtime", "transformers-serve", "--python", python, "--out", out, "--timeout", 1)
    refused(run("serve-check", "tiny", *arguments), "did not answer within 1 s", "--timeout", "still loading")
    assert not out.exists()
    assert_stopped(tmp_path)


@serving
def test_the_program_llama_server(
    run: Command, caller: Path, caller_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one on PATH is taken before xllamacpp's; it is told of both files and of the device."""
    replies: dict[str, Any] = {name: {"content": text} for name, text in ANSWERS.items()}
    replies["image_base64"] = replies["image_url"]
    function = {"name": CALL.name, "arguments": CALL.arguments}
    replies["tool_call"] = {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    stand_in(tmp_path, replies).rename(tmp_path / "llama-server")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    out = tmp_path / "record.json"
    arguments = ("--runtime", "llama-server", "--reference", caller, "--out", out, "--server-arg=--verbose")
    code, shown, err = run("serve-check", caller_gguf, *arguments)
    assert code == 0, shown + err
    assert json.loads(out.read_text())["runs"][0]["version"] == "b1"
    given = noted(tmp_path)["arguments"]
    for option, value in (
        ("--model", caller_gguf / "caller-Q8_0.gguf"), ("--mmproj", caller_gguf / "mmproj-caller-F16.gguf"),
        ("--n-gpu-layers", 0), ("--ctx-size", 4096),
    ):  # fmt: skip
        assert given[given.index(option) + 1] == str(value)
    assert given[-1] == "--verbose"


@serving
@pytest.mark.parametrize("devices", ["(none)", "Vulkan0: llvmpipe (15971 MiB, 15971 MiB free)"])
def test_llama_server_without_a_gpu_is_no_run_on_cuda(
    run: Command, caller: Path, caller_gguf: Path, tmp_path: Path, devices: str
) -> None:
    """llama.cpp itself would go on, on the CPU."""
    binary, out = stand_in(tmp_path, {}, devices=devices), tmp_path / "record.json"
    arguments = ("--runtime", "llama-server", "--reference", caller, "--device", "cuda", "--binary", binary)
    found = devices.partition(":")[0] if ":" in devices else "the CPU alone"
    refused(run("serve-check", caller_gguf, *arguments, "--out", out), "has no CUDA device here", found, "--device")
    assert not out.exists() and not (tmp_path / "note.json").exists()


@serving
def test_llama_server_on_cuda(run: Command, caller: Path, caller_gguf: Path, tmp_path: Path) -> None:
    replies: dict[str, Any] = {name: {"content": ANSWERS["text"]} for name in BY_NAME}
    binary = stand_in(tmp_path, replies, devices="CUDA0: NVIDIA H100 80GB HBM3 (81089 MiB, 80550 MiB free)")
    out = tmp_path / "record.json"
    arguments = ("--runtime", "llama-server", "--reference", caller, "--device", "cuda", "--binary", binary)
    code, shown, err = run("serve-check", caller_gguf, *arguments, "--out", out)
    assert code == 3, shown + err  # the stand-in sees no pictures
    assert statuses(out)["text"] == PASSED and json.loads(out.read_text())["runs"][0]["device"] == "cuda"
    assert "--n-gpu-layers" not in noted(tmp_path)["arguments"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither after Ctrl-C nor after SIGTERM, children included."""
    command = ["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/pid; wait"]

    def interrupt() -> None:
        with process.running("server", command, tmp_path / "log", os.environ):
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    wait_for(lambda: not is_running(int((tmp_path / "pid").read_text())))
    code = (
        "import os, time\nfrom pathlib import Path\nfrom quantkit.serve import process\n"
        f"with process.running('server', {command!r}, Path({str(tmp_path / 'log')!r}), os.environ):\n"
        "    time.sleep(300)\n"
    )
    (tmp_path / "pid").unlink()
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 128 + signal.SIGTERM
    wait_for(lambda: not is_running(int((tmp_path / "pid").read_text())))


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- what cannot be served -------------------------------------------------------------------------------------------


@serving
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "--runtime", "tgi"), ("--runtime tgi: unknown; known are transformers-serve, vllm, llama-server",)),
        (("tiny", "--runtime", "vllm"), ("has no vLLM", "--python DIR/bin/python")),
        (("tiny", "--runtime", "vllm", "--python", "none"), ("--python none: no such file",)),
        (("tiny", "--runtime", "llama-server"), ("reads GGUF files",)),
        (("tiny", "--runtime", "vllm", "--reference", "tiny"), ("--reference: is for GGUF files",)),
        (("tiny", "--runtime", "vllm", "--engine", "x"), ("--engine x: unknown",)),
        (("tiny", "--runtime", "vllm", "--device", "tpu"), ("--device tpu: unknown",)),
        (("tiny", "--runtime", "vllm", "--log", "none/x.log"), ("--log none/x.log: there is no folder none",)),
        (("tiny", "--runtime", "vllm", "--out", "none/x.json"), ("none/x.json: cannot be written", "--out")),
        (("GGUF", "--runtime", "llama-server"), ("no processor", "caller, says quantkit.json", "--reference")),
        (("GGUF", "--runtime", "vllm", "--reference", "tiny"), ("reads a folder with config.json",)),
        (
            ("GGUF", "--runtime", "llama-server", "--reference", "tiny", "--binary", "none"),
            ("there is no program at none",),
        ),
    ],
)
def test_refusals(
    run: Command,
    caller_gguf: Path,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("serve-check", *(caller_gguf if one == "GGUF" else one for one in arguments)), *words)
    assert not list(tmp_path.iterdir())


def test_without_the_client(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    refused(run("serve-check", "tiny", "--runtime", "vllm"), "needs the package openai", "quantkit[serve]")


def test_a_python_that_is_none(run: Command, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("not a program")
    result = run("serve-check", "tiny", "--runtime", "vllm", "--python", tmp_path / "python", "--out", tmp_path / "r")
    refused(result, "does not run as a Python")


# ---- the rules -------------------------------------------------------------------------------------------------------


def verdict(name: str, tiny: Reference, expected: Expected, **reply: Any) -> tuple[str, str]:
    found = judge(BY_NAME[name], Reply(**reply), expected, tiny)
    return found.status, found.detail


@pytest.mark.parametrize(
    ("name", "reply", "status"),
    [
        ("text", {"text": "圆环。"}, PASSED),
        ("text", {"text": " 圆环。\n"}, PASSED),
        ("text", {"text": "方形。"}, FAILED),
        ("text", {"text": "圆环。圆环。"}, FAILED),
        ("text", {"text": "圆", "finished": True}, FAILED),
        ("text", {"text": "圆", "finished": False}, PASSED),  # cut by a limit, and right so far
        ("text", {"text": ""}, FAILED),
        ("text", {"text": "圆环。", "error": "HTTP 500"}, FAILED),
        ("text", {"text": "圆环。", "calls": (CALL,)}, FAILED),
        ("image_base64", {"text": "The red circle."}, PASSED),
        ("image_base64", {"text": "The blue circle."}, FAILED),
        ("image_url", {"text": "The digit is 3."}, FAILED),
        ("tool_call", {"text": "The red circle."}, FAILED),
        ("tool_call", {"calls": (CALL,)}, NOT_SHOWN),
    ],
)
def test_answers(name: str, reply: dict[str, Any], status: str, tiny: Reference, expected: dict[str, Expected]) -> None:
    assert expected["text"].text == "圆环。" and expected["image_url"].text == "The red circle."
    found, detail = verdict(name, tiny, expected[name], **reply)
    assert found == status, detail


def test_other_words_that_are_nearly_as_likely(tiny: Reference, expected: dict[str, Expected]) -> None:
    """What decides is how far a word lies below the reference's own, given the words before."""
    assert tiny.shortfall("text", "圆环。", True).nats == 0.0
    far = tiny.shortfall("image_url", "The blue circle.", True)
    assert far.nats > 5 * TOLERANCE and far.token != far.choice

    class Hesitant:
        def __init__(self, nats: float) -> None:
            self.nats = nats

        def shortfall(self, name: str, text: str, finished: bool) -> Any:
            assert (name, text, finished) == ("text", "方形。", True)
            return type(far)(self.nats, "方", "圆")

    for nats, status in ((TOLERANCE, PASSED), (TOLERANCE + 0.01, FAILED)):
        found = judge(BY_NAME["text"], Reply("方形。"), expected["text"], Hesitant(nats))
        assert found.status == status and f"{nats:.2f} nats" in found.detail


@pytest.mark.parametrize(
    ("choice", "rest", "finished", "same"),
    [
        ('")', '")\n', True, True),  # the text's own tokens: '"' and ')'
        ('")\n', '")', True, True),  # a server stripped the end
        ('")\n', '")', False, False),  # cut there by a limit: the next would show
        ("\n", "", True, True),
        ("", "", True, False),
        ("cir", "circle", True, True),
        ("circles", "circle", True, False),
        ("<|im_end|>", "", True, False),
        ("\ufffd", "\ufffd", True, False),  # halves of two characters
    ],
)
def test_a_text_cut_into_other_tokens_is_the_same_text(choice: str, rest: str, finished: bool, same: bool) -> None:
    assert _is_same_text(choice, rest, finished) == same


def test_the_same_text_is_no_gap(tiny: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is asked about with the answer's text from it on."""
    asked = []

    def same(choice: str, rest: str, finished: bool) -> bool:
        asked.append((choice, rest))
        return rest.startswith(" blue")

    before = tiny.shortfall("image_url", "The blue circle.", True)
    assert before.token == " blue"
    monkeypatch.setattr("quantkit.serve.reference._is_same_text", same)
    assert tiny.shortfall("image_url", "The blue circle.", True).nats < before.nats - TOLERANCE
    assert asked[:2] == [("The", "The blue circle."), (before.choice, " blue circle.")] and asked[-1][1] == ""


def test_spaces_at_the_end_are_judged_as_tokens(expected: dict[str, Expected]) -> None:
    seen = []

    class Listens:
        def shortfall(self, name: str, text: str, finished: bool) -> Any:
            seen.append(text)
            return Shortfall(0.0, "", "")

    judge(BY_NAME["text"], Reply(" 方形。\n"), expected["text"], Listens())
    assert seen == ["方形。\n"]


def test_a_prompt_of_another_length_is_told(tiny: Reference, expected: dict[str, Expected]) -> None:
    for count, told in ((expected["text"].prompt_tokens, False), (7, True), (None, False)):
        _, detail = verdict("text", tiny, expected["text"], text="圆环。", prompt_tokens=count)
        assert ("its prompt has 7 tokens" in detail) == told


TEXT_CALL = CALLS["json"]


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        ({"calls": (CALL,)}, PASSED, "as the reference"),
        ({"calls": (ReplyCall(FUNCTION, '{"location": "Peking"}'),)}, PASSED, "0.40 nats apart"),
        ({"calls": (ReplyCall(FUNCTION, '{"location": "Paris"}'),)}, FAILED, "Paris"),
        ({"calls": (ReplyCall(FUNCTION, '{"city": "Beijing"}'),)}, FAILED, "city"),
        ({"calls": (ReplyCall(FUNCTION, '{"location": 3}'),)}, FAILED, "3"),
        ({"calls": (ReplyCall(FUNCTION, '{"location": '),)}, FAILED, "came"),
        ({"calls": (ReplyCall(FUNCTION, '["Beijing"]'),)}, FAILED, "came"),
        ({"calls": (ReplyCall("get_time", CALL.arguments),)}, FAILED, "get_time"),
        ({"text": TEXT_CALL}, FAILED, "the call came as text, not as tool_calls"),
        ({"text": "It is sunny."}, FAILED, "no tool_calls came"),
        ({"text": ""}, FAILED, "no tool_calls came"),
    ],
)
def test_calls(reply: dict[str, Any], status: str, words: str) -> None:
    """Where the reference calls the tool."""

    class Paris:
        def shortfall(self, name: str, text: str, finished: bool) -> Any:
            return Shortfall(0.4 if text == TEXT_CALL.replace("Beijing", "Peking") else 9.0, "", "")

    expected = Expected(TEXT_CALL, TEXT_CALL, True, 10)
    found = judge(BY_NAME["tool_call"], Reply(**reply), expected, Paris())
    assert found.status == status and words in found.detail


def test_a_malformed_call_of_the_reference_shows_nothing(tiny: Reference) -> None:
    raw = '<tool_call>{"name": "get</tool_call>'
    status, detail = verdict("tool_call", tiny, Expected(raw, raw, True, 10), text="anything")
    assert status == NOT_SHOWN and "malformed" in detail


def test_calls_in_text() -> None:
    xml = CALLS["xml"]
    meant = Call("get_weather", {"location": "Beijing"})
    assert calls_in(f"Well. {TEXT_CALL}") == calls_in(xml) == [meant]
    assert calls_in(TEXT_CALL + xml) == [meant, meant]
    for text in ("", "get_weather", TEXT_CALL[:-5], "<tool_call>[1]</tool_call>", "<tool_call>{}</tool_call>"):
        assert calls_in(text) == []
    template = str(open_checkpoint("tiny").path.joinpath("chat_template.jinja").read_text())
    assert form_of(template) == "json" and form_of("{{ '<tool_call>\\n<function=' }}") == "xml" and form_of("") is None


# ---- the requests ----------------------------------------------------------------------------------------------------


def test_requests() -> None:
    assert [request.name for request in REQUESTS] == ["text", "image_url", "image_base64", "tool_call"]
    body = BY_NAME["image_base64"].body("m", data_url(b"\x89PNG"))
    assert body["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,iVBORw=="
    assert body["temperature"] == 0 and body["chat_template_kwargs"] == {"enable_thinking": False}
    tool = BY_NAME["tool_call"].arguments("m")
    assert tool["tools"][0]["function"]["name"] == FUNCTION and "extra_body" in tool
    assert tool["messages"] == [{"role": "user", "content": "What is the weather in Beijing?"}]
    with pytest.raises(ValueError, match="a picture's address is needed"):
        BY_NAME["image_url"].messages()


def test_the_requests_need_no_heavy_package() -> None:
    code = (
        "import sys, quantkit.serve.requests, quantkit.serve.record\n"
        "print({'torch', 'transformers', 'openai', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_picture_has_an_address() -> None:
    png = picture.draw()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with picture.serving(png) as address:
        assert address.startswith("http://127.0.0.1:")
        assert opener.open(address).read() == png
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(address + "x")
    with pytest.raises(OSError, match="refused"):
        opener.open(address)


# ---- the record ------------------------------------------------------------------------------------------------------


def a_run(runtime: str = "vllm", device: str = "cpu", status: str = PASSED, version: str = "1") -> Run:
    return Run(runtime, version, device, "2026-11-27", "Transformers", (Outcome("text", status, "ä"),))


def test_a_record_grows(tmp_path: Path) -> None:
    path = tmp_path / "runtimes.json"
    for one in (a_run(), a_run("llama-server"), a_run(device="cuda"), a_run(version="2", status=FAILED)):
        assert record.add(path, "f", one) == 0
    content = record.read(path)
    found = [(run["runtime"], run["device"], run["version"], run["passed"]) for run in content["runs"]]
    assert found == [("llama-server", "cpu", "1", True), ("vllm", "cuda", "1", True), ("vllm", "cpu", "2", False)]
    assert content["runs"][0]["requests"] == [{"name": "text", "status": "passed", "detail": "ä"}]
    assert record.add(path, "other files", a_run()) == 3
    assert len(record.read(path)["runs"]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["runtimes.json"]


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        ((PASSED, PASSED), True),
        ((PASSED, NOT_SHOWN), True),
        ((NOT_SHOWN, NOT_SHOWN), False),
        ((PASSED, FAILED), False),
        ((PASSED, NOT_RUN), False),
        ((), False),
    ],
)
def test_what_passes(found: tuple[str, ...], passed: bool) -> None:
    outcomes = tuple(Outcome("text", status, "") for status in found)
    assert Run("vllm", "1", "cpu", "2026-11-27", "", outcomes).passed is passed


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "runs": [3]}', '{"format": 2, "runs": []}']
)
def test_what_is_no_record(text: str, tmp_path: Path) -> None:
    path = tmp_path / "runtimes.json"
    path.write_text(text)
    with pytest.raises(QuantkitError, match=r"runtimes\.json: .*delete it"):
        record.check_place(path)
    assert path.read_text() == text


# ---- a GGUF file in the reference architecture -----------------------------------------------------------------------


def test_gguf_read_back(other_shape: Path, tmp_path: Path) -> None:
    """With two value heads a key head, so that rows have moved, every parameter comes back."""
    import torch

    from quantkit.verify.engines.local import load_dequantized

    source = dict(load_dequantized(other_shape).named_parameters())
    for kind, most in (("F32", 1e-6), ("Q8_0", 0.02)):
        folder = write(tmp_path / kind, model=str(other_shape), type=(kind,), mmproj_type="f32")
        found = dict(load_gguf(find_candidate(str(folder), reference=str(other_shape))).named_parameters())
        assert found.keys() == source.keys()
        changed = 0
        for name, tensor in found.items():
            error = float((tensor - source[name]).detach().abs().max())
            assert error <= most * float(source[name].detach().abs().max()), name
            changed += error > 0
        assert (changed > 20) == (kind == "Q8_0"), changed
        assert torch.equal(found["model.merger.mlp.0.linear_1.weight"], source["model.merger.mlp.0.linear_1.weight"])


def test_gguf_of_another_model(caller_gguf: Path, other_shape: Path) -> None:
    with pytest.raises(QuantkitError, match=r"no tensor output\.weight; is it of another model"):
        load_gguf(find_candidate(str(caller_gguf), reference=str(other_shape)))
    row = names.Conversion("model.language_model.norm.weight", "output_norm.weight", (288,), names.plus_one)
    with pytest.raises(QuantkitError, match=r"output_norm\.weight has shape \[256\], --reference gives it \[288\]"):
        file_values(GgufFile(caller_gguf / "caller-Q8_0.gguf"), row)
