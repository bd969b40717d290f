"""`quantkit inspect`: the table of any checkpoint, its totals, provenance, and what it says of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import Weights, edit_json
from safetensors.torch import load_file
from typer.testing import CliRunner

from quantkit.checkpoint import open_checkpoint
from quantkit.cli import app
from quantkit.errors import QuantkitError
from quantkit.integrity.inventory import grouped, take_inventory
from quantkit.quantize import quantize
from quantkit.recipe import QuantizeOptions
from quantkit.source import tiny_folder

LAYERS = "model.language_model.layers."
DOWN = f"{LAYERS}1.mlp.down_proj"

VARIANTS: dict[str, dict[str, object]] = {
    "awq": {"method_format": "awq"},
    "gptq": {"method_format": "gptq", "bits": 3, "group_size": 64, "keep": ("layers.1.mlp.gate_proj",)},
    "compressed-tensors": {"method_format": "compressed-tensors", "bits": 8, "group_size": -1, "symmetric": True},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A variant of each layout, rounded to nearest: no calibration."""
    root = tmp_path_factory.mktemp("inspect")
    for layout, options in VARIANTS.items():
        quantize(QuantizeOptions(**{"method": "rtn", "solver": "rtn", "model": "tiny", "out": root / layout} | options))
    return {layout: root / layout for layout in VARIANTS}


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


def _json(folder: Path | str, tmp_path: Path) -> dict[str, Any]:
    _run(str(folder), "--json", str(tmp_path / "x.json"))
    return dict(json.loads((tmp_path / "x.json").read_text()))


def test_awq_by_hand(made: dict[str, Path], tmp_path: Path) -> None:
    found = _json(made["awq"], tmp_path)
    rows = {row["name"]: row for row in found["linears"]}
    assert len(rows) == 25 and found["method"] == "awq" and found["kept"] == []
    down = rows[DOWN]
    # 256 x 512 codes of 4 bits; four groups a row, each with a float16 scale and a 4-bit zero point
    assert down["bytes"] == 256 * 512 // 2 + 4 * 256 * 2 + 4 * 256 // 2
    assert down["bits_per_weight"] == pytest.approx(4 + 20 / 128, abs=1e-4)
    assert (down["bits"], down["group_size"], down["out_features"], down["in_features"]) == (4, 128, 256, 512)
    assert found["bits_per_quantized_weight"] == pytest.approx(4 + 20 / 128, abs=1e-4)


@pytest.mark.parametrize("layout", VARIANTS)
def test_every_layout_adds_up(layout: str, made: dict[str, Path], tmp_path: Path) -> None:
    found = _json(made[layout], tmp_path)
    assert {row["layout"] for row in found["linears"]} == {layout}
    stored = sum(tensor.nbytes for tensor in load_file(made[layout] / "model.safetensors").values())
    parts = sum(row["bytes"] for row in found["linears"]) + sum(part["bytes"] for part in found["rest"])
    assert parts == stored == found["bytes"]
    assert found["file_bytes"] == (made[layout] / "model.safetensors").stat().st_size
    weights = sum(tensor.numel() for tensor in load_file(tiny_folder() / "model.safetensors").values())
    assert found["parameters"] == weights
    assert found["bits_per_weight"] == pytest.approx(8 * stored / weights, abs=1e-4)


def test_kept_linears_and_what_stayed(made: dict[str, Path], tmp_path: Path) -> None:
    found = _json(made["gptq"], tmp_path)
    assert found["kept"] == [f"{LAYERS}1.mlp.gate_proj", f"{LAYERS}1.mlp.up_proj"]
    parts = {part["what"]: part for part in found["rest"]}
    assert parts["kept linears"]["bytes"] == 2 * 2 * 512 * 256
    assert parts["in_proj_a and in_proj_b"]["tensors"] == 6 and parts["embedding"]["tensors"] == 1
    assert {"vision tower", "merger", "merger inside the vision tower"} <= set(parts)
    rows = {row["name"]: row for row in found["linears"]}
    assert (rows[DOWN]["bits"], rows[DOWN]["group_size"], rows[DOWN]["symmetric"]) == (3, 64, False)
    assert f"{LAYERS}1.mlp.gate_proj" not in rows


def test_whole_rows_and_fixed_zero_points(made: dict[str, Path], tmp_path: Path) -> None:
    row = _json(made["compressed-tensors"], tmp_path)["linears"][0]
    assert (row["bits"], row["group_size"], row["symmetric"]) == (8, -1, True)
    output = _run(str(made["compressed-tensors"]))
    assert "8 sym" in output and " row " in output


