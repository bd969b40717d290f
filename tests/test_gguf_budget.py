"""`quantkit gguf --budget`: types within a size, by what each linear would lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from quantkit.formats.gguf.types import TYPES
from quantkit.gguf.quantize import quantize_gguf
from quantkit.recipe import GgufOptions

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(out: Path, calibration: Path, **settings: Any) -> Path:
    given: dict[str, Any] = {"model": "tiny", "calib": (str(calibration),), "samples": 6, "no_cache": True,
                             "mmproj_type": "none"}  # fmt: skip
    quantize_gguf(GgufOptions(out=out, **given | settings))
    return next(out.glob("*.gguf"))


def linears(path: Path) -> dict[str, tuple[str, int]]:
    """Type and weights of what a budget chooses for: linears but `ssm_alpha` and `ssm_beta`."""
    return {
        tensor.name: (tensor.tensor_type.name, int(tensor.n_elements))
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
        and not any(part in tensor.name for part in ("ssm_alpha", "ssm_beta", "ssm_conv1d"))
    }  # fmt: skip


def bits(found: dict[str, tuple[str, int]]) -> float:
    return sum(TYPES[kind].bits * weights for kind, weights in found.values()) / sum(w for _, w in found.values())


def test_bits_a_weight_are_met_and_spent(small_calibration: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "out", small_calibration, budget="4.9bpw")
    assert path.name == "tiny-Q4_K_M-4.9bpw.gguf"
    found = linears(path)
    assert 4.7 < bits(found) <= 4.9
    assert len({kind for kind, _ in found.values()}) >= 2
    for layer in range(3):  # linears of one input are alike
        assert found[f"blk.{layer}.attn_qkv.weight"][0] == found[f"blk.{layer}.attn_gate.weight"][0]
        assert found[f"blk.{layer}.ffn_up.weight"][0] == found[f"blk.{layer}.ffn_gate.weight"][0]
    record = json.loads((tmp_path / "out" / "quantkit.json").read_text())
    assert record["budget"]["asked"] == "4.9bpw"
    assert record["budget"]["bits_per_weight"] == pytest.approx(bits(found), rel=1e-5)
    assert {row["name"]: row["type"] for row in record["layers"]}.items() >= {
        n: k for n, (k, _) in found.items()
    }.items()
    assert not (tmp_path / "out" / ".statistics").exists()


def test_a_size_counts_the_whole_file(small_calibration: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "out", small_calibration, budget="1.8MB", budget_types="Q2_K,Q4_K,Q6_K")
    assert 1_700_000 < path.stat().st_size <= 1_800_000
    assert {kind for kind, _ in linears(path).values()} <= {"Q2_K", "Q4_K", "Q6_K"}


def test_what_was_asked_for_stays(small_calibration: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "out", small_calibration, budget="4.4bpw", tensor_type=(r"blk\.1\.ffn_down=Q8_0",),
        preset="linear-attention",
    )  # fmt: skip
    found = linears(path)
    assert found["blk.1.ffn_down.weight"][0] == "Q8_0" and found["blk.0.ssm_out.weight"][0] == "Q8_0"
    free = {
        name: row for name, row in found.items()
        if name != "blk.1.ffn_down.weight" and not any(part in name for part in ("ssm_out", "attn_qkv", "attn_gate"))
    }  # fmt: skip
    assert bits(free) <= 4.4


def test_more_room_loses_less(small_calibration: Path, tmp_path: Path) -> None:
    foretold = []
    for budget in ("4bpw", "6bpw"):
        write(tmp_path / budget, small_calibration, budget=budget)
        foretold.append(json.loads((tmp_path / budget / "quantkit.json").read_text())["budget"]["expected_kl"])
    assert foretold[0] > 4 * foretold[1] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "much"], ["--budget", "4.5bpw"]),
        (["--budget", "2bpw"], ["3.44bpw", "--budget-types"]),
        (["--budget", "12bpw"], ["nothing to choose"]),
        (["--budget", "1KB"], ["already"]),
        (["--budget", "4.5bpw", "--solver", "rtn"], ["--solver rtn"]),
        (["--budget", "4.5bpw", "--imatrix", "x.gguf"], ["--imatrix"]),
        (["--budget", "4.5bpw", "-t", "Q4_K_M", "-t", "Q5_K_M"], ["name one"]),
        (["--budget", "4.5bpw", "-t", "F16"], ["name one"]),
        (["--budget", "4.5bpw", "--budget-types", "Q4_K"], ["--budget-types", "two or more"]),
        (["--budget", "4.5bpw", "--budget-types", "Q4_K,F16"], ["--budget-types"]),
        (["--budget", "4.5bpw", "--budget-types", "Q4_K,Q9"], ["Q9"]),
        (["--budget-types", "Q4_K,Q6_K"], ["add --budget"]),
    ],
)
def test_bad_budgets_are_one_line(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    code, _, errors = run("gguf", *arguments, "--out", tmp_path / "out")
    assert code == 2 and errors.strip().startswith("error: ") and errors.strip().count("\n") == 0
    assert all(word in errors for word in words), errors
    assert not (tmp_path / "out").exists()
