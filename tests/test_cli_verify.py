"""`quantkit verify` and `quantkit compare` at the command line: files, exit codes, gates, one-line errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from processes import refused

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantkit.quantize import quantize
    from quantkit.recipe import QuantizeOptions

    out = tmp_path_factory.mktemp("made") / "made"
    quantize(QuantizeOptions(method="rtn", model=str(random_checkpoint), out=out))
    return out


@pytest.fixture
def variant(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "variant"))


@pytest.fixture
def checked(run: Run, random_checkpoint: Path, small_calibration: Path) -> Run:
    """`quantkit verify` with few items."""

    def command(candidate: object, *more: object) -> tuple[int, str, str]:
        common = ("--data", small_calibration, "--samples", 6, "--max-new-tokens", 4)
        return run("verify", random_checkpoint, candidate, *common, *more)

    return command


def test_writes_three_reports(checked: Run, variant: Path, tmp_path: Path) -> None:
    code, text, _ = checked(variant)
    assert code == 0
    for word in ("KL mean", "floor: ", "checked: ", "bits a weight", "MEASURED"):
        assert word in text, word
    report = json.loads((variant / "report.json").read_text())
    assert report["schema_version"] == "2" and report["data"]["items"] == 6
    assert report["engines"][0]["groups"][0]["text"]["kl_mean"]["value"] > 0
    assert (variant / "report.md").read_text().startswith("#")
    assert (variant / "report.html").read_text().startswith("<!")
    # a report is no part of the checkpoint: the files are still in order
    assert checked(variant, "--quick", "--report", tmp_path / "again")[0] == 0


def test_a_quick_check_keeps_what_was_measured(checked: Run, variant: Path, tmp_path: Path) -> None:
    assert checked(variant)[0] == 0
    before = {path.name: path.read_bytes() for path in variant.glob("report.*")}
    code, text, _ = checked(variant, "--quick", "--junit", tmp_path / "x.xml")
    assert code == 0 and "kept, it has what was measured" in text and (tmp_path / "x.xml").exists()
    assert {path.name: path.read_bytes() for path in variant.glob("report.*")} == before
    (variant / "report.json").unlink()
    assert checked(variant, "--quick")[0] == 0 and (variant / "report.json").exists()


def test_swapped_models_are_told(run: Run, variant: Path, random_checkpoint: Path) -> None:
    code, _, errors = run("verify", variant, random_checkpoint, "--quick")
    assert code == 2 and "name the unquantized one first" in errors


def test_the_second_run_takes_the_reference_from_the_cache(checked: Run, variant: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert "kept in the cache" in checked(variant, "--cache", cache)[1]
    first = json.loads((variant / "report.json").read_text())
    assert "taken from the cache" in checked(variant, "--cache", cache)[1]
    second = json.loads((variant / "report.json").read_text())
    assert first["engines"] == second["engines"] and first["noise_floor"] == second["noise_floor"]
    assert "cache" not in checked(variant, "--no-cache")[1]


def test_gates(checked: Run, variant: Path, tmp_path: Path) -> None:
    code, text, _ = checked(variant, "--max-kl", 100, "--max-kl", "image=1e-9", "--junit", tmp_path / "gates.xml")
    assert code == 3
    lines = [line for line in text.splitlines() if line.startswith("gate:")]
    assert len(lines) == 1 and "max_kl on image" in lines[0]
    assert "FAIL 1 of 2 gates missed" in text
    suites = ElementTree.parse(tmp_path / "gates.xml").getroot()
    assert len(list(suites.iter("failure"))) == 1
    code, text, _ = checked(variant, "--max-kl", 100)
    assert code == 0 and "PASS" in text


def test_gates_of_a_recipe(checked: Run, variant: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gates.yaml"
    recipe.write_text("gates:\n  max_kl: 1e-9\n  min_top1: {all: 0, en: 0}\n")
    assert checked(variant, "--recipe", recipe)[0] == 3
    assert checked(variant, "--recipe", recipe, "--max-kl", 100)[0] == 0, "the command line comes first"
    for text, word in (
        ("gates:\n  max_kll: 1\n", "max_kll"),
        ("gates:\n  max_kl: no\n", "no number"),
        ("x: 1\n", "gates"),
    ):
        recipe.write_text(text)
        refused(checked(variant, "--recipe", recipe), "gates.yaml", word)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--engine", "magic"), "magic"),
        (("--max-kl", "much"), "--max-kl"),
        (("--max-kl", "-1"), "max_kl"),
        (("--min-top1", "99"), "min_top1"),
        (("--dtype", "float16"), "float16"),
        (("--data", "nowhere"), "nowhere"),
        (("--downsample-mode", "8x"), "8x"),
        (("--recipe", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_bad_options(checked: Run, variant: Path, options: tuple[str, ...], word: str) -> None:
    before = sorted(path.name for path in variant.iterdir())
    refused(checked(variant, *options), word)
    assert sorted(path.name for path in variant.iterdir()) == before


def test_an_engine_that_cannot_be_had_is_not_run_and_keeps_no_gate(checked: Run, variant: Path) -> None:
    code, text, _ = checked(variant, "--engine", "sglang")
    assert code == 0 and "not run:" in text and "running server" in text
    assert json.loads((variant / "report.json").read_text())["engines"][0]["status"] == "not run"
    code, text, _ = checked(variant, "--engine", "dequantized", "--engine", "sglang", "--max-kl", 100)
    assert code == 3 and "not run" in text


def test_a_damaged_file_fails_quickly(run: Run, variant: Path, random_checkpoint: Path) -> None:
    config = json.loads((variant / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 1
    (variant / "config.json").write_text(json.dumps(config))
    code, text, _ = run("verify", random_checkpoint, variant, "--quick")
    assert code == 3 and "rope_theta" in text


def test_compare(run: Run, checked: Run, variant: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(variant, tmp_path / "other"))
    assert checked(variant)[0] == 0 and checked(other)[0] == 0
    page = tmp_path / "page.html"
    code, text, _ = run("compare", variant, other / "report.json", "--out", page)
    assert code == 0 and "variant" in text and "other" in text
    assert page.read_text().count("<svg") >= 1
    refused(run("compare", variant), "two reports")
    refused(run("compare", variant, variant), "twice")
    refused(run("compare", variant, tmp_path), "report.json")
    report = json.loads((other / "report.json").read_text())
    report["data"]["fingerprint"] = "0"
    (other / "report.json").write_text(json.dumps(report))
    page.unlink()
    refused(run("compare", variant, other, "--out", page), "compare")
    assert not page.exists()
    assert run("compare", variant, other, "--out", page, "--allow-mixed")[0] == 0
    report["data"]["strange"] = 1
    (other / "report.json").write_text(json.dumps(report))
    refused(run("compare", variant, other), "data.strange")


def test_a_report_that_cannot_be_written(checked: Run, variant: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(checked(variant, "--report", tmp_path / "file" / "x"), "--report")
