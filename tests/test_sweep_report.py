"""A sweep's result: rows from folders, seeds put together, tables, plots, LaTeX, and the page as a browser has it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import sweep_samples as samples
from hypothesis import given
from hypothesis import strategies as st
from test_report_pages import EVIL, Page, _luminance

from quantkit.errors import QuantkitError
from quantkit.report import pareto
from quantkit.report.html import asset
from quantkit.report.markup import json_text
from quantkit.report.sweep import Estimate, Figures, SweepRow, unfinished, write_sweep
from quantkit.report.sweep.chart import Room, scatter
from quantkit.report.sweep.data import Sweep, link, page_data
from quantkit.report.sweep.heat import grid_of, place_of, scale_of, small
from quantkit.report.sweep.latex import escaped, figure, to_latex
from quantkit.report.sweep.metrics import KL, METRICS
from quantkit.report.sweep.page import to_page
from quantkit.report.sweep.plots import all_plots, write_plots
from quantkit.report.sweep.raster import SCALE, to_png
from quantkit.report.sweep.settings import constant_axes, front, settings_of, varying_axes
from quantkit.report.sweep.style import HEAT, SERIES_COLOURS
from quantkit.report.sweep.tables import records, to_csv, write_parquet

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    EVIL,
    "</script><script>alert(2)</script>",
    "a & b_c%d$e#f~g^h\\i{j}",
    "[x]* -- --- ,, \"q\" 'r' `s`",
    "=1+1",
]


@pytest.fixture(scope="module")
def rows() -> list[SweepRow]:
    return samples.rows()


def hostile() -> list[SweepRow]:
    """Rows whose every text tries to be something else."""
    made = []
    for index, (text, row) in enumerate(zip(HOSTILE, samples.rows()[::9], strict=False)):
        axes = {text: text, "bits": index, "list": (text, index)}
        linears = {f"layers.0.{text}": 0.1, text: 0.2}
        made.append(
            replace(
                row, name=text, method=text, axes=axes, engine=text, fingerprint=text, report=text, layers=linears,
                outputs=linears, measured={text: text}, seconds={text: 1.0}, figures=row.figures | {text: Figures(3)},
            )
        )  # fmt: skip
    return [*made, unfinished(f"failed {EVIL}", EVIL, EVIL, axes={EVIL: EVIL})]


# ---- the Pareto front


def beaten(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and other != one


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=24))
def test_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = pareto.front(points)
    assert sorted(found) == [i for i, one in enumerate(points) if not any(beaten(one, other) for other in points)]
    assert [points[index] for index in found] == sorted(points[index] for index in found)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_front_of_settings_knows_which_way_is_better(rows: list[SweepRow], metric: Any) -> None:
    settings = settings_of(rows)
    sign = 1 if metric.key.startswith("kl") else -1
    known = {
        index: (setting.row.bytes, sign * getattr(setting.row.figures["video"], metric.key).value)
        for index, setting in enumerate(settings)
        if setting.row.status == "done"
    }
    expected = {i for i, one in known.items() if not any(beaten(one, other) for other in known.values())}
    assert front(settings, metric, "video") == expected and expected


# ---- seeds of one setting


def test_seeds_become_mean_and_range(rows: list[SweepRow]) -> None:
    settings = {setting.row.name: setting for setting in settings_of(rows)}
    found = settings["gptq-w3g128-refine"]
    members = [row for row in rows if row.name.startswith("gptq-w3g128-refine-s")]
    assert list(found.members) == members and found.seeds == 3
    for group in ("all", "images"):
        for metric in METRICS:
            values = [getattr(row.figures[group], metric.key).value for row in members]
            mean = getattr(found.row.figures[group], metric.key)
            assert mean.value == pytest.approx(sum(values) / 3) and (mean.low, mean.high) == (min(values), max(values))
    assert found.row.bytes == round(sum(row.bytes or 0 for row in members) / 3)
    assert found.row.seconds["search"] == pytest.approx(sum(row.seconds["search"] for row in members) / 3)
    assert found.row.peak_bytes == max(row.peak_bytes or 0 for row in members)
    linear = "model.language_model.layers.5.mlp.up_proj"
    assert found.row.layers[linear] == pytest.approx(sum(row.layers[linear] for row in members) / 3)
    assert "seed" not in found.row.axes and found.row.report is None
    assert sum(setting.seeds for setting in settings.values()) == len(rows)


def test_one_seed_stays_as_it_is_and_failures_stand_alone(rows: list[SweepRow]) -> None:
    for setting in settings_of(rows):
        if setting.seeds == 1:
            assert setting.row is setting.members[0]
    failed = [replace(rows[-3], name=f"f{seed}", axes={"bits": 2, "seed": seed}) for seed in range(2)]
    assert [setting.seeds for setting in settings_of(failed)] == [1, 1]
    one = rows[0]
    apart = [one, replace(one, name="b", engine="vllm"), replace(one, name="c", axes={**one.axes, "bits": 7})]
    assert len(settings_of(apart)) == 3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x-b3-s0", "x-b3-s1"], "x-b3"),
        (["x-seed=0-b3", "x-seed=1-b3"], "x-b3"),
        (["x-b3", "x-b3-s1"], "x-b3 (mean)"),  # the first has that name already
        (["one", "two"], "gptq, bits 3"),
        (["s0", "s1"], "gptq, bits 3"),
        (["x-bits0", "x-bits1"], "gptq, bits 3"),  # an s that is no seed's
    ],
)
def test_a_setting_is_named_without_its_seed(names: list[str], expected: str) -> None:
    made = [
        SweepRow(name, "gptq", "done", {"bits": 3, "seed": seed}, bytes=9) for seed, name in enumerate(names)
    ]  # fmt: skip
    found = settings_of([*made, SweepRow("other", "gptq", "done", {"bits": 4, "seed": 0}, bytes=9)])
    assert [setting.row.name for setting in found] == [expected, "other"]


def test_axes_that_vary_and_those_that_do_not(rows: list[SweepRow]) -> None:
    assert varying_axes(rows) == ["bits", "group_size", "solver", "seed", "type"]
    more = [replace(row, axes={**row.axes, "samples": 128}) for row in rows]
    assert constant_axes(more) == {"samples": 128}


# ---- CSV and Parquet


def naive(row: SweepRow, groups: list[str]) -> dict[str, Any]:
    """What a row's line must hold, one attribute after another."""
    expected: dict[str, Any] = {
        "name": row.name, "method": row.method, "status": row.status, "why": row.why, "bytes": row.bytes,
        "bits_per_weight": row.bits_per_weight, "bits_per_quantized_weight": row.bits_per_quantized_weight,
        "peak_bytes": row.peak_bytes, "fingerprint": row.fingerprint, "report": row.report, "noise": row.noise,
        "seconds": sum(row.seconds.values()) if row.seconds else None, "seconds_search": row.seconds.get("search"),
        "layer_error_max": max(row.layers.values()) if row.layers else None,
    }  # fmt: skip
    expected |= {axis: row.axes.get(axis) for axis in ("bits", "group_size", "solver", "seed", "type")}
    for group in groups:
        found = row.figures.get(group)
        front_of = "" if group == "all" else group + "_"
        for key in ("kl", "kl_p99", "kl_text", "top1", "accuracy", "same"):
            estimate = getattr(found, key) if found else None
            expected[front_of + key] = estimate.value if estimate else None
            expected[f"{front_of}{key}_low"] = estimate.low if estimate else None
            expected[f"{front_of}{key}_high"] = estimate.high if estimate else None
        expected[front_of + "candidate_accuracy"] = found.candidate_accuracy if found else None
        expected[front_of + "items"] = found.items if found else None
    return expected


