"""A report as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from quantkit.verify.report import EngineResult, Group, Interval, Report


WIDE = 120  # characters that the whole table needs


def to_table(report: Report, engine: EngineResult | None = None, width: int = WIDE) -> Table:
    """One line a modality: KL divergence with its interval, agreement, accuracy and perplexity; less where narrow."""
    from rich import box
    from rich.table import Table

    result = engine or report.engine()
    wide = width >= WIDE
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{report.candidate.name} against {report.reference.name}, engine {result.name}",
        caption="KL in nats at the answers' tokens; accuracy: reference → candidate",
    )
    table.add_column("items of", max_width=26 if wide else 12)
    for heading in _headings(wide):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = [group for group in result.groups if group.by == "modality" or _several(result, group.by)]
    for group in groups:
        table.add_row(*_cells(group, wide))
    everything = next((group for group in result.groups if group.by == "all"), None)
    if everything is not None:
        table.add_section()
        table.add_row(*_cells(everything, wide))
    if report.noise_floor:
        table.add_section()
        answered = any(group.answer for group in result.groups)
    for row in [row for row in report.noise_floor if (row.positions == "answer") == answered]:
        most = [number(row.kl_max)] if wide else []
        cells = ["floor: " + row.what if wide else f"({row.name})", str(row.items), number(row.kl_mean)]
        table.add_row(*cells, number(row.kl_p99), *most, share(row.top1), style="dim")
    return table


def _several(result: EngineResult, by: str) -> bool:
    return by != "all" and sum(group.by == by for group in result.groups) > 1


def _headings(wide: bool) -> list[str]:
    if wide:
        return ["items", "KL mean", "p99", "max", "top-1", "accuracy", "same answer", "ppl ratio"]
    return ["items", "KL mean", "p99", "top-1", "accuracy", "same"]


def _cells(group: Group, wide: bool) -> list[str]:
    tokens = group.answer or group.text
    accuracy, answers = group.accuracy, group.generation
    cells = [group.value, str(group.items)]
    if tokens is None:
        cells += ["-"] * (4 if wide else 3)
    else:
        cells.append(_interval(tokens.kl_mean) if wide else number(tokens.kl_mean.value))
        cells.append(number(tokens.kl_p99.value))
        cells += [number(tokens.kl_max)] if wide else []
        cells.append(share(tokens.top1.value))
    cells.append(f"{100 * accuracy.reference:.1f} → {share(accuracy.candidate)}" if accuracy else "-")
    cells.append(share(answers.same.value) if answers else "-")
    if wide:
        cells.append(f"{tokens.perplexity_ratio.value:.4f}" if tokens and tokens.perplexity_ratio else "-")
    return cells


def _interval(figure: Interval) -> str:
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def number(value: float) -> str:
    """A small figure: four decimals, or two digits and an exponent."""
    return f"{value:.4f}" if 1e-3 <= value < 1000 or value == 0 else f"{value:.1e}"


def share(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f} %"
