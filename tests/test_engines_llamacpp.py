"""The engine `llama.cpp`: tiny's own GGUF under the real runtime agrees with the reference; a wrong one does not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_tiny
import pytest
import torch

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.errors import QuantkitError
from quantkit.verify.engines import llamacpp
from quantkit.verify.engines.llamacpp import ask_server, gguf_files, run_llamacpp
from quantkit.verify.engines.local import load_dequantized
from quantkit.verify.forward import scored
from quantkit.verify.task import NotRun, Observed, Target, Task, TopK

TINY = Path(gguf_tiny.__file__).parent.parent / "quantkit" / "data" / "tiny"
STOP_IDS = {1005, 1007}
# of the held-out set: whole pictures, wide, tall and large ones in slices, two at once, frames of a video, text; both
# languages. Answers in Chinese hold characters of several tokens.
ONE, SLICES, TWO, FRAMES = (1, 2, 21, 27), (36, 72, 174, 12), (315, 322), (343, 345)
TEXTS = (371, 372, 373, 374, 385, 403, 405, 377)
ITEMS = (*ONE, *SLICES, *TWO, *FRAMES, *TEXTS)

runtime = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the package xllamacpp (llama.cpp in a wheel)"
)


def make_task(mode: str = "16x", items: tuple[int, ...] = ITEMS) -> Task:
    """Some held-out items by number, in the set's order."""
    wanted = {f"test-{number:04}" for number in items}
    conversations = [item for item in load_conversations("heldout") if item.id in wanted]
    processor = load_processor(TINY)
    samples = prepare(conversations, processor, PrepareOptions(downsample_mode=mode))
    places = [scored(sample, STOP_IDS) for sample in samples]
    return Task(conversations, samples, places, processor, STOP_IDS, 1024, max_new_tokens=24)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task()


