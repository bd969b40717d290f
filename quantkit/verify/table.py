"""A report as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from quantkit.verify.report import EngineResult, Group, Interval, Report


def to_table(report: Report, engine: EngineResult | None = None) -> Table:
    """One line a modality: KL divergence with its interval, agreement, accuracy and perplexity."""
    from rich.table import Table

    result = engine or report.engine()
    table = Table(
        title=f"{report.candidate.name} against {report.reference.name}, engine {result.name}",
        caption="KL in nats over the answers' tokens (over all text where there is none), with its 95 % interval; "
        "accuracy: reference → candidate",
    )
    table.add_column("items of")
    for heading in ("items", "KL mean", "p99", "max", "top-1", "accuracy", "same answer", "ppl ratio"):
        table.add_column(heading, justify="right", no_wrap=heading != "KL mean")
    groups = [group for group in result.groups if group.by == "modality" or _several(result, group.by)]
    for group in groups:
        table.add_row(*_cells(group))
    everything = next((group for group in result.groups if group.by == "all"), None)
    if everything is not None:
        table.add_section()
        table.add_row(*_cells(everything))
    if report.noise_floor:
        table.add_section()
        for row in report.noise_floor:
            cells = ("floor: " + row.what, str(row.items), number(row.kl_mean), number(row.kl_p99), number(row.kl_max))
            table.add_row(*cells, share(row.top1), "", "", "", style="dim")
    return table


def _several(result: EngineResult, by: str) -> bool:
    return by != "all" and sum(group.by == by for group in result.groups) > 1


def _cells(group: Group) -> list[str]:
    tokens = group.answer or group.text
    accuracy, answers = group.accuracy, group.generation
    return [
        group.value,
        str(group.items),
        _interval(tokens.kl_mean) if tokens else "-",
        number(tokens.kl_p99.value) if tokens else "-",
        number(tokens.kl_max) if tokens else "-",
        share(tokens.top1.value) if tokens else "-",
        f"{share(accuracy.reference)} → {share(accuracy.candidate)}" if accuracy else "-",
        share(answers.same.value) if answers else "-",
        f"{tokens.perplexity_ratio.value:.4f}" if tokens else "-",
    ]


def _interval(figure: Interval) -> str:
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def number(value: float) -> str:
    """A small figure: four decimals, or two digits and an exponent."""
    return f"{value:.4f}" if 1e-3 <= value < 1000 or value == 0 else f"{value:.1e}"


def share(value: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * value:.1f} %"
