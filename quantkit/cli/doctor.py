"""`quantkit doctor`: what this machine can run, what is missing, and the command that installs it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table

from quantkit import __version__
from quantkit.cli.shared import console, default_cache, escape
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.doctor import Section

UNWELL = 1
_COLOURS = {"ok": "green", "none": "dim", "note": "yellow", "fault": "bold red"}
_WORDS = {"ok": "ok", "none": "-", "note": "note", "fault": "FAULT"}


def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also estimate memory, disk and time of quantizing it (imports torch)."),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also import torch and the runtimes, in another process, and ask them for devices and kernels: half a "
            "minute; some minutes where gptqmodel compiles its kernel for the first time.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what this machine can run: versions, devices, runtimes, kernels, and what is missing.

    Reads metadata and asks nvidia-smi; imports nothing heavy and downloads nothing. No token is shown. Exit code 1:
    something that quantkit needs is missing or too old, or the model does not fit.
    """
    try:
        from quantkit.doctor import Options, commands, examine, healthy
    except ModuleNotFoundError as error:
        raise QuantkitError(f"doctor: the package {error.name} is missing; run pip install {error.name}") from error

    sections = examine(Options(default_cache(), model, deep))
    well = healthy(sections)
    if as_json:
        content = {"quantkit": __version__, "ok": well, "commands": commands(sections)}
        content |= {"sections": {section.title: [asdict(row) for row in section.rows] for section in sections}}
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        for section in sections:
            _print(section)
        _print_end(sections, well, commands(sections))
    if not well:
        raise typer.Exit(UNWELL)


def _print(section: Section) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=5)
    table.add_column(max_width=30)
    table.add_column(ratio=1)
    for row in section.rows:
        colour = _COLOURS[row.state]
        table.add_row(f"[{colour}]{_WORDS[row.state]}[/]", escape(row.what), escape(row.said))
        if row.command:
            table.add_row("", "", f"[cyan]{escape(row.command)}[/]")
    console.print(f"[bold]{section.title}[/]", highlight=False)
    console.print(Padding(table, (0, 0, 1, 2)), highlight=False)


def _print_end(sections: list[Section], well: bool, repairs: list[str]) -> None:
    if well:
        console.print(
            "[green]quantkit can run here.[/] -: not installed, needed for what its line says", highlight=False
        )
        return
    count = sum(row.state == "fault" for section in sections for row in section.rows)
    console.print(
        f"[bold red]{count} fault{'s' if count > 1 else ''}[/]{': mend with' if repairs else ''}", highlight=False
    )
    for command in repairs:
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
