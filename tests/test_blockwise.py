"""One block: fall-backs are said, faults are named, drift is corrected; runs repeat to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantkit.blockwise import LEAST_TOKENS, quantize_block
from quantkit.calibration import build_from
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.model import build_map
from quantkit.plan import Plan, make_plan
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.reproduce import differences
from quantkit.statistics import BlockStatistics, CalibrationPass


@pytest.fixture(scope="module")
def options(random_checkpoint: Path, small_calibration: Path) -> QuantizeOptions:
    return QuantizeOptions(method="gptq", bits=3, model=str(random_checkpoint), calib=str(small_calibration), samples=4)


@pytest.fixture(scope="module")
def checkpoint(options: QuantizeOptions) -> Checkpoint:
    return open_checkpoint(options.model)


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint, options: QuantizeOptions) -> Plan:
    return make_plan(checkpoint, options)


def _pass(checkpoint: Checkpoint, options: QuantizeOptions, **more: object) -> CalibrationPass:
    samples = build_from(options, checkpoint.path, lambda *_: None).samples
    return CalibrationPass(checkpoint, build_map(checkpoint.config), samples, dtype=torch.float32, **more)


@pytest.fixture
def statistics(checkpoint: Checkpoint, options: QuantizeOptions) -> BlockStatistics:
    return next(iter(_pass(checkpoint, options)))


def _tensors(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    names = [name for name in checkpoint.tensor_names if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.load(name).float() for name in names}


def test_an_input_that_was_hardly_seen_is_rounded_to_nearest_and_noted(
    checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, statistics: BlockStatistics
) -> None:
    block = plan.map.blocks[0]
    tensors = _tensors(checkpoint, block.prefix)
    for part in statistics.inputs["mlp_in"].by_modality.values():
        part.tokens = 0
    done = quantize_block(tensors, block, statistics, plan, replace(options, scales=False))
    notes = {row.name.removeprefix(block.prefix): row.notes for row in done.rows}
    words = f"0 calibration tokens, {LEAST_TOKENS} needed: rounded to nearest"
    assert notes["mlp.gate_proj"] == notes["mlp.up_proj"] == (words,)
    assert words not in notes["mlp.down_proj"]
    plain = quantize_block(tensors, block, None, plan, replace(options, method="rtn"))
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        assert torch.equal(done.weights[name].codes, plain.weights[name].codes)
    assert not torch.equal(done.weights["mlp.down_proj"].codes, plain.weights["mlp.down_proj"].codes)


def test_a_raised_damping_is_noted(
    checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, statistics: BlockStatistics
) -> None:
    block = plan.map.blocks[0]
    gram = statistics.inputs["mlp_in"].by_modality["text"].gram
    gram[0, 1] = gram[1, 0] = 10 * gram.diagonal().max()
    done = quantize_block(_tensors(checkpoint, block.prefix), block, statistics, plan, options)
    notes = {row.name.removeprefix(block.prefix): " ".join(row.notes) for row in done.rows}
    assert "damping raised to" in notes["mlp.up_proj"] and "damping raised" not in notes["mlp.down_proj"]


def test_statistics_that_are_not_finite_name_the_input(
    checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, statistics: BlockStatistics
) -> None:
    block = plan.map.blocks[0]
    statistics.inputs["mlp_out"].by_modality["text"].gram[0, 0] = float("nan")
    with pytest.raises(QuantkitError, match=r"layers\.0\.mlp\.down_proj: its input: a Gram matrix holds NaN or Inf"):
        quantize_block(_tensors(checkpoint, block.prefix), block, statistics, plan, options)


def test_a_sequential_pass_sees_the_blocks_that_were_handed_back(
    checkpoint: Checkpoint, options: QuantizeOptions
) -> None:
    plain, sequential = _pass(checkpoint, options), _pass(checkpoint, options, sequential=True)
    source = iter(sequential)
    for block, exact in zip(sequential.map.blocks, plain, strict=True):
        found = next(source)
        for name, inputs in found.inputs.items():
            drift = inputs.drift
            if block.index < 2:  # the float blocks came back: nothing has drifted
                assert drift is None or float(drift.abs().max()) == 0
                assert torch.equal(inputs.gram, exact.inputs[name].gram)
            else:
                assert drift is not None and float(drift.abs().max()) > 0
                assert not torch.equal(inputs.gram, exact.inputs[name].gram)
        tensors = _tensors(checkpoint, block.prefix)
        if block.index == 1:
            tensors["mlp.down_proj.weight"] = tensors["mlp.down_proj.weight"] * 1.5
        sequential.replace(tensors)


def test_drift_is_corrected(
    checkpoint: Checkpoint, plan: Plan, options: QuantizeOptions, statistics: BlockStatistics
) -> None:
    """Inputs that all shrank by a tenth: the answer is a weight a tenth larger."""
    block = plan.map.blocks[0]
    tensors = _tensors(checkpoint, block.prefix)
    wanted = replace(options, scales=False, bits=8, damping=1e-4)
    eight = make_plan(checkpoint, wanted)
    inputs = statistics.inputs["mlp_in"]
    inputs.by_modality["vision"].gram = torch.zeros_like(inputs.gram)
    inputs.by_modality["text"].gram = torch.eye(len(inputs.gram)) * 100
    inputs.by_modality["text"].drift = inputs.by_modality["text"].gram * 0.1
    done = quantize_block(tensors, block, statistics, eight, wanted)
    found, source = done.weights["mlp.gate_proj"].dequantize(), tensors["mlp.gate_proj.weight"]
    assert float((found * source).sum() / source.square().sum()) == pytest.approx(1.1, rel=2e-3)


@pytest.mark.parametrize("sequential", [False, True])
def test_two_runs_give_the_same_bytes(options: QuantizeOptions, tmp_path: Path, sequential: bool) -> None:
    for name in ("one", "other"):
        quantize(replace(options, out=tmp_path / name, sequential=sequential))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "quantize_config.json" in names and "model.safetensors" in names
    assert set(differences(tmp_path / "one", tmp_path / "other").values()) == {"same"}