def test_csv_holds_every_figure_in_full(rows: list[SweepRow]) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for name, value in naive(row, ["all", "text", "image", "images", "video"]).items():
            found = line[name]
            if value is None:
                assert found == "", name
            elif isinstance(value, float):
                assert float(found) == value, name
            else:
                assert found == str(value), name
    worst = max(rows[0].layers, key=lambda name: rows[0].layers[name])
    assert lines[0]["layer_error_max_at"] == worst


def test_the_pareto_column_is_that_of_the_settings(rows: list[SweepRow]) -> None:
    lines = {line["name"]: line["pareto"] for line in csv.DictReader(io.StringIO(to_csv(rows)))}
    done = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    costs = [(float(setting.row.bytes), setting.row.figures["all"].kl.value) for setting in done]  # type: ignore[arg-type,union-attr]
    for setting, cost in zip(done, costs, strict=True):
        best = not any(beaten(cost, other) for other in costs)
        assert {lines[row.name] for row in setting.members} == {str(best).lower()}
    assert lines["gguf-Q5_0"] == ""


def test_an_option_may_be_called_as_a_column_is() -> None:
    one = SweepRow("a", "gguf", "done", {"name": "x", "seconds": 3, "keep": ("p", "q")}, bytes=5, seconds={"s": 1.5})
    found = records([one])[0]
    assert found["name"] == "a" and found["option_name"] == "x"
    assert found["seconds"] == 1.5 and found["option_seconds"] == 3 and found["keep"] == '["p", "q"]'


