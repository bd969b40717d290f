"""The sweep's page in headless Chromium: what its script does, with the content policy in force."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sweep_samples as samples
from test_report_pages import CHROMIUM, _probe
from test_sweep_report import hostile

from quantkit.report.sweep.metrics import METRICS
from quantkit.report.sweep.page import to_page
from quantkit.report.sweep.settings import front, settings_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here")

# Steps that a page around the page takes, so that the page itself stays as it was written, its policy included
DRIVER = """<body><iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe><script>
const found = {}, wait = (time) => new Promise((done) => setTimeout(done, time));
onload = async () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, view = frame.contentWindow;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const rows = () => all("table.sweep tbody tr").filter((row) => !row.hidden);
  const names = () => rows().map((row) => row.cells[0].querySelector("bdi").textContent);
  const heads = () => all("table.sweep thead th").map((head) => head.textContent);
  const cell = (heading) => rows().map((row) => row.cells[heads().indexOf(heading)].textContent);
  const click = (selector) => { all(selector)[0].click(); };
  const head = (heading) => all("table.sweep thead button")[heads().indexOf(heading)].click();
  const best = () => rows().filter((row) => row.classList.contains("best"))
    .map((row) => row.cells[0].querySelector("bdi").textContent);
  const box = (name, value) => `input[name="${name}"][value="${value}"]`;
  const key = (name) =>
    page.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", { key: name, bubbles: true }));
  try { STEPS } catch (error) { found.error = String(error.stack || error); }
  found.resources = view.performance.getEntriesByType("resource").map((entry) => entry.name);
  document.title = JSON.stringify(found);
};</script></body>"""


def drive(page: str, steps: str, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What the steps find, and every line that the browser's console has."""
    assert CHROMIUM is not None
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "driver.html").write_text(DRIVER.replace("STEPS", steps).replace("WIDTH", str(width)))
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--virtual-time-budget=8000", "--window-size=1400,1000", "--dump-dom",
        f"file://{folder}/driver.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    assert found.pop("error", None) is None, found
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return found


def shown(rows: dict[str, Any], metric: Any, group: str) -> dict[str, str]:
    """What a metric's column says of each, interval included, as Python sets it."""
    expected = {}
    for row in rows.values():
        estimate = metric.of(row, group)
        text = "–"
        if estimate is not None:
            low, value, high = (metric.shown(end) for end in (estimate.low, estimate.value, estimate.high))
            text = value + (f"{low} to {high}" if estimate.low != estimate.high else "")
        expected[row.name] = text
    return expected


STEPS = """
  found.start = names(); found.points = all(".point").length;
  found.cells = Object.fromEntries(heads().map((heading) => [heading, cell(heading)]));
  head("size"); found.up = names(); head("size"); found.down = names();
  found.sorted = all("table.sweep th[aria-sort]").map((head) => [head.textContent, head.getAttribute("aria-sort")]);
  head("KL mean"); found.kl = names();
  found.front = {};
  for (const group of all("input[name=group]").map((input) => input.value)) {
    click(box("group", group));
    for (const metric of all("input[name=metric]").map((input) => input.value)) {
      click(box("metric", metric));
      found.front[`${group} ${metric}`] = best();
      const column = cell(page.querySelector(box("metric", metric)).nextSibling.textContent);
      if (group === "video") found[`video ${metric}`] = Object.fromEntries(names().map((name, i) => [name, column[i]]));
    }
  }
  click(box("group", "all")); click(box("metric", "kl"));
  click(box("method", "gptq")); click(box("axis:bits", "3")); found.gptq3 = names();
  found.said = page.querySelector("[role=status]").textContent;
  found.gptq3points = all(".point").length; found.gptq3front = best();
  click(box("axis:bits", "2")); found.gptq23 = names();
  click(".clear"); found.cleared = names().length;
  click(box("status", "failed")); found.failed = names(); found.none = page.querySelector("#chart").textContent;
  click(".clear");
  click(box("each", "each")); found.each = names(); found.eachpoints = all(".point").length;
  click(box("each", "each"));
"""


def test_sorting_filtering_and_figures(tmp_path: Path) -> None:
    rows = samples.rows()
    settings = settings_of(rows)
    of = {setting.row.name: setting.row for setting in settings}
    found = drive(to_page(rows, "t"), STEPS, tmp_path)
    assert found["console"] == [] and found["resources"] == []
    assert found["start"] == list(of) and found["points"] == len(of) - 3

    sized = sorted((row for row in of.values() if row.bytes), key=lambda row: row.bytes or 0)
    missing = [row.name for row in of.values() if not row.bytes]
    assert found["up"] == [row.name for row in sized] + missing
    assert found["down"] == [row.name for row in reversed(sized)] + missing  # what is missing stays last
    assert found["sorted"] == [["size", "descending"]]
    known = sorted((row for row in of.values() if row.figures), key=lambda row: row.figures["all"].kl.value)
    assert found["kl"] == [row.name for row in known] + missing

    for metric in METRICS:
        cells = dict(zip(found["start"], found["cells"][metric.heading], strict=True))
        assert cells == shown(of, metric, "all") and found[f"video {metric.key}"] == shown(of, metric, "video")
        for group in ("all", "text", "image", "images", "video"):
            expected = {settings[index].row.name for index in front(settings, metric, group)}
            assert set(found["front"][f"{group} {metric.key}"]) == expected, (group, metric.key)

    three = {name for name, row in of.items() if row.method == "gptq" and row.axes.get("bits") == 3}
    assert set(found["gptq3"]) == three and found["said"] == f"{len(three)} of {len(of)} settings shown"
    assert found["gptq3points"] == len(three)
    some = [setting for setting in settings if setting.row.name in three]
    assert set(found["gptq3front"]) == {some[index].row.name for index in front(some, METRICS[0])}
    both = {name for name, row in of.items() if row.method == "gptq" and row.axes.get("bits") in (2, 3)}
    assert set(found["gptq23"]) == both and found["cleared"] == len(of)
    assert set(found["failed"]) == {"gptq-w2g16-refine-s0", "awq-w4g64"}
    assert found["none"] == "No variant that is shown has this figure."
    assert sorted(found["each"]) == sorted(row.name for row in rows)
    assert found["eachpoints"] == len([row for row in rows if row.status == "done"])


