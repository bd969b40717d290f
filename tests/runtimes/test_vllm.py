"""vLLM on the CPU, in an environment of its own, answers held-out questions as Transformers does.

One run of `scripts/check_runtimes.py` serves every test, since starting vLLM takes longer than all answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import check_runtimes
import pytest

pytestmark = [pytest.mark.runtimes, pytest.mark.slow]

ITEMS = 60


@pytest.fixture(scope="module")
def result(candidate: Path, reference: Path, vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the script wrote, and its exit status."""
    out = tmp_path_factory.mktemp("runtimes") / "vllm.json"
    arguments = ["--runtime", "vllm", "--python", str(vllm_python), "--candidate", str(candidate), "--json", str(out)]
    status = check_runtimes.main([*arguments, "--reference", str(reference), "--items", str(ITEMS)])
    return json.loads(out.read_text(encoding="utf-8")) | {"exit status": status}


def test_same_tokens_as_transformers(result: Any) -> None:
    assert (result["exit status"], result["status"]) == (0, "passed"), result["detail"]
    candidate = result["comparisons"][0]
    total = sum(candidate["items"].values())
    assert set(candidate["items"]) == {"text", "image", "images", "video"}
    assert total >= ITEMS - 4
    assert sum(candidate["identical"].values()) >= 0.95 * total


def test_same_prompt_tokens(result: Any) -> None:
    """The side files that we copied lead both runtimes to the same prompt."""
    for comparison in result["comparisons"]:
        assert comparison["same_prompt"] == sum(comparison["items"].values())


def test_packed_kernels_ran(result: Any) -> None:
    candidate, reference = result["comparisons"]
    assert candidate["kernels"]["vllm"] == "CPUWNA16LinearKernel"
    assert "AwqLinear" in candidate["kernels"]["transformers"]
    assert reference["kernels"] == {"transformers": "none", "vllm": "none"}


def test_answers_are_right(result: Any) -> None:
    """In vLLM the quantized model is as often right as in Transformers, and nearly as often as the source."""
    candidate, reference = result["comparisons"]
    asked = candidate["expected"]
    assert abs(candidate["exact"]["vllm"] - candidate["exact"]["transformers"]) <= 0.05 * asked
    assert candidate["exact"]["vllm"] >= reference["exact"]["vllm"] - 0.05 * asked
    assert reference["exact"]["vllm"] >= 0.8 * asked
