"""Mixed precision: the allocation, what it is allocated by, and a run from options to bytes."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quantkit import sensitivity
from quantkit.budget import Choice, allocate, allowance
from quantkit.calibration import build_from
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.integrity import check
from quantkit.integrity.inventory import take_inventory
from quantkit.model import FUSED_SETS, build_map, split_name
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.reproduce import differences
from quantkit.sensitivity import output_sensitivity
from quantkit.verify import load_dequantized


def _units(seed: int, count: int) -> dict[str, list[Choice]]:
    """Random units whose losses fall with their size, convex or not."""
    source = random.Random(seed)
    units = {}
    for number in range(count):
        weights, scale = source.choice((100, 200, 700)), source.uniform(0.1, 10)
        losses = sorted((scale * source.random() for _ in range(3)), reverse=True) + [0.0]
        widths = (2, 4, 8, 16)
        units[f"u{number}"] = [
            Choice(bits, bits * weights, loss) for bits, loss in zip(widths, losses, strict=True)
        ]  # fmt: skip
    return units


@pytest.mark.parametrize("seed", range(12))
def test_allocation_is_the_best_there_is(seed: int) -> None:
    units = _units(seed, 5)
    least = sum(choices[0].bytes for choices in units.values())
    room = int(least * random.Random(seed).uniform(1, 6))
    taken = allocate(units, room)
    assert sum(choice.bytes for choice in taken.values()) <= room
    best = min(
        sum(choice.loss for choice in picked)
        for picked in itertools.product(*units.values())
        if sum(choice.bytes for choice in picked) <= room
    )
    assert sum(choice.loss for choice in taken.values()) == pytest.approx(best)


def test_sizes_that_have_no_common_step_are_rounded_up() -> None:
    units = {f"u{number}": [Choice(4, 10**9 + number, 1.0), Choice(8, 2 * 10**9 + 1, 0.1)] for number in range(20)}
    taken = allocate(units, 30 * 10**9)
    assert sum(choice.bytes for choice in taken.values()) <= 30 * 10**9
    assert sum(choice.width == 8 for choice in taken.values()) == 9  # the tenth misses by the rounding
    least = sum(choices[0].bytes for choices in units.values())
    assert {choice.width for choice in allocate(units, least + 12345).values()} == {4}  # rounding never refuses it


def test_allocation_prefers_what_saves_most_a_byte() -> None:
    units = {
        "small": [Choice(4, 40, 1.0), Choice(8, 80, 0.0)],
        "large": [Choice(4, 400, 2.0), Choice(8, 800, 0.0)],
    }
    assert [choice.width for choice in allocate(units, 480).values()] == [8, 4]
    assert [choice.width for choice in allocate(units, 840).values()] == [4, 8]  # both together do not fit
    assert [choice.width for choice in allocate(units, 880).values()] == [8, 8]
    assert [choice.width for choice in allocate(units, 440).values()] == [4, 4]  # the least there is
    with pytest.raises(ValueError, match="more than there is room for"):
        allocate(units, 439)
    with pytest.raises(ValueError, match="no number"):
        allocate(units | {"none": [Choice(4, 1, float("nan"))]}, 1000)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    sizes = {"a": {4: 50, 16: 200}, "b": {4: 50, 16: 200}}
    found = allowance("8bpw", sizes, weights=200, rest=10**6)
    assert (found.bytes, found.of({"a": 4, "b": 16}), found.bits_per_weight(250)) == (200, 250, 10.0)
    assert allowance("1000.2KB", sizes, weights=200, rest=10**6).bytes == 200
    with pytest.raises(QuantkitError, match=r"--budget 3bpw: all linears at 4 bits take 4\.00bpw already"):
        allowance("3bpw", sizes, 200, 10**6)
    with pytest.raises(QuantkitError, match=r"--budget 1MB: all linears at 4 bits take 1\.1MB already"):
        allowance("1MB", sizes, 200, 10**6)
    with pytest.raises(QuantkitError, match=r"--budget 16bpw: all linears at 16 bits take 16\.00bpw; there is nothing"):
        allowance("16bpw", sizes, 200, 10**6)


def test_sensitivity_foretells_the_kl_of_noise() -> None:
    """Independent noise of variance v at every output of a linear costs ``v * sum_r s_r`` nats a prediction."""
    checkpoint = open_checkpoint("tiny")
    model_map = build_map(checkpoint.config)
    mix = build_from(QuantizeOptions(model="tiny", samples=12, no_cache=True), checkpoint.path)
    found = output_sensitivity(checkpoint, model_map, mix.samples, dtype=torch.float32)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (out,) for name, (out, _) in model_map.linears().items()
    }
    model = load_dequantized(checkpoint)
    exact = _log_probabilities(model, mix.samples)
    generator = torch.Generator().manual_seed(0)
    for kind in ("0.mlp.down_proj", "1.linear_attn.in_proj_qkv", "3.self_attn.o_proj", "3.mlp.up_proj"):
        name = f"model.language_model.layers.{kind}"
        variance = 1e-3 / float(found[name].sum())

        def noise(_module, _args, output, spread=variance**0.5):
            return output + spread * torch.randn(output.shape, generator=generator)

        handle = model.get_submodule(name).register_forward_hook(noise)
        noisy = _log_probabilities(model, mix.samples)
        handle.remove()
        cost = float((exact.exp() * (exact - noisy)).sum(-1).mean())
        assert 0.6 < cost / 1e-3 < 1.6, (kind, cost)


def test_few_conversations_are_spread_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [SimpleNamespace(vision_mask=range(100), number=number) for number in range(100)]
    assert [one.number for one in sensitivity.few(samples)] == [number * 100 // 32 for number in range(32)]
    assert [one.number for one in sensitivity.few(samples[:63])][-2:] == [59, 61]  # the last ones as well
    monkeypatch.setattr(sensitivity, "TOKENS", 950)
    assert [one.number for one in sensitivity.few(samples)] == [number * 100 // 32 for number in range(9)]
    monkeypatch.setattr(sensitivity, "TOKENS", 50)
    assert [one.number for one in sensitivity.few(samples)] == [0]


@torch.inference_mode()
def _log_probabilities(model, samples) -> torch.Tensor:
    """Of all positions whose next token is text, [predictions, vocabulary]."""
    rows = []
    for sample in samples:
        logits = model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False).logits[0]
        rows.append(torch.log_softmax(logits[:-1][~sample.vision_mask[1:]].float(), dim=-1))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> QuantizeOptions:
    folder = tmp_path_factory.mktemp("budget")
    return QuantizeOptions(model="tiny", method="gptq", samples=16, solver="gptq", no_cache=True, out=folder / "first")


@pytest.fixture(scope="module")
def made(base: QuantizeOptions) -> Path:
    assert base.out is not None
    quantize(replace(base, budget="5.5bpw", save_stats=base.out.parent / "stats"))
    return base.out


def test_a_run_spends_what_it_may(made: Path, run) -> None:
    checkpoint = open_checkpoint(made)
    rows = {row.name: row for row in take_inventory(checkpoint).linears}
    linears = build_map(checkpoint.config).linears()
    weights = sum(out * inputs for out, inputs in linears.values())
    kept = sum(checkpoint.nbytes(f"{name}.weight") for name in linears if name not in rows)
    spent = 8 * (sum(row.bytes for row in rows.values()) + kept) / weights
    assert 5.2 < spent <= 5.5
    told = json.loads((made / "quantkit.json").read_text())
    assert told["recipe"]["budget"] == "5.5bpw" and told["format"] == "compressed-tensors"
    assert told["budget"]["bits_per_weight"] == pytest.approx(spent)
    widths = {row["name"]: row["bits"] for row in told["layers"]}
    assert {name: row.bits for name, row in rows.items()} == widths
    assert {4, 8} <= set(widths.values()) <= {4, 8}
    assert not any(path.name.startswith(".") for path in made.iterdir())
    assert "budget: 5.5bpw asked for" in run("inspect", made)[1]


def test_what_is_fused_is_alike(made: Path) -> None:
    widths = {row.name: row.bits for row in take_inventory(open_checkpoint(made)).linears}
    checked = 0
    for name in build_map(open_checkpoint(made).config).linears():
        prefix, linear = split_name(name)
        for fused in FUSED_SETS:
            if linear in fused:
                assert len({widths.get(prefix + other) for other in fused}) == 1
                checked += 1
    assert checked > 10


def test_more_bits_go_where_more_is_lost(made: Path) -> None:
    """No unit at 4 bits would have saved more a byte by 8 than one that got them, one step's rounding apart."""
    units = json.loads((made / "quantkit.json").read_text())["budget"]["units"]
    checkpoint = open_checkpoint("tiny")
    model_map = build_map(checkpoint.config)
    gains = {4: [], 8: []}
    for block in model_map.blocks:
        for group in block.groups:
            unit = units[block.prefix + group.name]
            losses = unit["expected_kl"]
            assert losses["4"] > losses["8"] > losses["16"] == 0
            weights = sum(block.out_features[name] * group.in_features for name in group.linears)
            gains[unit["bits"]].append((losses["4"] - losses["8"]) / weights)
    assert sorted(gains[8])[1] > sorted(gains[4])[-2]