def test_the_table_groups_what_is_alike(made: dict[str, Path]) -> None:
    short, long = _run(str(made["gptq"])), _run(str(made["gptq"]), "--layers")
    lines = [line.split() for line in short.splitlines() if line.split() and line.split()[0] == "mlp.gate_proj"]
    assert [line[1] for line in lines] == ["3"]
    names = [line.split() for line in long.splitlines() if line.split() and line.split()[0] == "mlp.gate_proj"]
    assert [line[1] for line in names] == ["#0", "#2", "#3"]
    assert "kept: " in short and f"{LAYERS}1.mlp.up_proj" in short
    inventory = take_inventory(open_checkpoint(made["gptq"]))
    assert sum(len(members) for _, members in grouped(inventory.linears)) == len(inventory.linears) == 23


def test_provenance_and_notes(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["awq"], tmp_path / "x"))

    def annotate(content: dict[str, Any]) -> None:
        content["calibration"] |= {"fingerprint": "abcdef0123456789", "samples": 5, "tokens": 77, "items": ["secret"]}
        next(row for row in content["layers"] if row["name"] == DOWN)["note"] = "too few tokens: rounded"

    edit_json(folder / "quantkit.json", annotate)
    output = " ".join(_run(str(folder)).split())
    assert "method rtn" in output and "5 conversations, 77 tokens (abcdef012345)" in output
    assert f"note: too few tokens: rounded: {DOWN}" in output
    found = _json(folder, tmp_path)
    assert "items" not in found["provenance"]["calibration"] and "layers" not in found["provenance"]
    assert next(row for row in found["linears"] if row["name"] == DOWN)["note"] == "too few tokens: rounded"


def test_without_provenance(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["awq"], tmp_path / "x"))
    (folder / "quantkit.json").unlink()
    assert "made by" not in _run(str(folder))
    (folder / "quantkit.json").write_text("{")
    with pytest.raises(QuantkitError, match=r"quantkit\.json: no valid JSON"):
        take_inventory(open_checkpoint(folder, verify_checksums=False))


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    found = _json("tiny", tmp_path)
    assert found["method"] is None and found["bits_per_quantized_weight"] is None and len(found["linears"]) == 25
    assert {(row["layout"], row["bits"], row["bits_per_weight"]) for row in found["linears"]} == {("plain", 16, 16)}
    assert found["bits_per_weight"] == 16
    assert "not quantized" in _run("tiny")


def test_bitsandbytes(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "x"))
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [256, 512]}
    with Weights(folder) as tensors:
        tensors |= _nf4(tensors, state)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=settings))
    (row,) = _json(folder, tmp_path)["linears"]
    assert (row["layout"], row["bits"], row["group_size"]) == ("bitsandbytes", 4, 64)
    assert (row["out_features"], row["in_features"]) == (256, 512)
    assert row["bits_per_weight"] == pytest.approx(4.5, abs=0.02)


def _nf4(tensors: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    import torch

    del tensors[f"{DOWN}.weight"]
    content = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return {
        f"{DOWN}.weight": torch.zeros(256 * 512 // 2, 1, dtype=torch.uint8),
        f"{DOWN}.weight.absmax": torch.ones(256 * 512 // 64),
        f"{DOWN}.weight.quant_map": torch.ones(16),
        f"{DOWN}.weight.quant_state.bitsandbytes__nf4": content,
    }


def test_json_alone_on_the_terminal(made: dict[str, Path]) -> None:
    assert json.loads(_run(str(made["awq"]), "--json", "-"))["method"] == "awq"


def test_gguf_files_beside_a_checkpoint_are_not_what_its_folder_is(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["awq"], tmp_path / "x"))
    (folder / "y.gguf").write_bytes(b"GGUF")
    assert _json(folder, tmp_path)["method"] == "awq"


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from quantkit.cli import main; main()"
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code, "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_bad_input_is_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = Path(shutil.copytree(made["awq"], tmp_path / "other"))
    edit_json(other / "config.json", lambda config: config.update(model_type="llama", architectures=["Llama"]))
    cut = Path(shutil.copytree(made["awq"], tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    cases = {
        tmp_path / "empty": "has no config.json",
        tmp_path / "nothing": "nothing",
        other: "names the architecture Llama",
        cut: "truncated",
    }
    for folder, words in cases.items():
        result = _command(str(folder))
        assert result.returncode == 2 and result.stdout == "", folder
        assert result.stderr.startswith("error: ") and words in result.stderr and len(result.stderr.splitlines()) == 1
    result = _command(str(made["awq"]), "--context", "512")
    assert result.returncode == 2 and "--context: is for GGUF files" in result.stderr
    result = _command(str(made["awq"]), "--json", str(tmp_path / "no" / "where.json"))
    assert result.returncode == 2 and "--json" in result.stderr


def test_headers_are_enough(made: dict[str, Path]) -> None:
    """The data may be anything, and torch is not needed to say what is stored."""
    code = (
        "import sys\nfrom quantkit.cli import app\n"
        f"app(['inspect', {str(made['compressed-tensors'])!r}], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
