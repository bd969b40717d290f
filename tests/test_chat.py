"""`quantkit chat`: answers are Transformers' own, turns are kept, nothing that steers a terminal reaches it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chats import picture
from gguf_judge import runtime, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import refused
from rich.console import Console
from variants import AWQ_CONFIG, quantize, variant

from quantkit.calibration.images import Decoder
from quantkit.calibration.prepare import load_processor
from quantkit.chat import ChatOptions, Dialogue, open_engine, question, reference
from quantkit.chat.reply import ANSWER, REASONING, Thought
from quantkit.cli.chat_view import Screen, Shown, markdown
from quantkit.errors import QuantkitError
from quantkit.source import tiny_folder

Run = Callable[..., tuple[int, str, str]]

TINY = tiny_folder()
HELDOUT = TINY.parent / "heldout"
IMAGES = HELDOUT / "images"
DIGIT = IMAGES / "test-0001-0.png"
ASKED = "Which digit do you see?"
ROWS = [json.loads(line) for line in (HELDOUT / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def row(number: int) -> tuple[str, list[str], str]:
    """A held-out item: its question, the paths of its pictures, its answer."""
    messages = ROWS[number - 1]["messages"]
    parts = messages[0]["content"]
    pictures = [part["image"] for part in parts if part["type"] == "image"]
    pictures += [frame for part in parts if part["type"] == "video" for frame in part["video"]]
    return parts[-1]["text"], [str(HELDOUT / name) for name in pictures], messages[1]["content"][0]["text"]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, run: Run) -> Run:
    """Runs `quantkit chat` with these lines on its standard input."""

    def command(lines: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run("chat", *arguments)

    return command


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of `tiny` to change."""
    return Path(shutil.copytree(TINY, tmp_path / "copied"))


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(tmp_path_factory.mktemp("awq") / "tiny-AWQ", quantize, AWQ_CONFIG)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` in float16 for llama.cpp, with a vision file for each compression mode."""
    return write(tmp_path_factory.mktemp("gguf") / "tiny-GGUF", downsample_mode="both")


# ---- against Transformers alone -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card() -> Callable[..., tuple[list[int], str]]:
    """Prompt tokens and greedy answer by the processor and `generate`, as the model's card has it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(str(TINY))
    model = AutoModelForImageTextToText.from_pretrained(str(TINY), dtype=torch.float32).eval()

    def ask(messages: list[dict[str, Any]], thinking: bool = False, **knobs: Any) -> tuple[list[int], str]:
        mode = knobs.setdefault("downsample_mode", "16x")
        batch = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
            enable_thinking=thinking, processor_kwargs=knobs,
        )  # fmt: skip
        ids = batch["input_ids"][0].tolist()
        with torch.inference_mode():
            found = model.generate(**batch, downsample_mode=mode, do_sample=False, max_new_tokens=32)
        return ids, processor.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)

    return ask


def shown_parts(text: str, *pictures: str | Path) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": Image.open(name).convert("RGB")} for name in pictures]
    return [*images, {"type": "text", "text": text}]


def user(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": parts}


KNOBS: dict[str, tuple[int, list[str], dict[str, Any]]] = {
    "one picture": (1, [], {}),
    "slices": (36, [], {}),
    "Chinese": (27, [], {}),
    "two pictures": (315, [], {}),
    "text": (371, [], {}),
    "4x": (1, ["--downsample-mode", "4x"], {"downsample_mode": "4x"}),
    "one slice": (72, ["--max-slice-nums", "1"], {"max_slice_nums": 1}),
    "no numbers": (323, ["--no-use-image-id"], {"use_image_id": False}),
    "float32 by kernels": (2, ["--engine", "transformers"], {}),
}


@pytest.mark.parametrize(("number", "flags", "knobs"), KNOBS.values(), ids=KNOBS)
def test_answers_are_those_of_the_model_card(
    run: Run, card: Callable[..., tuple[list[int], str]], number: int, flags: list[str], knobs: dict[str, Any]
) -> None:
    text, pictures, _ = row(number)
    given = [flag for name in pictures for flag in ("--image", name)]
    code, out, err = run("chat", "tiny", text, *given, "--dtype", "float32", "--device", "cpu", *flags)
    _, expected = card([user(shown_parts(text, *pictures))], **knobs)
    assert (code, out) == (0, expected + "\n"), err
    assert "tiny: plain weights through Transformers; float32, cpu" in err


def prompt_of(options: ChatOptions, messages: list[dict[str, Any]]) -> list[int]:
    engine: Any = open_engine("tiny", options)
    return engine._sample(messages, Decoder("chat")).input_ids[0].tolist()


@pytest.mark.parametrize(
    ("options", "knobs"),
    [
        ({}, {}),
        ({"downsample_mode": "4x"}, {"downsample_mode": "4x"}),
        ({"max_slice_nums": 2}, {"max_slice_nums": 2}),
        ({"use_image_id": False}, {"use_image_id": False}),
        ({"enable_thinking": True}, {"thinking": True}),
    ],
)
def test_every_setting_reaches_the_prompt(
    card: Callable[..., tuple[list[int], str]], tmp_path: Path, options: dict[str, Any], knobs: dict[str, Any]
) -> None:
    wide = picture(tmp_path / "wide.png", size=(480, 200))
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    ours = [system, user(question(ASKED, [wide, str(DIGIT)]))]
    theirs = [system, user(shown_parts(ASKED, wide, DIGIT))]
    assert prompt_of(ChatOptions(device="cpu", **options), ours) == card(theirs, **knobs)[0]


def test_turns_are_kept_and_a_picture_is_for_one_question(
    piped: Run, card: Callable[..., tuple[list[int], str]]
) -> None:
    first = [user(shown_parts(ASKED, DIGIT))]
    _, answer = card(first)
    second = [*first, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    second.append(user(shown_parts("And now?")))
    _, again = card(second)
    _, alone = card([user(shown_parts("And now?"))])
    assert again != alone  # else this could not fail
    lines = f"/image {DIGIT}\n{ASKED}\nAnd now?\n/reset\nAnd now?\n"
    code, out, err = piped(lines, "tiny", "--dtype", "float32", "--device", "cpu")
    assert (code, out) == (0, f"{answer}\n{again}\n{alone}\n"), err
    assert "forgotten" in err


def test_the_system_prompt_comes_first(piped: Run, card: Callable[..., tuple[list[int], str]]) -> None:
    asked = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, user(shown_parts("What is it?"))]
    _, expected = card(asked)
    assert expected != card(asked[1:])[1]
    arguments = ("tiny", "--system", "Be brief.", "--dtype", "float32", "--device", "cpu")
    assert piped("What is it?\n", *arguments)[1] == expected + "\n"


# ---- clips ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four held-out frames of a thing that moves, one a second, without loss."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clip") / "moving.mkv"
    frames = [np.asarray(Image.open(name).convert("RGB")) for name in row(347)[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_clip_is_answered(run: Run, clip: Path) -> None:
    text, _, expected = row(347)
    code, out, err = run("chat", "tiny", text, "--video", clip, "--device", "cpu")
    assert (code, out) == (0, expected + "\n"), err


def test_settings_of_clips_reach_the_prompt(clip: Path) -> None:
    asked = [user(question("What is it?", videos=[str(clip)]))]
    lengths = [
        len(prompt_of(ChatOptions(device="cpu", **options), asked))
        for options in ({}, {"max_num_frames": 2}, {"stack_frames": 2})
    ]
    assert lengths[1] < lengths[0] and lengths[2] != lengths[0]


# ---- engines --------------------------------------------------------------------------------------------------------

needs_gptqmodel = pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="needs gptqmodel")


@needs_gptqmodel
def test_kernels_are_taken_where_they_are_installed(run: Run, awq: Path) -> None:
    code, out, err = run("chat", awq, ASKED, "--image", DIGIT, "--device", "cpu")
    assert (code, out) == (0, "The digit is 5.\n"), err
    line = next(line for line in err.splitlines() if line.startswith("tiny-AWQ: "))
    assert line.startswith("tiny-AWQ: awq weights through Transformers, ") and "Linear" in line


def test_without_kernels_the_weights_are_unpacked(run: Run, awq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "quantkit.verify.engines.local.importlib.util.find_spec",
        lambda name: None if name == "gptqmodel" else found(name),
    )
    code, out, err = run("chat", awq, ASKED, "--image", DIGIT, "--device", "cpu")
    assert (code, out) == (0, "The digit is 5.\n"), err
    assert "awq weights dequantized into the reference model (no kernels" in err and "gptqmodel" in err
    refused(run("chat", awq, ASKED, "--engine", "transformers", "--device", "cpu"), "gptqmodel")


def test_a_tensor_that_is_missing_is_an_error(run: Run, tmp_path: Path) -> None:
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    broken = variant(tmp_path / "broken", lambda tensors: tensors.pop(name))
    refused(run("chat", broken, ASKED, "--device", "cpu"), name)


@runtime
def test_gguf_answers_through_llamacpp(run: Run, gguf: Path) -> None:
    code, out, err = run("chat", gguf, ASKED, "--image", DIGIT)
    assert (code, out) == (0, "The digit is 5.\n"), err
    assert "tiny-F16: F16 through llama.cpp" in err and "mmproj-tiny-F16.gguf (16x)" in err
    code, out, err = run("chat", gguf / "tiny-F16.gguf", ASKED, "--image", DIGIT, "--downsample-mode", "4x")
    assert (code, out) == (0, "The digit is 5.\n"), err
    assert "mmproj-tiny-4x-F16.gguf (4x)" in err


@runtime
def test_gguf_keeps_turns_numbers_pictures_and_halts(gguf: Path, card: Callable[..., tuple[list[int], str]]) -> None:
    engine = open_engine(gguf, ChatOptions(use_image_id=True))
    dialogue = Dialogue(engine, Decoder("chat"))
    first = [user(shown_parts(ASKED, DIGIT))]
    _, answer = card(first)
    try:
        engine.load()
        pieces: list[str] = []
        reply = dialogue.ask(question(ASKED, [str(DIGIT)]), lambda kind, piece: pieces.append(piece), lambda: False)
        assert reply.text == "".join(pieces) == answer and len(pieces) > 3 and reply.ended == "stop"
        second = [*first, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        second.append(user(shown_parts("And now?")))
        again = dialogue.ask(question("And now?"), lambda *_: None, lambda: False)
        assert again.text == card(second)[1]
        halted = dialogue.ask(question(ASKED), lambda *_: None, lambda: True)
        assert halted.ended == "halted" and halted.tokens < again.tokens
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-slice-nums", 2), ("--max-slice-nums", "llama.cpp")),
        (("--stack-frames", 2), ("--stack-frames", "llama.cpp")),
        (("--engine", "transformers"), ("--engine transformers", "GGUF")),
        (("--mmproj", "mmproj-tiny-4x-F16.gguf", "--downsample-mode", "16x"), ("--mmproj", "4x")),
        (("--mmproj", "gone.gguf"), ("gone.gguf", "no such file")),
    ],
)
def test_what_llamacpp_cannot_be_told_is_refused(
    run: Run, gguf: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(gguf)
    refused(run("chat", gguf, ASKED, *arguments), *words)


def test_a_gguf_file_without_eyes_says_so(run: Run, gguf: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(gguf / "tiny-F16.gguf", tmp_path))
    refused(run("chat", alone, ASKED, "--image", DIGIT), "no mmproj file")
    refused(run("chat", gguf / "mmproj-tiny-F16.gguf", ASKED), "no text model")


# ---- sampling, stop tokens, settings of the files -------------------------------------------------------------------


def test_a_seed_decides_a_sampled_answer(random_checkpoint: Path) -> None:
    engine: Any = open_engine(random_checkpoint, ChatOptions(device="cpu"))
    engine.load()

    def ask(**options: Any) -> str:
        engine.options = ChatOptions(device="cpu", max_new_tokens=8, **options)
        return engine.answer([user(question("Hi"))], Decoder("chat"), lambda *_: None, lambda: False).text

    sampled = ask(temperature=5, seed=1)
    assert sampled == ask(temperature=5, seed=1) != ask(temperature=5, seed=2)
    greedy = ask()
    assert greedy == ask(seed=3) == ask(temperature=5, top_k=1) == ask(top_p=1e-6) == ask(temperature=0)
    assert sampled != greedy


def settings_of(folder: Path, **changes: Any) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_greedy_is_greedy_whatever_the_file_recommends(run: Run, copied: Path) -> None:
    settings_of(copied, do_sample=True, temperature=9.0, repetition_penalty=5.0, max_new_tokens=2)
    for engine in ("auto", "transformers"):
        code, out, err = run("chat", copied, ASKED, "--image", DIGIT, "--device", "cpu", "--engine", engine)
        assert (code, out) == (0, "The digit is 5.\n"), err


def test_an_answer_ends_at_the_stop_ids_of_the_generation_config(run: Run, copied: Path) -> None:
    dot = load_processor(TINY).tokenizer.encode(".")
    assert len(dot) == 1
    settings_of(copied, eos_token_id=dot)
    code, out, err = run("chat", copied, ASKED, "--image", DIGIT, "--device", "cpu")
    assert (code, out) == (0, "The digit is 5\n"), err


def test_an_answer_that_is_cut_off_says_so(run: Run) -> None:
    code, out, err = run("chat", "tiny", ASKED, "--image", DIGIT, "--device", "cpu", "--max-new-tokens", 2)
    assert (code, out) == (0, "The digit\n")
    assert "2 tokens" in err and "cut off by --max-new-tokens" in err


def test_a_conversation_beyond_the_context_is_refused(run: Run, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 20
    (copied / "config.json").write_text(json.dumps(config))
    code, out, err = run("chat", copied, ASKED, "--image", DIGIT, "--device", "cpu")
    assert code == 2 and not out
    assert err.splitlines()[-1].startswith("error: copied: the conversation has 27 tokens, its context 20")


@pytest.mark.parametrize("name", ["downsample_mode", "max_slice_nums", "video_processor", "eos_token_id", "file"])
def test_a_missing_field_is_no_traceback(run: Run, copied: Path, name: str) -> None:
    files = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    if name == "file":
        (copied / "generation_config.json").unlink()
    for file in (*files, "generation_config.json") if name != "file" else ():
        settings = json.loads((copied / file).read_text())
        for place in (settings, settings.get("image_processor", {}), settings.get("video_processor", {})):
            place.pop(name, None)
        (copied / file).write_text(json.dumps(settings))
    result = run("chat", copied, ASKED, "--image", DIGIT, "--device", "cpu", "--max-new-tokens", 8)
    if result[0] != 0:
        refused(result)
    else:
        assert result[1].strip()


def test_a_damaged_generation_config_is_one_line(run: Run, copied: Path) -> None:
    (copied / "generation_config.json").write_text("{")
    refused(run("chat", copied, ASKED, "--device", "cpu"), "generation_config.json")


# ---- two models -----------------------------------------------------------------------------------------------------


def test_two_answers_stand_side_by_side(run: Run, random_checkpoint: Path) -> None:
    flags = ("--image", DIGIT, "--device", "cpu", "--max-new-tokens", 8)
    code, out, err = run("chat", random_checkpoint, ASKED, *flags, "--compare", "tiny")
    assert code == 0, err
    heading = next(line for line in out.splitlines() if "tiny" in line and "model" in line)
    assert heading.index("tiny") < heading.index("model")  # the reference first
    alone = run("chat", random_checkpoint, ASKED, *flags)[1].split()
    body = next(line for line in out.splitlines() if "The digit is 5." in line)
    assert alone[0] in body.partition("The digit is 5.")[2]
    assert err.count("plain weights through Transformers") == 2


def test_each_of_two_has_its_own_history(piped: Run, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    parts: list[int] = []
    ask = Dialogue.ask

    def recorded(self: Dialogue, *arguments: Any) -> Any:
        reply = ask(self, *arguments)
        asked.append([turn["content"][-1]["text"] for turn in self.turns])
        parts.append(len(self.turns[-2]["content"]))
        return reply

    monkeypatch.setattr(Dialogue, "ask", recorded)
    lines = f"{ASKED}\nAnd now?\n"
    code, _, err = piped(
        lines, random_checkpoint, "--image", DIGIT, "--compare", "tiny", "--device", "cpu", "--max-new-tokens", 6
    )
    assert code == 0, err
    assert [len(one) for one in asked] == [2, 2, 4, 4]
    assert parts == [2, 2, 1, 1]  # the picture belongs to the first question
    assert asked[2][:2] == asked[0] and asked[3][:2] == asked[1] and asked[0][1] != asked[1][1]


# ---- the chat -------------------------------------------------------------------------------------------------------


def test_a_wrong_line_does_not_end_a_chat(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    lines = (
        f"/image {tmp_path / 'gone.png'}\n/image {tmp_path / 'text.png'}\n/image\n/frobnicate\n/help\n\n"
        f'/image "{DIGIT}"\n{ASKED}\n/quit\nWhat is 5?\n'
    )
    monkeypatch.setattr("sys.stdin", _Terminal(lines))
    code, out, err = run("chat", "tiny", "--device", "cpu")
    assert (code, out) == (0, "The digit is 5.\n")
    for words in ("gone.png' does not exist", "text.png' cannot be decoded", "/image needs a file", "/frobnicate: no"):
        assert f"{words}" in err, words
    assert err.count("error: ") == 4 and "/reset" in err and "Traceback" not in err


def test_a_picture_that_is_not_there_ends_a_chat_of_a_file(piped: Run) -> None:
    """Nobody sits before it, and what follows would be asked without the picture."""
    code, out, err = piped(f"/frobnicate\n/image gone.png\n{ASKED}\n", "tiny", "--device", "cpu")
    assert (code, out) == (2, "") and err.count("error: ") == 2 and "gone.png' does not exist" in err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Typing(io.StringIO):
    """Lines of which one, when it was read, is followed by Ctrl-C so many seconds later."""

    def __init__(self, lines: str, seconds: float) -> None:
        super().__init__(lines)
        self.seconds: float | None = seconds

    def readline(self, *_: Any) -> str:
        if self.seconds is not None:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
            self.seconds = None
        return super().readline()


def test_control_c_stops_the_answer_and_not_the_chat(
    run: Run, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Typing("Go on\n/help\nAgain\n", 1.5))
    handler = signal.getsignal(signal.SIGINT)
    halved: list[int] = []
    ask = Dialogue.ask

    def recorded(self: Dialogue, *arguments: Any) -> Any:
        if halved:
            object.__setattr__(self.engine.options, "max_new_tokens", 4)  # type: ignore[attr-defined]
        reply = ask(self, *arguments)
        halved.append(reply.tokens)
        return reply

    monkeypatch.setattr(Dialogue, "ask", recorded)
    code, out, err = run("chat", random_checkpoint, "--device", "cpu", "--max-new-tokens", 20_000)
    assert code == 0, err
    assert "; stopped" in err and "/reset" in err and "4 tokens" in err
    assert 0 < halved[0] < 20_000 and halved[1] == 4 and out.count("\n") >= 2
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", ""), ("the question is empty",)),
        (("tiny", ASKED, "--image", "gone.png"), ("gone.png", "does not exist")),
        (("tiny", ASKED, "--video", DIGIT), ("test-0001-0.png", "no video of a known kind")),
        (("tiny", ASKED, "--image", ""), ("must be named",)),
        (("tiny", ASKED, "--downsample-mode", "both"), ("--downsample-mode 'both'", "16x or 4x")),
        (("tiny", ASKED, "--engine", "vllm"), ("--engine 'vllm'", "dequantized")),
        (("tiny", ASKED, "--engine", "llama.cpp"), ("--engine llama.cpp", "GGUF")),
        (("tiny", ASKED, "--mmproj", "x.gguf"), ("--mmproj", "GGUF")),
        (("tiny", ASKED, "--dtype", "int4"), ("--dtype 'int4'", "bfloat16 or float32")),
        (("tiny", ASKED, "--device", "abacus"), ("--device abacus",)),
        (("tiny", ASKED, "--top-p", 2), ("--top-p", "2")),
        (("tiny", ASKED, "--temperature", 0, "--top-k", 3), ("--temperature 0", "greedy")),
        (("gone.gguf", ASKED), ("gone.gguf", "no such file")),
        (("./gone", ASKED), ("gone", "no such folder")),
        (("tiny", ASKED, "--compare", "./gone"), ("gone", "no such folder")),
    ],
)
def test_faults_are_one_line(run: Run, arguments: tuple[object, ...], words: tuple[str, ...]) -> None:
    refused(run("chat", *arguments), *words)


def test_thinking_needs_a_template_that_has_it(run: Run, copied: Path) -> None:
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    refused(run("chat", copied, "Hi", "--enable-thinking", "--device", "cpu"), "--enable-thinking", "chat template")


def test_the_models_reasoning_goes_to_the_other_stream(run: Run, card: Callable[..., tuple[list[int], str]]) -> None:
    _, text = card([user(shown_parts(ASKED, DIGIT))], thinking=True)
    reasoning, _, answer = text.partition("</think>")
    flags = ("--image", DIGIT, "--enable-thinking", "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 32)
    code, out, err = run("chat", "tiny", ASKED, *flags)
    assert code == 0 and out.strip() == answer.strip() and reasoning.strip() in err


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_references() -> None:
    assert reference("a.png") == str(Path("a.png").absolute())
    assert reference("~/a.png") == str(Path.home() / "a.png")
    for kept in ("https://example.com/a.png", "data:image/png;base64,AA==", "skimage:astronaut.png"):
        assert reference(kept) == kept
    assert question("Hi", ["/a.png"], ["/b.mp4"]) == [
        {"type": "image", "image": "/a.png"},
        {"type": "video", "video": "/b.mp4"},
        {"type": "text", "text": "Hi"},
    ]
    with pytest.raises(QuantkitError, match="not UTF-8"):
        question("a\udcff")


@given(st.text("<>/think ab\n", max_size=30), st.text("<>/think ab\n", max_size=30), st.booleans(), st.data())
def test_reasoning_is_told_apart_wherever_the_text_is_cut(
    before: str, after: str, thinking: bool, data: st.DataObject
) -> None:
    text = before + "</think>" + after
    told = {REASONING: "", ANSWER: ""}

    def tell(kind: str, piece: str) -> None:
        assert piece
        told[kind] += piece

    thought, at = Thought(thinking, tell), 0
    while at < len(text):
        size = data.draw(st.integers(1, 9))
        thought.feed(text[at : at + size])
        at += size
    thought.finish()
    reasoning, _, answer = text.partition("</think>") if thinking else ("", "", text)
    assert told == {REASONING: reasoning, ANSWER: answer.lstrip()}
    assert (thought.reasoning, thought.answer) == (reasoning, answer.lstrip())


# ---- what is shown --------------------------------------------------------------------------------------------------

HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\re\x08 &#27;[31m &#x9b;2J &#13;f [link](https://evil.example/\x1b[0m)"


def screen(width: int = 80, terminal: bool = True, colours: Any = None) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, height=20, color_system=colours)
    return Screen(console, Console(file=err, width=width)), out, err


def filled(title: str, answer: str, reasoning: str = "", note: str = "3 tokens") -> Shown:
    one = Shown(title, note=note)
    one.add(REASONING, reasoning)
    one.add(ANSWER, answer)
    return one


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_control_sequence_of_an_answer_reaches_the_terminal(terminal: bool, count: int) -> None:
    view, out, err = screen(terminal=terminal, colours="truecolor" if terminal else None)
    shown = [Shown(f"m{number}") for number in range(count)]
    with view.answering(shown, shown[0]) as tell:
        for kind in (REASONING, ANSWER):
            for letter in HOSTILE:
                tell(kind, letter)
    view.show(shown)
    for text in (out.getvalue(), err.getvalue()):
        assert "\x1b]0;" not in text and "\x1b[31m" not in text and "\x1b[2J" not in text and "\x1b]8;" not in text
        assert not set(text) & {"\x07", "\x08", "\x9b"}
    assert "owned" in out.getvalue() and "https://evil.example" in out.getvalue()
    if not terminal:
        assert "\x1b" not in out.getvalue() + err.getvalue() and "\r" not in out.getvalue()


def test_an_answer_is_markdown_with_its_formulas_as_they_are() -> None:
    view, out, _ = screen()
    view.show(
        [
            filled(
                "m",
                r"# Title\n\n- **one** is \(a_1 \times b_2\)\n- $x_1 + y_1$\n\n\[ a \\ b \]\n\n[text](https://x.example)",
            )
        ]
    )
    text = out.getvalue()
    assert "**" not in text and "# Title" not in text and "Title" in text and "• " in text
    assert r"\(a_1 \times b_2\)" in text and "$x_1 + y_1$" in text and r"\[ a \\ b \]" in text
    assert "https://x.example" in text


def test_formulas_of_several_lines_and_with_backticks() -> None:
    view, out, _ = screen()
    view.show([filled("m", "see\n\\[\na_1 \\\\\nb*c*\n\\]\nand \\(`x`\\) end")])
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "a_1 \\\\" in lines and "b*c*" in lines and any("\\(`x`\\)" in line for line in lines)
    assert markdown("plain *text* `code`") == "plain *text* `code`"


@pytest.mark.parametrize("terminal", [True, False])
def test_two_columns_where_the_width_allows(terminal: bool) -> None:
    for width, beside in ((120, True), (60, False)):
        view, out, _ = screen(width, terminal)
        view.show([filled("left", "one " * 30), filled("right", r"two\nthree", note="9 tokens; stopped")])
        rows = out.getvalue().splitlines()
        assert all(len(line) <= width for line in rows)
        assert any("left" in line and "right" in line for line in rows) == beside
        assert any("one one" in line and "two" in line for line in rows) == beside
        assert r"\n" not in out.getvalue() and "9 tokens; stopped" in out.getvalue()


def test_a_growing_answer_shows_its_end_and_is_shown_whole_at_last() -> None:
    view, out, _ = screen()
    one = Shown("m")
    with view.answering([one], one) as tell:
        for number in range(60):
            tell(ANSWER, f"- line {number}\n")
    grown = out.getvalue()
    assert "line 59" in grown and "line 0\n" not in grown.rpartition("line 59")[0].rpartition("\x1b[2K")[2]
    out.truncate(0)
    one.note = "done"
    view.show([one])
    assert all(f"line {number}" in out.getvalue() for number in range(60))


def test_a_pipe_gets_the_answer_as_it_comes() -> None:
    view, out, err = screen(terminal=False)
    one = Shown("m")
    with view.answering([one], one) as tell:
        tell(REASONING, "let me see")
        tell(ANSWER, "One sentence. ")
        assert out.getvalue() == "One sentence. " and "let me see" in err.getvalue()
        tell(ANSWER, r"And\n")
        tell(ANSWER, "another.")
    view.show([one])
    assert out.getvalue() == "One sentence. And\nanother.\n"


def test_an_answer_that_breaks_off_keeps_what_was_said() -> None:
    view, out, _ = screen(terminal=False)
    one = Shown("m")

    def broken() -> Iterator[None]:
        with view.answering([one], one) as tell:
            tell(ANSWER, r"Half\n")
            raise QuantkitError("no memory")
        yield

    with pytest.raises(QuantkitError):
        next(broken())
    assert out.getvalue() == "Half\n\n"
