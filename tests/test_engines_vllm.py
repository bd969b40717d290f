"""The vLLM engine without vLLM: what is handed over, what is made of the results, and how it fails."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import write_mixed
from PIL import Image

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.verify.engines import vllm_worker
from quantkit.verify.engines.vllm import TOKENS_DIFFER, render, run_vllm
from quantkit.verify.forward import scored
from quantkit.verify.task import NotRun, Target, Task, TopK

STOP = {1005, 1007}

# Stands for Python with vLLM: keeps the job, then answers each item with its own conversation's tokens.
STAND_IN = """#!{python}
import json, shutil, sys
import numpy as np
script, folder = sys.argv[1:]
shutil.copytree(folder, {copy!r}, dirs_exist_ok=True)
job, replies, tables = json.load(open(folder + "/job.json")), json.load(open({replies!r})), {{}}
for i, item in enumerate(job["items"]):
    rows = len(item["places"])
    tables[f"ids.{{i}}"] = np.full((rows, 2), [i, i + 1], dtype=np.int32)
    tables[f"logp.{{i}}"] = np.full((rows, 2), [-0.5, -1.0], dtype=np.float32)
    tables[f"target.{{i}}"] = -np.arange(rows, dtype=np.float32)
    print("\\nquantkit-progress 2", flush=True)
np.savez(folder + "/logprobs.npz", **tables)
json.dump(replies, open(folder + "/answers.json", "w"))
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    conversations = load_conversations(write_mixed(tmp_path_factory.mktemp("data"), 8))
    processor = load_processor(open_checkpoint("tiny").path)
    samples = prepare(conversations, processor, PrepareOptions(downsample_mode="both"))
    places = [scored(sample, STOP) for sample in samples]
    return Task(conversations, samples, places, processor, STOP, 1024, max_new_tokens=16)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def replies(task: Task) -> list[dict[str, Any]]:
    """What vLLM would say where all is well: the tokens of each conversation, of its prompt, and of an answer."""
    records = []
    for sample in task.samples:
        ids = sample.input_ids[0].tolist()
        records.append({"ids": ids, "prompt_ids": ids[: sample.prompt_length], "tokens": [300, 301, 1007]})
    return records


def stand_in(folder: Path, items: list[dict[str, Any]]) -> Path:
    content = {"versions": {"vllm": "0.0"}, "kernel": "", "dtype": "bfloat16", "items": items}
    (folder / "replies.json").write_text(json.dumps(content))
    text = STAND_IN.format(python=sys.executable, copy=str(folder / "job"), replies=str(folder / "replies.json"))
    return script(folder / "python", text)


def target(python: Path | None, **options: Any) -> Target:
    return Target(open_checkpoint("tiny").path, python=python, **options)


def test_job_and_results(task: Task, tmp_path: Path) -> None:
    ticks: list[int] = []
    found = run_vllm(task, target(stand_in(tmp_path, replies(task))), ticks.append)
    job = json.loads((tmp_path / "job" / "job.json").read_text())
    assert sum(ticks) == 16 and found.left_out == {}
    assert (job["dtype"], job["generate"], job["stop_ids"], job["limits"]) == (
        "auto",
        True,
        [1005, 1007],
        {"image": 2, "video": 1},
    )
    assert job["max_model_len"] == max(sample.input_ids.shape[1] for sample in task.samples) + 16
    for index, item in enumerate(job["items"]):
        assert item["mode"] == task.samples[index].downsample_mode
        assert item["places"] == (task.places[index].positions + 1).tolist()
        prediction, answer = found.predictions[index], found.answers[index]
        assert isinstance(prediction, TopK) and answer is not None
        assert prediction.rows.tolist() == list(range(len(item["places"])))
        assert prediction.ids.tolist() == [[index, index + 1]] * len(item["places"])
        assert prediction.target_logp.tolist() == [-float(row) for row in range(len(item["places"]))]
        assert (answer.tokens, answer.finished) == ([300, 301], True)
    assert (found.kernel, found.versions) == ("unpacked weights, bfloat16", {"vllm": "0.0"})
    several = job["items"][3]
    assert len(several["images"]) == 2 and [len(clip) for clip in job["items"][7]["videos"]] == [3]
    part = task.conversations[3].messages[0]["content"][0]
    written = Image.open(tmp_path / "job" / several["images"][0])
    assert np.array_equal(np.asarray(written), np.asarray(Image.open(part["image"]).convert("RGB")))


def test_text_is_what_the_samples_were_made_of(task: Task) -> None:
    """Tokenized as it is, a text conversation gives the sample's tokens: the template's arguments are the same."""
    for index in (0, 2, 4, 6):
        ids = task.samples[index].input_ids[0].tolist()
        whole = render(task, task.conversations[index], answered=True)
        prompt = render(task, task.conversations[index], answered=False)
        assert task.processor.tokenizer(whole)["input_ids"] == ids
        assert task.processor.tokenizer(prompt)["input_ids"] == ids[: task.samples[index].prompt_length]


def test_thinking_is_off_where_the_template_knows_it(task: Task) -> None:
    class Processor:
        chat_template = "{{ enable_thinking }}"

        def apply_chat_template(self, messages: list, **options: Any) -> str:
            return json.dumps(options)

    told = json.loads(render(replace(task, processor=Processor()), task.conversations[0], answered=False))
    assert told == {"tools": None, "tokenize": False, "add_generation_prompt": True, "enable_thinking": False}


