"""The benchmark: what it measures is what it says. Nothing here depends on how fast the machine is."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_peers import LayerClock
from bench_process import Child, Failed, Runner, environment, measure
from bench_quantize import NOT_RUN, Forward, main, parse_phases, read_peer, run_quantkit
from bench_reference import cut, spread
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

PRINTED = """calibrated on 3 conversations, 120 tokens
11.6 MB -> 4.9 MB on disk; prepare 0.2 s, statistics 3.4 s, search 12.0 s,
write 0.1 s
next: quantkit verify model out 9.9 s
"""


def _stub(path: Path, script: str) -> Path:
    """A program that stands in for a peer's Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_one_run(
    random_checkpoint: Path, small_calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(random_checkpoint), "--calib", str(small_calibration), "--samples", "3", "--threads", "2"]
    peer = _stub(tmp_path / "python", "echo 'No module named gptqmodel' >&2; exit 3")
    out = tmp_path / "figures" / "out.json"
    assert main([*words, "--peer-python", str(peer), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    forward, command = figures["forward"], figures["quantkit"]
    assert forward["samples"] == 3 and forward["modalities"] == {"image": 1, "images": 1, "text": 1}
    assert forward["tokens"] > 60
    assert 0 < forward["seconds"] < forward["wall"]
    assert command["ratio"] == command["seconds"] / forward["seconds"]
    assert set(command["phases"]) == {"prepare", "statistics", "search", "write"}
    assert 0 < sum(command["phases"].values()) < command["seconds"]
    assert all(10**8 < part["peak"] < 10**11 for part in (forward, command))
    assert figures["parameters"] == 5_764_156
    assert figures["layers"] == {"linear_attention": 3, "full_attention": 1}
    assert figures["versions"]["torch"] == torch.__version__
    assert figures["machine"]["cores"] >= 1
    assert figures["peer"]["status"] == NOT_RUN
    assert figures["peer"]["reason"] == "bench_peers.py ended with status 3: No module named gptqmodel"
    printed = capsys.readouterr().out
    assert f"{command['ratio']:.2f}" in printed
    assert "gptqmodel: not run - bench_peers.py ended" in printed


def test_a_model_that_is_none_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--skip-peer"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: bench_reference.py forward ended with status 2: ") and "config.json" in error


def test_phases_are_read_across_a_line_break() -> None:
    assert parse_phases(PRINTED) == {"prepare": 0.2, "statistics": 3.4, "search": 12.0, "write": 0.1}
    with pytest.raises(Failed, match="no seconds by phase"):
        parse_phases(PRINTED.replace("on disk", "somewhere"))


class _Written(Runner):
    """Runs nothing: leaves the output that a command would have left."""

    def run(self, what: str, command: object, foreign: bool = False) -> Child:
        out = self.work / "quantized"
        out.mkdir()
        (out / "quantkit.json").write_text(json.dumps({"calibration": {"fingerprint": "abc"}}))
        return Child(wall=60.0, cpu=100.0, peak=3 * 10**9, code=0, stdout=PRINTED, stderr="")


def test_ratio_and_same_samples(tmp_path: Path) -> None:
    options = argparse.Namespace(samples=3, seed=0, calib="bundled")
    forward = Forward(seconds=24.0, wall=50.0, peak=10**9, samples=3, tokens=120, modalities={"text": 3})
    runner = _Written(tmp_path, {}, 10)
    command = run_quantkit("model", options, runner, forward, "abc")
    assert (command.seconds, command.ratio, command.peak, command.cpu) == (60.0, 2.5, 3 * 10**9, 100.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Failed, match="other samples"):
        run_quantkit("model", options, runner, forward, "abd")


def test_a_peer_is_extrapolated_by_kind_and_compared_on_its_own_samples() -> None:
    passes = {
        "seconds": [1.0, 2.0, 3.0, 4.0],
        "tokens": [10, 20, 30, 40],
        "peer": [0, 2],
        "layers": {"linear_attention": 18, "full_attention": 6},
    }
    kinds = ["linear_attention", "full_attention"]
    result = {"layers": [50.0, 40.0], "dtype": "bfloat16", "versions": {"gptqmodel": "7.7.0"}}
    child = Child(wall=120.0, cpu=200.0, peak=4 * 10**9, code=0, stdout="", stderr="")
    peer = read_peer(child, result, kinds, passes)
    assert (peer.whole, peer.forward, peer.ratio) == (18 * 50.0 + 6 * 40.0, 4.0, 285.0)
    assert (peer.samples, peer.tokens, peer.peak) == (2, 40, 4 * 10**9)
    assert read_peer(child, {**result, "layers": [50.0]}, kinds, passes).status == NOT_RUN


def test_seconds_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = LayerClock(), iter([10.0, 14.0, 24.0])
    monkeypatch.setattr("bench_peers.time", SimpleNamespace(perf_counter=lambda: next(times)))
    with pytest.raises(RuntimeError, match="no layers"):
        clock.seconds(99.0)
    for _ in range(2):
        clock.subset_event(stage="forward_start", layer_idx=0)
    for layer in (0, 1):
        clock.layer_complete(layer, submodule_finalized=False)
        clock.layer_complete(layer, submodule_finalized=True)
    assert clock.seconds(26.0) == [5.0, 11.0]  # 4 and 10, and the last two shared


def test_samples_for_a_peer_are_spread_out() -> None:
    assert spread(64, 4) == [0, 16, 32, 48]
    assert spread(3, 4) == [0, 1, 2]


def test_cut_keeps_the_first_layer_of_each_kind(random_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    assert cut({"model": str(random_checkpoint), "out": str(out)}) == {"kinds": ["linear_attention", "full_attention"]}
    whole, part = load_file(random_checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    prefix = "model.language_model.layers."
    for name, tensor in part.items():
        old = name.replace(f"{prefix}1.", f"{prefix}3.")
        assert torch.equal(tensor, whole[old])
    gone = [name for name in whole if name.startswith((f"{prefix}1.", f"{prefix}2."))]
    assert len(part) == len(whole) - len(gone)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    assert {name for name, _ in model.named_parameters()} == set(part)
    logits = model.eval()(input_ids=torch.arange(5).unsqueeze(0)).logits
    assert logits.isfinite().all()


def test_memory_and_status_of_a_process(tmp_path: Path) -> None:
    program = "import sys; block = b'x' * 300_000_000; print(len(block)); sys.exit('it broke')"
    child = measure([sys.executable, "-c", program], environment(1, tmp_path), tmp_path, timeout=60)
    assert child.code == 1
    assert child.stdout == "300000000\n"
    assert child.peak > 300_000_000
    assert 0 < child.wall < 60
    assert child.last_line == "it broke"


def test_a_process_and_its_children_end_at_the_time_limit(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = f"sleep 300 & echo $! > {pid_file}; wait"
    runner = Runner(tmp_path, environment(1, tmp_path), timeout=1.0)
    with pytest.raises(Failed, match="it did not end within 1 s"):
        runner.run("it", ["sh", "-c", program])
    pid = int(pid_file.read_text())
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if state.stdout.strip() in ("", "Z"):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the process that it started goes on")


def test_a_foreign_python_does_not_see_this_ones_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runner = Runner(tmp_path, environment(3, tmp_path), timeout=60)
    shown = ["sh", "-c", 'echo "$PYTHONPATH/$OMP_NUM_THREADS/$PWD"']
    assert runner.run("shell", shown).stdout.startswith(f"{tmp_path}/3/")
    assert runner.run("shell", shown, foreign=True).stdout == f"/3/{tmp_path}\n"