def test_the_page_says_how_many_are_as_good_as_the_best() -> None:
    """The best of a few items is best by chance: what lies within its interval is counted."""

    def made(name: str, kl: float, low: float, high: float) -> SweepRow:
        sample = samples.row(name, "awq", {"keep": name}, 4.2, random.Random(0))
        return replace(sample, figures={"all": replace(sample.figures["all"], kl=Estimate(kl, low, high))})

    rows = [made("best", 0.01, 0.005, 0.02), made("near", 0.02, 0.01, 0.03), made("far", 0.021, 0.01, 0.03)]
    tiles = [to_page(chosen, "sweep").partition('id="best"')[2].split("<dt>")[1] for chosen in (rows, rows[::2])]
    assert "best</bdi>, and 1 within its interval" in tiles[0]
    assert "best</bdi>" in tiles[1] and "within" not in tiles[1]


def test_parquet_is_the_csv_with_types_and_every_linear(rows: list[SweepRow], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_parquet(rows, tmp_path / "s.parquet")
    table = parquet.read_table(tmp_path / "s.parquet")
    expected = records(rows)
    found = table.to_pylist()
    assert [{key: line[key] for key in expected[0]} for line in found] == expected
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["bytes"] == kinds["bits"] == kinds["items"] == "int64" and kinds["kl"] == "double"
    assert kinds["pareto"] == "bool" and kinds["name"] == "string"
    for line, row in zip(found, rows, strict=True):
        assert dict(line["layers"]) == dict(row.layers) and dict(line["outputs"]) == dict(row.outputs)


def test_parquet_of_mixed_and_empty_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made = [
        SweepRow("a", "awq", "done", {"x": 1, "y": 1, "z": None}), SweepRow("b", "awq", "done", {"x": "two", "y": 2.5})
    ]  # fmt: skip
    write_parquet(made, tmp_path / "s.parquet")
    table = parquet.read_table(tmp_path / "s.parquet")
    assert table["x"].to_pylist() == ["1", "two"] and table["y"].to_pylist() == [1.0, 2.5]
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["peak_bytes"] == "int64" and kinds["bits_per_weight"] == "double" and kinds["z"] == "string"


def test_without_pyarrow_the_log_says_so_and_all_else_is_written(
    rows: list[SweepRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with caplog.at_level(logging.WARNING):
        written = write_sweep(rows[:2], tmp_path, "t")
    assert [record.message for record in caplog.records if "parquet" in record.message] == [
        "sweep.parquet: not written, as pyarrow is missing; pip install 'quantkit[data]'"
    ]
    assert not (tmp_path / "sweep.parquet").exists() and (tmp_path / "sweep.csv").is_file()
    assert all(path.is_file() for path in written)


# ---- LaTeX

MEANING = {
    r"\textbackslash{}": "\\", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\_": "_", r"\%": "%",
    r"\textasciicircum{}": "^", r"\textasciitilde{}": "~", r"\textless{}": "<", r"\textgreater{}": ">",
    r"\textbar{}": "|", r"{\char34}": '"', r"\textasciigrave{}": "`", r"\textquotesingle{}": "'", "{[}": "[",
    "{]}": "]", "{*}": "*", "{}": "",
}  # fmt: skip


def as_set(source: str) -> str:
    """What LaTeX sets for the few commands that the table uses; raises at any other."""
    out = ""
    while source:
        command = next((one for one in MEANING if source.startswith(one)), None)
        if command is None:
            assert source[0] not in "\\{}$&#_%^~<>|\"`'[]*", source
            out, source = out + source[0], source[1:]
        else:
            out, source = out + MEANING[command], source[len(command) :]
    return out


@pytest.mark.parametrize("text", [*HOSTILE, "plain", "a--b---c", "\\\\[2em]"])
def test_latex_sets_what_was_written(text: str) -> None:
    source = escaped(text)
    assert as_set(source) == " ".join(re.sub("[\x00-\x08\x0e-\x1f\ud800]", "\ufffd", text).split())
    assert "--" not in source and ",," not in source  # which would become a dash and a quotation mark
    assert escaped("−1\u202f000 –") == "$-$1 000 --"


@given(st.text(max_size=30))
def test_no_text_is_a_command(text: str) -> None:
    source = escaped(text)
    as_set(re.sub(r"\$-\$|--|\\ldots\{\}|\$\\to\$", "", source))
    assert "\n" not in source
    source.encode()


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\"))]


def test_latex_table_holds_every_setting(rows: list[SweepRow]) -> None:
    text = to_latex(rows, "a title\nof two lines")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    settings = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    heads = [re.sub(r"\\headingoftwo\{(.+)\}\{(.+)\}", r"\1 \2", cell) for cell in cells_of(lines[0])]
    assert heads[:6] == ["setting", "method", "bits", r"group\_size", "solver", "type"]
    assert len(lines) == 1 + len(settings) and {len(cells_of(line)) for line in lines} == {len(heads)}
    best = front(settings, KL)
    for index, (line, setting) in enumerate(zip(lines[1:], settings, strict=True)):
        cells = cells_of(line)
        assert as_set(cells[0].removesuffix(r"$^\star$")) == setting.row.name
        assert cells[0].endswith(r"$^\star$") == (index in best)
    averaged = next(cells_of(line) for line in lines if line.startswith("gptq-w3g32-refine "))
    values = [row.figures["all"].kl.value for row in rows if row.name.startswith("gptq-w3g32-refine-s")]  # type: ignore[union-attr]
    shown = [figure(KL.shown(value)) for value in (sum(values) / 3, min(values), max(values))]
    assert averaged[heads.index("KL mean")] == rf"\figureandinterval{{{shown[0]}}}{{[{shown[1]}, {shown[2]}]}}"
    for left_out in rows[-3:]:
        assert f"% left out, {left_out.status}: {left_out.name}" in text
    assert text.startswith("% a title of two lines\n") and text.count("{") == text.count("}")
    assert r"\toprule" in text and r"\bottomrule" in text


def test_latex_of_many_settings_breaks_over_pages(rows: list[SweepRow]) -> None:
    assert r"\begin{longtable}" in to_latex(rows, "t") and r"\endhead" in to_latex(rows, "t")
    assert r"\begin{tabular}" in to_latex(rows[:12], "t") and "longtable" not in to_latex(rows[:12], "t")


def test_latex_tables_fit_the_line(rows: list[SweepRow]) -> None:
    """Narrow enough at once or scaled down; what breaks over pages cannot be scaled and is set smaller."""
    short, long = to_latex(rows[:12], "t"), to_latex(rows, "t")
    assert r"\resizebox{\ifdim\width>\linewidth" in short and short.rstrip().endswith(r"\endgroup")
    assert r"\scriptsize\setlength" in long and "resizebox" not in long and "pdflscape" in long
    assert "needs booktabs and graphicx" in short and "XeLaTeX" not in short + long
    assert "XeLaTeX" in to_latex([replace(rows[0], name="数据")], "t"), "pdfLaTeX stops at such letters"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex, with booktabs and longtable")
@pytest.mark.parametrize("kind", ["short", "long", "specials"])
def test_pdflatex_sets_the_table(rows: list[SweepRow], tmp_path: Path, kind: str) -> None:
    odd = [replace(row, axes={"calib": name}, name=name) for row, name in zip(rows, HOSTILE[1:], strict=False)]
    shown = {"short": rows[:12], "long": rows, "specials": odd}[kind]
    (tmp_path / "sweep.tex").write_text(to_latex(shown, EVIL), encoding="utf-8")
    around = "landscape" if kind == "long" else "table"
    document = [
        r"\documentclass{article}", r"\usepackage{booktabs,graphicx,longtable,pdflscape}", r"\begin{document}",
        rf"\begin{{{around}}}\input{{sweep.tex}}\end{{{around}}}", r"\end{document}",
    ]  # fmt: skip
    (tmp_path / "page.tex").write_text("\n".join(document), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    for _ in range(3):  # a longtable finds its widths in the second
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout, done.stdout


def test_latex_of_hostile_rows() -> None:
    text = to_latex(hostile(), EVIL)
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(cells_of(line)) for line in lines}) == 1 and len(lines) == len(HOSTILE) + 1
    assert figure("1.83e-05") == r"$1.83\times10^{-5}$" and figure("0.12") == "0.12"


# ---- plots


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def marks_of(root: ET.Element, prefix: str = SVG) -> list[tuple[str, float, float, str]]:
    """(what it is, x, y, series) of every mark that stands for a variant."""
    found = []
    for element in root.iter():
        title = element.find(f"{prefix}title")
        if not element.get("class", "").startswith("mark") or title is None:
            continue
        points = [tuple(map(float, pair.split(","))) for pair in element.get("points", "").split()]
        xs, ys = ([point[axis] for point in points] for axis in (0, 1))
        x = float(element.get("cx", 0)) if not points else (min(xs) + max(xs)) / 2
        y = float(element.get("cy", 0)) if not points else sum(ys) / len(ys)
        found.append((title.text or "", x, y, element.get("class", "").split()[1]))
    return found


def few() -> list[SweepRow]:
    """Four variants far apart, each of another method."""
    base = samples.rows()[0]
    made = []
    for index, (method, gigabytes, kl) in enumerate(
        (("awq", 1.0, 1e-1), ("gptq", 1.5, 1e-2), ("rtn", 2.0, 1e-3), ("bnb", 2.5, 1e-2))
    ):
        lost = -0.01 * index
        figures = Figures(9, Estimate(kl, kl, kl), reference_accuracy=0.9, accuracy=Estimate(lost, lost - 0.02, lost))
        made.append(
            replace(base, name=f"v{index}", method=method, axes={"n": index}, bytes=int(gigabytes * 1e9),
                    figures={"all": figures}, noise=1e-4)
        )  # fmt: skip
    return made


def test_marks_stand_where_their_figures_are() -> None:
    root = parsed(all_plots(few())["size-kl"])
    places = {text.split(":")[0]: (x, y) for text, x, y, _ in marks_of(root)}
    step = places["v1"][0] - places["v0"][0]
    assert step > 0 and places["v2"][0] - places["v1"][0] == pytest.approx(step, abs=0.2)
    decade = places["v1"][1] - places["v0"][1]
    assert decade > 0 and places["v2"][1] - places["v1"][1] == pytest.approx(
        decade, abs=1.5
    )  # a triangle's middle is not its corners'
    assert places["v3"][1] == pytest.approx(places["v1"][1], abs=2)
    front_line = next(e for e in root.iter(f"{SVG}polyline"))
    assert len(front_line.attrib["points"].split()) == 3  # v3 is beaten by v1
    names = {text.text for text in root.iter(f"{SVG}text")}
    assert {"v0", "v1", "v2", "awq", "gptq", "rtn", "bnb", "noise floor 0.000100"} <= names and "v3" not in names
    assert {series for *_, series in marks_of(root)} == {"s0", "s1", "s2", "s3"}


def test_bars_are_the_intervals_and_the_reference_is_marked() -> None:
    root = parsed(all_plots(few())["size-accuracy"])
    ticks = {e.text: float(e.attrib["y"]) - 4 for e in root.iter(f"{SVG}text") if e.attrib.get("class") == "tick"}
    zero, point = ticks["0"], (ticks["0"] - ticks["\u22122"]) / 2
    bars = [
        e
        for e in root.iter(f"{SVG}line")
        if e.attrib["class"].startswith("whisker") and e.attrib["x1"] == e.attrib["x2"]
    ]
    ends = sorted((float(e.attrib["y1"]) - zero) / point for e in bars)
    assert ends == pytest.approx([-5, -4, -3, -2], abs=0.05)
    assert "reference: 90.00 %" in {e.text for e in root.iter(f"{SVG}text")}


def test_labels_meet_neither_each_other_nor_a_mark(rows: list[SweepRow]) -> None:
    settings = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    for metric in METRICS:
        root = ET.fromstring(
            f"<g>{''.join(scatter(settings, metric, Room(960, 420, 64), ['awq', 'gptq', 'rtn', 'gguf', 'bnb']))}</g>"
        )
        boxes = []
        for element in root.iter("text"):
            if element.get("class") == "label on":
                wide, x, y = 6.8 * len(element.text or ""), float(element.attrib["x"]), float(element.attrib["y"])
                left = x - wide if element.get("text-anchor") == "end" else x
                boxes.append((left, y - 11, left + wide, y + 3))
        assert len(boxes) >= 4, metric.key
        marks = [(x - 4, y - 4, x + 4, y + 4) for _, x, y, _ in marks_of(root, "")]
        for index, box in enumerate(boxes):
            assert box[0] >= 0 and box[2] <= 960
            for other in [*boxes[:index], *marks]:
                assert not (box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3])


def test_a_png_is_its_svg(tmp_path: Path) -> None:
    from PIL import Image

    svg = all_plots(few())["size-kl"]
    (tmp_path / "p.png").write_bytes(to_png(svg))
    picture = Image.open(tmp_path / "p.png").convert("RGB")
    assert (picture.width >= 1600 and picture.info == {}) or picture.width >= 1600
    for _, x, y, series in marks_of(parsed(svg)):
        colour = tuple(int(SERIES_COLOURS[int(series[1:])][i : i + 2], 16) for i in (1, 3, 5))
        assert picture.getpixel((round(x * SCALE), round(y * SCALE))) == colour
    root = parsed(svg)
    base = next(e for e in root.iter(f"{SVG}line") if e.attrib["class"] == "base")
    assert picture.getpixel((900, round(float(base.attrib["y1"]) * SCALE))) == (0x56, 0x60, 0x6B)
    for text in root.iter(f"{SVG}text"):  # every word leaves ink where it stands
        x, y = (float(text.attrib[name]) * SCALE for name in ("x", "y"))
        shift = {"end": -1, "middle": -0.5}.get(text.attrib.get("text-anchor", ""), 0) * 30
        area = picture.crop((int(x + shift), int(y - 30), int(x + shift + 30), int(y + 3)))
        assert min(pixel[0] for pixel in area.get_flattened_data()) < 140, text.text
    assert picture.getpixel((3, 3)) == (255, 255, 255)


def test_what_cannot_be_drawn_is_an_error_and_what_cannot_be_written_is_said(caplog: pytest.LogCaptureFixture) -> None:
    frame = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">{}</svg>'
    with pytest.raises(ValueError, match="<path>: not drawn"):
        to_png(frame.format('<path d="M0 0"/>'))
    with caplog.at_level(logging.WARNING):
        to_png(frame.format('<text x="1" y="12">\u4e2d \u2264 \u22121</text>'))
    assert len(caplog.records) == 1 and "\u4e2d" in caplog.records[0].message


def test_every_plot_has_both_files_and_a_safe_name(tmp_path: Path) -> None:
    written = write_plots(hostile(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+\.(svg|png)", path.name) for path in written)
    assert {path.stem for path in written if path.suffix == ".svg"} == {p.stem for p in written if p.suffix == ".png"}
    assert len([path for path in written if path.name.startswith("layers-")]) == 2 * len(HOSTILE)
    for path in written:
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            assert "<script" not in text and ET.fromstring(text).tag == f"{SVG}svg"


def test_variants_that_differ_in_what_no_file_name_holds_have_plots_of_their_own() -> None:
    made = [replace(row, name=name) for row, name in zip(few(), ("a/b", "a:b", "A-B", "\u4e2d"), strict=True)]
    names = [name for name in all_plots(made) if name.startswith("layers-")]
    assert names == ["layers-a-b", "layers-a-b-2", "layers-A-B-3", "layers-variant"]


def test_plots_without_data_are_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    made = [replace(row, figures={}, layers={}, outputs={}) for row in few()]
    with caplog.at_level(logging.WARNING):
        assert all_plots(made) == {}
    assert [record.message.split(":")[0] for record in caplog.records] == ["plots/size-kl", "plots/size-accuracy"]


def test_maps_arrange_every_layout_on_one_scale(rows: list[SweepRow]) -> None:
    assert place_of("model.language_model.layers.12.mlp.up_proj") == (12, "mlp.up_proj")
    assert place_of("blk.3.ssm_out") == (3, "ssm_out") and place_of("token_embd") is None
    maps = [row.layers for row in rows if row.layers]
    low, high = scale_of(maps)
    errors = [error for one in maps for error in one.values()]
    assert high == max(errors) and low == max(min(errors), high / 1e4)
    grid = grid_of(maps[0], (low, high))
    assert grid.layers == tuple(range(24)) and len(grid.kinds) == 10 and grid.kinds[-3:] == (
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    )  # fmt: skip
    cells = re.findall(r"M(\d+) (\d+)h4v3h-4z", small(grid))
    assert len(cells) == len(set(cells)) == len(maps[0])
    assert scale_of([{}]) == (0.0, 0.0) and scale_of([{"layers.0.x": math.nan}]) == (0.0, 0.0)


# ---- the page


@pytest.fixture(scope="module")
def page(rows: list[SweepRow]) -> str:
    return to_page(rows, "MiniCPM-V 4.6: bits & groups")


def data_of(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["full", "hostile", "failed", "one", "few"])
def test_the_page_is_well_formed_and_self_contained(rows: list[SweepRow], kind: str) -> None:
    made = {"full": rows, "hostile": hostile(), "failed": rows[-3:], "one": rows[:1], "few": few()}[kind]
    text = to_page(made, EVIL if kind == "hostile" else "t")
    assert text.encode()
    parsed_ = Page(text)
    ids = [attributes["id"] for _, attributes in parsed_.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in parsed_.elements:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on") and attribute not in ("style", "src")
            if attribute == "href":
                assert name == "a" and value and value.startswith(("#", "./"))
                assert not value.startswith("#") or value[1:] in ids
    assert "url(" not in text and "@import" not in text
    policy = next(a["content"] for a in parsed_.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "http" not in policy and "unsafe-eval" not in policy
    assert len(parsed_.all("script")) == text.count("<script") == 2
    assert len(parsed_.all("caption")) == len(parsed_.all("table")) > 0
    assert data_of(text)["entries"][0]["name"]
    levels = [int(tag[1]) for tag, _ in parsed_.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_hostile_texts_stay_texts() -> None:
    text = to_page(hostile(), EVIL)
    words = Page(text).words()
    assert "<script>alert(1)</script>" in words and "</script><script>alert(2)</script>" in words
    assert "\x00" not in text and "\x1b" not in text and "alert(2)</script>" not in text
    assert [entry["name"] for entry in data_of(text)["entries"]][1:5] == HOSTILE[1:]
    assert json_text({"a": "</script>&<!--\ud800\u2028"}).count("<") == 0
    with pytest.raises(ValueError, match="JSON"):
        json_text(math.nan)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("variants/a b/report.html", "./variants/a%20b/report.html"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("../x", None), ("a/../../x", None), ("/etc/x", None), ("a\\b", None), ("//host/x", None), (None, None),
    ],
)  # fmt: skip
def test_links_stay_in_the_folder(path: str | None, shown: str | None) -> None:
    assert link(path) == shown


def test_figures_stand_on_the_page_without_its_script(rows: list[SweepRow], page: str) -> None:
    words = Page(page).words()
    for row in rows:
        assert row.name in words
        found = row.overall()
        for metric in METRICS:
            if (estimate := metric.of(row)) is not None:
                assert metric.shown(estimate.value) in words and metric.shown(estimate.low) in words, metric.key
        assert row.why is None or row.why in words
        assert found.items in (0, 410)
    assert "59 variants" in words or f"{len(rows)} variants" in words
    assert "against openbmb/MiniCPM-V-4.6" in words and "mean of 3 seeds" in words and "on the front" in words
    drawn = Page(page).all("svg")
    assert len([svg for svg in drawn if svg.get("class") in ("wide", "narrow")]) == 4  # KL, and accuracy in noscript
    assert len([svg for svg in drawn if svg.get("class") == "small"]) >= 40


def test_rows_measured_otherwise_are_said(rows: list[SweepRow]) -> None:
    other = replace(rows[1], measured={**samples.MEASURED, "data": "mine.jsonl"})
    words = Page(to_page([rows[0], other], "t")).words()
    assert f"Not measured alike: data : {rows[0].name} has heldout , {rows[1].name} has mine.jsonl ." in words
    assert "Not measured alike" not in Page(to_page(rows, "t")).words()


def test_the_script_knows_what_the_table_says(rows: list[SweepRow], page: str) -> None:
    data, sweep = data_of(page), Sweep.of(rows)
    assert data == json.loads(json_text(page_data(sweep, data["columns"])))
    table = page.split('<table class="sweep">')[1].split("</table>")[0]
    assert table.split("<tbody>")[1].count("<tr") == len(data["entries"]) == len(sweep.entries)
    assert table.split("<tbody>")[0].count("<th ") == len(data["columns"])
    assert {facet["key"] for facet in data["facets"]} == {
        "method", "status", "axis:bits", "axis:group_size", "axis:solver", "axis:type"
    }  # fmt: skip
    assert next(f["values"] for f in data["facets"] if f["key"] == "axis:group_size") == ["16", "32", "64", "128"]


def test_figures_that_are_no_numbers_are_missing() -> None:
    broken = replace(few()[0], figures={"all": Figures(1, Estimate(math.nan, 0, 1), Estimate(1, 0, math.inf))})
    text = to_page([broken, *few()[1:]], "t")
    assert "nan" not in Page(text).words().lower().split() and data_of(text)["entries"][0]["figures"] == {"all": {}}


def test_a_sweep_needs_rows_with_names_of_their_own(rows: list[SweepRow], tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match="no variant"):
        write_sweep([], tmp_path, "t")
    with pytest.raises(QuantkitError, match="two variants are called 'awq-w4g32-gptq-s0'"):
        write_sweep([rows[0], rows[0]], tmp_path, "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantkitError, match="cannot be written"):
        write_sweep(rows[:1], tmp_path / "file", "t")


def test_all_files_are_written_whole(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("old")
    written = write_sweep(few(), tmp_path / "new", "t")
    names = sorted(path.relative_to(tmp_path / "new").as_posix() for path in written)
    layers = [f"plots/layers-v{index}.{end}" for index in range(4) for end in ("png", "svg")]
    sizes = [f"plots/size-{name}.{end}" for name in ("accuracy", "kl") for end in ("png", "svg")]
    assert names == [*layers, *sizes, "sweep.csv", "sweep.html", "sweep.parquet", "sweep.tex"]
    assert all(path.stat().st_size for path in written)
    assert len([path for path in (tmp_path / "new").rglob("*") if path.is_file()]) == len(written)


def test_reading_and_writing_needs_no_heavy_library() -> None:
    code = (
        "import sys, quantkit.report.sweep\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pydantic', 'PIL', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_colours_are_the_same_on_paper_and_told_apart_in_both_themes() -> None:
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", asset("sweep", "sweep.css"), re.S)
    )
    ground_light, ground_dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", asset("page.css"), re.S)
    )
    assert tuple(light[f"s{index}"] for index in range(8)) == SERIES_COLOURS
    assert tuple(ground_light[f"q{index}"] for index in range(8)) == HEAT
    for theme, ground in ((light, ground_light), (dark, ground_dark)):
        for index in range(8):
            bright, dim = sorted((_luminance(theme[f"s{index}"]), _luminance(ground["paper"])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, index
        bright, dim = sorted((_luminance(ground["ink"]), _luminance(theme["lit"])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5