def test_other_tokens_leave_an_item_out(task: Task, tmp_path: Path) -> None:
    records = replies(task)
    records[1]["ids"] = [*records[1]["ids"], 5]
    records[2]["prompt_ids"] = records[2]["prompt_ids"][:-1]
    records[3]["ids"] = [7, *records[3]["ids"][1:]]
    found = run_vllm(task, target(stand_in(tmp_path, records)), lambda done: None)
    assert found.left_out == dict.fromkeys((1, 2, 3), TOKENS_DIFFER)
    for items in (found.predictions, found.answers):
        assert [item is None for item in items] == [index in (1, 2, 3) for index in range(8)]


def test_without_answers(task: Task, tmp_path: Path) -> None:
    records = [{"ids": record["ids"]} for record in replies(task)]
    found = run_vllm(replace(task, generate=False), target(stand_in(tmp_path, records)), lambda done: None)
    assert found.answers == [None] * 8 and found.left_out == {}
    assert json.loads((tmp_path / "job" / "job.json").read_text())["generate"] is False


@pytest.mark.parametrize(
    ("lines", "fault", "says"),
    [
        ("echo \"No module named 'vllm'\" >&2; exit 3", NotRun, "cannot import vLLM .*No module named 'vllm'"),
        (
            "echo 'loading'; echo 'ValueError: bad group size'; echo '[rank0]:[W1124] destroyed'; exit 1",
            QuantkitError,
            "stopped with status 1: ValueError: bad group size$",
        ),
        (
            "echo '(EngineCore pid=9) ERROR 11-24 [core.py:9] KeyError: qweight'; "
            "echo 'RuntimeError: Engine core initialization failed. See root cause above.'; exit 1",
            QuantkitError,
            "status 1: KeyError: qweight$",
        ),
        ("echo '[rank0]: torch.OutOfMemoryError: CUDA'; exit 1", QuantkitError, ": torch.OutOfMemoryError: CUDA$"),
        ("echo Killed; exit 137", QuantkitError, "status 137: its last line: Killed$"),
        ("exit 5", QuantkitError, "status 5: it wrote nothing$"),
        ("echo waiting; exec sleep 60", QuantkitError, "nothing finished within 1 s; its last line: waiting$"),
    ],
)
def test_faults(task: Task, tmp_path: Path, lines: str, fault: type[Exception], says: str) -> None:
    python = script(tmp_path / "python", f"#!/bin/sh\n{lines}\n")
    started = time.monotonic()
    with pytest.raises(QuantkitError, match=says) as caught:
        run_vllm(task, target(python, timeout=1), lambda done: None)
    assert type(caught.value) is fault
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_progress_puts_the_time_limit_off(task: Task, tmp_path: Path) -> None:
    python = stand_in(tmp_path, replies(task))
    text = python.read_text().replace(' 2", flush=True)', ' 2", flush=True); import time; time.sleep(0.4)')
    ticks: list[int] = []
    run_vllm(task, target(script(python, text), timeout=1.5), ticks.append)  # takes more than 3 s in all
    assert sum(ticks) == 16


def test_nothing_is_left_behind(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the worker's own processes nor its folder, whatever ended it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    note = tmp_path / "pid"
    lines = f"sleep 60 & echo $! > {note}; echo quantkit-progress 1; sleep 60"
    python = script(tmp_path / "python", f"#!/bin/sh\n{lines}\n")

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_vllm(task, target(python), interrupt)
    time.sleep(0.2)
    state = Path(f"/proc/{int(note.read_text())}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert not list(tmp_path.glob("quantkit-vllm-*"))


def test_no_vllm(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotRun, match=r"no Python at .*/none; .*--engine-python DIR/bin/python"):
        run_vllm(task, target(tmp_path / "none"), lambda done: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotRun, match=r"vLLM is not installed here; .*--engine-python"):
        run_vllm(task, target(None), lambda done: None)
    (tmp_path / "text").write_text("not a program")
    with pytest.raises(NotRun, match="cannot be started"):
        run_vllm(task, target(tmp_path / "text"), lambda done: None)
    python = script(tmp_path / "python", "#!/bin/sh\nexit 0\n")
    with pytest.raises(NotRun, match="is no checkpoint folder"):
        run_vllm(task, Target(tmp_path / "model.gguf", python=python), lambda done: None)


# ---- the worker ------------------------------------------------------------------------------------------------------


def test_rows_of_flat_logprobs() -> None:
    """Each position holds the token that stands there, then the most probable; the first position holds nothing."""
    flat = types.SimpleNamespace(
        start_indices=[0, 0, 3],
        token_ids=[8, 1, 2, 9, 3, 9],
        logprobs=[-8.0, -1.0, -2.0, -2.5, -1.5, -2.5],
    )
    found = vllm_worker.table(flat, [1, 2, 3, 0], top=2)
    assert found["ids"].tolist() == [[1, 2], [3, 9]]
    assert found["logp"].tolist() == [[-1.0, -2.0], [-1.5, -2.5]]
    assert found["target"].tolist() == [-8.0, -2.5]
    assert vllm_worker.table(flat, [], top=2)["ids"].shape == (0, 2)


def test_worker_without_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text("{}")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert vllm_worker.main(tmp_path) == vllm_worker.EXIT_MISSING
    assert "vllm" in capsys.readouterr().err


def test_worker_stands_alone() -> None:
    """It runs in another environment: nothing of quantkit may be imported there."""
    assert "quantkit." not in Path(vllm_worker.__file__).read_text().replace("quantkit-progress", "")
