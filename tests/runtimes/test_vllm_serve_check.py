"""vLLM's server on the CPU answers the model card's requests, a tool call among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from caller import make_caller

pytestmark = [pytest.mark.runtimes, pytest.mark.slow]


@pytest.mark.parametrize("form", ["json", "xml"])
def test_requests(run: Callable[..., tuple[int, str, str]], form: str, vllm_python: Path, tmp_path: Path) -> None:
    """In both forms of calls: each has a parser of vLLM's."""
    folder = make_caller(tmp_path / "caller", form)
    code, out, err = run("serve-check", folder, "--runtime", "vllm", "--python", vllm_python)
    assert code == 0, out + err
    (found,) = json.loads((folder / "runtimes.json").read_text())["runs"]
    assert found["version"].startswith("0.") and found["device"] == "cpu"
    assert {request["name"]: request["status"] for request in found["requests"]} == dict.fromkeys(
        ("text", "image_url", "image_base64", "tool_call"), "passed"
    )
    call = next(request for request in found["requests"] if request["name"] == "tool_call")
    assert 'get_weather({"location": "Beijing"})' in call["detail"]


def test_a_quantized_variant(run: Callable[..., tuple[int, str, str]], vllm_python: Path, candidate: Path) -> None:
    """The bundled model makes no tool call, and packed weights round otherwise: nothing fails, nothing is feigned."""
    record = candidate / "runtimes.json"
    code, out, err = run("serve-check", candidate, "--runtime", "vllm", "--python", vllm_python)
    assert code == 0, out + err
    (found,) = json.loads(record.read_text())["runs"]
    statuses = [request["status"] for request in found["requests"]]
    assert statuses == ["passed", "passed", "passed", "not shown"]
