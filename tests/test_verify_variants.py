"""The whole harness on good and damaged variants: no alarm on ten good ones, exit code 3 and a name on faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import FAULTS
from safetensors.torch import load_file, save_file
from test_integrity import GOOD

from quantkit.calibration import build_from
from quantkit.calibration.export import write_parquet
from quantkit.calibration.originals import originals
from quantkit.calibration.sources import parse_source
from quantkit.quantize import quantize
from quantkit.recipe import CalibrationOptions, QuantizeOptions
from quantkit.source import tiny_folder
from quantkit.verify import Gate, verify

ITEMS = 8
TEN = list(GOOD)[:10]
LINEAR = "model.language_model.layers.1.mlp.down_proj"
Variants = Callable[[str], Path]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    folder = tmp_path_factory.mktemp("good")
    stats = folder / "stats"

    def make(name: str) -> Path:
        out = folder / name.replace(" ", "-").replace(",", "")
        options = {"model": "tiny", "out": out, "samples": 12} | GOOD[name]
        if options.get("method") != "rtn" and "dtype" not in options:
            options |= {"stats": stats} if stats.exists() else {"save_stats": stats}
        if not out.exists():
            quantize(QuantizeOptions(**options))
        return out

    return make


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", TEN)
def test_ten_good_variants_raise_no_alarm(variants: Variants, cache: Path, name: str) -> None:
    report = verify("tiny", variants(name), samples=ITEMS, cache=cache, max_new_tokens=16)
    assert (report.verdict.status, report.alarms, report.integrity) == ("measured", [], [])
    group = report.group()
    assert group is not None and group.answer is not None and group.generation is not None
    assert 0 < group.answer.kl_mean.value < 0.1
    assert report.data is not None and report.data.overlap == ("none" if "rtn" not in name[:4] else report.data.overlap)
    assert max(row.error for row in report.engine().layers if row.kind in ("vision", "merger")) == 0
    blocks = [row.error for row in report.engine().layers if row.kind == "block"]
    assert len(blocks) == 4 and all(0 < error < 0.5 for error in blocks)


# what a run says of a fault that is planted in the file; every fault is held against the checks in test_integrity
@pytest.mark.parametrize("fault", FAULTS[::9], ids=lambda fault: fault.name)
def test_a_damaged_variant_fails_and_is_named(variants: Variants, tmp_path: Path, cache: Path, fault) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(variants("default"), tmp_path / "damaged"))
    fault.plant(folder, tiny_folder())
    report = verify("tiny", folder, samples=8, cache=cache, max_new_tokens=8)
    assert report.verdict.status == "fail"
    assert any(fault.check in line for line in report.verdict.lines), report.verdict.lines


def test_forward_figures_alone_show_a_damaged_linear(variants: Variants, tmp_path: Path, cache: Path) -> None:
    folder = Path(shutil.copytree(variants("default"), tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    name = f"{LINEAR}.qweight"
    tensors[name] = tensors[name].roll(1, dims=0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "SHA256SUMS").unlink()
    good = verify("tiny", variants("default"), samples=ITEMS, cache=cache, generate=False)
    report = verify("tiny", folder, samples=ITEMS, cache=cache, generate=False, gates=(Gate("max_kl", 0.02),))
    bad_kl, good_kl = (one.group().answer.kl_mean for one in (report, good))  # type: ignore[union-attr]
    assert bad_kl.value > 5 * good_kl.value
    assert not report.gates[0].passed
    worst = max((row for row in report.engine().layers if row.kind == "linear"), key=lambda row: row.error)
    assert worst.name == LINEAR


def test_items_that_were_calibrated_on_are_named(variants: Variants, tmp_path: Path, cache: Path) -> None:
    good = variants("default")
    rows = json.loads((good / "quantkit.json").read_text())["calibration"]
    assert len(rows["items"]) == 12 and rows["pictures"]
    used = build_from(CalibrationOptions(samples=12, no_cache=True), tiny_folder())
    write_parquet(originals(used, [parse_source("bundled")]), tmp_path / "used.parquet", {})
    report = verify("tiny", good, str(tmp_path / "used.parquet"), samples=ITEMS, cache=cache, generate=False)
    assert report.data is not None and report.data.overlap == "found"
    assert [alarm.check for alarm in report.alarms] == ["overlap"]
    assert report.verdict.status == "fail" and report.data.overlapping[0] in report.verdict.lines[0]