KEYS = """
  const tip = () => ({ hidden: page.querySelector(".tip").hidden, text: page.querySelector(".tip").textContent });
  found.stops = all('.point[tabindex="0"]').length;
  page.querySelector('.point[tabindex="0"]').focus();
  found.first = page.activeElement.getAttribute("aria-label"); found.tip = tip();
  found.lit = all("table.sweep tr.lit").map((row) => row.cells[0].querySelector("bdi").textContent);
  key("ArrowRight"); found.second = page.activeElement.getAttribute("aria-label");
  key("End"); found.last = page.activeElement.getAttribute("aria-label");
  key("Escape"); found.escaped = tip().hidden;
  key("Home"); key("Enter"); found.entered = page.activeElement.closest("tr").cells[0].querySelector("bdi").textContent;
  const choice = page.querySelector("#map-of"); found.map = choice.value;
  const cells = () => all("#map td").map((cell) => cell.textContent).filter(Boolean);
  found.cells = cells();
  click(box("measure", "outputs")); found.outputs = cells();
  found.shownMaps = all(".measure").map((part) => part.hidden);
  choice.value = "rtn-w2g32"; choice.dispatchEvent(new view.Event("change")); found.rtn = cells();
  const svg = page.querySelector("#chart svg"), mark = all(".point .mark")[3].getBoundingClientRect();
  svg.dispatchEvent(new view.PointerEvent("pointermove", { clientX: mark.x + 4, clientY: mark.y + 4, bubbles: true }));
  found.hover = tip(); svg.dispatchEvent(new view.PointerEvent("pointerleave")); found.left = tip().hidden;
"""


def test_keys_the_tip_and_the_maps(tmp_path: Path) -> None:
    rows = samples.rows()
    settings = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    found = drive(to_page(rows, "t"), KEYS, tmp_path)
    assert found["console"] == [] and found["resources"] == [] and found["stops"] == 1
    across = sorted(settings, key=lambda setting: setting.row.bytes or 0)
    for step, setting in (("first", across[0]), ("second", across[1]), ("last", across[-1])):
        assert found[step].startswith(f"{setting.row.name}: method {setting.row.method}"), step
    least = across[0].row
    assert not found["tip"]["hidden"] and least.name in found["tip"]["text"]
    assert METRICS[0].shown(least.figures["all"].kl.high) in found["tip"]["text"]  # type: ignore[union-attr]
    assert found["lit"] == [least.name] and found["escaped"] and found["entered"] == least.name
    assert found["map"] == least.name and len(found["cells"]) == len(least.layers)
    assert len(found["outputs"]) == len(least.outputs) and found["outputs"] != found["cells"]
    assert found["shownMaps"] == [True, False]
    worst = max(settings, key=lambda setting: setting.row.name == "rtn-w2g32").row
    assert f"{100 * max(worst.outputs.values()):.1f}" in found["rtn"]
    assert not found["hover"]["hidden"] and found["left"]


def test_hostile_texts_do_nothing(tmp_path: Path) -> None:
    steps = """
      found.scripts = all("script").length; found.pictures = all("img").length; found.names = names();
      head("variant"); click(box("metric", "accuracy")); found.after = all("script").length;
      found.points = all(".point").length;
    """
    rows = hostile()
    found = drive(to_page(rows, rows[0].name), steps, tmp_path)
    assert found["console"] == [] and found["resources"] == []
    assert found["scripts"] == found["after"] == 2 and found["pictures"] == 0
    assert found["points"] == len(rows) - 1 and found["names"][1] == rows[1].name


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["full", "hostile", "failed", "one"])
def test_nothing_overflows(tmp_path: Path, name: str, width: int) -> None:
    rows = {"full": samples.rows(), "hostile": hostile(), "failed": samples.rows()[-3:], "one": samples.rows()[:1]}[
        name
    ]
    page = tmp_path / "page.html"
    page.write_text(to_page(rows, "w" * 300 if name == "one" else "t"), encoding="utf-8")
    found = _probe(page, width, tmp_path)
    assert found["inner"] == width and found["scroll"] <= found["inner"], found
    assert found["outside"] == []
