"""`quantkit inspect` of GGUF files: the table, and the memory against what llama.cpp itself reserves."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from make_checkpoint import published_checkpoint

from quantkit.formats.gguf.container import FilePlan, TensorInfo, Value, plan_files
from quantkit.formats.gguf.types import TYPES
from quantkit.gguf.inventory import GgufInventory, memory_budget, take_gguf_inventory
from quantkit.gguf.plan import plan_gguf
from quantkit.gguf.quantize import quantize_gguf
from quantkit.recipe import GgufOptions

Run = Callable[..., tuple[int, str, str]]

runtime = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the package xllamacpp (llama.cpp in a wheel)"
)
# prints what llama.cpp says of its buffers; argv: text, mmproj, positions
SERVER = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path = sys.argv[1:3]
params.n_ctx = int(sys.argv[3])
params.n_parallel, params.n_gpu_layers, params.mmproj_use_gpu, params.verbosity = 1, 0, False, 4
server = xllamacpp.Server(params)
sys.stderr.flush()
os._exit(0)
"""


def write_planned(folder: Path, plan: FilePlan) -> Path:
    """The planned file with its header, its data a hole."""
    with (folder / plan.name).open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.nbytes)
    return folder / plan.name


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two text files and both modes' mmproj of tiny, rounded to nearest."""
    out = tmp_path_factory.mktemp("gguf") / "tiny-GGUF"
    kinds = ("Q4_K_M", "F16")
    quantize_gguf(
        GgufOptions(model="tiny", out=out, type=kinds, mmproj_type="q8_0", downsample_mode="both", solver="rtn")
    )
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufInventory]:
    """Files of the published shapes, their data a hole: the text as Q4_K_M, the mmproj as F16."""
    folder = tmp_path_factory.mktemp("published")
    plan = plan_gguf(published_checkpoint(folder / "model"), GgufOptions())
    found = [take_gguf_inventory(write_planned(folder, variant.files[0])) for variant in plan.variants]
    return dict(zip(("text", "vision"), found, strict=True))


def _json(run: Run, path: Path, tmp_path: Path, *more: object) -> dict[str, Any]:
    code, output, errors = run("inspect", path, "--json", tmp_path / "x.json", *more)
    assert code == 0, output + errors
    return dict(json.loads((tmp_path / "x.json").read_text()))


