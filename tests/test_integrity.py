"""The integrity check: no alarm on good variants, one with the right name on every planted fault, and its rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from faults import (
    COMPRESSED,
    COMPRESSED_FIXED,
    FAULTS,
    GATE,
    GPTQ,
    GPTQ_FIXED,
    GPTQ_THREE,
    GPTQ_TWO,
    LAYERS,
    LAYOUT_FAULTS,
    LINEAR,
    Fault,
    Weights,
    edit_json,
)
from safetensors.torch import save_file

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.grid import GridSpec, full_range, grid_of, round_to_grid
from quantkit.integrity import CHECKS, check
from quantkit.integrity.config import differences
from quantkit.integrity.fit import measure
from quantkit.integrity.runtimes import RUNTIMES, SGLANG, TRANSFORMERS, VLLM, Runtime
from quantkit.integrity.skiplist import MixedError, rule_of, transformers_skips
from quantkit.integrity.subject import Subject, find_linears
from quantkit.model import UNQUANTIZED_MODULES
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.source import tiny_folder
from quantkit.tensorfile import write_checksums

Maker = Callable[..., Path]

# every kind of good variant; those with a dtype of their own calibrate again, the others share one set of statistics
GOOD: dict[str, dict[str, object]] = {
    "default": {},
    "rounded codes": {"solver": "rtn"},
    "groups of 32": {"group_size": 32},
    "groups of 64, symmetric": {"group_size": 64, "symmetric": True},
    "whole rows": {"group_size": -1},
    "whole rows, symmetric": {"group_size": -1, "symmetric": True},
    "a feeder kept": {"keep": ("layers.1.mlp.up_proj",)},
    "attention and a consumer kept": {"keep": ("self_attn", "layers.2.mlp.down_proj")},
    "shards": {"max_shard_size": "2MB"},
    "rtn": {"method": "rtn"},
    "rtn, groups of 32": {"method": "rtn", "group_size": 32},
    "rtn, whole rows, symmetric": {"method": "rtn", "group_size": -1, "symmetric": True},
    "rtn, float32": {"method": "rtn", "dtype": "float32"},
    "float16, one sample": {"dtype": "float16", "samples": 1},
}

# good variants of the other layouts; all but the symmetric GPTQ files of 4 and 8 bits are too much for vLLM 0.32
OTHER_GOOD: dict[str, dict[str, object]] = {
    GPTQ_FIXED: {"method": "gptq"},
    GPTQ: {"method": "gptq", "symmetric": False, "solver": "gptq"},
    GPTQ_THREE: {"method": "gptq", "bits": 3, "group_size": 32},
    "gptq, 3 bits, symmetric, whole rows": {"method": "gptq", "bits": 3, "symmetric": True, "group_size": -1},
    GPTQ_TWO: {"method": "gptq", "bits": 2, "group_size": 64},
    "gptq, 2 bits, symmetric": {"method": "gptq", "bits": 2, "symmetric": True},
    "gptq, 2 bits, rounded rows": {
        "method": "gptq", "bits": 2, "symmetric": True, "group_size": -1, "solver": "rtn", "scales": False,
    },
    "gptq, 8 bits": {"method": "gptq", "bits": 8, "group_size": 32},
    "gptq, 8 bits, zero points, no scales": {
        "method": "gptq", "bits": 8, "symmetric": False, "solver": "gptq", "scales": False,
    },
    "gptq, 4 bits, no scales, layers kept": {
        "method": "gptq", "scales": False, "keep": ("self_attn", "layers.2.mlp.down_proj"),
    },
    COMPRESSED: {"method_format": "compressed-tensors", "symmetric": False},
    COMPRESSED_FIXED: {"method_format": "compressed-tensors", "symmetric": True, "solver": "gptq"},
    "compressed-tensors, 2 bits": {
        "method_format": "compressed-tensors", "bits": 2, "group_size": 32, "symmetric": False,
    },
    "compressed-tensors, 3 bits, a layer kept": {
        "method_format": "compressed-tensors", "bits": 3, "keep": ("layers.1.mlp.up_proj",),
    },
    "compressed-tensors, 8 bits, whole rows": {"method_format": "compressed-tensors", "bits": 8, "group_size": -1},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny's tensors are too small to share: where others work beside, threads that wait cost ten times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes variants of tiny, each once, from one set of statistics."""
    folder = tmp_path_factory.mktemp("variants")
    stats = folder / "stats"

    def make(name: str, **options: object) -> Path:
        out = folder / name.replace(" ", "_").replace(",", "")
        if out.exists():
            return out
        data: dict[str, object] = {"samples": 12}
        if options.get("method") != "rtn" and "dtype" not in options:
            data |= {"stats": stats} if stats.exists() else {"save_stats": stats}
        quantize(QuantizeOptions(**{"model": "tiny", "out": out} | data | options))
        return out

    make("default")
    return make


