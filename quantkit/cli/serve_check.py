"""`quantkit serve-check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quantkit.cli.shared import console, escape, progress, quiet_libraries

if TYPE_CHECKING:
    from quantkit.serve.check import Checked

FAILED = 3
SERVER, JUDGE = "Server", "Judge"


def serve_check(
    variant: Annotated[
        str, typer.Argument(help="A folder, a hub id, tiny, or a .gguf file or folder of them.", metavar="DIR")
    ],
    runtime: Annotated[str, typer.Option(help="transformers-serve, vllm or llama-server.", rich_help_panel=SERVER)],
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=SERVER)] = "cpu",
    python: Annotated[
        Path | None,
        typer.Option(
            help="Python of the environment that has the runtime. (default: this one)", rich_help_panel=SERVER
        ),
    ] = None,
    binary: Annotated[
        Path | None,
        typer.Option(
            help="The program llama-server. (default: the one on PATH, else the server inside xllamacpp)",
            rich_help_panel=SERVER,
        ),
    ] = None,
    server_arg: Annotated[
        list[str] | None,
        typer.Option(help="One more argument for the server. May be repeated.", rich_help_panel=SERVER),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for the start, and for each answer.", rich_help_panel=SERVER)
    ] = 600.0,
    log: Annotated[
        Path | None, typer.Option(help="Keep what the server writes in this file.", rich_help_panel=SERVER)
    ] = None,
    mmproj: Annotated[
        Path | None, typer.Option(help="The vision file of a .gguf, where it cannot be told.", rich_help_panel=SERVER)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Of GGUF: the model that it was made of, a folder, hub id or tiny.", rich_help_panel=JUDGE),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="dequantized: the file's weights in Transformers' model; transformers: with its own kernels.",
            rich_help_panel=JUDGE,
        ),
    ] = "dequantized",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The record. (default: DIR/runtimes.json; ./ for a hub id)", rich_help_panel=JUDGE
        ),
    ] = None,
) -> None:
    """Serve a variant and ask it what its model card shows: text, pictures by address and base64, a tool call.

    Starts the runtime on loopback, asks through the openai client, holds the answers against Transformers, and records
    the outcome for the card. Exit code 3: an answer was wrong or is missing.
    """
    with console.status("loading torch and transformers"):
        quiet_libraries()
        from quantkit.serve.check import ServeOptions
        from quantkit.serve.check import serve_check as run
    options = ServeOptions(
        runtime=runtime, reference=reference, mmproj=mmproj, engine=engine, device=device, python=python, binary=binary,
        server_args=tuple(server_arg or ()), timeout=timeout, log=log, out=out,
    )  # fmt: skip
    with progress() as bars:
        checked = run(variant, options, bars)
    _print(checked)
    if not checked.run.passed:
        raise typer.Exit(FAILED)


def _print(checked: Checked) -> None:
    from quantkit.serve.record import FAILED as WRONG
    from quantkit.serve.record import PASSED

    run = checked.run
    table = Table(title=f"{run.runtime} {escape(run.version)}, {run.device}")
    for heading in ("request", "status", "answer"):
        table.add_column(heading, overflow="fold")
    for outcome in run.outcomes:
        colour = {PASSED: "green", WRONG: "red"}.get(outcome.status, "yellow")
        table.add_row(outcome.name, f"[{colour}]{outcome.status}[/]", escape(outcome.detail))
    console.print(table)
    judged = f"judged by {run.reference}" + (f"; {run.note}" if run.note else "")
    console.print(judged, highlight=False, style="dim", soft_wrap=True, markup=False)
    if checked.dropped:
        console.print(f"{checked.dropped} earlier runs were dropped: the files have changed", highlight=False)
    word = "[green]PASS[/]" if run.passed else "[red]FAIL[/]"
    passed = sum(outcome.status == PASSED for outcome in run.outcomes)
    console.print(f"{word} {passed} of {len(run.outcomes)} requests shown to work", highlight=False)
    console.print(f"record: {checked.place}", highlight=False, soft_wrap=True, markup=False)
