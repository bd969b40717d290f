"""Rows of a sweep from what quantizing and verifying leave in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_samples

from quantkit.errors import QuantkitError
from quantkit.report.sweep import Estimate, row_of, unfinished
from quantkit.verify.report import Report

MADE = {
    "quantkit": "0.1.0",
    "recipe": {"method": "gptq", "bits": 3, "group_size": 64, "seed": 2, "keep": ["lm_head"], "samples": 24},
    "format": "gptq",
    "calibration": {"fingerprint": "c9", "samples": 24},
    "layers": [
        {"name": "model.language_model.layers.0.mlp.up_proj", "bits": 3, "error": 0.0125, "scaled_by": ""},
        {"name": "model.language_model.layers.0.mlp.down_proj", "bits": 3, "error": None, "scaled_by": ""},
    ],
}


def folder_of(place: Path, made: dict[str, Any] | None = None, report: Report | None = None) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "quantkit.json").write_text(json.dumps(MADE if made is None else made))
    (report or report_samples.sample()).save(place / "report.json")
    return place


def test_a_row_holds_what_the_files_say(tmp_path: Path) -> None:
    report = report_samples.sample()
    folder = folder_of(tmp_path / "variants" / "w3", report=report)
    (folder / "report.html").write_text("")
    row = row_of(folder, root=tmp_path, seconds={"search": 5.0}, peak_bytes=77)
    assert (row.name, row.method, row.status, row.why) == ("w3", "gptq", "done", None)
    assert row.axes == {"bits": 3, "group_size": 64, "seed": 2, "keep": ("lm_head",), "samples": 24}
    assert row.bytes == report.candidate.bytes and row.bits_per_quantized_weight == 4.16
    assert row.bits_per_weight == pytest.approx(8 * report.candidate.bytes / report.candidate.parameters)
    assert row.seconds == {"search": 5.0, "verify": round(sum(report.seconds.values()), 3)} and row.peak_bytes == 77
    assert row.engine == "dequantized" and row.verdict == "pass" and row.noise == 2.1e-5 and row.positions == "answer"
    assert row.report == "variants/w3/report.html" and row.fingerprint == report.candidate.fingerprint
    assert row.layers == {"model.language_model.layers.0.mlp.up_proj": 0.0125}
    linears = [entry for entry in report.engines[0].layers if entry.kind == "linear"]
    assert row.outputs == {entry.name: entry.error for entry in linears} and len(linears) > 100
    assert list(row.figures) == ["all", "text", "image", "images", "video"]
    for name, found in row.figures.items():
        group = report.group("all" if name == "all" else "modality", name)
        assert group is not None and group.answer and group.text and group.accuracy and group.generation
        assert found.items == group.items
        assert found.kl == Estimate(*(getattr(group.answer.kl_mean, end) for end in ("value", "low", "high")))
        assert found.kl_p99 and found.kl_p99.high == group.answer.kl_p99.high
        assert found.kl_text and found.kl_text.value == group.text.kl_mean.value
        assert found.top1 and found.top1.low == group.answer.top1.low
        assert found.accuracy and found.accuracy.value == group.accuracy.difference.value
        assert (found.reference_accuracy, found.candidate_accuracy) == (
            group.accuracy.reference,
            group.accuracy.candidate,
        )
        assert found.same and found.same.value == group.generation.same.value
    assert row.measured["reference"] == report.reference.name and row.measured["option dtype"] == "float32"


def test_name_axes_and_report_may_be_given(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "v")
    (tmp_path / "elsewhere").mkdir()
    report_samples.sample().save(tmp_path / "elsewhere")
    row = row_of(folder, root=folder, name="n", axes={"bits": 3}, report=tmp_path / "elsewhere")
    assert row.name == "n" and row.axes == {"bits": 3} and row.report is None  # not within the sweep's folder
    assert row_of(folder).report == "report.json"


def test_without_answers_all_text_is_the_headline(tmp_path: Path) -> None:
    row = row_of(folder_of(tmp_path, report=report_samples.bare()))
    assert row.positions == "text" and row.figures["all"].kl == row.figures["all"].kl_text == Estimate(0.0, 0.0, 0.0)
    assert row.figures["all"].accuracy is None and row.figures["all"].same is None and row.noise is None


def test_text_of_an_engine_that_scores_answers_alone_is_not_all_text(tmp_path: Path) -> None:
    content = report_samples.content()
    for group in content["engines"][0]["groups"]:
        group["prompt"], group["text"] = None, group["answer"]
    row = row_of(folder_of(tmp_path, report=Report.model_validate(content)))
    assert row.figures["all"].kl is not None and row.figures["all"].kl_text is None


def test_calibration_is_no_axis_where_no_data_was_looked_at(tmp_path: Path) -> None:
    options = {"method": "rtn", "bits": 4, "samples": 128, "calib": ["bundled"], "revision": None}
    row = row_of(folder_of(tmp_path, {**MADE, "recipe": options, "calibration": {"fingerprint": None}}))
    assert row.axes == {"bits": 4, "revision": None} and row.method == "rtn"


def test_a_variant_that_no_engine_could_run_failed(tmp_path: Path) -> None:
    engine = {"name": "vllm", "status": "not run", "why": "no such kernel"}
    row = row_of(folder_of(tmp_path / "a", report=report_samples.sample(engines=[engine])))
    assert row.status == "failed" and row.why == "vllm: no such kernel" and row.bytes and row.figures == {}
    quick = row_of(folder_of(tmp_path / "b", report=report_samples.quick()))
    assert quick.status == "done" and quick.figures == {}
    verdict = {"status": "fail", "headline": "model.safetensors is cut short", "lines": []}
    cut = report_samples.quick().model_copy(update={"verdict": report_samples.sample(verdict=verdict).verdict})
    assert row_of(folder_of(tmp_path / "c", report=cut)).why == "model.safetensors is cut short"


GGUF = {
    "recipe": {"type": ["Q4_K_M", "Q2_K"], "solver": "refine", "name": None},
    "format": "gguf",
    "calibration": {"fingerprint": "c9"},
    "files": {
        "m-Q4_K_M-00001-of-00002.gguf": {"type": "Q4_K_M"},
        "m-Q4_K_M-00002-of-00002.gguf": {"type": "Q4_K_M"},
        "m-Q2_K.gguf": {"type": "Q2_K"},
        "mmproj-m-F16.gguf": {"type": "F16"},
        "mmproj-m-4x-F16.gguf": {"type": "F16"},
    },
    "layers": [
        {"file": "Q4_K_M", "name": "blk.0.ffn_up.weight", "type": "Q4_K", "error": 0.001},
        {"file": "Q2_K", "name": "blk.0.ffn_up.weight", "type": "Q2_K", "error": 0.02},
        {"file": "Q2_K", "name": "token_embd.weight", "type": "Q6_K", "error": None},
    ],
}


def test_a_gguf_row_is_of_the_file_that_was_measured(tmp_path: Path) -> None:
    def measured(name: str) -> Report:
        report = report_samples.sample()
        return report.model_copy(update={"candidate": report.candidate.model_copy(update={"name": name})})

    folder = folder_of(tmp_path, GGUF, measured("m-Q2_K.gguf"))
    row = row_of(folder)
    assert row.method == "gguf" and row.axes["type"] == "Q2_K" and row.layers == {"blk.0.ffn_up": 0.02}
    assert row.bytes == report_samples.sample().candidate.bytes  # the files themselves are gone
    for index, name in enumerate(GGUF["files"]):  # type: ignore[arg-type]
        (folder / name).write_bytes(b"x" * 10**index)
    assert row_of(folder).bytes == 100 + 1000  # the text file and one vision file
    measured("m-Q4_K_M-00001-of-00002.gguf").save(folder)
    row = row_of(folder)
    assert row.axes["type"] == "Q4_K_M" and row.bytes == 1 + 10 + 1000 and row.layers == {"blk.0.ffn_up": 0.001}
    measured("folder").save(folder)
    with pytest.raises(QuantkitError, match="holds Q2_K, Q4_K_M; verify one of its files"):
        row_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("quantkit.json", None, "quantkit.json: cannot be read .*quantize the variant first"),
        ("quantkit.json", "{", "quantkit.json: no valid JSON"),
        ("quantkit.json", "[]", "quantkit.json: no file of quantkit's"),
        ("report.json", None, "report.json: cannot be read .*run quantkit verify first"),
        ("report.json", "{}", "report.json: report schema"),
    ],
)
def test_what_is_missing_or_broken_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = folder_of(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(QuantkitError, match=message):
        row_of(folder)


def test_a_cell_without_figures() -> None:
    row = unfinished("a", "awq", "no memory", axes={"bits": 4}, seconds={"search": 2.5})
    assert (row.status, row.why, row.total_seconds, row.overall().kl) == ("failed", "no memory", 2.5, None)
    assert unfinished("b", "awq", "stopped", status="not run").status == "not run"


def test_a_real_variant(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "tiny-rtn"
    assert run("rtn", "--model", "tiny", "--out", folder)[0] == 0
    code, _, errors = run("verify", "tiny", folder, "--samples", 4, "--max-new-tokens", 2)
    assert code == 0, errors
    row = row_of(folder, root=tmp_path)
    assert row.status == "done" and row.method == "rtn" and row.axes["bits"] == 4 and row.layers == {}
    assert row.report == "tiny-rtn/report.html" and len(row.outputs) == 4 * 3 + 3 * 5 + 4
    assert 0 < row.figures["all"].kl.value < 1 and row.figures["image"].items >= 1  # type: ignore[union-attr]
    assert 4 < (row.bits_per_quantized_weight or 0) < 5