def _read(path: Path) -> dict[str, Any]:
    """Tensors by name, as the `gguf` package reads them."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tiny-Q4_K_M.gguf", "tiny-F16.gguf", "mmproj-tiny-Q8_0.gguf", "mmproj-tiny-4x-Q8_0.gguf"]
)
def test_every_tensor_is_counted_once(run: Run, written: Path, tmp_path: Path, name: str) -> None:
    found, theirs = _json(run, written / name, tmp_path), _read(written / name)
    assert {f"{row['name']}.weight": row["layout"] for row in found["linears"]}.items() <= {
        name: tensor.tensor_type.name for name, tensor in theirs.items()
    }.items()
    assert len(found["linears"]) + sum(part["tensors"] for part in found["rest"]) == len(theirs)
    size = sum(int(tensor.n_bytes) for tensor in theirs.values())
    parts = sum(row["bytes"] for row in found["linears"]) + sum(part["bytes"] for part in found["rest"])
    assert parts == size == found["bytes"] and found["file_bytes"] == (written / name).stat().st_size
    values = sum(int(tensor.n_elements) for tensor in theirs.values())
    assert found["parameters"] == values and found["bits_per_weight"] == pytest.approx(8 * size / values, abs=1e-4)


def test_a_mixture_by_hand(run: Run, written: Path, tmp_path: Path) -> None:
    found = _json(run, written / "tiny-Q4_K_M.gguf", tmp_path)
    rows = {row["name"]: row for row in found["linears"]}
    assert len(rows) == 31 and found["method"] == "gguf" and found["kept"] == []
    keys = ("kind", "layer", "layout", "bits", "group_size", "symmetric", "out_features", "in_features", "bytes")
    assert [rows["blk.1.ffn_gate"][key] for key in keys] == [
        "ffn_gate", 1, "Q4_K", 4, 32, False, 512, 256, 512 * 144,
    ]  # fmt: skip
    assert [rows["blk.3.attn_v"][key] for key in keys] == ["attn_v", 3, "Q6_K", 6, 16, True, 128, 256, 128 * 210]
    assert [rows["blk.0.ssm_beta"][key] for key in keys[2:6]] == ["Q8_0", 8, 32, True]
    weights = sum(row["out_features"] * row["in_features"] for row in rows.values())
    stored = sum(row["bytes"] for row in rows.values())
    assert found["bits_per_quantized_weight"] == pytest.approx(8 * stored / weights, abs=1e-4)
    assert {part["what"]: part["dtypes"] for part in found["rest"]} == {
        "embedding": ["Q6_K"], "norms and other small tensors": ["F32"],
    }  # fmt: skip
    facts = {"architecture": "qwen35", "file_type": "Q4_K_M", "context_length": 32768, "vocabulary": 1024}
    assert found["gguf"].items() >= (facts | {"kind": "model", "name": "Tiny", "files": 1}).items()


def test_a_float_file_has_nothing_quantized(run: Run, written: Path, tmp_path: Path) -> None:
    found = _json(run, written / "tiny-F16.gguf", tmp_path)
    assert found["method"] is None and found["bits_per_quantized_weight"] is None and found["kept"] == []
    assert {(row["layout"], row["bits"], row["bits_per_weight"]) for row in found["linears"]} == {("F16", 16, 16)}
    code, output, _ = run("inspect", written / "tiny-F16.gguf")
    assert code == 0 and "tiny-F16.gguf: F16" in output and "quantized linears" not in output


def test_vision_files_say_mode_and_what_stayed_float(run: Run, written: Path, tmp_path: Path) -> None:
    for name, mode in (("mmproj-tiny-Q8_0.gguf", "16x"), ("mmproj-tiny-4x-Q8_0.gguf", "4x")):
        found = _json(run, written / name, tmp_path)
        facts = {"kind": "mmproj", "projector": "minicpmv4_6", "downsample_mode": mode, "file_type": "Q8_0"}
        assert found["gguf"].items() >= facts.items()
        assert found["kept"] == [f"v.blk.{layer}.ffn_down" for layer in range(5)]  # rows of 304 values
        code, output, _ = run("inspect", written / name)
        assert code == 0 and f"projector minicpmv4_6, {mode}" in output and "kept: v.blk.0.ffn_down" in output


def test_layers_lists_every_tensor(run: Run, written: Path) -> None:
    name = written / "tiny-Q4_K_M.gguf"
    code, output, _ = run("inspect", name, "--layers")
    assert code == 0
    lines = [line.split() for line in output.splitlines() if line.strip()]
    listed = [line[0] for line in lines if line[0].endswith((".weight", ".bias", "ssm_a"))]
    listed += [f"blk.{line[1].removeprefix('#')}.{line[0]}.weight" for line in lines if line[1:2] and line[1][0] == "#"]
    assert sorted(listed) == sorted(_read(name))
    short = run("inspect", name)[1]
    assert re.search(r"ffn_gate +4 Q4_K", short) and "blk.0.attn_norm.weight" not in short


def test_a_split_set_is_one_model(run: Run, written: Path, tmp_path: Path) -> None:
    quantize_gguf(GgufOptions(out=tmp_path / "split", solver="rtn", mmproj_type="none", split_max_size="800KB"))
    first = tmp_path / "split" / "tiny-Q4_K_M-00001-of-00003.gguf"
    whole, found = _json(run, written / "tiny-Q4_K_M.gguf", tmp_path), _json(run, first, tmp_path)
    assert all(found[key] == whole[key] for key in ("linears", "rest", "kept", "bytes", "parameters"))
    assert found["gguf"]["files"] == 3
    assert found["file_bytes"] == sum(path.stat().st_size for path in first.parent.glob("*.gguf"))
    folder = _json(run, first.parent, tmp_path)
    assert [file["name"] for file in folder["files"]] == [first.name]
    first.unlink()
    code, _, errors = run("inspect", first.parent)
    assert code == 2 and "file 2 of 3 of a split set; give the first" in errors


def test_provenance_of_the_file_that_it_is_of(run: Run, written: Path, tmp_path: Path) -> None:
    output = run("inspect", written / "tiny-Q4_K_M.gguf")[1]
    assert "made by: quantkit" in output and "solver rtn" in output and "from: tiny (" in output
    folder = Path(shutil.copytree(written, tmp_path / "x"))
    record = json.loads((folder / "quantkit.json").read_text())
    note = {"file": "Q4_K_M", "name": "blk.1.ffn_up.weight", "type": "Q4_K", "error": 0.25, "notes": ["few tokens"]}
    (folder / "quantkit.json").write_text(
        json.dumps(record | {"layers": [note, note | {"file": "Q2_K", "error": 0.5}]})
    )
    rows = {row["name"]: row for row in _json(run, folder / "tiny-Q4_K_M.gguf", tmp_path)["linears"]}
    assert (rows["blk.1.ffn_up"]["error"], rows["blk.1.ffn_up"]["note"]) == (0.25, "few tokens")
    assert "note: few tokens: blk.1.ffn_up" in run("inspect", folder / "tiny-Q4_K_M.gguf")[1]
    (folder / "tiny-Q4_K_M.gguf").rename(folder / "other.gguf")
    assert "made by" not in run("inspect", folder / "other.gguf")[1]
    (folder / "quantkit.json").write_text("{")
    code, _, errors = run("inspect", folder / "other.gguf")
    assert code == 2 and "quantkit.json: no valid JSON" in errors


# ---- files of others ------------------------------------------------------------------------------------------------


def _llama(path: Path) -> Path:
    """A small file of another architecture, written by the `gguf` package; two experts in one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_file_type(145)
    shapes = {"token_embd": (40, 32), "blk.0.attn_k": (32, 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float16))
    quantized = gguf.quants.quantize(np.zeros((2, 64, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up_exps.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_another_architecture_is_a_table_without_memory(run: Run, tmp_path: Path) -> None:
    path = _llama(tmp_path / "other.gguf")
    found = _json(run, path, tmp_path)
    row = found["linears"][0]
    assert len(found["linears"]) == 1 and (row["kind"], row["layout"]) == ("ffn_up_exps", "Q8_0")
    assert (row["out_features"], row["in_features"], row["bits_per_weight"]) == (2 * 64, 32, 8.5)
    assert found["kept"] == ["blk.0.attn_k"] and found["memory"] is None
    output = run("inspect", path)[1]
    assert "architecture llama; context 128; vocabulary 40" in output and "general.file_type 145" in output
    assert "memory: not known for llama" in output


def test_a_file_without_an_end_and_what_lies_beside_it(run: Run, written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "tiny-F16.gguf", tmp_path / "sha256-0123")  # as Ollama calls its files
    shutil.copy(written / "mmproj-tiny-4x-Q8_0.gguf", tmp_path / "mmproj-x.gguf")
    code, output, errors = run("inspect", tmp_path / "sha256-0123")
    assert code == 0, errors
    assert "architecture qwen35; name Tiny; context 32768; vocabulary 1024" in output and "made by" not in output
    assert "weights: mmproj-x.gguf" in output  # the only one beside it
    shutil.copy(written / "mmproj-tiny-Q8_0.gguf", tmp_path / "mmproj-y.gguf")
    assert "mmproj" not in run("inspect", tmp_path / "sha256-0123")[1]


def test_an_importance_matrix_is_no_model(run: Run, tmp_path: Path) -> None:
    import torch

    from quantkit.gguf.imatrix import Imatrix, write_imatrix

    write_imatrix(tmp_path / "m.gguf", Imatrix({"blk.0.ffn_up.weight": torch.ones(64)}, {"blk.0.ffn_up.weight": 3}))
    code, output, errors = run("inspect", tmp_path / "m.gguf")
    assert code == 0 and "m.gguf: imatrix" in output and "memory" not in output, errors


# ---- memory ---------------------------------------------------------------------------------------------------------


def _needs(found: dict[str, Any]) -> dict[str, int]:
    """By the first word, a compute buffer by its third."""
    words = [(need["what"].replace(":", "").split(), need["bytes"]) for need in found["memory"]["needs"]]
    return {w[2] if w[0] == "compute" else w[1] if w[0] == "weights" else w[0]: size for w, size in words}


def test_memory_by_hand(run: Run, written: Path, tmp_path: Path) -> None:
    found = {file["name"]: file for file in _json(run, written, tmp_path)["files"]}
    assert list(found) == sorted(path.name for path in written.glob("*.gguf"))
    needs = _needs(found["tiny-Q4_K_M.gguf"])
    assert needs.pop("tiny-Q4_K_M.gguf") == found["tiny-Q4_K_M.gguf"]["bytes"]
    assert needs.pop("mmproj-tiny-Q8_0.gguf") == found["mmproj-tiny-Q8_0.gguf"]["bytes"]  # 16x, not 4x
    assert needs.pop("KV") == 1 * 2 * 64 * 4096 * 2 * 2  # one layer, two heads of 64, keys and values of two bytes
    # three layers: three columns of 768 channels, and two heads of 128 x 128, of four bytes
    assert needs.pop("recurrent") == 3 * (3 * 768 + 2 * 128 * 128) * 4
    assert set(needs) == {"text", "vision"} and all(size > 0 for size in needs.values())
    memory = found["tiny-Q4_K_M.gguf"]["memory"]
    assert memory["total"] == sum(need["bytes"] for need in memory["needs"]) and memory["missing"] == []
    # an ARM CPU: all linears but those with two rows, and the head, which is the embedding
    rows = [row["bytes"] for row in found["tiny-Q4_K_M.gguf"]["linears"] if row["out_features"] > 2]
    assert len(rows) == 25 and memory["copies"] == sum(rows) + 1024 * 210
    assert found["mmproj-tiny-Q8_0.gguf"]["memory"] is None
    alone = _needs(_json(run, written / "mmproj-tiny-4x-Q8_0.gguf", tmp_path))
    assert set(alone) == {"mmproj-tiny-4x-Q8_0.gguf", "vision"}


def test_memory_follows_the_context(run: Run, written: Path, tmp_path: Path) -> None:
    name = written / "tiny-F16.gguf"
    sizes = {count: _needs(_json(run, name, tmp_path, "--context", count)) for count in (1, 256, 257, 8192)}
    assert sizes[1] == sizes[256] and sizes[257]["KV"] == 2 * sizes[256]["KV"]  # llama.cpp's own steps
    assert sizes[8192]["KV"] == 32 * sizes[256]["KV"] and sizes[8192]["recurrent"] == sizes[1]["recurrent"]
    output = run("inspect", name, "--context", 40000)[1]
    assert "memory at 40000 positions" in output and "note: the model was trained on 32768 positions" in output
    assert "trained on" not in run("inspect", name)[1]


# what llama.cpp of autumn 2026 said of a Q4_K_M file of the published shapes, on a CPU, in MiB:
# positions -> KV cache, compute buffers of the server
REPORTED = {512: (6.0, 35.52), 4096: (48.0, 39.02), 16384: (192.0, 51.02), 65536: (768.0, 99.02)}


def test_memory_at_the_published_shapes(published: dict[str, GgufInventory]) -> None:
    for positions, (cache, compute) in REPORTED.items():
        budget = memory_budget(published["text"], published["vision"], positions)
        assert budget is not None
        found = [need.bytes / 2**20 for need in budget.needs if need.bytes is not None]
        text, vision, *rest = found
        assert (round(text, 2), round(vision, 2)) == (494.42, 1057.36)
        assert rest[0] == cache and round(rest[1], 2) == 19.27
        assert rest[2] == pytest.approx(compute, rel=0.06) and rest[3] == pytest.approx(34.63, rel=0.06)
        if positions == 4096:
            assert budget.all_logits is not None and budget.total is not None
            assert budget.all_logits / 2**20 == pytest.approx(490.56, rel=0.06)
            assert budget.total_with_all_logits == budget.total - round(rest[2] * 2**20) + budget.all_logits
    kinds = [one for one in published["text"].tensors.values() if one.type.name == "Q4_K"]
    assert round(sum(one.nbytes for one in kinds) / 2**20, 2) == 208.69  # what an x86 CPU keeps in another order
    # an ARM CPU all linears; not the head, whose 248,094 rows no eight divide
    assert budget.copies == sum(row.bytes for row in published["text"].linears)


@runtime
@pytest.mark.parametrize("positions", [4096, 1024])
def test_memory_is_what_llamacpp_reserves(run: Run, written: Path, tmp_path: Path, positions: int) -> None:
    found = _needs(_json(run, written, tmp_path, "--context", positions)["files"][3])
    files = [str(written / name) for name in ("tiny-Q4_K_M.gguf", "mmproj-tiny-Q8_0.gguf")]
    command = [sys.executable, "-c", SERVER, *files, str(positions)]
    log = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr

    def said(words: str) -> list[float]:
        return [float(size) for size in re.findall(words + r" *= *([\d.]+) MiB", log)]

    mib = {name: size / 2**20 for name, size in found.items()}
    assert [round(mib["tiny-Q4_K_M.gguf"], 2)] == said("CPU_Mapped model buffer size")
    assert [round(mib["KV"], 2)] == said("KV buffer size") and [round(mib["recurrent"], 2)] == said("RS buffer size")
    text, vision = said("CPU compute buffer size")
    assert mib["text"] == pytest.approx(text, rel=0.1) and mib["vision"] == pytest.approx(vision, rel=0.2)


def test_a_layer_for_drafts_has_no_cache(run: Run, tmp_path: Path) -> None:
    """MTP, as llama.cpp's converter stores it; llama.cpp leaves it out unless asked."""
    names = ("blk.0.attn_k", "blk.1.ssm_out", "blk.2.attn_k", "blk.2.nextn.eh_proj")
    found = _json(run, _keys({"general.architecture": "qwen35"}, tmp_path / "x.gguf", names), tmp_path)
    kinds = [need["what"] for need in found["memory"]["needs"]]
    assert "KV cache, attention layers: 1 (f16)" in kinds
    assert "recurrent state, linear-attention layers: 1 (f32)" in kinds


# ---- bad input ------------------------------------------------------------------------------------------------------


def _keys(metadata: dict[str, object], path: Path, names: tuple[str, ...] = ("blk.0.attn_k",)) -> Path:
    """A file of small F32 linears with these keys."""
    tensors = [TensorInfo(f"{name}.weight", (2, 4), TYPES["F32"]) for name in names]
    return write_planned(path.parent, plan_files(path.name, metadata, tensors)[0])


@pytest.mark.parametrize(
    "odd", [Value("string", "many"), Value("int32", -1), Value("uint32", [1, 2]), Value("float32", 2.5), None]
)
def test_sizes_that_are_missing_or_odd_are_not_guessed(run: Run, tmp_path: Path, odd: Value | None) -> None:
    sizes = {"embedding_length": 4, "attention.head_count": 1, "attention.key_length": 4, "attention.value_length": 4}
    sizes |= {"ssm.conv_kernel": 4, "ssm.inner_size": 4, "ssm.group_count": 1, "ssm.state_size": 4}
    keys: dict[str, object] = {"general.architecture": "qwen35", **{f"qwen35.{key}": n for key, n in sizes.items()}}
    if odd is not None:
        keys |= {"qwen35.attention.head_count_kv": odd, "qwen35.context_length": odd, "general.file_type": odd}
        keys |= {"tokenizer.ggml.tokens": odd}
    code, output, errors = run("inspect", _keys(keys, tmp_path / "x.gguf"))
    assert code == 0, errors
    assert "not known: the file does not say qwen35.attention.head_count_kv" in output
    assert re.search(r"KV cache, attention layers: 1 \(f16\) +\?", output) and re.search(r"total +\?", output)


def test_texts_of_a_hostile_file_stay_on_their_line(run: Run, tmp_path: Path) -> None:
    nasty = "\x1b[31mred\x1b[0m [bold]x[/]\nnext" + "y" * 200
    keys: dict[str, object] = {"general.architecture": nasty, "general.name": nasty, "general.type": nasty}
    code, output, errors = run("inspect", _keys(keys, tmp_path / "x.gguf"))
    assert code == 0 and "\x1b[31m" not in output and "[bold]x" in output and "y" * 100 not in output, errors
    empty = plan_files("none.gguf", {}, [])[0]
    code, output, errors = run("inspect", write_planned(tmp_path, empty))
    assert code == 0 and "names no architecture" in output, errors


def _patched(path: Path, plan: FilePlan, found: bytes, wanted: bytes) -> Path:
    write_planned(path.parent, replace(plan, header=plan.header.replace(found, wanted)))
    return path


def test_bad_files_are_one_line(run: Run, written: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = (written / "tiny-Q4_K_M.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:-1000])
    (tmp_path / "head.gguf").write_bytes(data[:5000])
    (tmp_path / "text.gguf").write_text("no model at all, whatever it is called")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").write_bytes(data[:5000])
    plan = plan_files("type.gguf", {}, [TensorInfo("a.weight", (2, 4), TYPES["F32"])])[0]
    entry = struct.pack("<QQI", 4, 2, 0)
    _patched(tmp_path / "type.gguf", plan, entry, struct.pack("<QQI", 4, 2, 77))
    cases = {
        "cut.gguf": "truncated", "head.gguf": "truncated or damaged", "text.gguf": "no GGUF file",
        "type.gguf": "unknown type 77", "missing.gguf": "cannot be read", "folder": "a.gguf: truncated",
        "empty": "has no config.json",
    }  # fmt: skip
    for name, words in cases.items():
        code, output, errors = run("inspect", tmp_path / name)
        assert code == 2 and output == "", name
        assert errors.startswith("error: ") and words in errors and len(errors.splitlines()) == 1, errors
    for value in ("0", "-1", "1e3"):
        assert run("inspect", written, "--context", value)[0] == 2
    if os.geteuid():
        (tmp_path / "cut.gguf").chmod(0)
        assert run("inspect", tmp_path / "cut.gguf")[0] == 2


def test_json_alone_on_the_terminal(run: Run, written: Path) -> None:
    code, output, _ = run("inspect", written / "tiny-Q4_K_M.gguf", "--json", "-")
    assert code == 0 and json.loads(output)["gguf"]["architecture"] == "qwen35"
