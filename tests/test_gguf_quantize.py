"""`quantkit gguf` and `quantkit imatrix` from checkpoint to files, read back by the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantkit.checkpoint import open_checkpoint
from quantkit.formats.gguf.reader import GgufFile
from quantkit.gather import Statistics, gather
from quantkit.gguf.collect import collect_imatrix
from quantkit.gguf.imatrix import read_imatrix
from quantkit.gguf.names import text_tensors
from quantkit.gguf.quantize import quantize_gguf
from quantkit.methods.blockrefine import SHRINKAGE
from quantkit.model import LAYERS_PREFIX, build_map
from quantkit.recipe import GgufOptions, ImatrixOptions
from quantkit.source import tiny_folder

LAYER = LAYERS_PREFIX + "1"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order may move a code
    yield
    torch.set_num_threads(threads)


def write(out: Path, calibration: Path | None = None, **settings: Any) -> Path:
    given: dict[str, Any] = {"model": "tiny", "out": out, "no_cache": True, "samples": 12}
    if calibration is not None:
        given["calib"] = (str(calibration),)
    else:
        given["solver"] = "rtn"
    quantize_gguf(GgufOptions(**given | settings))
    return out


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a file as floats, by the `gguf` package."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = plain.reshape(tuple(int(length) for length in tensor.shape)[::-1])
    return found


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five types at once, without data."""
    out = tmp_path_factory.mktemp("gguf") / "tiny-GGUF"
    return write(out, type=("F32", "F16", "Q4_K_M", "Q2_K", "IQ4_XS"), mmproj_type="f32", downsample_mode="both")


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory, small_calibration: Path) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "refined", small_calibration, type=("Q4_K_M", "F32"))


def test_refine_rounds_on_the_shrunk_matrix(
    tmp_path: Path, small_calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantkit.gguf.quantize as module

    seen: list[float] = []
    real = module.encode

    def spy(name: str, weight: Any, kind: str, known: Any = None, workers: int = 1) -> Any:
        if known is not None and known.factor is not None:
            seen.append(known.factor.shrinkage)
        return real(name, weight, kind, known, workers)

    monkeypatch.setattr(module, "encode", spy)
    write(tmp_path / "out", small_calibration, type=("Q4_0",), mmproj_type="none")
    assert seen and set(seen) == {SHRINKAGE}


def test_the_float_file_holds_the_checkpoints_values(rounded: Path) -> None:
    checkpoint = open_checkpoint("tiny")
    source = load_file(tiny_folder() / "model.safetensors")
    found = values(rounded / "tiny-F32.gguf")
    rows = text_tensors(checkpoint)
    assert {row.name for row in rows} == set(found)
    for row in rows:  # tiny has as many value heads as key heads: no row moves
        expected = source[row.source].float()
        if row.name.endswith("_norm.weight") and "ssm_norm" not in row.name:
            expected = expected + 1
        elif row.name.endswith("ssm_a"):
            expected = -expected.exp()
        np.testing.assert_array_equal(found[row.name], expected.view(row.shape).numpy())


def test_the_vision_files_hold_it_too(rounded: Path) -> None:
    source = load_file(tiny_folder() / "model.safetensors")
    whole = values(rounded / "mmproj-tiny-F32.gguf")
    small = values(rounded / "mmproj-tiny-4x-F32.gguf")
    assert set(small) < set(whole) and all(name.startswith("v.vit_merger.") for name in set(whole) - set(small))
    patch = source["model.vision_tower.embeddings.patch_embedding.weight"].float().numpy()
    np.testing.assert_array_equal(whole["v.patch_embd.weight"], patch)
    total = sum(tensor.numel() for name, tensor in source.items() if name.startswith(("model.vision", "model.merger")))
    assert sum(value.size for value in whole.values()) == total


@pytest.mark.parametrize(("kind", "most"), [("F16", 1e-3), ("Q4_K_M", 0.09), ("IQ4_XS", 0.09), ("Q2_K", 0.32)])
def test_a_rounded_file_is_near_the_floats(rounded: Path, kind: str, most: float) -> None:
    exact, found = values(rounded / "tiny-F32.gguf"), values(rounded / f"tiny-{kind}.gguf")
    assert exact.keys() == found.keys()
    for name, value in exact.items():
        assert np.linalg.norm(found[name] - value) <= most * np.linalg.norm(value), name


def test_one_type_alone_gives_the_same_bytes(
    rounded: Path, refined: Path, small_calibration: Path, tmp_path: Path
) -> None:
    alone = write(tmp_path / "alone", type=("q4_k_m",), mmproj_type="none")
    assert (alone / "tiny-Q4_K_M.gguf").read_bytes() == (rounded / "tiny-Q4_K_M.gguf").read_bytes()
    assert sorted(path.name for path in alone.iterdir()) == ["Modelfile", "quantkit.json", "tiny-Q4_K_M.gguf"]
    again = write(tmp_path / "again", small_calibration)
    assert (again / "tiny-Q4_K_M.gguf").read_bytes() == (refined / "tiny-Q4_K_M.gguf").read_bytes()
    assert (refined / "tiny-F32.gguf").read_bytes() == (rounded / "tiny-F32.gguf").read_bytes()


def test_scales_are_folded_into_what_feeds_each_input(refined: Path, rounded: Path) -> None:
    """Norms differ from the checkpoint's, and their product with the weights does not."""
    exact, found = values(rounded / "tiny-F32.gguf"), values(refined / "tiny-Q4_K_M.gguf")
    norm, weight = "blk.0.attn_norm.weight", "blk.0.attn_gate.weight"
    assert not np.allclose(found[norm], exact[norm])
    product, expected = found[norm] * found[weight], exact[norm] * exact[weight]
    assert np.linalg.norm(product - expected) < 0.1 * np.linalg.norm(expected)
    unfolded = found[weight] * (found[norm] / exact[norm])
    assert np.linalg.norm(unfolded - exact[weight]) < 0.9 * np.linalg.norm(found[weight] - exact[weight])


def test_what_was_written_is_recorded(refined: Path) -> None:
    record = json.loads((refined / "quantkit.json").read_text())
    assert record["format"] == "gguf" and record["calibration"]["samples"] == 12
    assert set(record["files"]) == {"tiny-Q4_K_M.gguf", "tiny-F32.gguf", "mmproj-tiny-F16.gguf"}
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(refined / "tiny-Q4_K_M.gguf").tensors}
    layers = {row["name"]: row["type"] for row in record["layers"]}
    assert layers == {name: kind for name, kind in types.items() if kind not in ("F32", "F16")}
    assert all(0 < row["error"] < 0.1 for row in record["layers"] if row["name"] != "token_embd.weight")
    assert str(refined.parent) not in (refined / "quantkit.json").read_text()


