"""Runs on an accelerator against the same runs on the CPU: `pytest -m gpu`. QUANTKIT_GPU names the device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.model import build_map
from quantkit.statistics import CalibrationPass

DEVICE = os.environ.get("QUANTKIT_GPU", "cuda")
Run = Callable[..., tuple[int, str, str]]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.startswith("cuda") and not torch.cuda.is_available(), reason="no accelerator"),
]

RUNS: dict[str, list[str]] = {
    "awq": ["awq"],
    "awq-rtn": ["awq", "--solver", "rtn"],
    "awq-symmetric": ["awq", "--symmetric"],
    "gptq": ["gptq", "--bits", "3"],
    "gptq-sequential": ["gptq", "--sequential"],
    "budget": ["gptq", "--budget", "4.5bpw"],
    "tune": ["gptq", "--bits", "2", "--tune", "1"],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_statistics_are_the_cpus(dtype: torch.dtype, random_checkpoint: Path, small_calibration: Path) -> None:
    options = PrepareOptions(samples=6, downsample_mode="both")
    samples = prepare(load_conversations(small_calibration), load_processor(random_checkpoint), options)
    checkpoint = open_checkpoint(random_checkpoint)
    passes = [
        list(CalibrationPass(checkpoint, build_map(checkpoint.config), samples, device=device, dtype=dtype))
        for device in (DEVICE, "cpu")
    ]
    limit, worst = {torch.float32: 2e-3, torch.bfloat16: 5e-2}[dtype], 0.0
    for block, other in zip(*passes, strict=True):
        for name, found in block.inputs.items():
            expected = other.inputs[name].gram
            assert found.gram.device.type == DEVICE.partition(":")[0] and found.tokens == other.inputs[name].tokens
            worst = max(worst, float((found.gram.cpu() - expected).norm() / expected.norm()))
    print(f"\nstatistics, {dtype}: worst relative error of a Gram matrix {worst:.2e}")
    assert worst < limit


@pytest.mark.parametrize("name", RUNS)
def test_errors_are_the_cpus(
    name: str, run: Run, random_checkpoint: Path, small_calibration: Path, tmp_path: Path
) -> None:
    found = []
    for number, device in enumerate((DEVICE, "cpu")):
        out = tmp_path / str(number)
        code, text, err = run(*RUNS[name], "--model", random_checkpoint, "--calib", small_calibration, "--samples",
                              "10", "--group-size", "64", "--device", device, "--out", out)  # fmt: skip
        assert code == 0, text + err
        found.append({row["name"]: row for row in json.loads((out / "quantkit.json").read_text())["layers"]})
        code, text, err = run("verify", random_checkpoint, out, "--quick")
        assert code == 0 and "error:" not in text + err, text + err
    first, second = found
    assert {key: row["bits"] for key, row in first.items()} == {key: row["bits"] for key, row in second.items()}
    ratios = [row["error"] / second[key]["error"] for key, row in first.items() if row["error"]]
    print(f"\n{name}: {len(ratios)} layers, error over the CPU's {min(ratios):.3f} to {max(ratios):.3f}, mean "
          f"{sum(ratios) / len(ratios):.4f}")  # fmt: skip
    assert min(ratios) > 0.9 and max(ratios) < 1.1


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_bitsandbytes_rounds_alike(kind: str, run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file

    files = []
    for number, device in enumerate((DEVICE, "cpu")):
        out = tmp_path / str(number)
        code, text, err = run("bnb", "--type", kind, "--model", random_checkpoint, "--device", device, "--out", out)
        assert code == 0, text + err
        code, text, err = run("verify", random_checkpoint, out, "--quick")
        assert code == 0 and "error:" not in text + err, text + err
        files.append(load_file(out / "model.safetensors"))
    assert files[0].keys() == files[1].keys()
    differ = {
        key: float((one != files[1][key]).float().mean())
        for key, one in files[0].items()
        if one.dtype == torch.uint8 or one.dtype == torch.int8
    }
    worst = max(differ, key=lambda key: differ[key])
    print(
        f"\n{kind}: {sum(v > 0 for v in differ.values())} of {len(differ)} differ, worst {differ[worst]:.2e} ({worst})"
    )
    assert differ[worst] < 0.03  # bitsandbytes' CPU and CUDA kernels differ on values near the middle of two codes
    for key, one in files[0].items():
        if one.is_floating_point():
            assert torch.allclose(one.float(), files[1][key].float(), rtol=1e-4, atol=1e-6), key


def test_verify_says_the_same(run: Run, random_checkpoint: Path, small_calibration: Path, tmp_path: Path) -> None:
    code, text, err = run("rtn", "--model", random_checkpoint, "--group-size", "64", "--out", tmp_path / "x")
    assert code == 0, text + err
    means = []
    for number, device in enumerate((DEVICE, "cpu")):
        report = tmp_path / f"report{number}"
        code, text, err = run("verify", random_checkpoint, tmp_path / "x", "--data", small_calibration,
                              "--device", device, "--report", report, "--no-cache")  # fmt: skip
        assert code == 0, text + err
        engine = json.loads((report / "report.json").read_text(encoding="utf-8"))["engines"][0]
        means.append(engine["groups"][0]["answer"]["kl_mean"]["value"])
    print("\nverify, KL on", DEVICE, "and on the CPU:", means)
    assert means[0] == pytest.approx(means[1], rel=0.02)