@pytest.fixture(scope="module")
def model() -> Any:
    return load_dequantized(TINY, "float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny's text model and mmproj in float16."""
    folder = tmp_path_factory.mktemp("gguf")
    gguf_tiny.write_text(TINY, folder / "tiny-F16.gguf", "f16")
    gguf_tiny.write_mmproj(TINY, folder / "mmproj-tiny-F16.gguf", "f16")
    return folder


def run(task: Task, path: Path, **settings: Any) -> Observed:
    return run_llamacpp(task, Target(path, timeout=60, **settings), lambda done: None)


def reference(model: Any, task: Task, index: int) -> torch.Tensor:
    """The reference's log-probabilities at an item's scored positions, [P, V]."""
    sample = task.samples[index]
    with torch.no_grad():
        logits = model(**sample.inputs, downsample_mode=sample.downsample_mode).logits[0]
    return logits[task.places[index].positions].log_softmax(-1)


def divergences(model: Any, task: Task, observed: Observed) -> torch.Tensor:
    """KL of every position that the engine gave; what lies outside its largest entries counts as one more token."""
    found = []
    for index, seen in enumerate(observed.predictions):
        if not isinstance(seen, TopK):
            continue
        expected = reference(model, task, index)[seen.rows]
        for row in range(len(seen.rows)):
            kept = seen.ids[row] >= 0
            theirs = seen.logp[row, kept].double()
            ours = expected[row, seen.ids[row, kept]].double()
            rest = [(1 - logp.exp().sum()).clamp_min(1e-12).log()[None] for logp in (ours, theirs)]
            ours, theirs = (torch.cat(pair) for pair in zip((ours, theirs), rest, strict=True))
            found.append((ours.exp() * (ours - theirs)).sum())
    return torch.stack(found)


# ---- the files ------------------------------------------------------------------------------------------------------


def test_the_files_hold_every_tensor_of_the_checkpoint_once(files: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf, another's reader of the format")
    from safetensors import safe_open

    with safe_open(TINY / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, not a mapping
    written = [tensor for name in files.iterdir() for tensor in gguf.GGUFReader(name).tensors]
    assert len({tensor.name for tensor in written}) == len(written) == len(shapes)
    assert sum(tensor.n_elements for tensor in written) == sum(torch.Size(s).numel() for s in shapes.values())
    embedding = next(tensor for tensor in written if tensor.name == "token_embd.weight")
    assert list(embedding.shape) == [256, 1024] and embedding.tensor_type.name == "F16"


def test_value_heads_are_tiled() -> None:
    """No checkpoint here has more value heads than key heads; larger ones do."""
    heads = gguf_tiny.Heads(keys=2, values=6, key_dim=1, value_dim=2)
    rows = torch.tensor([[key, value, row] for key in range(2) for value in range(3) for row in range(2)])
    expected = torch.tensor([[key, value, row] for value in range(3) for key in range(2) for row in range(2)])
    assert torch.equal(heads.tiled(rows), expected)
    assert torch.equal(heads.tiled(rows.T, dim=1), expected.T)
    queries = torch.full((4, 3), -1)
    assert torch.equal(heads.tiled_tail(torch.cat([queries, rows])), torch.cat([queries, expected]))


# ---- the runtime ----------------------------------------------------------------------------------------------------


@runtime
def test_float16_agrees_with_the_reference(task: Task, model: Any, files: Path) -> None:
    observed = run(task, files)
    assert not observed.left_out and all(isinstance(seen, TopK) for seen in observed.predictions)
    for place, seen in zip(task.places, observed.predictions, strict=True):
        assert torch.equal(seen.rows, torch.nonzero(place.answer)[:, 0])  # every position of the answer
        known = torch.isfinite(seen.target_logp)
        position = (seen.ids == place.targets[place.answer][:, None]) & known[:, None]
        assert torch.equal(seen.logp[position], seen.target_logp[known])
    measured = divergences(model, task, observed)
    assert measured.mean() < 1e-5 and measured.max() < 1e-4 and measured.min() > -1e-4
    for index, (answer, place) in enumerate(zip(observed.answers, task.places, strict=True)):
        first = reference(model, task, index)[place.answer].argmax(-1)
        same = first == place.targets[place.answer]
        length = len(same) - 1 if same.all() else int(torch.nonzero(~same)[0]) + 1
        assert answer.tokens[:length] == first[:length].tolist()
        if same.all():
            assert answer.finished and answer.text == task.decode(first[:-1].tolist())
    assert {"llama.cpp", "xllamacpp"} <= observed.versions.keys() and "F16" in observed.kernel


@runtime
def test_the_other_downsample_mode(model: Any, tmp_path: Path) -> None:
    task = make_task("4x", (1, 12, 371))
    text = gguf_tiny.write_text(TINY, tmp_path / "tiny.gguf", "bf16")
    gguf_tiny.write_mmproj(TINY, tmp_path / "mmproj-4x.gguf", "f32", mode="4x")
    gguf_tiny.write_mmproj(TINY, tmp_path / "mmproj-16x.gguf", "f32")
    observed = run(task, text, mmproj=tmp_path / "mmproj-4x.gguf")
    assert not observed.left_out and divergences(model, task, observed).mean() < 1e-4
    observed = run(task, text, mmproj=tmp_path / "mmproj-16x.gguf")
    assert sorted(observed.left_out) == [0, 1] and "downsample mode" in observed.left_out[0]
    observed = run(task, text)
    assert sorted(observed.left_out) == [0, 1] and "no mmproj" in observed.left_out[0]
    assert observed.answers[2] and isinstance(observed.predictions[2], TopK)


@runtime
@pytest.mark.parametrize(
    "name", ["layers.{n}.input_layernorm.weight", "layers.{n}.linear_attn.norm.weight", "layers.{n}.linear_attn.A_log"]
)
def test_a_wrong_conversion_shows(name: str, task: Task, model: Any, files: Path, tmp_path: Path) -> None:
    wrong = gguf_tiny.keep if name != "layers.{n}.linear_attn.norm.weight" else gguf_tiny.plus_one
    text = gguf_tiny.write_text(TINY, tmp_path / "wrong.gguf", change={name: wrong})
    observed = run(task, text, mmproj=files / "mmproj-tiny-F16.gguf")
    measured = divergences(model, task, observed)
    assert measured.mean() > 0.1
    # differing tokens do not end the comparison: it starts again after each
    assert len(measured) == sum(int(place.answer.sum()) for place in task.places)


@runtime
def test_another_tokenizer_is_told(task: Task, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tiny, "_pre_tokenizer", lambda settings: "gpt-2")  # keeps runs of digits together
    text = gguf_tiny.write_text(TINY, tmp_path / "text.gguf")
    observed = run(task, text, mmproj=files / "mmproj-tiny-F16.gguf")
    assert observed.left_out and all("tokenizer" in reason for reason in observed.left_out.values())


@runtime
def test_files_that_cannot_be_loaded(task: Task, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (files / "tiny-F16.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(QuantkitError, match=r"cut\.gguf: llama\.cpp cannot load it \(.*corrupted or incomplete"):
        run(task, tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("no such format")
    with pytest.raises(QuantkitError, match="invalid magic"):
        run(task, tmp_path / "text.gguf")
    with pytest.raises(QuantkitError, match=r"cannot load it with .*cut\.gguf .*CLIP"):
        run(task, files / "tiny-F16.gguf", mmproj=tmp_path / "cut.gguf")
    write = gguf_tiny.write_gguf

    def without(path: Path, metadata: dict[str, Any], tensors: list[gguf_tiny.Entry]) -> Path:
        return write(path, metadata, [tensor for tensor in tensors if not re.search("ssm_beta|ds_ln", tensor.name)])

    monkeypatch.setattr(gguf_tiny, "write_gguf", without)
    gguf_tiny.write_mmproj(TINY, tmp_path / "mmproj-lacks.gguf")
    with pytest.raises(QuantkitError, match=r"unable to find tensor v\.vit_merger\.ds_ln\.weight"):
        run(task, files / "tiny-F16.gguf", mmproj=tmp_path / "mmproj-lacks.gguf")
    gguf_tiny.write_text(TINY, tmp_path / "lacks.gguf")
    with pytest.raises(QuantkitError, match=r"tensor 'blk\.0\.ssm_beta\.weight' not found"):
        run(task, tmp_path / "lacks.gguf")


@runtime
def test_a_model_that_overflows(task: Task, files: Path, tmp_path: Path) -> None:
    change = {"layers.{n}.mlp.down_proj.weight": lambda tensor, heads: tensor * 1e9}
    text = gguf_tiny.write_text(TINY, tmp_path / "large.gguf", change=change)
    with pytest.raises(QuantkitError, match=r"manifest\.jsonl:\d+: llama\.cpp computes NaN"):
        run(task, text, mmproj=files / "mmproj-tiny-F16.gguf")


@runtime
def test_a_crash_is_one_line(task: Task, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = llamacpp._Link.complete
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def crashing(link: Any, *arguments: Any) -> Any:
        started[0].kill()
        return complete(link, *arguments)

    monkeypatch.setattr(llamacpp._Link, "complete", crashing)
    with pytest.raises(QuantkitError, match=r"llama\.cpp crashed \(.*manifest\.jsonl:\d+") as error:
        run(task, files)
    assert "\n" not in str(error.value)


# ---- without the runtime --------------------------------------------------------------------------------------------


def test_without_xllamacpp_it_is_not_run(task: Task, files: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"  # a Python that sees no packages
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(NotRun, match="pip install xllamacpp"):
        run(task, files, python=bare)


def test_a_folder_must_name_one_model(tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=r"no \.gguf file"):
        gguf_files(Target(tmp_path))
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-a.gguf"):
        (tmp_path / name).touch()
    expected = (tmp_path / "a-00001-of-00002.gguf", tmp_path / "mmproj-a.gguf")
    assert gguf_files(Target(tmp_path)) == expected
    (tmp_path / "mmproj-b.gguf").touch()
    with pytest.raises(QuantkitError, match="give the file"):
        gguf_files(Target(tmp_path))
    chosen = replace(Target(tmp_path), mmproj=tmp_path / "mmproj-b.gguf")
    assert gguf_files(chosen) == (expected[0], tmp_path / "mmproj-b.gguf")
    with pytest.raises(QuantkitError, match="no such file"):
        gguf_files(Target(tmp_path / "missing.gguf"))


class FakeLink:
    """Answers as a llama-server would whose model says `script` after a prompt of `ids`.

    unsaid: positions that it gives no distribution of unless its choice is forced, as where text ends in a character.
    """

    def __init__(self, ids: list[int], script: list[int], unsaid: tuple[int, ...] = (), stop_type: str = "limit"):
        self.ids, self.script, self.unsaid, self.stop_type = ids, script, unsaid, stop_type
        self.asked: list[int] = []

    def properties(self) -> dict[str, Any]:
        return {"build_info": "b1"}

    def tokenize(self, text: str) -> list[int]:
        return list(self.ids)

    def complete(self, prompt: list[int], count: int, top: int, bias: dict[int, float] | None = None) -> dict[str, Any]:
        done = len(prompt) - len(self.ids)
        self.asked.append(done)
        tokens = self.script[done : done + count]
        steps = [
            {"id": min(bias or [t]), "top_logprobs": [{"id": t, "logprob": -0.1}, {"id": 7, "logprob": -3e38}]}
            for position, t in enumerate(tokens, done)
            if bias or position not in self.unsaid
        ]
        reply = {"completion_probabilities": steps, "tokens": tokens, "tokens_evaluated": len(prompt)}
        return reply | {"stop_type": self.stop_type}


def test_rows_go_on_after_a_differing_token() -> None:
    task = make_task(items=TEXTS[:1])
    place, sample = task.places[0], task.samples[0]
    given = place.targets[place.answer].tolist()
    link = FakeLink(sample.input_ids[0, : sample.prompt_length].tolist(), [given[0], 5, *given[2:]])
    observed = llamacpp._observe(task, link, lambda done: None)
    assert link.asked == [0, 2]  # once from the prompt, once after the differing token
    seen = observed.predictions[0]
    assert seen.ids[:, 0].tolist() == [given[0], 5, *given[2:]]
    assert torch.isnan(seen.target_logp).tolist() == [False, True] + [False] * (len(given) - 2)
    assert (seen.ids[:, 1:] == -1).all() and torch.isinf(seen.logp[:, 1:]).all()  # underflow is not kept
    assert observed.answers[0].tokens == [given[0], 5, *given[2:-1]] and observed.answers[0].finished


def test_distributions_that_are_held_back_are_asked_for() -> None:
    task = make_task(items=TEXTS[:1])
    place, sample = task.places[0], task.samples[0]
    given = place.targets[place.answer].tolist()
    link = FakeLink(sample.input_ids[0, : sample.prompt_length].tolist(), given, unsaid=(1, 2))
    seen = llamacpp._observe(task, link, lambda done: None).predictions[0]
    assert link.asked == [0, 1, 2]
    assert seen.ids[:, 0].tolist() == given and torch.equal(seen.rows, torch.nonzero(place.answer)[:, 0])


def test_an_end_of_the_files_own() -> None:
    """A GGUF file may know more tokens that end an answer than the reference; such a token is no part of it either."""
    task = make_task(items=TEXTS[:1])
    ids = task.samples[0].input_ids[0, : task.samples[0].prompt_length].tolist()
    observed = llamacpp._observe(task, FakeLink(ids, [40, 41, 42], stop_type="eos"), lambda done: None)
    assert observed.answers[0].tokens == [40, 41] and observed.answers[0].finished


def test_a_server_that_is_no_llama_server(task: Task) -> None:
    with pytest.raises(QuantkitError, match="no answer"):
        ask_server(task, "http://127.0.0.1:9", lambda done: None, timeout=2)


def test_pictures_become_markers(task: Task) -> None:
    pictures = llamacpp._Pictures(task, "<M>", {"modalities": {"vision": True}})
    prompts = [pictures.prompt(*pair) for pair in zip(task.conversations, task.samples, strict=True)]
    counts = [prompt.text.count("<M>") for prompt in prompts]
    expected = [
        sum(1 if part["type"] == "image" else len(part.get("video", [])) for m in c.messages for part in m["content"])
        for c in task.conversations
    ]
    assert counts == [len(prompt.pictures) for prompt in prompts] == expected and max(counts) > 2
    assert not any("pad|>" in prompt.text or "<slice>" in prompt.text for prompt in prompts)
