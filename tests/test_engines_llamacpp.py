"""The engine `llama.cpp`: files of `quantkit gguf` under the runtime agree with the reference; wrong ones do not."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_judge import TEXTS, TINY, check_answers, divergences, make_task, reference, run, runtime, write
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import GgufWriter, plan_files
from quantkit.formats.gguf.reader import GgufFile
from quantkit.gguf import names, tokenizer
from quantkit.verify.engines import llamacpp
from quantkit.verify.engines.llamacpp import ask_server, gguf_files
from quantkit.verify.engines.local import load_dequantized
from quantkit.verify.task import NotRun, Target, Task, TopK


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task()


@pytest.fixture(scope="module")
def model() -> Any:
    return load_dequantized(TINY, "float32")


@pytest.fixture(scope="module")
def expected(model: Any, task: Task) -> list[Tensor]:
    return reference(model, task)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny's text model and mmproj in float16."""
    return write(tmp_path_factory.mktemp("gguf") / "tiny-GGUF")


def text_file(out: Path, kind: str = "F16") -> Path:
    """The text model alone, as `quantkit gguf` would write it now."""
    return write(out, type=(kind,), mmproj_type="none") / f"tiny-{kind}.gguf"


def without(path: Path, pattern: str, out: Path) -> Path:
    """A copy of a file that lacks the tensors whose names match."""
    file = GgufFile(path)
    kept = [info for name, info in file.tensors.items() if not re.search(pattern, name)]
    assert len(kept) < len(file.tensors)
    with GgufWriter(out.parent, plan_files(out.name, file.metadata, kept)) as writer:
        for info in kept:
            writer.add(info.name, file.raw(info.name))
        writer.finish()
    return out


# ---- the runtime ----------------------------------------------------------------------------------------------------


@runtime
def test_float16_agrees_with_the_reference(task: Task, expected: list[Tensor], files: Path) -> None:
    observed = run(task, files)
    assert not observed.left_out and all(isinstance(seen, TopK) for seen in observed.predictions)
    for place, seen in zip(task.places, observed.predictions, strict=True):
        assert torch.equal(seen.rows, torch.nonzero(place.answer)[:, 0])  # every position of the answer
        known = torch.isfinite(seen.target_logp)
        position = (seen.ids == place.targets[place.answer][:, None]) & known[:, None]
        assert torch.equal(seen.logp[position], seen.target_logp[known])
    measured = divergences(expected, observed)
    assert measured.mean() < 5e-6 and measured.max() < 5e-5
    assert check_answers(task, expected, observed) > 5
    assert {"llama.cpp", "xllamacpp"} <= observed.versions.keys() and "F16" in observed.kernel


@runtime
def test_the_mmproj_file_of_the_other_downsample_mode(model: Any, tmp_path: Path) -> None:
    task = make_task("4x", (1, 12, 371))
    out = write(tmp_path / "out", downsample_mode="both")
    text = out / "tiny-F16.gguf"
    observed = run(task, text, mmproj=out / "mmproj-tiny-4x-F16.gguf")
    assert not observed.left_out and divergences(reference(model, task), observed).mean() < 5e-6
    observed = run(task, text, mmproj=out / "mmproj-tiny-F16.gguf")
    assert sorted(observed.left_out) == [0, 1] and "downsample mode" in observed.left_out[0]
    observed = run(task, text)
    assert sorted(observed.left_out) == [0, 1] and "no mmproj" in observed.left_out[0]
    assert observed.answers[2] and isinstance(observed.predictions[2], TopK)


@runtime
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("layers.{n}.input_layernorm.weight", names.keep),
        ("layers.{n}.linear_attn.norm.weight", names.plus_one),
        ("layers.{n}.linear_attn.A_log", names.keep),
    ],
)
def test_a_wrong_conversion_shows(
    name: str,
    wrong: names.Transform,
    task: Task,
    expected: list[Tensor],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(names.TEXT, name, (names.TEXT[name][0], wrong))
    observed = run(task, text_file(tmp_path / "wrong"), mmproj=files / "mmproj-tiny-F16.gguf")
    measured = divergences(expected, observed)
    assert measured.mean() > 0.1
    # differing tokens do not end the comparison: it starts again after each
    assert len(measured) == sum(int(place.answer.sum()) for place in task.places)


@runtime
def test_another_tokenizer_is_told(task: Task, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "pre_tokenizer", lambda file: "gpt-2")  # keeps runs of digits together
    observed = run(task, text_file(tmp_path / "out"), mmproj=files / "mmproj-tiny-F16.gguf")
    assert observed.left_out and all("tokenizer" in reason for reason in observed.left_out.values())


@runtime
def test_files_that_cannot_be_loaded(task: Task, files: Path, tmp_path: Path) -> None:
    text, mmproj = files / "tiny-F16.gguf", files / "mmproj-tiny-F16.gguf"
    whole = text.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(QuantkitError, match=r"cut\.gguf: llama\.cpp cannot load it \(.*corrupted or incomplete"):
        run(task, tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("no such format")
    with pytest.raises(QuantkitError, match="invalid magic"):
        run(task, tmp_path / "text.gguf")
    with pytest.raises(QuantkitError, match=r"cannot load it with .*cut\.gguf .*CLIP"):
        run(task, text, mmproj=tmp_path / "cut.gguf")
    lacks = without(mmproj, "ds_ln", tmp_path / "mmproj-lacks.gguf")
    with pytest.raises(QuantkitError, match=r"unable to find tensor v\.vit_merger\.ds_ln\.weight"):
        run(task, text, mmproj=lacks)
    with pytest.raises(QuantkitError, match=r"tensor 'blk\.0\.ssm_beta\.weight' not found"):
        run(task, without(text, "ssm_beta", tmp_path / "lacks.gguf"))


@runtime
def test_a_model_that_overflows(task: Task, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "layers.{n}.mlp.down_proj.weight"
    large = (names.TEXT[name][0], lambda tensor, heads: tensor * 1e39)
    monkeypatch.setitem(names.TEXT, name, large)
    with pytest.raises(QuantkitError, match=r"manifest\.jsonl:\d+: llama\.cpp computes NaN"):
        run(task, text_file(tmp_path / "out", "BF16"), mmproj=files / "mmproj-tiny-F16.gguf")


@runtime
def test_a_crash_is_one_line(task: Task, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = llamacpp.Link.complete
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def crashing(link: Any, *arguments: Any) -> Any:
        started[0].kill()
        return complete(link, *arguments)

    monkeypatch.setattr(llamacpp.Link, "complete", crashing)
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


@runtime
def test_without_a_gpu_it_is_not_run_on_cuda(task: Task, files: Path) -> None:
    """llama.cpp itself would go on, on the CPU, and the report say cuda."""
    with pytest.raises(NotRun, match=r"xllamacpp has no CUDA device here .*; leave --device out"):
        run(task, files, device="cuda")


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
