"""What the tests of runtimes share: the bundled checkpoint, its AWQ variant, and the Python of vLLM's environment.

QUANTKIT_VLLM_PYTHON   Python of an environment that has vLLM
QUANTKIT_VLLM_ENV      or a folder where one is made, if it is not there yet
QUANTKIT_RUNTIMES      "required": a runtime that is missing is a failure, not a skip (set by CI)
QUANTKIT_CANDIDATE     a quantized `tiny` to judge, instead of one made for the tests
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runtime_envs import EnvironmentFault, create


@pytest.fixture(scope="session")
def reference() -> Path:
    """The bundled trained checkpoint."""
    from quantkit.checkpoint import open_checkpoint

    return open_checkpoint("tiny").path


@pytest.fixture(scope="session")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`quantkit awq --model tiny` with its defaults."""
    from quantkit.quantize import quantize
    from quantkit.recipe import QuantizeOptions

    if os.environ.get("QUANTKIT_CANDIDATE"):
        return Path(os.environ["QUANTKIT_CANDIDATE"])
    folder = tmp_path_factory.mktemp("candidate") / "tiny-awq"
    quantize(QuantizeOptions(model="tiny", out=folder))
    return folder


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Fails or skips where there is none; see above."""
    reason = "vLLM is not there: set QUANTKIT_VLLM_PYTHON, or QUANTKIT_VLLM_ENV to a folder for its environment"
    if os.environ.get("QUANTKIT_VLLM_PYTHON"):
        return Path(os.environ["QUANTKIT_VLLM_PYTHON"])
    if os.environ.get("QUANTKIT_VLLM_ENV"):
        try:
            return create("vllm", Path(os.environ["QUANTKIT_VLLM_ENV"]))
        except EnvironmentFault as error:
            reason = str(error)
    if os.environ.get("QUANTKIT_RUNTIMES") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
