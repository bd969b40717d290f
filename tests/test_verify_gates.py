"""Gates, alarms, verdict and options, on figures made by hand; the report and its published schema."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import report_samples
from write_schema import TARGET, schema_text

from quantkit.errors import QuantkitError
from quantkit.verify import ENGINES, Gate, Report, VerifyOptions, to_table
from quantkit.verify.alarms import alarms, verdict
from quantkit.verify.engines import run_engine
from quantkit.verify.gates import judge, parse, read_recipe
from quantkit.verify.report import Accuracy, EngineResult, Finding, Generation, Group, Interval, TokenSummary
from quantkit.verify.task import NotRun, Target, Task


def between(low: float, value: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def tokens(kl=(0.008, 0.01, 0.012), top1=(0.96, 0.97, 0.98)) -> TokenSummary:
    content = report_samples.tokens(0.01) | {"kl_mean": between(*kl), "top1": between(*top1)}
    return TokenSummary.model_validate(content | {"kl_p99": between(0.1, 0.2, 0.3)})


def answers(items: int = 100, **counts: int) -> Generation:
    zero = dict.fromkeys(
        [f"{what}_{side}" for what in ("loops", "empty", "unfinished") for side in ("reference", "candidate")], 0
    )
    return Generation.model_validate(
        {
            "items": items,
            "same": between(0.7, 0.8, 0.9),
            "diverged_at_median": 3,
            "diverged_at_p10": 1,
            **zero,
            **counts,
        }
    )


def accuracy(low: float, value: float, high: float) -> Accuracy:
    test = {"only_reference": 1, "only_candidate": 0, "p_value": 1.0}
    return Accuracy.model_validate(
        {"items": 9, "metrics": {}, "reference": 0.9, "candidate": 0.9, "difference": between(low, value, high)}
        | {"mcnemar": test}
    )


def group(value: str = "all", by: str = "all", **figures: object) -> Group:
    none = dict.fromkeys(("answer", "prompt", "text"))
    return Group.model_validate({"by": by, "value": value, "items": 100, "ran": 100} | none | figures)


def ran(*groups: Group, name: str = "dequantized") -> EngineResult:
    return EngineResult(name=name, status="ran", groups=list(groups))


MISSING = EngineResult(name="vllm", status="not run", why="no Python with vLLM")
FULL = group(
    answer=tokens(), text=tokens(kl=(0.5, 0.6, 0.7)), accuracy=accuracy(-0.03, -0.01, 0.01), generation=answers()
)


# ---- gates ----


@pytest.mark.parametrize(
    ("name", "pessimistic", "optimistic"),
    [
        ("max_kl", 0.012, 0.008),
        ("max_kl_p99", 0.3, 0.1),
        ("min_top1", 0.96, 0.98),
        ("max_accuracy_drop", 0.03, -0.01),
        ("min_agreement", 0.7, 0.9),
    ],
)
def test_a_gate_is_judged_on_the_pessimistic_end(name, pessimistic, optimistic):
    step = 0.001 if name.startswith("max") else -0.001
    (kept,) = judge([Gate(name, pessimistic + step)], [ran(FULL)])
    assert kept.passed and kept.value == pytest.approx(pessimistic)
    (exactly,) = judge([Gate(name, pessimistic)], [ran(FULL)])
    assert exactly.passed
    (missed,) = judge([Gate(name, pessimistic - step)], [ran(FULL)])
    assert not missed.passed
    assert missed.message.startswith(f"{name} on all (dequantized): {pessimistic:.4g}, at ")
    assert "\n" not in missed.message


def test_gates_look_at_answers_and_else_at_all_text():
    (answer,) = judge([Gate("max_kl", 0.1)], [ran(FULL)])
    (text,) = judge([Gate("max_kl", 0.1)], [ran(group(text=tokens(kl=(0.5, 0.6, 0.7))))])
    assert (answer.value, answer.passed) == (0.012, True)
    assert (text.value, text.passed) == (0.7, False)


def test_gates_for_groups():
    engine = ran(
        FULL, group("image", "modality", answer=tokens(kl=(0.02, 0.03, 0.05))), group("zh", "language", answer=tokens())
    )
    found = judge([Gate("max_kl", 0.04, "image"), Gate("max_kl", 0.04, "zh"), Gate("max_kl", 0.04, "fr")], [engine])
    assert [(one.group, one.passed) for one in found] == [("image", False), ("zh", True), ("fr", False)]
    assert "nothing to judge in group 'fr'" in found[2].message and found[2].value is None
    (no_answers,) = judge([Gate("max_accuracy_drop", 1.0, "image")], [engine])
    assert not no_answers.passed, "a figure that is not there keeps no limit"


def test_an_engine_that_was_not_run_keeps_no_limit():
    found = judge([Gate("max_kl", 1.0), Gate("min_top1", 0.0)], [ran(FULL), MISSING])
    assert [one.passed for one in found] == [True, True, False, False]
    assert found[2].message == "max_kl on all (vllm): not run: no Python with vLLM"


@pytest.mark.parametrize(
    ("name", "text", "gate"),
    [
        ("max_kl", "0.01", Gate("max_kl", 0.01)),
        ("max_kl", "image=0.01", Gate("max_kl", 0.01, "image")),
        ("min_top1", " 16x = 1e-2", Gate("min_top1", 0.01, "16x")),
    ],
)
def test_gates_of_the_command_line(name, text, gate):
    assert parse(name, text) == gate


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("max_kl", "low", "--max-kl 'low': write a number, or GROUP=NUMBER"),
        ("max_kl_p99", "image=", "--max-kl-p99 'image=': write"),
        ("max_kl", "=0.1", "--max-kl '=0.1': write"),
        ("max_kl", "", "--max-kl '': write"),
        ("max_kl", "nan", "gate max_kl: the limit must be a number from 0 up, not nan"),
        ("max_kl", "inf", "not inf"),
        ("max_kl", "-1", "not -1"),
        ("min_top1", "98", r"gate min_top1: a share from 0 to 1, not 98.0 \(1 % is 0.01\)"),
        ("min_agreement", "image=50", "a share from 0 to 1"),
        ("max_accuracy_drop", "2", "a share from 0 to 1"),
        ("max_loss", "1", "gate 'max_loss' is unknown; known are max_kl,"),
    ],
)
def test_bad_gates_are_refused_in_one_line(name, text, message):
    with pytest.raises(QuantkitError, match=message) as error:
        parse(name, text)
    assert "\n" not in str(error.value)


def test_gates_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: {name: awq}\ngates:\n  max_kl: 0.01\n  min_top1: {all: 0.98, video: 1}\n")
    assert read_recipe(recipe) == [
        Gate("max_kl", 0.01),
        Gate("min_top1", 0.98),
        Gate("min_top1", 1.0, "video"),
    ]
    for text, message in (
        ("gates:\n  max_kl: [\n", "no valid YAML"),
        ("bits: 4\n", "has no section gates"),
        ("gates: {max_loss: 1}\n", "gates.max_loss: gate 'max_loss' is unknown"),
        ("gates: {max_kl: high}\n", "gates.max_kl: 'high' is no number"),
        ("gates: {max_kl: {image: true}}\n", "gates.max_kl: True is no number"),
        ("gates: {min_top1: 98}\n", "gates.min_top1: gate min_top1: a share from 0 to 1"),
    ):
        recipe.write_text(text)
        with pytest.raises(QuantkitError, match=message) as error:
            read_recipe(recipe)
        assert str(recipe) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(QuantkitError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


# ---- alarms and the verdict ----


def names(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.where) for finding in found if finding.severity == "error"]


def test_a_ruined_model_raises_an_alarm():
    loud = ran(group(text=tokens(kl=(1.1, 2.0, 3.0))))
    other = ran(group(text=tokens(kl=(0.21, 0.3, 0.4), top1=(0.3, 0.4, 0.49))))
    assert names(alarms([loud])) == names(alarms([other])) == [("plausible", "dequantized")]
    unsure = ran(group(text=tokens(kl=(0.9, 2.0, 3.0), top1=(0.4, 0.45, 0.51))))
    swapped = ran(group(text=tokens(kl=(0.19, 0.3, 0.4), top1=(0.3, 0.4, 0.49))))
    assert alarms([unsure]) == alarms([swapped]) == [] == alarms([ran(FULL), MISSING])


def test_degenerate_answers_raise_an_alarm():
    def found(**counts: int) -> list[tuple[str, str]]:
        return names(alarms([ran(group(text=tokens(), generation=answers(**counts)))]))

    assert found(loops_candidate=6) == [("degenerate", "dequantized")]
    assert found(empty_candidate=6) == [("degenerate", "dequantized")]
    assert found(loops_candidate=5) == []
    assert found(loops_candidate=30, loops_reference=28) == [], "the reference does so too"
    assert found(items=4, empty_candidate=1) == [], "one answer may always be"
    assert found(items=4, empty_candidate=2) == [("degenerate", "dequantized")]


def test_a_kernel_that_disagrees_with_the_file_raises_an_alarm():
    file = ran(group(answer=tokens(kl=(0.008, 0.01, 0.012)), text=tokens(kl=(0.008, 0.01, 0.012))))

    def found(*kl: float, **figures: object) -> list[tuple[str, str]]:
        engine = ran(group(answer=tokens(kl=kl), text=tokens(kl=(0.2, 0.3, 0.4))), name="vllm")
        return names(alarms([file, engine]))

    assert found(0.037, 0.05, 0.06) == [("kernel", "vllm")]
    assert found(0.035, 0.05, 0.06) == []
    only_text = ran(group(text=tokens(kl=(0.037, 0.05, 0.06))), name="vllm")
    assert names(alarms([file, only_text])) == [("kernel", "vllm")]
    close = ran(group(answer=tokens(kl=(1e-5, 2e-5, 3e-5))))
    noisy = ran(group(answer=tokens(kl=(0.004, 0.0045, 0.005))), name="transformers")
    assert alarms([close, noisy]) == [], "below the floor runtimes differ by their own rounding"
    assert alarms([noisy]) == [], "no reading of the file to compare with"


def test_verdicts():
    fine, fault = ran(FULL), Finding(severity="error", check="finite", where="x.scales", message="holds NaN")
    warning = fault.model_copy(update={"severity": "warning"})
    kept, missed = judge([Gate("max_kl", 0.1), Gate("max_kl", 0.001)], [fine])
    assert verdict([], [], [], [fine], False).status == "measured"
    assert verdict([warning], [], [kept], [fine], False).status == "pass"
    found = verdict([fault], [fault], [kept, missed], [fine], False)
    assert (found.status, found.headline) == ("fail", "2 faults, 1 of 2 gates missed")
    assert found.lines == ["finite: x.scales: holds NaN"] * 2 + [missed.message]
    assert verdict([], [], [missed], [fine], False).status == "fail"
    quick = verdict([], [], [], [], True)
    assert (quick.status, quick.headline) == ("measured", "The file is in order; nothing was run")
    assert "Nothing was checked" in verdict([], [], [], [], True, checked=False).headline


def test_an_engine_that_was_not_run_never_passes_silently():
    both = verdict([], [], [], [ran(FULL), MISSING], False)
    assert (both.status, both.lines) == ("measured", ["engine vllm not run: no Python with vLLM"])
    alone = verdict([], [], [], [MISSING], False)
    assert alone.status == "measured" and "no engine ran" in alone.headline
    gated = verdict([], [], judge([Gate("max_kl", 9.0)], [ran(FULL), MISSING]), [ran(FULL), MISSING], False)
    assert gated.status == "fail"


# ---- engines and options ----


def test_engines_that_cannot_read_a_target_say_so(tmp_path):
    task = Task([], [], [], None, set(), 8, 4)
    for name in ("dequantized", "transformers"):
        with pytest.raises(NotRun, match=rf"engine '{name}' reads a folder .*; model.gguf is none") as error:
            run_engine(name, task, Target(tmp_path / "model.gguf"), lambda count: None)
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(QuantkitError, match="--engine magic: unknown"):
        run_engine("magic", task, Target(tmp_path), lambda count: None)
    assert set(ENGINES) == {"dequantized", "transformers", "vllm", "llama.cpp", "sglang", "ollama"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ("magic",)}, "--engine magic: unknown; known are dequantized, transformers, vllm"),
        ({"engines": ()}, "name at least one engine"),
        ({"engines": ("vllm", "vllm")}, "none twice"),
        ({"dtype": "int3"}, "--dtype 'int3': use bfloat16"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(QuantkitError, match=message):
        VerifyOptions(**options)


def test_what_is_recorded_of_the_options_holds_no_place_and_no_secret(tmp_path):
    places = {"cache": tmp_path, "engine_python": tmp_path / "python", "mmproj": tmp_path / "mm.gguf"}
    options = VerifyOptions(url="http://host:1/v1", api_key="sk-secret", served_name="mine", **places)
    text = json.dumps(options.recorded())
    assert not any(word in text for word in (str(tmp_path), "host", "sk-secret", "mine"))
    assert "sk-secret" not in repr(options)
    assert json.loads(text)["engines"] == ["dequantized"]


# ---- the report ----


def test_the_published_schema_is_the_one_of_the_classes():
    assert TARGET.read_text(encoding="utf-8") == schema_text(), "out of date: run python scripts/write_schema.py"


@pytest.mark.parametrize("made", [report_samples.sample, report_samples.failed, report_samples.quick])
def test_a_report_comes_back_as_it_was_saved(tmp_path, made):
    report = made()
    path = report.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"] == [path.name]
    assert Report.load(tmp_path) == Report.load(path) == report


def test_a_figure_that_is_no_number_can_be_read_again(tmp_path):
    report = report_samples.sample()
    everything = report.group()
    everything.answer.perplexity_candidate = None
    report.save(tmp_path / "a.json")
    assert Report.load(tmp_path / "a.json") == report
    everything.answer.kl_mean.value = math.nan
    json.loads(report.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ('{"schema": "1"}', "report schema '1', this version reads '2'"),
        ("[]", "report schema None"),
        ('{"schema_version": "2"}', "field verdict: Field required"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(QuantkitError, match=message) as error:
        Report.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_an_engine_that_a_report_has_not_is_named():
    report = report_samples.sample()
    assert report.engine().name == "dequantized" == report.engine("dequantized").name
    assert report.group("modality", "video").value == "video" and report.group("modality", "smell") is None
    with pytest.raises(QuantkitError, match="no figures of ollama; it has those of: dequantized, transformers, vllm"):
        report.engine("ollama")
    with pytest.raises(QuantkitError, match="no figures of any engine; it has those of: none, as no model was run"):
        report_samples.quick().engine()


def test_the_table_has_a_line_a_modality_and_the_noise_floor():
    report = report_samples.sample()
    cells = [list(column.cells) for column in to_table(report).columns]
    first = [str(cell) for cell in cells[0]]
    assert first[:4] == ["text", "image", "images", "video"]
    assert "all" in first and first[-1].startswith("floor: ")
    rows = {name: [str(column[place]) for column in cells] for place, name in enumerate(first)}
    everything = report.group().answer
    assert rows["all"][2].startswith(f"{everything.kl_mean.value:.4f} [")
    bare = to_table(report_samples.bare())
    assert [str(cell) for cell in list(bare.columns[2].cells)] == ["0.0000 [0.0000, 0.0000]"]


def test_reading_a_report_imports_no_torch(tmp_path):
    report_samples.sample().save(tmp_path)
    code = (
        "import sys\nfrom quantkit.verify import Report, to_table\n"
        f"to_table(Report.load({str(tmp_path)!r}))\nprint('HEAVY', 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert "HEAVY False" in result.stdout
