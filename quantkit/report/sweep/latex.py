"""`sweep.tex`: the settings as a table for papers, with booktabs' rules.

Mean and range over the seeds where there are several, else the figure with its 95 % interval. A star marks the Pareto
front of size and the first figure. Intervals stand under their figures, and what is wider than the line all the same is
scaled down to it (a longtable cannot be: it may want a page in landscape).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from quantkit.report.figures import bits, clean, plain, size
from quantkit.report.sweep.metrics import ACCURACY, Metric, present
from quantkit.report.sweep.rows import Estimate, SweepRow
from quantkit.report.sweep.settings import SEED, Setting, front, settings_of, varying_axes

PAGE = 24  # settings, of two lines each, that fit one; more become a longtable
SHOWN = ("kl", "kl_text", "top1", "accuracy")
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"{\char34}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # which would be an argument of the line before
    "\u2212": "$-$", "\u2013": "--", "\u2026": r"\ldots{}", "\u2192": r"$\to$",
}  # fmt: skip
SMALL = r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}\let\intervalsize\scriptsize%"
SMALLER = r"\begingroup\scriptsize\setlength{\tabcolsep}{1.5pt}\let\intervalsize\tiny%"
COMMANDS = (  # a figure, which stands on the row's line, over its interval; a heading in two lines
    r"\providecommand{\figureandinterval}[2]"
    r"{\begin{tabular}[t]{@{}r@{}}#1\\[-0.4ex]{\intervalsize #2}\end{tabular}}%",
    r"\providecommand{\headingoftwo}[2]{\begin{tabular}[b]{@{}r@{}}#1\\[-0.4ex]#2\end{tabular}}%",
)
SCALED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
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
    if not "".join([*heads, *lines]).isascii():
        notes.append("% names hold letters that pdfLaTeX may not know: XeLaTeX or LuaLaTeX, with a font that has them")
    notes += [f"% left out, {row.status}: {' '.join(clean(row.name).split())}" for row in left_out]
    return "\n".join([*notes, *_table(align, " & ".join(map(_stacked, heads)) + r" \\", lines)]) + "\n"


def _heading(metric: Metric) -> str:
    return f"{metric.heading} (%)" if metric.log is False and metric is not ACCURACY else metric.heading


def _stacked(heading: str) -> str:
    """A heading, of several words in two lines."""
    first, space, rest = heading.partition(" ")
    if heading.startswith("bits a"):
        first, rest = "bits a", "weight"
    return rf"\headingoftwo{{{escaped(first)}}}{{{escaped(rest)}}}" if space else escaped(heading)


def _ends(settings: Sequence[Setting]) -> str:
    counts = {setting.seeds for setting in settings}
    if counts <= {1}:
        return "needs booktabs and graphicx; in brackets 95 % intervals over items; the star is the Pareto front"
    single = "" if min(counts) > 1 else "; one seed: 95 % intervals over items"
    return f"needs booktabs and graphicx; mean over seeds, in brackets the range{single}; the star is the Pareto front"


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
    if low == value == high:
        return figure(value)
    return rf"\figureandinterval{{{figure(value)}}}{{[{figure(low)}, {figure(high)}]}}"


def _table(align: str, head: str, lines: list[str]) -> list[str]:
    if len(lines) <= PAGE:
        top = [SCALED, rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule"]
        return [SMALL, *COMMANDS, *top, *lines, r"\bottomrule", r"\end{tabular}}%", r"\endgroup"]
    top = [rf"\begin{{longtable}}{{{align}}}", r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
    note = "% needs longtable too; outside of table, where it is wide in landscape (pdflscape)"
    return [note, SMALLER, *COMMANDS, *top, *lines, r"\end{longtable}", r"\endgroup"]
