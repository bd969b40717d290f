"""The command line as a user meets it: what it prints, its exit codes, and what bad input leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import heed_signals, refused
from safetensors.torch import load_file, save_file

from quantkit.output import ShardWriter

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    folder = tmp_path / "source"
    shutil.copytree(random_checkpoint, folder)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    return folder


def _set(folder: Path, name: str, index: int, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[index] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_main_job(run: Run, random_checkpoint: Path, small_calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    code, text, _ = run("awq", "--model", random_checkpoint, "--calib", small_calibration, "--samples", 4, "--out", out)
    assert code == 0
    assert "mlp.down_proj" in text and "calibrated on 4 conversations" in text
    assert f"next: quantkit verify {random_checkpoint} {out}" in text
    code, _, _ = run("awq", "--model", out, "--out", tmp_path / "twice")
    assert code == 2 and not (tmp_path / "twice").exists()


def test_dry_run_loads_nothing_and_writes_nothing(
    run: Run, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a dry run must load no weight")

    monkeypatch.setattr("quantkit.checkpoint.Checkpoint.load", fail)
    monkeypatch.chdir(tmp_path)
    code, text, _ = run("awq", "--model", random_checkpoint, "--dry-run", "--keep", "layers.3.self_attn.q_proj")
    assert code == 0
    for word in ("linear_attn.in_proj_qkv", "768 x 256", "memory", "at the peak", "also kept", "bfloat16"):
        assert word in text, word
    assert list(tmp_path.iterdir()) == []


def test_dry_run_knows_the_size_to_the_byte(run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    from quantkit.checkpoint import open_checkpoint
    from quantkit.plan import make_plan
    from quantkit.recipe import QuantizeOptions

    plan = make_plan(open_checkpoint(random_checkpoint), QuantizeOptions(model=str(random_checkpoint)))
    assert run("rtn", "--model", random_checkpoint, "--out", tmp_path / "x")[0] == 0
    assert open_checkpoint(tmp_path / "x").total_bytes == plan.bytes_after


def test_not_a_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    refused(run("awq", "--model", tmp_path / "empty", "--out", out), "config.json")
    refused(run("awq", "--model", tmp_path / "nowhere", "--out", out), "nowhere")
    refused(run("awq", "--model", "nonsense", "--out", out), "nonsense", "tiny")
    assert not out.exists()


def test_another_architecture(run: Run, copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (copy / "config.json").write_text(json.dumps(config))
    refused(
        run("awq", "--model", copy, "--out", tmp_path / "out"),
        "Qwen3ForCausalLM",
        "MiniCPMV4_6ForConditionalGeneration",
    )


def test_truncated_weights(run: Run, copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(run("awq", "--model", copy, "--out", tmp_path / "out"), "model.safetensors")


def test_flipped_bit_under_a_checksum(run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(random_checkpoint, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-5] ^= 4
    (copy / "model.safetensors").write_bytes(weights)
    refused(run("awq", "--model", copy, "--out", tmp_path / "out"), "model.safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_side_file(run: Run, copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    refused(run("awq", "--model", copy, "--out", tmp_path / "out"), name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.language_model.layers.2.mlp.up_proj.weight", "model.merger.mlp.0.linear_1.weight"]
)
def test_weight_that_is_not_finite(
    run: Run, copy: Path, tmp_path: Path, small_calibration: Path, name: str, value: float
) -> None:
    _set(copy, name, 7, value)
    result = run("awq", "--model", copy, "--calib", small_calibration, "--samples", 3, "--out", tmp_path / "out")
    refused(result, name)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_activation_that_is_not_finite(run: Run, copy: Path, tmp_path: Path, small_calibration: Path) -> None:
    """A weight of 3e38 is finite; what it multiplies is not."""
    _set(copy, "model.language_model.layers.1.post_attention_layernorm.weight", 3, 3e38)
    result = run("awq", "--model", copy, "--calib", small_calibration, "--samples", 3, "--out", tmp_path / "out")
    refused(result, "layers.1", "sample c")


def test_already_quantized(run: Run, copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    refused(run("awq", "--model", copy, "--out", tmp_path / "out"), "already quantized", "gptq")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--group-size", "100", ("--group-size 100", "in_proj_qkv")),
        ("--group-size", "0", ("--group-size 0",)),
        ("--bits", "3", ("--bits 3", "4 bits only")),
        ("--keep", "no_such_layer", ("--keep 'no_such_layer'",)),
        ("--keep", "proj", ("--keep leaves no linear",)),
        ("--downsample-mode", "8x", ("--downsample-mode '8x'", "16x")),
        ("--dtype", "int8", ("--dtype 'int8'",)),
        ("--device", "cuda:99", ("--device cuda:99",)),
        ("--max-shard-size", "5", ("--max-shard-size '5'", "5GB")),
        ("--calib", "no-such-folder", ("no-such-folder",)),
        ("--stats", "no-such-stats", ("no-such-stats",)),
        ("--max-tokens", "3", ("no calibration tokens", "max_tokens")),
    ],
)
def test_bad_options(
    run: Run, random_checkpoint: Path, small_calibration: Path, tmp_path: Path, option: str, value: str,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    arguments = ["--calib", small_calibration, "--samples", 3, option, value]
    refused(run("awq", "--model", random_checkpoint, "--out", tmp_path / "out", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_calibration_set(run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/manifest.jsonl").write_text("")
    result = run("awq", "--model", random_checkpoint, "--calib", tmp_path / "empty", "--out", tmp_path / "out")
    refused(result, "empty")


def test_existing_target_is_refused_before_any_work(run: Run, random_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("text")
    refused(run("rtn", "--model", random_checkpoint, "--out", out), "--overwrite")
    refused(run("rtn", "--model", random_checkpoint, "--out", out, "--overwrite"), "holds no model")
    assert (out / "precious").read_text() == "text"


def test_full_disk(run: Run, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", full)
    refused(run("rtn", "--model", random_checkpoint, "--out", tmp_path / "out"), "out", "space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle(
    random_checkpoint: Path, small_calibration: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A real process, stopped once it writes: the old target stays whole, and a new run clears what SIGKILL left."""
    out = tmp_path / "out"
    shutil.copytree(random_checkpoint, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    command = [sys.executable, "-m", "quantkit", "awq", "--model", str(random_checkpoint), "--overwrite"]
    command += ["--calib", str(small_calibration), "--samples", "8", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True, preexec_fn=heed_signals
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".out.partial-*/model.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    left = list(tmp_path.glob(".out.*"))
    assert bool(left) == (number == signal.SIGKILL)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "interrupted" in err
    if left:
        assert subprocess.run([*command[:3], "rtn", *command[4:7], "--out", str(out)], env=environment).returncode == 0
        assert not list(tmp_path.glob(".out.*"))
        assert "quantization_config" in json.loads((out / "config.json").read_text())


def test_usage_errors_and_version(run: Run) -> None:
    code, _, err = run("awq", "--no-such-option")
    assert code == 2 and "--no-such-option" in err
    code, _, err = run("awq", "--bits", "four")
    assert code == 2 and "--bits" in err
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("quantkit ")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_what_torch_stumbles_over_while_it_unwinds_is_still_a_stop(
    run: Run, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int
) -> None:
    """Ctrl-C, and SIGTERM while files are written."""

    def broken(*_: object) -> None:
        try:
            raise stop
        finally:
            raise AssertionError("torch's own mode stack")

    monkeypatch.setattr("quantkit.cli.quantize.run_quantize", broken)
    found, _, err = run("awq")
    assert found == code and ("interrupted" in err) == (code == 130)


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("quantkit.cli.quantize.run_quantize", broken)
    with pytest.raises(ZeroDivisionError):
        run("awq")


def test_default_is_tiny(run: Run) -> None:
    code, text, _ = run("awq", "--dry-run")
    assert code == 0 and text.startswith("tiny: what awq would quantize") and "would write tiny-AWQ" in text
