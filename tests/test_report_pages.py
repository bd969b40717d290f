"""Pages made of reports: structure, escaping, charts, Markdown, JUnit, comparison, and a browser's view of them."""

from __future__ import annotations

import html
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import report_samples as samples

from quantkit.errors import QuantkitError
from quantkit.report import charts, figures, items, layers, scatter, svg, tables
from quantkit.report.compare import compare_rows, write_compare
from quantkit.report.html import to_html, write_html
from quantkit.report.junit import to_junit, write_junit
from quantkit.report.markdown import escaped, table_text, to_markdown, write_markdown
from quantkit.report.markup import Markup, picture, tag, text
from quantkit.verify.report import Interval, Item, Report

VOID = {"img", "meta", "br", "hr", "input"}
EVIL = "<script>alert(1)</script>\"'&]]>-->\u202eabc\u200f\x00\x1b[31m\ud800"
MAKERS = {"full": samples.sample, "failed": samples.failed, "quick": samples.quick, "bare": samples.bare}
SECTIONS = [
    "verdict", "size", "gates", "integrity", "kl", "positions", "accuracy", "generation", "layers", "worst",
    "histogram", "others", "engines", "noise", "settings",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """Elements in order, with a stack: raises where an end tag does not close what is open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> within {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack and data.strip():
            self.texts.append((self.stack[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: to_html(make()) for name, make in MAKERS.items()}


# ---- the page


def test_report_room_needs_no_heavy_library() -> None:
    code = (
        "import sys, quantkit.report; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MAKERS)
def test_page_is_well_formed_and_self_contained(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name_, value in attributes.items():
            assert not name_.startswith("on") and name_ != "style"
            if name_ in ("src", "href"):
                assert value and value.startswith(("#", "data:image/"))
                assert not value.startswith("#") or value[1:] in ids
    assert "url(" not in pages[name] and "@import" not in pages[name]
    assert not re.search(
        r"(?:https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", pages[name]).split("</style>")[1].split("<script>")[0]
    )
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "http" not in policy


def test_page_shows_every_section_in_order(pages: dict[str, str]) -> None:
    page = Page(pages["full"])
    assert [a["id"] for a in page.all("section")] == SECTIONS
    reading = [a for a in page.all("p") if a.get("class") == "how"]
    assert len(reading) == len(SECTIONS) - 1  # all but the verdict say how to read them


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("quick", {"kl", "accuracy", "worst", "gates", "noise", "engines"}),
        ("bare", {"accuracy", "generation", "layers", "histogram", "gates", "integrity", "noise", "others"}),
    ],
)
def test_absent_data_leaves_sections_out(pages: dict[str, str], name: str, absent: set[str]) -> None:
    found = {a["id"] for a in Page(pages[name]).all("section")}
    assert not found & absent
    assert {"verdict", "size", "settings"} <= found
    assert "None" not in Page(pages[name]).words() and "nan" not in Page(pages[name]).words().lower().split()


@pytest.mark.parametrize("name", MAKERS)
def test_page_is_accessible(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    assert len([tag for tag, _ in page.texts if tag == "title"]) >= len(page.all("svg"))
    assert [a.get("lang") for a in page.all("html")] == ["en"]


def test_verdict_is_a_word_and_failed_gates_stand_first(pages: dict[str, str]) -> None:
    words = Page(pages["failed"]).words()
    assert "Fail The candidate is ruined" in words and "max-kl all: 2.49 exceeds 0.02" in words
    report = samples.failed()
    mixed = [report.gates[0].model_copy(update={"passed": True}), report.gates[1]]
    table = tables.gates(report.model_copy(update={"gates": mixed}))
    assert [row[5].shown for row in table.bodies[0][1]] == ["FAIL", "pass"]


def test_figures_stand_on_the_page(pages: dict[str, str]) -> None:
    report, words = samples.sample(), Page(pages["full"]).words()
    answer = report.group().answer  # type: ignore[union-attr]
    assert answer is not None
    for value in (
        answer.kl_mean.value,
        answer.kl_p50,
        answer.kl_p90,
        answer.kl_p95,
        answer.kl_p99.high,
        answer.kl_p999,
    ):
        assert figures.number(value) in words
    for expected in ("1.92 GB", "73.87 %", "4.16", "McNemar p", "0.146", "−3.41 to +0.49", "TorchFusedAwqLinear"):
        assert expected in words
    assert (
        "no Python with vLLM was named" in words and "3.20e-07 nats" in words and "3 × longer than 2048 tokens" in words
    )
    logit = answer.logit_rms
    assert logit is not None and f"{figures.number(logit / 0.021)} ×" in words  # against the largest noise floor


def test_the_page_says_what_the_candidate_was_calibrated_on(pages: dict[str, str]) -> None:
    assert re.search("128 conversations, 65.?432 tokens of bundled, photos", pages["full"])
    assert "sha256:77aa01" in pages["full"]


def test_size_of_the_page(pages: dict[str, str]) -> None:
    without = re.sub(r'src="data:[^"]*"', "", pages["full"])
    assert len(without.encode()) < 300_000
    assert len(Page(pages["full"]).all("article")) == items.WORST
    assert f"All items ({410})" in pages["full"]


# ---- escaping


def _poison(value: Any, path: str = "") -> Any:
    """The same content with every free text replaced by one that tries to be markup."""
    fixed = {"schema_version", "status", "severity", "by", "kind", "overlap", "pictures", "positions"}
    if isinstance(value, dict):
        free = path.rpartition(".")[2] in (
            "metrics",
            "left_out",
            "versions",
            "environment",
            "options",
            "seconds",
            "counts",
        )
        return {
            (EVIL + key if free else key): entry if key in fixed else _poison(entry, f"{path}.{key}")
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_poison(entry, path) for entry in value]
    return EVIL + value if isinstance(value, str) else value


@pytest.fixture(scope="module")
def poisoned() -> Report:
    content = samples.content()
    content["engines"][0]["items"] = samples.items(14)
    content["engines"][0]["items"][0]["pictures"] = ["javascript:alert(1)", "data:image/svg+xml;base64,AAAA", EVIL]
    return Report.model_validate(_poison(content))


def test_every_text_is_escaped_in_html(poisoned: Report) -> None:
    page = to_html(poisoned)
    assert page.encode()  # no lone surrogate is left
    assert page.count("<script") == 1 and "\x00" not in page and "\x1b" not in page
    assert "javascript:" not in page and "svg+xml" not in page
    assert len(Page(page).all("script")) == 1
    assert "<script>alert(1)</script>" in Page(page).words()  # shown as text


def test_text_of_strangers_is_isolated(poisoned: Report) -> None:
    """A right-to-left override must not turn around what follows."""
    page = Page(to_html(poisoned))
    texts = [a for _, a in page.elements if "text" in (a.get("class") or "").split()]
    assert texts and all(a.get("dir") == "auto" for a in texts)
    assert page.all("bdi")


def test_markup_escapes_whatever_is_not_markup() -> None:
    assert tag("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert tag("p", Markup("<b></b>"), None, ["x", 1]) == "<p><b></b>x1</p>"
    assert text("a\x00\ud800\r\nb") == "a\ufffd\ufffd\nb"


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("data:image/jpeg;base64,/9j/4AAQ", True),
        ("data:image/png;base64,iVBOR+/=", True),
        ("data:image/svg+xml;base64,AAAA", False),
        ("data:image/jpeg;base64,AA\" onerror='x", False),
        ("data:image/jpeg;base64,AAAA\n", False),
        ("http://example.org/a.jpg", False),
        ("", False),
    ],
)
def test_only_picture_data_uris_are_shown(source: str, kept: bool) -> None:
    assert (picture(source, "x") is not None) == kept


def test_markdown_is_escaped(poisoned: Report) -> None:
    page = to_markdown(poisoned)
    assert page.encode() and "<script" not in page
    assert escaped("a|b `c` *d* <e> \n## f") == "a\\|b \\`c\\` \\*d\\* &lt;e\\> \\#\\# f"
    assert escaped("- x") == "\\- x" and escaped("1. x") == "1\\. x" and escaped("0.5") == "0.5"
    _check_tables(page)


def test_mass_covered_is_shown_where_an_engine_gives_top_k(pages: dict[str, str]) -> None:
    group = samples.group("all", "all", 9, 0.01)
    group["answer"] = samples.tokens(0.01, logits=False)
    engine = {"name": "vllm", "status": "ran", "exact": False, "groups": [group]}
    words = Page(to_html(samples.sample(engines=[engine]))).words()
    assert "mass covered" in words and "97.21 %" in words and "top-k only" in words
    assert "mass covered" not in Page(pages["full"]).words()


# ---- figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.00183, "0.00183"), (0.000369, "0.000369"), (1.83e-5, "1.83e-05"), (12.44, "12.4"),
        (1830.4, "1830"), (-0.25, "−0.250"), (None, "–"), (3e7, "3.00e+07"), (0.0999, "0.0999"), (1.0, "1.00"),
    ],
)  # fmt: skip
def test_number(value: float | None, shown: str) -> None:
    assert figures.number(value) == shown


def test_other_figures() -> None:
    assert figures.signed(-0.0146) == "−1.46" and figures.signed(0.00001) == "0.00" and figures.signed(0.02) == "+2.00"
    assert (
        figures.size(1_921_334_112) == "1.92 GB"
        and figures.size(12) == "12 B"
        and figures.size(45_312_998) == "45.3 MB"
    )
    assert figures.p_value(0.0004) == "< 0.001" and figures.count(44280) == "44\u202f280"
    assert figures.span(Interval(value=1, low=1, high=1)) is None
    assert figures.plain({"a": [1, None, True]}) == "a: 1, none, yes"


# ---- charts


def _numbers(markup: str) -> list[float]:
    root = ET.fromstring(f"<x>{markup}</x>")
    names = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height")
    found = [float(e.attrib[name]) for e in root.iter() for name in names if name in e.attrib]
    points = [point for e in root.iter("polyline") for point in re.split(r"[ ,]", e.attrib["points"]) if point]
    return found + [float(point) for point in points]


@pytest.mark.parametrize("name", MAKERS)
def test_charts_have_finite_coordinates(name: str) -> None:
    report = MAKERS[name]()
    drawn = [charts.sizes(report)]
    for engine in figures.ran(report):
        found = layers.arrange(engine)
        drawn += [charts.divergence(report, engine), engine.histogram and charts.histogram(engine.histogram)]
        drawn.append(found and charts.growth(found.blocks, "block"))
    for markup in drawn:
        for value in _numbers(markup) if markup else []:
            assert math.isfinite(value) and -1 <= value <= 2000


def test_dots_stand_where_their_values_are() -> None:
    report = samples.sample()
    markup = charts.divergence(report, report.engines[0])
    assert markup is not None
    wide = ET.fromstring(markup).findall("svg")[0]
    axis_ticks = {
        e.text: float(e.attrib["x"]) for e in wide.iter("text") if e.attrib.get("class") == "tick" and "x" in e.attrib
    }
    decade = axis_ticks["0.01"] - axis_ticks["0.001"]
    dots = [float(e.attrib["cx"]) for e in wide.iter("circle") if e.attrib["class"] == "dot first"]
    values = [g.answer.kl_mean.value for _, groups in figures.ordered(report.engines[0]) for g in groups if g.answer]
    assert len(dots) == len(values) == 10
    for x, value in zip(dots, values, strict=True):
        assert x == pytest.approx(axis_ticks["0.01"] + decade * math.log10(value / 0.01), abs=0.2)
    floor = next(e for e in wide.iter("line") if e.attrib["class"] == "floor")
    assert float(floor.attrib["x1"]) == pytest.approx(axis_ticks["0.001"] + decade * math.log10(2.1e-5 / 1e-3), abs=0.2)


def test_axis_holds_zero_and_what_is_far_below() -> None:
    axis = svg.LogAxis.over([0.0, 1e-12, 0.5, 3.0], 100, 500)
    assert axis.high == 5 and axis.low == pytest.approx(5e-6) and axis.below
    assert axis.place(0.0) == axis.place(1e-12) == 100 < axis.place(0.5) < axis.place(3.0) < 500
    assert axis.label(axis.ticks()[0]).startswith("≤")
    for values in ([], [0.0], [math.inf, math.nan], [1e-300], [1.0]):
        axis = svg.LogAxis.over(values, 0, 10)
        assert 0 < axis.low < axis.high < math.inf and axis.ticks()
        assert all(0 <= axis.place(value) <= 10 for value in (*values, 0.0, math.inf, -math.inf, math.nan))


def test_histogram_bars_are_shares() -> None:
    found = samples.sample().engines[0].histogram
    assert found is not None
    wide = ET.fromstring(charts.histogram(found) or "").findall("svg")[0]
    bars = [e for e in wide.iter("rect") if e.attrib["class"] == "bar"]
    assert len(bars) == sum(1 for counts in found.counts.values() for value in counts if value)
    top = max(value / sum(counts) for counts in found.counts.values() for value in counts)
    first = [(value, sum(found.counts["text"])) for value in found.counts["text"] if value]
    for bar, (value, total) in zip(bars, first, strict=False):
        assert float(bar.attrib["height"]) == pytest.approx(max(46 * value / total / top, 0.8), abs=0.06)


@pytest.mark.parametrize(
    ("extra", "second"), [(-1, "KL from 1.0e-02 below 1.0e-01"), (0, "KL from 1.0e-03 below 1.0e-02")]
)
def test_histogram_bins_in_words(extra: int, second: str) -> None:
    edges = [-3.0, -2.0, -1.0]
    bins = len(edges) + extra
    assert charts._bin(edges, bins, 0) == f"KL below {10.0 ** (-2 if extra else -3):.1e}"
    assert charts._bin(edges, bins, 1) == second
    assert charts._bin(edges, len(edges) + 1, 3) == "KL from 1.0e-01"


def test_heat_map_orders_and_scales() -> None:
    engine = samples.sample().engines[0]
    found = layers.arrange(engine)
    assert found is not None and found.rows == list(range(24)) and len(found.names) == 10
    table = layers.grid(found)
    assert [column.heading for column in table.columns][:4] == ["layer", "block", "growth", "in_proj_qkv"]
    worst = max(found.linears.values(), key=lambda entry: entry.error)
    assert found.level(worst.error) == layers.LEVELS - 1 and found.level(found.low) == 0 and found.level(0.0) == 0
    levels = [found.level(found.low * (found.high / found.low) ** (i / 20)) for i in range(21)]
    assert levels == sorted(levels) and set(levels) == set(range(layers.LEVELS))
    assert worst.name.rpartition(".")[2] in layers.largest(found)


def test_sixty_layers_and_a_head() -> None:
    report = samples.sample()
    head = {"name": "lm_head", "kind": "linear", "layer": None, "error": 0.1}
    many = samples.engine(layers=[*samples.layers(60, 0), head])
    page = to_html(Report.model_validate({**json.loads(report.to_json()), "engines": [many]}))
    assert page.count('class="n q') >= 60 * 7 and "lm_head" in Page(page).words()


# ---- items


def _item(reference: str | None, candidate: str | None, at: int | None, char: int | None) -> Item:
    changes = {"reference_text": reference, "candidate_text": candidate, "diverged_at": at, "diverged_at_char": char}
    return Item.model_validate({**samples.items(1, 0)[0], **changes})


@pytest.mark.parametrize(
    ("item", "reference", "candidate"),
    [
        (_item("It is red now", "It is blue now", 2, 5), ("It is", " red", " now"), ("It is", " blue", " now")),
        (_item("同一个词", "同一种词", 2, 2), ("同一", "个", "词"), ("同一", "种", "词")),
        (_item("one two", "one", 1, 3), ("one", " two", ""), ("one", "", "")),
        (_item("red", "blue", 0, None), ("", "red", ""), ("", "blue", "")),  # an engine that gives text only
        (_item("abc", "abd", 0, 99), ("ab", "c", ""), ("ab", "d", "")),  # a place that cannot be
        (_item("axc", "abd", 0, 2), ("a", "xc", ""), ("a", "bd", "")),  # the texts part before that place
        (_item("", "blue", 0, 0), ("", "", ""), ("", "blue", "")),
    ],
)
def test_first_differing_token(item: Item, reference: tuple[str, ...], candidate: tuple[str, ...]) -> None:
    place = items.divergence(item)
    assert place is not None and item.reference_text is not None and item.candidate_text is not None
    assert items.split(item.reference_text, place) == reference
    assert items.split(item.candidate_text, place) == candidate
    page = Page(items.card(item))
    assert len(page.all("mark")) == 2
    marked = [data for tag_, data in page.texts if tag_ == "mark"]
    assert marked == [part[1] if part[1].strip() else "(ends)" for part in (reference, candidate)]


def test_same_or_missing_answers_are_not_marked() -> None:
    assert (
        items.divergence(_item("a", "a", None, None)) is None and items.divergence(_item(None, "a", None, None)) is None
    )
    assert "<mark" not in items.card(_item("a", "a", None, None))
    assert "No answers were generated" in items.card(_item(None, None, None, None))
    assert "not generated" in items.card(_item("a", None, None, None))


def test_worst_items_come_first() -> None:
    engine = samples.sample().engines[0]
    shown = [item.severity() for item in items.worst(engine)]
    assert shown == sorted((item.severity() for item in engine.items), reverse=True)[: items.WORST]
    calm = engine.items[0].model_copy(
        update={"reference_text": "a", "candidate_text": "a", "diverged_at": None, "kl_answer_mean": 5.0}
    )
    right = {"reference_score": 1.0, "candidate_score": 1.0}
    other = calm.model_copy(update={"candidate_text": "b", "kl_answer_mean": 0.1} | right)
    lost = other.model_copy(update={"candidate_score": 0.0, "kl_answer_mean": None, "kl_mean": None})
    assert lost.severity() > other.severity() > calm.model_copy(update=right).severity()


# ---- Markdown


def _check_tables(page: str) -> int:
    """Every table has as many cells in each row as in its heading; returns how many tables there are."""
    found, width = 0, 0
    for line in page.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        if cells and not width:
            found, width = found + 1, cells
        assert cells in (0, width), line
        width = cells
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_markdown_tables_parse(name: str) -> None:
    page = to_markdown(MAKERS[name]())
    assert page.startswith("# ") and "\n\n\n" not in page and "data:image" not in page
    assert _check_tables(page) >= 2


def test_markdown_says_what_the_page_says() -> None:
    page = to_markdown(samples.sample())
    for expected in ("**PASS**", "4.16", "| max-kl | all |", "## Layers", "## Worst items", "3.20e-07", "not run"):
        assert expected in page
    table = tables.Table(
        "c", [tables.Column("a|b", False), tables.Column("n")], [("T", [[tables.Cell("x|y", "s"), tables.Cell("1")]])]
    )
    assert table_text(table).splitlines() == ["| a\\|b | n |", "| --- | ---: |", "| **T** | |", "| x\\|y (s) | 1 |"]


# ---- JUnit


def test_junit_counts_and_cases(tmp_path: Path) -> None:
    root = ET.parse(write_junit(samples.failed(), tmp_path / "junit.xml")).getroot()
    assert root.tag == "testsuites"
    for suite in [root, *root.findall("testsuite")]:
        cases = list(suite.iter("testcase"))
        assert suite.attrib["tests"] == str(len(cases)) and suite.attrib["errors"] == "0"
        assert suite.attrib["failures"] == str(sum(case.find("failure") is not None for case in cases))
        assert suite.attrib["skipped"] == str(sum(case.find("skipped") is not None for case in cases))
    failed = {(c.attrib["classname"], c.attrib["name"]) for c in root.iter("testcase") if c.find("failure") is not None}
    assert failed == {
        ("quantkit.gates.dequantized", "max-kl [all]"), ("quantkit.gates.dequantized", "min-top1 [all]"),
        ("quantkit.integrity", "norms"), ("quantkit.alarms", "agreement"),
    }  # fmt: skip


def test_junit_skips_engines_and_keeps_warnings() -> None:
    root = ET.fromstring(to_junit(samples.sample()))
    skipped = {c.attrib["name"]: c.find("skipped") for c in root.iter("testcase") if c.find("skipped") is not None}
    assert set(skipped) == {"vllm", "sglang"} and "--url" in skipped["sglang"].attrib["message"]  # type: ignore[union-attr]
    assert root.attrib["failures"] == "0"
    checks = [c.attrib["name"] for c in root.iter("testcase") if c.attrib["classname"] == "quantkit.integrity"]
    assert checks == samples.sample().checks
    warned = next(c for c in root.iter("testcase") if c.attrib["name"] == "side files")
    assert warned.find("failure") is None and "generation_config.json" in warned.findtext("system-out", "")


def test_junit_is_never_green_where_the_verdict_is_fail() -> None:
    report = samples.bare().model_copy(update={"verdict": samples.failed().verdict})
    assert ET.fromstring(to_junit(report)).attrib["failures"] == "1"


def test_junit_survives_any_text(poisoned: Report) -> None:
    root = ET.fromstring(to_junit(poisoned))
    assert any("<script>" in case.attrib["name"] for case in root.iter("testcase"))


# ---- comparison


def test_compare_rows_are_sorted_and_find_the_frontier() -> None:
    rows = compare_rows(samples.variants())
    assert [row["bytes"] for row in rows] == sorted(row["bytes"] for row in rows)
    for row in rows:
        beaten = any(o["bytes"] <= row["bytes"] and o["kl_mean"] <= row["kl_mean"] and o is not row for o in rows)
        assert row["frontier"] == (not beaten), row["label"]
    first = rows[0]
    assert first["label"] == "bitsandbytes NF4" and first["kl_low"] < first["kl_mean"] < first["kl_high"]
    assert first["gates_passed"] == first["gates"] == 4 and first["positions"] == "answer"


def test_compare_page(tmp_path: Path) -> None:
    variants = samples.variants()
    path = write_compare(variants, tmp_path / "compare.html")
    page = Page(path.read_text(encoding="utf-8"))
    words = page.words()
    assert all(label in words for label, _ in variants)
    assert [a["id"] for a in page.all("section")] == ["plot", "figures", "accuracy", "gates", "settings"]
    assert "Not measured alike" not in words
    svgs = [e for e in page.elements if e[0] == "svg"]
    assert len(svgs) == 2
    dots = page.all("circle")
    assert len(dots) == 2 * len(variants)
    assert all(math.isfinite(float(str(a["cx"]))) and math.isfinite(float(str(a["cy"]))) for a in dots)
    front = str(page.all("polyline")[0]["points"]).split()
    assert len(front) == sum(row["frontier"] for row in compare_rows(variants))


def test_compare_places_points_by_size_and_kl() -> None:
    points = [
        scatter.Point(i + 1, f"v{i}", gigabytes, Interval(value=kl, low=kl, high=kl), True)
        for i, (gigabytes, kl) in enumerate([(1.0, 0.1), (1.5, 0.01), (2.0, 0.001)])
    ]
    wide = ET.fromstring(scatter.plot(points, 1e-4)).findall("svg")[0]
    places = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in wide.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y0 < y1  # less KL is further down
    floor = next(e for e in wide.iter("line") if e.attrib["class"] == "floor")
    assert float(floor.attrib["y1"]) - y2 == pytest.approx(y2 - y1, abs=0.2)


@pytest.mark.parametrize("sizes", [[1.0], [1.0, 1.0], [0.0, 0.0], [1e-6, 30.0], [0.0137, 0.0138]])
def test_linear_ticks_hold_the_values(sizes: list[float]) -> None:
    ticks = scatter.linear_ticks(sizes, 8)
    assert 2 <= len(ticks) <= 11 and ticks == sorted(ticks)
    assert ticks[0] <= min(sizes) and max(sizes) <= ticks[-1] and ticks[0] < ticks[-1]


def _changed(part: str, **changes: Any) -> tuple[str, Report]:
    content = samples.content()
    found = {**content[part], **changes}
    return samples.variant("B", 2_000_000_000, 0.01, **{part: found})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (_changed("options", dtype="bfloat16"), r"option dtype: 'A' has float32, 'B' has bfloat16"),
        (_changed("options", downsample_mode="4x"), "option downsample_mode"),
        (_changed("options", max_tokens=1024), "option max_tokens"),
        (_changed("data", fingerprint="other"), "data fingerprint"),
        (_changed("reference", fingerprint="other"), "reference fingerprint"),
        (("B", samples.quick()), "data fingerprint"),
    ],
)
def test_compare_refuses_what_was_not_measured_alike(tmp_path: Path, other: tuple[str, Report], named: str) -> None:
    reports = [samples.variant("A", 1_900_000_000, 0.02), other]
    with pytest.raises(QuantkitError, match=f"{named}.*say --allow-mixed"):
        write_compare(reports, tmp_path / "c.html")
    with pytest.raises(QuantkitError, match=named):
        compare_rows(reports)
    assert not (tmp_path / "c.html").exists()
    page = write_compare(reports, tmp_path / "c.html", allow_mixed=True).read_text(encoding="utf-8")
    assert re.search(f"Not measured alike: {named}", Page(page).words())


def test_compare_uses_an_engine_that_ran_everywhere() -> None:
    label, first = samples.variant("A", 1_900_000_000, 0.02)
    both = first.model_copy(update={"engines": [first.engines[0].model_copy(update={"name": "vllm"}), *first.engines]})
    rows = compare_rows([("B", both), (label, first)])
    assert {row["engine"] for row in rows} == {"dequantized"}
    alone = first.model_copy(update={"engines": both.engines[:1]})
    with pytest.raises(QuantkitError, match="engine: 'A' ran dequantized, 'B' ran vllm"):
        compare_rows([(label, first), ("B", alone)])
    with pytest.raises(QuantkitError, match="no engine ran"):
        compare_rows([(label, first.model_copy(update={"engines": []}))])


def test_compare_labels() -> None:
    one, other = samples.variant("A", 1_900_000_000, 0.02)[1], samples.variant("A", 1_800_000_000, 0.03)[1]
    with pytest.raises(QuantkitError, match="two reports have the label 'A'"):
        compare_rows([("A", one), ("A", other)])
    with pytest.raises(QuantkitError, match="no report given"):
        compare_rows([])
    assert one.candidate.name == other.candidate.name
    assert [row["label"] for row in compare_rows([("x", one), ("y", other)])] == ["y", "x"]


# ---- contrast and the browser


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(c * 2 for c in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_light_and_dark(pages: dict[str, str]) -> None:
    themes = re.findall(r":root \{(.*?)\}", pages["quick"], re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", theme))
        pairs = [(ink, "paper") for ink in ("ink", "weak", "accent", "good", "bad", "note")]
        pairs += [("ink", "good-bg"), ("ink", "bad-bg"), ("ink", "note-bg"), ("ink", "panel"), ("weak", "panel")]
        pairs += [
            ("good", "good-bg"),
            ("bad", "bad-bg"),
            ("note", "note-bg"),
            ("ink", "mark-ref"),
            ("ink", "mark-cand"),
        ]
        pairs += [("weak", "noise")] + [("on-low", f"q{i}") for i in range(4)]
        pairs += [("on4", "q4"), ("on5", "q5"), ("on-high", "q6"), ("on-high", "q7")]
        for ink, ground in pairs:
            bright, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
        steps = [_luminance(colours[f"q{i}"]) for i in range(8)]
        assert steps == sorted(steps) or steps == sorted(steps, reverse=True)  # survives greyscale


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PROBE = """<script>document.title = JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth,
  outside: [...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, svg") && e.clientWidth &&
    e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80)),
  shown: [...document.querySelectorAll("svg")].filter((e) => e.getBoundingClientRect().width > 0).length,
  sortable: document.querySelectorAll("table.items th button").length,
});</script>"""


def _chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def _probe(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What the browser measures at a width; in a frame, as a window is never narrower than 500 pixels."""
    text_ = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    (folder / "probed.html").write_text(text_.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(
        f'<body><iframe src="probed.html" style="border:0;width:{width}px;height:900px" onload="'
        'document.title = this.contentDocument.title"></iframe></body>'
    )
    dumped = _chromium(
        "--dump-dom", "--virtual-time-budget=4000", "--window-size=1400,1000", f"file://{folder}/frame.html"
    )
    title = re.search(r"<title>(.*?)</title>", dumped, re.S)
    assert title is not None
    return json.loads(html.unescape(title[1]))


def _long() -> Report:
    """A report whose texts are words that never end."""
    word = "w" * 400
    found = [{**item, "id": word, "prompt": word, "candidate_text": word} for item in samples.items(3)]
    verdict = {"status": "measured", "headline": word, "lines": [word]}
    report = samples.sample(verdict=verdict, engines=[samples.engine(items=found)], checks=[word])
    longer = report.candidate.model_copy(update={"name": word, "fingerprint": word})
    return report.model_copy(update={"candidate": longer})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["full", "failed", "quick", "bare", "compare", "poisoned", "long"])
def test_nothing_overflows_in_a_browser(tmp_path: Path, poisoned: Report, name: str, width: int) -> None:
    page = tmp_path / "page.html"
    if name == "compare":
        write_compare(samples.variants(), page)
    else:
        write_html({"poisoned": poisoned, "long": _long()}.get(name) or MAKERS[name](), page)
    found = _probe(page, width, tmp_path)
    assert found["inner"] == width and found["scroll"] <= found["inner"], found
    assert found["outside"] == []
    assert found["shown"] == page.read_text(encoding="utf-8").count("<svg") // 2  # one of both widths
    assert found["sortable"] == (0 if name in ("quick", "compare") else 11)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_print(tmp_path: Path) -> None:
    page = write_html(samples.sample(), tmp_path / "page.html")
    _chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", f"file://{page}")
    pages_ = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert 8 <= pages_ <= 24


def test_files_are_written_whole(tmp_path: Path) -> None:
    report = samples.quick(False)
    for write, name in ((write_html, "r.html"), (write_markdown, "r.md"), (write_junit, "r.xml")):
        path = write(report, tmp_path / "new" / name)
        assert path.is_file() and path.read_text(encoding="utf-8").strip()
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["r.html", "r.md", "r.xml"]
