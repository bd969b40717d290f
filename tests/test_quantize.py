"""The whole way of the data: what is written, that it is what was chosen, and what a rerun gives."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.fold import expand
from quantkit.formats import awq as layout
from quantkit.model import build_map
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.reproduce import differences
from quantkit.verify import load_dequantized


@pytest.fixture(scope="module")
def options(random_checkpoint: Path, small_calibration: Path) -> QuantizeOptions:
    return QuantizeOptions(model=str(random_checkpoint), calib=str(small_calibration), samples=6, group_size=64)


def _at(options: QuantizeOptions, **changes) -> QuantizeOptions:
    return replace(options, **changes)


@pytest.fixture(scope="module")
def made(options: QuantizeOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "awq"
    outcome = quantize(_at(options, out=out, save_stats=out.parent / "stats"))
    assert len(outcome.rows) == len(outcome.plan.quantized) == 25
    assert all(0 < row.error < 0.02 for row in outcome.rows)
    return out


def test_every_tensor_is_there_once_and_what_stays_is_equal(made: Path, random_checkpoint: Path) -> None:
    source, out = open_checkpoint(random_checkpoint), open_checkpoint(made)
    quantized = layout.quantized_names(out.tensor_names)
    assert len(quantized) == 25 and not any("in_proj_a" in name or "in_proj_b" in name for name in quantized)
    packed = {f"{name}.{suffix}" for name in quantized for suffix in layout.SUFFIXES}
    assert set(out.tensor_names) - packed == set(source.tensor_names) - {f"{name}.weight" for name in quantized}
    for name in set(out.tensor_names) - packed:
        if ".layers." in name and "language_model" in name:
            assert out.dtype(name) == source.dtype(name) == "BF16"
        else:
            assert torch.equal(out.load(name), source.load(name)), name


def test_side_files_are_byte_for_byte_the_sources(made: Path, random_checkpoint: Path) -> None:
    source = open_checkpoint(random_checkpoint)
    names = {path.name for path in source.side_files()}
    assert {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"} <= names
    assert {"video_preprocessor_config.json", "generation_config.json"} <= names
    for path in source.side_files():
        assert (made / path.relative_to(source.path)).read_bytes() == path.read_bytes()


def test_config_says_what_is_stored(made: Path, random_checkpoint: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    quantization = config.pop("quantization_config")
    skip = quantization.pop("modules_to_not_convert")
    assert quantization == {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 64, "zero_point": True,
    }  # fmt: skip
    assert {"model.vision_tower.", "model.merger.", "in_proj_a", "in_proj_b", "lm_head"} <= set(skip)
    source = json.loads((random_checkpoint / "config.json").read_text())
    assert config == {**source, "dtype": "bfloat16"}


def test_the_norms_in_the_file_undo_the_scales_in_the_linears(made: Path, random_checkpoint: Path) -> None:
    """The scale that a stored norm implies is the one that its consumers carry, exactly, but for their own rounding."""
    source, out = open_checkpoint(random_checkpoint), open_checkpoint(made)
    weights = dict(load_dequantized(made).named_parameters())
    scaled = 0
    for block in build_map(source.config).blocks:
        for group in block.groups:
            if group.feeder.kind == "rows":
                continue
            offset = float(group.feeder.kind == "one_plus_weight")
            norm = block.prefix + group.feeder.module + ".weight"
            scale = (source.load(norm).float() + offset) / (out.load(norm).float() + offset)
            columns = expand(scale, group.feeder)
            scaled += int((scale != 1).any())
            for name in group.passengers:
                expected = source.load(f"{block.prefix}{name}.weight").float() * columns
                assert torch.equal(out.load(f"{block.prefix}{name}.weight"), expected.bfloat16())
            for name in group.linears:
                if name == "self_attn.v_proj" or name == "mlp.up_proj":
                    continue  # their rows feed another group
                original = source.load(f"{block.prefix}{name}.weight").float()
                back = weights[f"{block.prefix}{name}.weight"] / columns
                assert (back - original).norm() < 0.25 * original.norm(), name
    assert scaled > 8


def test_same_inputs_give_the_same_bytes_and_kept_statistics_do_too(
    made: Path, options: QuantizeOptions, tmp_path: Path
) -> None:
    quantize(_at(options, out=tmp_path / "again", stats=made.parent / "stats"))
    assert set(differences(made, tmp_path / "again").values()) == {"same"}


def test_statistics_of_another_calibration_set_are_refused(
    made: Path, options: QuantizeOptions, tmp_path: Path
) -> None:
    with pytest.raises(QuantkitError, match="another calibration set"):
        quantize(_at(options, out=tmp_path / "x", stats=made.parent / "stats", samples=5))
    assert list(tmp_path.iterdir()) == []


def test_shards_and_index(options: QuantizeOptions, made: Path, tmp_path: Path) -> None:
    quantize(_at(options, out=tmp_path / "x", max_shard_size="2MB", stats=made.parent / "stats"))
    index = json.loads((tmp_path / "x/model.safetensors.index.json").read_text())
    shards = {path.name for path in (tmp_path / "x").glob("model-*.safetensors")}
    assert len(shards) > 2 and set(index["weight_map"].values()) == shards
    one, other = open_checkpoint(made), open_checkpoint(tmp_path / "x")
    assert set(one.tensor_names) == set(other.tensor_names)
    assert all(torch.equal(one.load(name), other.load(name)) for name in one.tensor_names)


def test_kept_layers_stay_and_are_named(options: QuantizeOptions, tmp_path: Path, random_checkpoint: Path) -> None:
    quantize(_at(options, out=tmp_path / "x", method="rtn", keep=("layers.3.self_attn.k_proj", "layers.0.*down_proj")))
    source, out = open_checkpoint(random_checkpoint), open_checkpoint(tmp_path / "x")
    kept = {f"model.language_model.layers.3.self_attn.{name}_proj" for name in "qkv"}
    kept.add("model.language_model.layers.0.mlp.down_proj")
    assert len(layout.quantized_names(out.tensor_names)) == 25 - len(kept)
    assert kept <= set(out.config["quantization_config"]["modules_to_not_convert"])
    for name in kept:
        assert torch.equal(out.load(name + ".weight"), source.load(name + ".weight"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(options: QuantizeOptions, tmp_path: Path, dtype: str) -> None:
    quantize(_at(options, out=tmp_path / "x", dtype=dtype, samples=3))
    out = open_checkpoint(tmp_path / "x")
    assert out.config["dtype"] == dtype
    spelled = {"float16": "F16", "float32": "F32"}[dtype]
    assert {out.dtype(name) for name in out.tensor_names} == {spelled, "I32", "F16"}


def test_statistics_folders_stay_apart_from_the_output(options: QuantizeOptions, tmp_path: Path) -> None:
    out = tmp_path / "x"
    for folder in (out, out / "stats", tmp_path):
        with pytest.raises(QuantkitError, match="overlaps --out"):
            quantize(_at(options, out=out, save_stats=folder))
    with pytest.raises(QuantkitError, match="exclude each other"):
        quantize(_at(options, out=out, save_stats=tmp_path / "a", stats=tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_kept_feeder_stays_as_it_was(options: QuantizeOptions, tmp_path: Path, made: Path) -> None:
    quantize(_at(options, out=tmp_path / "x", stats=made.parent / "stats", keep=("layers.1.mlp.up_proj",)))
    rows = {row["name"]: row for row in json.loads((tmp_path / "x/quantkit.json").read_text())["layers"]}
    assert rows["model.language_model.layers.1.mlp.down_proj"]["scaled_by"] == ""
    assert rows["model.language_model.layers.2.mlp.down_proj"]["scaled_by"] not in ("", "none")