@pytest.fixture(scope="module")
def good(maker: Maker) -> Path:
    return maker("default")


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return open_checkpoint("tiny")


def _open(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, verify_checksums=False)


def _copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


# ---- good variants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_good_variants_raise_no_alarm(name: str, maker: Maker, source: Checkpoint) -> None:
    outcome = check(_open(maker(name, **GOOD[name])), source)
    assert outcome.ok and not outcome.findings, [str(finding) for finding in outcome.findings]
    assert outcome.checks == [entry.name for entry in CHECKS]


@pytest.mark.parametrize("name", OTHER_GOOD)
def test_good_variants_of_other_layouts_raise_no_alarm(name: str, maker: Maker, source: Checkpoint) -> None:
    outcome = check(_open(maker(name, **OTHER_GOOD[name])), source)
    assert outcome.ok, [str(finding) for finding in outcome.findings]
    config = _open(maker(name)).config["quantization_config"]
    refused = config["quant_method"] == "gptq" and (config["bits"], config["sym"]) not in ((4, True), (8, True))
    words = ["vLLM 0.32 does not load GPTQ's" in finding.message for finding in outcome.findings]
    assert words == [True] * refused, [str(finding) for finding in outcome.findings]


def test_a_source_is_a_good_copy_of_itself(source: Checkpoint) -> None:
    outcome = check(source, source)
    assert outcome.findings == []
    assert {"accounting", "config", "side files", "finite", "copies", "weights"} <= set(outcome.checks)


def test_without_a_source_and_without_provenance(good: Path, tmp_path: Path) -> None:
    folder = _copy(good, tmp_path / "x")
    (folder / "quantkit.json").unlink()
    (folder / "SHA256SUMS").unlink()
    outcome = check(_open(folder))
    assert outcome.ok and not outcome.findings
    assert outcome.checks == ["accounting", "config", "side files", "skip list", "tied", "finite", "scales"]