def test_a_matrix_of_ours_gives_what_the_statistics_gave(small_calibration: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    found = collect_imatrix(ImatrixOptions(out=matrix, calib=(str(small_calibration),), samples=12, no_cache=True))
    assert found.samples == 12 and found.tensors == 31
    direct = write(tmp_path / "direct", small_calibration, solver="imatrix", scales=False, mmproj_type="none")
    read = write(tmp_path / "read", solver="imatrix", imatrix=matrix, mmproj_type="none")
    assert (direct / "tiny-Q4_K_M.gguf").read_bytes() == (read / "tiny-Q4_K_M.gguf").read_bytes()
    plain = write(tmp_path / "plain", mmproj_type="none")
    assert (direct / "tiny-Q4_K_M.gguf").read_bytes() != (plain / "tiny-Q4_K_M.gguf").read_bytes()
    record = json.loads((read / "quantkit.json").read_text())
    assert record["imatrix"]["name"] == "imatrix.gguf" and record["calibration"]["samples"] == 0


def test_statistics_follow_columns_that_move(other_shape: Path, small_calibration: Path, tmp_path: Path) -> None:
    """With two value heads a key head `ssm_out` has its columns in another order, as importance and Gram matrix."""
    data: dict[str, Any] = {
        "model": str(other_shape),
        "calib": (str(small_calibration),),
        "samples": 6,
        "no_cache": True,
    }
    matrix, stats = tmp_path / "m.gguf", tmp_path / "stats"
    collect_imatrix(ImatrixOptions(out=matrix, save_stats=stats, **data))
    found = read_imatrix(matrix).sums["blk.1.ssm_out.weight"]
    gram = _ssm_out_gram(other_shape, stats, data)
    heads, width = 2, gram.shape[0] // 4  # [key head, value of it] -> [value of it, key head]
    order = torch.arange(gram.shape[0]).view(heads, 2, width).transpose(0, 1).flatten()
    assert torch.equal(found, gram.diagonal()[order]) and not torch.equal(found, gram.diagonal())

    out = {}
    for name, settings in {
        "refine": {"solver": "refine"},
        "imatrix": {"solver": "imatrix"},
        "rtn": {"solver": "rtn"},
    }.items():
        given = data | {"stats": stats, "scales": False} if name != "rtn" else data
        path = write(tmp_path / name, small_calibration, **given, **settings, mmproj_type="none", name="x")
        exact = load_file(other_shape / "model.safetensors")[f"{LAYER}.linear_attn.out_proj.weight"].float()
        error = torch.from_numpy(values(path / "x-Q4_K_M.gguf")["blk.1.ssm_out.weight"].copy()) - exact[:, order]
        out[name] = float((error @ gram[order][:, order] * error).sum())
    assert out["refine"] < 0.7 * out["imatrix"] and out["imatrix"] < out["rtn"]


def _ssm_out_gram(model: Path, stats: Path, data: dict[str, Any]) -> torch.Tensor:
    checkpoint = open_checkpoint(model)
    options = ImatrixOptions(stats=stats, **data)
    found = gather(checkpoint, options, "bfloat16", lambda *_: None)
    blocks = build_map(checkpoint.config)
    source = list(Statistics(checkpoint, blocks, found, options, "bfloat16", lambda *_: None))
    assert source[1] is not None
    return source[1].inputs["mixer_out"].gram


def test_statistics_that_were_kept_serve_again(small_calibration: Path, refined: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", small_calibration, save_stats=tmp_path / "stats")
    second = write(tmp_path / "second", small_calibration, stats=tmp_path / "stats")
    for out in (first, second):
        assert (out / "tiny-Q4_K_M.gguf").read_bytes() == (refined / "tiny-Q4_K_M.gguf").read_bytes()


def test_splits_hold_the_same_tensors(rounded: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "split", type=("Q4_K_M",), split_max_size="800KB")
    names = sorted(path.name for path in out.glob("tiny-*.gguf"))
    assert names == [f"tiny-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    whole, parts = GgufFile(rounded / "tiny-Q4_K_M.gguf"), GgufFile(out / names[0])
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(np.array_equal(whole.raw(name), parts.raw(name)) for name in whole.tensors)
    assert all((out / name).stat().st_size <= 800_000 for name in names)
    assert names[0] in (out / "Modelfile").read_text()


def test_large_tables_are_written_piece_by_piece(
    rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.gguf.quantize._ROWS", 256 * 100)
    out = write(tmp_path / "pieces")
    assert (out / "tiny-Q4_K_M.gguf").read_bytes() == (rounded / "tiny-Q4_K_M.gguf").read_bytes()


def test_overrides_and_presets(tmp_path: Path) -> None:
    out = write(
        tmp_path / "mixed", preset="linear-attention", tensor_type=(r"ffn_down=q5_k", r"blk\.0\.ffn_up=F16"),
        token_embedding_type="Q8_0",
    )  # fmt: skip
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out / "tiny-Q4_K_M.gguf").tensors}
    assert {types[f"blk.{layer}.ffn_down.weight"] for layer in range(4)} == {"Q5_K"}
    assert types["blk.0.ffn_up.weight"] == "F16" and types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.ssm_out.weight"] == types["blk.1.attn_qkv.weight"] == types["blk.2.attn_gate.weight"] == "Q8_0"
    assert types["blk.3.attn_q.weight"] == "Q4_K"


# ---- the command line -----------------------------------------------------------------------------------------------


def test_the_command_writes_and_says_what(run: Run, tmp_path: Path) -> None:
    code, output, errors = run("gguf", "-t", "Q4_K_M", "-t", "Q8_0", "--solver", "rtn", "--out", tmp_path / "out")
    assert code == 0, errors
    for name in ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-tiny-F16.gguf"):
        assert name in output and (tmp_path / "out" / name).exists()
    assert f"next: quantkit verify tiny {tmp_path / 'out' / 'tiny-Q4_K_M.gguf'}" in output.replace("\n", "")


def test_a_dry_run_names_the_sizes_and_writes_nothing(run: Run, rounded: Path, tmp_path: Path) -> None:
    code, output, _ = run("gguf", "--dry-run", "--out", tmp_path / "out")
    assert code == 0 and not (tmp_path / "out").exists()
    size = (rounded / "tiny-Q4_K_M.gguf").stat().st_size
    assert f"{size / 1e6:.1f} MB" in output and "calibrates first" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "Q4_X"], ["--type Q4_X", "Q4_K_M"]),
        (["--tensor-type", "no_such=Q8_0"], ["no_such", "matches no tensor"]),
        (["--tensor-type", "ssm_out"], ["PATTERN=TYPE"]),
        (["--tensor-type", "ssm_out=Q9"], ["Q9"]),
        (["--mmproj-type", "q4_0"], ["--mmproj-type", "q8_0"]),
        (["--imatrix", "none.gguf"], ["none.gguf", "no file"]),
        (["--imatrix", "x.gguf", "--solver", "rtn"], ["--imatrix"]),
        (["--imatrix", "x.gguf", "--save-stats", "s"], ["--stats"]),
        (["--imatrix", "x.gguf", "-t", "F16"], ["--imatrix", "integers"]),
        (["--solver", "rtn", "--stats", "s"], ["--solver rtn"]),
        (["--name", "mmproj-x"], ["--name"]),
        (["--split-max-size", "many"], ["--split-max-size"]),
        (["--name", "a/b"], ["--name"]),
        (["--model", "missing-folder/x/y"], ["missing-folder"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("gguf", *arguments, "--out", tmp_path / "out")
    assert code == 2 and errors.strip().startswith("error: ") and errors.strip().count("\n") == 0
    assert all(word in errors for word in words), errors
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    from quantkit.gguf.imatrix import Imatrix, write_imatrix

    write_imatrix(tmp_path / "other.gguf", Imatrix({"blk.0.ffn_up.weight": torch.ones(64)}, {"blk.0.ffn_up.weight": 3}))
    code, _, errors = run("gguf", "--imatrix", tmp_path / "other.gguf", "--out", tmp_path / "out")
    assert code == 2 and "seems to be of a model" in errors
    assert not (tmp_path / "out").exists()


def test_weights_beyond_float16_are_named(run: Run, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(tiny_folder(), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = 1e6
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model" / "SHA256SUMS").unlink(missing_ok=True)
    code, _, errors = run("gguf", "-m", tmp_path / "model", "-t", "F16", "--out", tmp_path / "out")
    assert code == 2 and "blk.0.ffn_up.weight" in errors and "float16" in errors
    assert not (tmp_path / "out").exists()


def test_the_imatrix_command(run: Run, small_calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    code, output, errors = run("imatrix", "--calib", small_calibration, "--samples", 3, "--out", out)
    assert code == 0, errors
    assert out.exists() and "31" in output
    code, _, errors = run("imatrix", "--calib", small_calibration, "--out", out)
    assert code == 2 and "is there already" in errors


def test_a_folder_of_other_models_is_not_replaced(run: Run, rounded: Path, tmp_path: Path) -> None:
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "llama-3-70b-Q4.gguf").write_bytes(b"x")
    code, _, errors = run("gguf", "--solver", "rtn", "--out", tmp_path / "ggufs", "--overwrite")
    assert code == 2 and "holds no model" in errors
    assert (tmp_path / "ggufs" / "llama-3-70b-Q4.gguf").read_bytes() == b"x"
    (tmp_path / "ggufs" / "quantkit.json").write_text("{}")
    code, _, errors = run("gguf", "--solver", "rtn", "--out", tmp_path / "ggufs", "--overwrite")
    assert code == 0, errors
    assert not (tmp_path / "ggufs" / "llama-3-70b-Q4.gguf").exists()


def test_the_matrix_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quantkit.json").write_text("{}")
    (tmp_path / "out" / "m.gguf").write_bytes(b"x")
    matrix = tmp_path / "out" / "m.gguf"
    code, _, errors = run("gguf", "--imatrix", matrix, "--out", tmp_path / "out", "--overwrite")
    assert code == 2 and "lies in --out" in errors and matrix.exists()


def test_a_template_that_ollama_cannot_follow_is_a_note(run: Run, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_folder(), tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink(missing_ok=True)
    template = tmp_path / "model" / "chat_template.jinja"
    for start in ("{{ 'Now: ' ~ (messages|length) }}", "{{ 1 // 0 }}"):
        template.write_text(start + (tiny_folder() / "chat_template.jinja").read_text())
        out = tmp_path / f"out{len(start)}"
        code, output, errors = run("gguf", "-m", tmp_path / "model", "--solver", "rtn", "--out", out)
        assert code == 0, errors
        assert "no Modelfile" in output and not list(out.glob("Modelfile*")) and list(out.glob("*Q4_K_M.gguf"))


def test_what_was_not_done_is_not_recorded(rounded: Path) -> None:
    options = json.loads((rounded / "quantkit.json").read_text())["recipe"]
    assert options["solver"] == "rtn" and not {"samples", "calib", "scales", "keep", "dtype"} & set(options)
