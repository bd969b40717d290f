"""Tuning from end to end: the gradient by differences, the loss that falls, what stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantkit import tune
from quantkit.blockwise import QuantizedBlock, quantize_block
from quantkit.calibration import Sample, build_from
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import gptq
from quantkit.grid import GridSpec, QuantizedWeight
from quantkit.plan import make_plan
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.reproduce import differences
from quantkit.statistics import CalibrationPass


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> QuantizeOptions:
    folder = tmp_path_factory.mktemp("tune")
    return QuantizeOptions(
        model="tiny", method="gptq", bits=2, symmetric=False, solver="gptq", samples=24, no_cache=True,
        out=folder / "first",
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples(options: QuantizeOptions) -> list[Sample]:
    return build_from(options, open_checkpoint("tiny").path).samples


@pytest.fixture(scope="module")
def made(options: QuantizeOptions) -> tuple[Path, Path]:
    """The same run without and with tuning."""
    plain, tuned = options.out, options.out.parent / "tuned"
    quantize(replace(options, save_stats=options.out.parent / "stats"))
    quantize(replace(options, tune=2, stats=options.out.parent / "stats", out=tuned))
    return plain, tuned


def _weights(folder: Path) -> dict[str, QuantizedWeight]:
    checkpoint = open_checkpoint(folder)
    names = [name.removesuffix(".qweight") for name in checkpoint.tensor_names if name.endswith(".qweight")]
    config = checkpoint.config["quantization_config"]
    return {name: gptq.read(checkpoint.load, name, GridSpec(2, 128), config) for name in names}


def _rounded(options: QuantizeOptions) -> tuple[list[QuantizedBlock], object]:
    """Every block rounded to nearest, without statistics."""
    checkpoint = open_checkpoint("tiny")
    plan = make_plan(checkpoint, options)
    blocks = []
    for block in plan.map.blocks:
        names = [name for name in checkpoint.tensor_names if name.startswith(block.prefix)]
        tensors = {name.removeprefix(block.prefix): checkpoint.load(name).float() for name in names}
        blocks.append(quantize_block(tensors, block, None, plan, options))
    return blocks, plan.map


def test_the_gradient_is_that_of_the_loss(options: QuantizeOptions, samples: list[Sample]) -> None:
    """Central differences of the mean KL for one scale in each of several linears, in float32."""
    blocks, model_map = _rounded(options)
    run = CalibrationPass(open_checkpoint("tiny"), model_map, samples[:4], dtype=torch.float32)
    side, student = tune._Side(run, run.head()), tune._Student(model_map, blocks)
    side.step(student, range(len(side.batches)))
    for key in ((0, "linear_attn.in_proj_qkv"), (1, "mlp.down_proj"), (3, "self_attn.v_proj"), (3, "mlp.gate_proj")):
        move = student.moves[key]
        place = divmod(int(move.grad.abs().argmax()), move.shape[1])
        found, losses = float(move.grad[place]), []
        for step in (0.02, -0.02):
            with torch.no_grad():
                move[place] = step
            losses.append(side.loss(student))
        with torch.no_grad():
            move[place] = 0
        assert found == pytest.approx((losses[0] - losses[1]) / 0.04, rel=0.1), key


def test_scales_and_a_few_codes_move_and_nothing_else(made: tuple[Path, Path]) -> None:
    plain, tuned = (_weights(folder) for folder in made)
    moved = total = 0
    for name, before in plain.items():
        after = tuned[name]
        assert torch.equal(before.zeros, after.zeros)
        moved, total = moved + int((before.codes != after.codes).sum()), total + before.codes.numel()
        ratio = after.scales.float() / before.scales.float()
        assert 0.5 < ratio.min() < 1 < ratio.max() < 2
        assert torch.equal(after.scales.float(), after.scales.bfloat16().float())  # a number of both dtypes
    assert 0 < moved < tune.MOVING * total * 2 * 9  # rounds, and steps in each
    source, out = (open_checkpoint(folder) for folder in made)
    for name in source.tensor_names:
        if not name.endswith((".scales", ".qweight")):
            assert torch.equal(source.load(name), out.load(name)), name


def test_codes_move_against_the_gradient_where_the_best_value_is_far(options: QuantizeOptions) -> None:
    """By one, inside the grid: those with large means, but not where the curvature is larger still."""
    blocks, model_map = _rounded(options)
    student = tune._Student(model_map, blocks)
    block, name = model_map.blocks[3], "self_attn.q_proj"
    codes = student.blocks[3].weights[name].codes
    codes.copy_(torch.randint(0, 4, codes.shape, generator=torch.Generator().manual_seed(0)))
    before = codes.clone()
    gradient = torch.full(codes.shape, 1e-3)
    gradient[:4] = -1e-3
    student.add_gradients(block, {name: gradient})
    pull = student.pulls[3, name]
    pull.mean[:8] *= 1000
    pull.rows[4:8] *= 1e6
    moved = student.move_codes(512 / codes.numel())
    step = codes.int() - before.int()
    assert 512 <= moved <= 512 + 128  # the codes of a group are equally far
    assert moved == int(step.sum()) and set(step[:4].unique().tolist()) == {0, 1} and not step[4:].any()
    assert codes.max() == 3 and not step[before == 3].any()
    assert not pull.mean[step != 0].any()  # a code that has moved starts anew


def test_it_comes_nearer_and_says_so(made: tuple[Path, Path], run) -> None:
    told = json.loads((made[1] / "quantkit.json").read_text())
    assert told["recipe"]["tune"] == 2
    assert told["tuning"]["taken"] and told["tuning"]["withheld"] == 3
    assert told["tuning"]["kl_after"] < told["tuning"]["kl_before"]
    assert "tuned: " in run("inspect", made[1])[1] and "tuned: " not in run("inspect", made[0])[1]
    assert "tuning" not in json.loads((made[0] / "quantkit.json").read_text())


def test_what_is_no_better_is_not_taken(
    options: QuantizeOptions, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "RATE", 3.0)
    quantize(replace(options, tune=1, stats=made[0].parent / "stats", out=tmp_path / "out"))
    assert not json.loads((tmp_path / "out" / "quantkit.json").read_text())["tuning"]["taken"]
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (made[0] / name).read_bytes()


def test_the_same_run_gives_the_same_bytes(options: QuantizeOptions, made: tuple[Path, Path], tmp_path: Path) -> None:
    quantize(replace(options, tune=2, stats=made[0].parent / "stats", out=tmp_path / "out"))
    assert set(differences(made[1], tmp_path / "out").values()) == {"same"}


def test_too_few_conversations(options: QuantizeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.gather.CalibrationPass", lambda *_given, **_options: pytest.fail("too late"))
    with pytest.raises(QuantkitError, match="--tune: 8 conversations, 9 needed"):
        quantize(replace(options, tune=1, samples=8, out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_rtn_has_nothing_to_tune_on() -> None:
    with pytest.raises(QuantkitError, match="--tune: needs conversations"):
        QuantizeOptions(method="rtn", tune=1)
