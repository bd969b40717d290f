"""`sweep.tex`: the settings as a table for papers, with booktabs' rules.

Mean and range over the seeds where there are several, else the figure with its 95 % interval. A star marks the Pareto
front of size and the first figure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from quantkit.report.figures import bits, clean, plain, size
from quantkit.report.sweep.metrics import ACCURACY, Metric, present
from quantkit.report.sweep.rows import Estimate, SweepRow
from quantkit.report.sweep.settings import SEED, Setting, front, settings_of, varying_axes

PAGE = 40  # rows that fit one; more become a longtable
SHOWN = ("kl", "kl_text", "top1", "accuracy")
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # which would be an argument of the line before
    "\u2212": "$-$", "\u2013": "--", "\u2026": r"\ldots{}", "\u2192": r"$\to$",
}  # fmt: skip
EXPONENT = re.compile(r"(\d(?:\.\d+)?)e([+-]\d+)")


def escaped(value: Any) -> str:
    """Text with nothing in it that LaTeX would act on; one line, no ligatures."""
    line = " ".join(clean(value).split())
    parts = []
    for before, character in zip(" " + line, line, strict=False):
        parts.append("{}" if before == character and character in "-," else "")
        parts.append(SPECIAL.get(character, character))
    return "".join(parts)


def figure(text: str) -> str:
    """A figure as `figures` sets it, with powers of ten and minus signs as mathematics."""
    found = EXPONENT.fullmatch(text)
    return rf"${found[1]}\times10^{{{int(found[2])}}}$" if found else escaped(text)


def to_latex(rows: Sequence[SweepRow], title: str) -> str:
    """The table's text; settings that have no figures are named in a comment."""
    settings = [setting for setting in settings_of(rows) if setting.row.status == "done"]
    metrics = [metric for metric in present(rows) if metric.key in SHOWN]
    best = front(settings, metrics[0]) if metrics else set()
    axes = [axis for axis in varying_axes([setting.row for setting in settings]) if axis != SEED]
    heads = ["setting", "method", *axes, "size", "bits a weight", *(_heading(metric) for metric in metrics)]
    align = "ll" + "l" * len(axes) + "rr" + "r" * len(metrics)
    lines = [_line(setting, index in best, axes, metrics) for index, setting in enumerate(settings)]
    left_out = [row for row in rows if row.status != "done"]
    notes = [f"% {' '.join(clean(title).split())}", f"% {_ends(settings)}"]
    notes += [f"% left out, {row.status}: {' '.join(clean(row.name).split())}" for row in left_out]
    return "\n".join([*notes, *_table(align, " & ".join(map(escaped, heads)) + r" \\", lines)]) + "\n"


def _heading(metric: Metric) -> str:
    return f"{metric.heading} (%)" if metric.log is False and metric is not ACCURACY else metric.heading


def _ends(settings: Sequence[Setting]) -> str:
    counts = {setting.seeds for setting in settings}
    if counts <= {1}:
        return "needs booktabs; in brackets 95 % intervals over items; the star is the Pareto front"
    single = "" if min(counts) > 1 else "; one seed: 95 % intervals over items"
    return f"needs booktabs; mean over seeds, in brackets the range{single}; the star is the Pareto front"


def _line(setting: Setting, best: bool, axes: list[str], metrics: list[Metric]) -> str:
    row = setting.row
    name = escaped(row.name) + (r"$^\star$" if best else "")
    cells = [
        name,
        escaped(row.method),
        *(escaped(plain(row.axes[axis])) if axis in row.axes else "--" for axis in axes),
    ]
    cells += [escaped(size(row.bytes)).replace(" ", "~"), figure(bits(row.bits_per_weight))]
    return " & ".join([*cells, *(_cell(metric.of(row), metric.shown) for metric in metrics)]) + r" \\"


def _cell(estimate: Estimate | None, shown: Callable[[float | None], str]) -> str:
    if estimate is None:
        return "--"
    value, low, high = (shown(v).removesuffix(" %") for v in (estimate.value, estimate.low, estimate.high))
    ends = "" if low == value == high else rf" {{\scriptsize [{figure(low)}, {figure(high)}]}}"
    return figure(value) + ends


def _table(align: str, head: str, lines: list[str]) -> list[str]:
    if len(lines) <= PAGE:
        return [
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    top = ["% needs longtable too", rf"\begin{{longtable}}{{{align}}}", r"\toprule", head, r"\midrule", r"\endhead"]
    return [*top, *lines, r"\bottomrule", r"\end{longtable}"]
