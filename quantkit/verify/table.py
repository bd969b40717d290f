"""A report as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from quantkit.verify.report import Report


def to_table(report: Report) -> Table:
    """One line a modality: KL divergence, top-1 agreement, exact match and perplexity of both models."""
    from rich.table import Table

    rows = report.rows()
    positions = {row["positions"] for row in rows}
    where = (
        "the answers' tokens" if positions == {"answer"} else "all text tokens" if positions == {"text"} else "tokens"
    )
    table = Table(
        title=f"{report.candidate['name']} against {report.reference['name']}",
        caption=f"KL in nats a token over {where}; exact match and perplexity: reference → candidate",
    )
    table.add_column("modality")
    for heading in ("items", "tokens", "KL mean", "median", "p99", "max", "top-1", "exact match", "perplexity"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row["modality"] == "all":
            table.add_section()
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["modality"],
        str(row["items"]),
        str(row["tokens"]),
        *(_number(row[key]) for key in ("kl_mean", "kl_p50", "kl_p99", "kl_max")),
        _share(row["top1_agreement"]),
        f"{_share(row['accuracy_reference'])} → {_share(row['accuracy_candidate'])}",
        f"{_number(row['perplexity_reference'])} → {_number(row['perplexity_candidate'])}",
    ]


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-4 <= value < 1000 or value == 0 else f"{value:.1e}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