def test_no_transformers_is_imported(good: Path) -> None:
    code = (
        "import sys\nfrom quantkit.checkpoint import open_checkpoint\nfrom quantkit.integrity import check\n"
        f"check(open_checkpoint({str(good)!r}), open_checkpoint('tiny'))\nprint('transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# ---- planted faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.engine == "files"], ids=lambda fault: fault.name)
def test_planted_faults_are_caught_and_named(fault: Fault, good: Path, source: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(good, tmp_path / "x")
    fault.plant(folder, source.path)
    outcome = check(_open(folder), source)
    caught = [finding for finding in outcome.errors if finding.check == fault.check]
    assert any(fault.word in f"{finding.where}: {finding.message}" for finding in caught), outcome.errors


@pytest.mark.parametrize(
    ("variant", "fault"),
    [(variant, fault) for variant, faults in LAYOUT_FAULTS.items() for fault in faults],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_planted_faults_of_other_layouts_are_caught(
    variant: str, fault: Fault, maker: Maker, source: Checkpoint, tmp_path: Path
) -> None:
    folder = _copy(maker(variant, **OTHER_GOOD[variant]), tmp_path / "x")
    fault.plant(folder, source.path)
    outcome = check(_open(folder), source)
    caught = [f"{finding.where}: {finding.message}" for finding in outcome.errors if finding.check == fault.check]
    assert any(fault.word in text for text in caught), outcome.errors[:5]


def test_the_table_of_faults_is_sound() -> None:
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) >= 60
    assert {fault.check for fault in FAULTS} == {entry.name for entry in CHECKS}


@pytest.mark.parametrize("name", ["kept linear", "kept feeder", "kept norm"])
def test_what_stays_plain_inside_a_block_is_held_against_the_source_too(
    name: str, maker: Maker, source: Checkpoint, tmp_path: Path
) -> None:
    folder = _copy(maker("a feeder kept", **GOOD["a feeder kept"]), tmp_path / "x")
    tensor = {
        "kept linear": f"{LINEAR}mlp.gate_proj.weight",
        "kept feeder": f"{LINEAR}mlp.up_proj.weight",
        "kept norm": f"{LINEAR}post_attention_layernorm.weight",
    }[name]
    with Weights(folder) as tensors:
        tensors[tensor] = tensors[tensor] * 1.25
    write_checksums(folder, ["model.safetensors"])
    errors = check(_open(folder), source).errors
    assert errors and all(finding.check == "weights" for finding in errors)
    assert all(finding.where.startswith(f"{LINEAR}") for finding in errors)


def test_faults_in_an_unquantized_copy(source: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(source.path, tmp_path / "x")
    with Weights(folder) as tensors:
        name = f"{LAYERS}3.self_attn.q_proj.weight"
        tensors[name] = tensors[name].view(4, 2, -1, 256).flip(1).reshape(512, 256).contiguous()
        tensors[f"{LAYERS}0.mlp.down_proj.weight"] = tensors[f"{LAYERS}2.mlp.down_proj.weight"].clone()
    found = {finding.where: finding.message for finding in check(_open(folder), source).errors}
    assert "query and gate" in found[f"{LAYERS}3.self_attn.q_proj"]
    assert "layer 2" in found[f"{LAYERS}0.mlp.down_proj"]


def test_a_fault_of_a_group_of_32_is_seen_as_well(maker: Maker, source: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(maker("groups of 32", **GOOD["groups of 32"]), tmp_path / "x")
    with Weights(folder) as tensors:
        tensors[f"{GATE}.scales"][2, 11] *= 2
        tensors[f"{LAYERS}2.mlp.down_proj.scales"][3, 17] /= 2
    found = {finding.where: finding.message for finding in check(_open(folder), source).errors}
    assert "scales are wrong (output 11, group 2: " in found[GATE]
    assert "scales are wrong (output 17, group 3: " in found[f"{LAYERS}2.mlp.down_proj"]


# ---- measures -----------------------------------------------------------------------------------------------------


def test_measures_against_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 64, generator=generator)
    spec = GridSpec(4, 32)
    weight = round_to_grid(target, *grid_of(full_range(target, spec), spec), spec)
    fit = measure(weight, target)
    found = weight.dequantize()
    for row in range(6):
        cosine = torch.dot(found[row], target[row]) / found[row].norm() / target[row].norm()
        assert float(fit.cosine[row]) == pytest.approx(float(cosine), rel=1e-5)
        for group in range(2):
            part = slice(group * 32, group * 32 + 32)
            inside = (weight.codes[row, part] > 0) & (weight.codes[row, part] < 15)
            mine, theirs = found[row, part][inside], target[row, part][inside]
            assert float(fit.slope[row, group]) == pytest.approx(float(mine @ theirs / (mine @ mine)), rel=1e-4)
            shift = ((mine - theirs) / weight.scales[row, group].float()).mean()
            assert float(fit.shift[row, group]) == pytest.approx(float(shift), abs=1e-4)
    channels = (found * target).sum(0) / target.square().sum(0)
    assert torch.allclose(fit.channels, channels, rtol=1e-4)
    steps = weight.scales.float().repeat_interleave(32, 1)
    assert fit.median == pytest.approx(float(((found - target) / steps).abs().median()), rel=1e-5)
    assert fit.healthy


def test_differences_name_the_path() -> None:
    before = {"a": {"b": [1, {"c": 2}]}, "gone": 1, "flag": True}
    after = {"a": {"b": [1, {"c": 3}]}, "new": 2, "flag": 1}
    assert dict(differences(before, after)) == {
        "a.b[1].c": "is 3, the source's is 2",
        "gone": "missing; the source has 1",
        "flag": "is 1, the source's is true",
        "new": "is 2, the source has no such field",
    }
    assert list(differences(before, before)) == []


# ---- rules --------------------------------------------------------------------------------------------------------

VISION = "model.vision_tower.encoder.layers.1.self_attn.q_proj"


def test_transformers_matches_from_the_start_to_a_boundary_or_at_the_end() -> None:
    name = "model.language_model.layers.11.mlp.gate_proj"
    assert transformers_skips(name, ["model.language_model.layers.11"])
    assert transformers_skips(name, ["model.language_model.layers.11."])
    assert not transformers_skips(name, ["model.language_model.layers.1"])
    assert transformers_skips(name, [r"model\..*\.mlp"]) and not transformers_skips(name, ["mlp.gate"])
    assert transformers_skips(name, ["gate_proj"]) and transformers_skips(name, ["ate_proj"])
    assert not transformers_skips(name, ["layers.11.mlp.gate"]) and not transformers_skips(name, [])


@pytest.mark.parametrize(
    ("runtime", "name", "module"),
    [
        (TRANSFORMERS, VISION, VISION),
        (VLLM, VISION, "vpm.encoder.layers.1.self_attn.qkv_proj"),
        (SGLANG, VISION, "vpm.encoder.layers.1.self_attn.qkv_proj"),
        (VLLM, "model.vision_tower.vit_merger.self_attn.out_proj", "vit_merger.self_attn.out_proj"),
        (SGLANG, "model.vision_tower.vit_merger.self_attn.out_proj", "vpm.vit_merger.self_attn.proj"),
        (SGLANG, "model.merger.mlp.0.linear_1", "resampler.mlp.0.linear_1"),
        (VLLM, f"{LAYERS}3.mlp.up_proj", "language_model.model.layers.3.mlp.gate_up_proj"),
        (SGLANG, f"{LAYERS}3.mlp.up_proj", "llm.layers.3.mlp.gate_up_proj"),
        (SGLANG, f"{LAYERS}0.linear_attn.in_proj_a", "llm.layers.0.linear_attn.in_proj_ba"),
        (VLLM, f"{LAYERS}0.linear_attn.in_proj_z", "language_model.model.layers.0.linear_attn.in_proj_qkvz"),
        (VLLM, f"{LAYERS}0.linear_attn.out_proj", "language_model.model.layers.0.linear_attn.out_proj"),
    ],
)
def test_names_of_modules(runtime: Runtime, name: str, module: str) -> None:
    assert runtime.module(name) == module


def _quantized(runtime: Runtime, layout: str, config: dict[str, object], name: str) -> bool:
    return rule_of(runtime, layout, config).decide(name)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_awq_skip_lists(runtime: Runtime) -> None:
    names = {"Transformers": "model.vision_tower.", "vLLM": "model.vision_tower.", "SGLang": "vpm."}
    config: dict[str, object] = {"modules_to_not_convert": [names[runtime.name], "in_proj_a", "in_proj_b"]}
    assert not _quantized(runtime, "awq", config, VISION)
    assert not _quantized(runtime, "awq", config, f"{LAYERS}0.linear_attn.in_proj_a")
    assert not _quantized(runtime, "awq", config, f"{LAYERS}0.linear_attn.in_proj_b")
    assert _quantized(runtime, "awq", config, f"{LAYERS}0.linear_attn.in_proj_qkv")
    assert _quantized(runtime, "awq", config, f"{LAYERS}3.self_attn.q_proj")
    assert _quantized(runtime, "awq", {"modules_to_not_convert": []}, VISION) or runtime is VLLM


def test_what_the_runtimes_disagree_about() -> None:
    sglang: dict[str, object] = {"modules_to_not_convert": ["model.vision_tower."]}
    assert _quantized(SGLANG, "awq", sglang, VISION) and not _quantized(VLLM, "awq", sglang, VISION)
    short: dict[str, object] = {"modules_to_not_convert": ["vision_tower"]}
    assert _quantized(VLLM, "awq", short, VISION) and _quantized(TRANSFORMERS, "awq", short, VISION)
    assert not _quantized(TRANSFORMERS, "awq", {}, "lm_head")
    half: dict[str, object] = {"modules_to_not_convert": [f"{LAYERS}1.mlp.gate_proj"]}
    with pytest.raises(MixedError):
        _quantized(VLLM, "awq", half, f"{LAYERS}1.mlp.up_proj")
    assert _quantized(VLLM, "awq", half, f"{LAYERS}11.mlp.gate_proj")


def test_gptq_rules() -> None:
    q, down = f"{LAYERS}3.self_attn.q_proj", f"{LAYERS}3.mlp.down_proj"
    listed: dict[str, object] = {"modules_in_block_to_quantize": [["mlp.down_proj"]]}
    for runtime in (TRANSFORMERS, VLLM):
        assert _quantized(runtime, "gptq", listed, down) and not _quantized(runtime, "gptq", listed, q)
    assert _quantized(SGLANG, "gptq", listed, q)
    dynamic: dict[str, object] = {"dynamic": {r"-:.*self_attn.*": {}, r"+:.*mlp.*": {"bits": 8}}}
    for runtime in (VLLM, SGLANG):
        assert not _quantized(runtime, "gptq", dynamic, q) and _quantized(runtime, "gptq", dynamic, down)
    assert _quantized(TRANSFORMERS, "gptq", dynamic, q)  # optimum does not read it
    blocks: dict[str, object] = {"block_name_to_quantize": "model.language_model.layers.1"}
    assert not _quantized(TRANSFORMERS, "gptq", blocks, q)


def test_compressed_tensors_rules() -> None:
    config: dict[str, object] = {
        "config_groups": {"group_0": {"targets": ["Linear"]}},
        "ignore": ["lm_head", "re:.*vision_tower.*", f"{LAYERS}3.mlp.down_proj"],
    }
    down = f"{LAYERS}3.mlp.down_proj"
    assert not _quantized(TRANSFORMERS, "compressed-tensors", config, VISION)
    assert _quantized(VLLM, "compressed-tensors", config, VISION)  # a pattern is not renamed
    assert not _quantized(TRANSFORMERS, "compressed-tensors", config, down)
    assert not _quantized(VLLM, "compressed-tensors", config, down)
    assert _quantized(SGLANG, "compressed-tensors", config, down)  # nor is a name, there
    assert _quantized(TRANSFORMERS, "compressed-tensors", config, f"{LAYERS}13.mlp.down_proj")
    only: dict[str, object] = {"config_groups": {"g": {"targets": ["re:.*mlp.*"]}}, "ignore": []}
    for runtime in RUNTIMES:
        assert _quantized(runtime, "compressed-tensors", only, down)
        assert not _quantized(runtime, "compressed-tensors", only, f"{LAYERS}3.self_attn.o_proj")


def test_bitsandbytes_rules() -> None:
    config: dict[str, object] = {"llm_int8_skip_modules": ["model.vision_tower", "vpm", "lm_head"]}
    for runtime in (TRANSFORMERS, SGLANG):
        assert not _quantized(runtime, "bitsandbytes", config, VISION)
        assert _quantized(runtime, "bitsandbytes", config, f"{LAYERS}3.mlp.down_proj")
    with pytest.raises(QuantkitError, match="not known"):
        rule_of(VLLM, "bitsandbytes", config)


def test_names_for_all_three_runtimes_leave_no_finding(maker: Maker, source: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(maker("a feeder kept", **GOOD["a feeder kept"]), tmp_path / "x")
    listed = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert {"vpm.", "resampler.", "llm.layers.1.mlp.gate_up_proj"} <= set(listed)
    assert check(_open(folder), source).findings == []
    assert {"in_proj_a", "in_proj_b"} <= set(UNQUANTIZED_MODULES)


# ---- other people's checkpoints -----------------------------------------------------------------------------------


def _pack_otherwise(good: Path, folder: Path, layout: str, quantization: dict[str, object]) -> Checkpoint:
    """A folder whose linears have another layout's tensors, of the right shapes."""
    _copy(good, folder)
    tensors = {}
    for name, tensor in _tensors(good).items():
        if not name.endswith((".qweight", ".qzeros", ".scales")):
            tensors[name] = tensor
    for name, linear in find_linears(_open(good)).items():
        if linear.packed:
            tensors |= _other_layout(name, layout, linear.out_features, linear.in_features)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "SHA256SUMS").unlink()
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=quantization))
    return _open(folder)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = _open(folder)
    return {name: checkpoint.load(name) for name in checkpoint.tensor_names}


def _other_layout(name: str, layout: str, out: int, inputs: int) -> dict[str, torch.Tensor]:
    scales = torch.full((inputs // 128, out), 0.01, dtype=torch.float16)
    if layout == "gptq":
        return {
            f"{name}.qweight": torch.zeros(inputs // 8, out, dtype=torch.int32),
            f"{name}.qzeros": torch.zeros(inputs // 128, out // 8, dtype=torch.int32),
            f"{name}.scales": scales,
            f"{name}.g_idx": torch.arange(inputs, dtype=torch.int32) // 128,
        }
    if layout == "compressed-tensors":
        return {
            f"{name}.weight_packed": torch.zeros(out, inputs // 8, dtype=torch.int32),
            f"{name}.weight_scale": scales.T.contiguous(),
            f"{name}.weight_shape": torch.tensor([out, inputs]),
        }
    return {
        f"{name}.weight": torch.zeros(out * inputs // 2, 1, dtype=torch.uint8),
        f"{name}.weight.absmax": torch.ones(out * inputs // 64),
        f"{name}.weight.quant_map": torch.ones(16),
        f"{name}.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
    }


OTHERS: dict[str, dict[str, object]] = {
    "gptq": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True,
        "modules_in_block_to_quantize": [
            [f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj")],
            [f"self_attn.{letter}_proj" for letter in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")],
        ],
        "dynamic": {"-:.*vpm.*": {}, "-:.*vit_merger.*": {}, "-:.*resampler.*": {}, "-:.*in_proj_ba": {}},
    },
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"g": {"targets": ["Linear"]}},
        "ignore": [
            "lm_head", "re:.*vision_tower.*", "re:.*merger.*", "re:vpm.*", "re:resampler.*", "re:.*in_proj_[ab].*",
        ],
    },
    "bitsandbytes": {
        "quant_method": "bitsandbytes", "load_in_4bit": True,
        "llm_int8_skip_modules": [
            "model.vision_tower", "model.merger", "in_proj_a", "in_proj_b", "vpm", "resampler", "in_proj_ba",
        ],
    },
}  # fmt: skip


def test_bitsandbytes_is_recognised_and_what_is_not_checked_is_said(
    good: Path, source: Checkpoint, tmp_path: Path
) -> None:
    made = _pack_otherwise(good, tmp_path / "x", "bitsandbytes", OTHERS["bitsandbytes"])
    packed = [linear for linear in find_linears(made).values() if linear.packed]
    assert len(packed) == 25 and {linear.layout for linear in packed} == {"bitsandbytes"}
    for reference in (None, source):
        outcome = check(made, reference)
        assert outcome.ok, outcome.errors
        assert all("not checked" in finding.message for finding in outcome.findings), outcome.findings
    assert any(finding.check == "weights" for finding in outcome.findings)


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
def test_files_as_other_tools_describe_them_raise_no_alarm(
    layout: str, maker: Maker, source: Checkpoint, tmp_path: Path
) -> None:
    variant = {"gptq": GPTQ_FIXED, "compressed-tensors": COMPRESSED_FIXED}[layout]
    folder = _copy(maker(variant, **OTHER_GOOD[variant]), tmp_path / "x")
    (folder / "quantkit.json").unlink()
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=OTHERS[layout]))
    packed = [linear for linear in find_linears(_open(folder)).values() if linear.packed]
    assert len(packed) == 25 and {linear.layout for linear in packed} == {layout}
    assert {(linear.bits, linear.group_size) for linear in packed} == {(4, 128)}
    for reference in (None, source):
        assert check(_open(folder), reference).findings == []


def test_channels_ordered_by_activation_are_no_fault_and_not_checked(
    maker: Maker, source: Checkpoint, tmp_path: Path
) -> None:
    folder = _copy(maker(GPTQ_FIXED, **OTHER_GOOD[GPTQ_FIXED]), tmp_path / "x")
    with Weights(folder) as tensors:
        order = tensors[f"{GATE}.g_idx"]
        tensors[f"{GATE}.g_idx"] = order.flip(0)
    write_checksums(folder, ["model.safetensors"])
    _requantize(folder, desc_act=True)
    outcome = check(_open(folder), source)
    assert outcome.ok, outcome.errors
    words = {finding.where: finding.message for finding in outcome.findings}
    assert "ordered by activation" in words[GATE] and "does not load" in words["quantization_config.desc_act"]


def _requantize(folder: Path, **changes: object) -> None:
    edit_json(folder / "config.json", lambda config: config["quantization_config"].update(changes))


def test_mixed_bits_in_gptq(maker: Maker, source: Checkpoint, tmp_path: Path) -> None:
    """Of 8 bits beside 4: Transformers cannot, vLLM can if ``dynamic`` names the modules as vLLM calls them."""
    eight = maker("gptq, 8 bits, groups of 128", method="gptq", bits=8)
    folder = _copy(maker(GPTQ_FIXED, **OTHER_GOOD[GPTQ_FIXED]), tmp_path / "x")
    moved = [f"{LINEAR}mlp.gate_proj", f"{LINEAR}mlp.up_proj"]
    others = _tensors(eight)
    with Weights(folder) as tensors:
        for name in moved:
            tensors |= {key: value for key, value in others.items() if key.startswith(f"{name}.")}
    write_checksums(folder, ["model.safetensors"])
    plain = json.loads((folder / "config.json").read_text())["quantization_config"]["dynamic"]
    own = {rf"+:.*layers\.1\.mlp\.{part}$": {"bits": 8} for part in ("gate_proj", "up_proj")}
    both = own | {r"+:.*layers\.1\.mlp\.gate_up_proj$": {"bits": 8}}
    for rules, runtimes in ((own, {"Transformers", "vLLM", "SGLang"}), (both, {"Transformers"}), ({}, None)):
        _requantize(folder, dynamic=plain | rules)
        findings = [f for f in check(_open(folder), source).findings if f.check in ("skip list", "config")]
        if runtimes is None:
            assert any(f.check == "config" and "bits is 4" in f.message for f in findings)
        else:
            assert {f.message.split(" ")[0] for f in findings} == runtimes, findings
            assert all(f.check == "skip list" for f in findings)
            assert next(f for f in findings if "Transformers" in f.message).severity == "warning"


@pytest.mark.parametrize("layout", OTHERS)
def test_skip_lists_of_other_layouts_are_checked(layout: str, good: Path, tmp_path: Path) -> None:
    fields = {"gptq": "dynamic", "compressed-tensors": "ignore", "bitsandbytes": "llm_int8_skip_modules"}
    config = {**OTHERS[layout], fields[layout]: {} if layout == "gptq" else []}
    found = [f for f in check(_pack_otherwise(good, tmp_path / "x", layout, config)).findings if f.check == "skip list"]
    runtime = {"gptq": "SGLang", "compressed-tensors": "vLLM", "bitsandbytes": "Transformers"}[layout]
    assert any(runtime in finding.message and fields[layout] in finding.message for finding in found)


def test_another_architecture_is_checked_as_far_as_it_goes(good: Path, tmp_path: Path) -> None:
    folder = _copy(good, tmp_path / "x")
    edit_json(folder / "config.json", lambda config: config.update(model_type="llama", architectures=["Llama"]))
    outcome = check(_open(folder))
    assert outcome.ok
    unchecked = {finding.where for finding in outcome.findings if "not checked" in finding.message}
    assert {"config.json", "vLLM", "SGLang"} <= unchecked


def test_a_quantized_reference_is_no_source_of_weights(good: Path, source: Checkpoint) -> None:
    outcome = check(_open(good), _open(good))
    assert any(f.check == "weights" and "not checked" in f.message for f in outcome.findings)


def test_same_content_in_other_bytes_is_a_warning(good: Path, source: Checkpoint, tmp_path: Path) -> None:
    folder = _copy(good, tmp_path / "x")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    (folder / "added_tokens.json").write_text("{}")
    outcome = check(_open(folder), source)
    found = {finding.where: finding.severity for finding in outcome.findings}
    assert found == {"generation_config.json": "warning", "added_tokens.json": "warning"}


def test_subject_has_no_map_of_another_architecture(source: Checkpoint) -> None:
    assert Subject(source, None).map is not None
    assert source.path == tiny_folder()