@pytest.mark.parametrize("kept", [True, False])
def test_the_same_run_gives_the_same_bytes(base: QuantizeOptions, made: Path, tmp_path: Path, kept: bool) -> None:
    stats = made.parent / "stats" if kept else None
    quantize(replace(base, budget="5.5bpw", stats=stats, out=tmp_path / "again"))
    assert {path.name for path in made.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
    assert set(differences(made, tmp_path / "again").values()) == {"same"}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"budget": "8MB"}, {4, 8}),
        ({"budget": "3bpw", "budget_bits": "2,3,4,8,16"}, {2, 3, 4}),
        ({"budget": "6bpw", "method_format": "gptq"}, {4, 8}),
        ({"budget": "6bpw", "method": "awq"}, {4}),
        ({"budget": "4.1264bpw"}, {4}),  # hardly more than the least
        ({"budget": "6bpw", "keep": ("layers.3.mlp",), "budget_bits": "4,16"}, {4}),
    ],
)
def test_other_budgets(base: QuantizeOptions, made: Path, tmp_path: Path, options: dict, bits: set[int]) -> None:
    outcome = quantize(replace(base, stats=made.parent / "stats", out=tmp_path / "out", **options))
    found = take_inventory(open_checkpoint(outcome.out))
    assert {row.bits for row in found.linears} == bits
    assert outcome.plan.allowance is not None and outcome.spending is not None
    if options["budget"].endswith("MB"):
        assert 7.8e6 < found.bytes <= 8e6
    else:
        assert float(options["budget"][:-3]) - 0.5 < outcome.spending.bits_per_weight <= float(options["budget"][:-3])
    if bits == {4} and options["budget"] != "4.1264bpw":
        assert found.kept  # what the budget could afford to leave alone
    faults = [
        one for one in check(open_checkpoint(outcome.out), open_checkpoint("tiny")).findings if one.severity == "error"
    ]
    assert not faults


def test_stopping_in_the_first_sweep_leaves_nothing(
    base: QuantizeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_given, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantkit.quantize.expected_losses", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(replace(base, budget="5bpw", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "5bits"}, "--budget '5bits': write it as 4.5bpw"),
        ({"budget": "xbpw"}, "--budget 'xbpw': write it as 4.5bpw"),
        ({"budget": "\N{SUPERSCRIPT TWO}bpw"}, "write it as 4.5bpw"),
        ({"budget": "9" * 400 + "bpw"}, "write it as 4.5bpw"),
        ({"budget": "9" * 400 + "GB"}, "write it as 4.5bpw"),
        ({"budget": "5bpw", "budget_bits": "\N{SUPERSCRIPT TWO},4"}, "write it as 3,4,8,16"),
        ({"budget": "5bpw", "bits": 3}, "--bits 3: --budget chooses"),
        ({"budget_bits": "4,8"}, "--budget-bits: is what --budget chooses from"),
        ({"budget": "5bpw", "budget_bits": "four"}, "--budget-bits 'four'"),
        ({"budget": "5bpw", "budget_bits": "4"}, "name two widths or more"),
        ({"budget": "5bpw", "method": "rtn"}, "rtn looks at no data"),
        ({"budget": "5bpw", "sequential": True}, "--sequential"),
    ],
)
def test_options_that_contradict_each_other(options: dict, words: str) -> None:
    with pytest.raises(QuantkitError, match=words.replace("(", r"\(")):
        QuantizeOptions(**{"method": "gptq", **options})


def test_widths_that_the_layout_cannot_hold_are_named_as_asked(base: QuantizeOptions) -> None:
    with pytest.raises(QuantkitError, match="--budget-bits 5: quantkit writes 2, 3, 4 or 8 bits"):
        quantize(replace(base, budget="5bpw", budget_bits="4,5,8", out=base.out.parent / "never"))


def test_float16_takes_its_gradients_in_a_wider_range(base: QuantizeOptions, tmp_path: Path) -> None:
    outcome = quantize(replace(base, budget="5bpw", dtype="float16", out=tmp_path / "out"))
    assert outcome.spending is not None and 0 < outcome.spending.expected_loss < 1


def test_statistics_of_another_set_are_refused_before_any_pass(
    base: QuantizeOptions, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.quantize.output_sensitivity", lambda *_given, **_options: pytest.fail("too late"))
    with pytest.raises(QuantkitError, match="another calibration set"):
        quantize(replace(base, budget="5bpw", seed=1, stats=made.parent / "stats", out=tmp_path / "out"))


def test_statistics_may_stand_in_the_home_folder(
    base: QuantizeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    quantize(replace(base, budget="5bpw", save_stats=Path("~/kept"), out=tmp_path / "out"))
    assert (tmp_path / "kept" / "config.json").is_file() and (tmp_path / "out" / "config.json").is_file()
