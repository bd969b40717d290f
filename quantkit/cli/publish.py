"""`quantkit card` and `quantkit publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.shared import console, escape, megabytes

if TYPE_CHECKING:
    from quantkit.publish.plan import Plan
    from quantkit.publish.run import Preview, Published

CARD, WHERE, RUN = "Card", "Where", "Run"

Folder = Annotated[Path, typer.Argument(help="The variant's folder.", metavar="DIR")]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report", help="A report.json outside of DIR (of a GGUF file). May be repeated. (default: DIR/report*.json)"
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(help="The source's id on the hub. (default: as quantkit.json has it)", rich_help_panel=CARD),
]
Licence = Annotated[
    str | None,
    typer.Option(
        "--license", help="The source's licence: apache-2.0. (default: as DIR's LICENSE or README.md says)",
        rich_help_panel=CARD,
    ),
]  # fmt: skip


def card(
    folder: Folder,
    repo: Annotated[str | None, typer.Option(help="ORG/NAME that it will be published as.")] = None,
    report: Reports = None,
    base_model: BaseModel = None,
    licence: Licence = None,
    finetune_configs: Annotated[
        Path | None,
        typer.Option(help="Also write files for LLaMA-Factory and ms-swift into this folder.", rich_help_panel=CARD),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that was edited, or is not quantkit's.")
    ] = False,
) -> None:
    """Write the model card, README.md and README_zh.md, from what is recorded and measured.

    Reads quantkit.json, report.json (of quantkit verify) and runtimes.json (of quantkit serve-check). Only runtimes
    that ran these very files are ticked.
    """
    from quantkit.card import gather
    from quantkit.card.files import write_cards
    from quantkit.card.finetune import write_configs

    facts = gather(folder, repo=repo, reports=report or (), base_model=base_model, licence=licence)
    for path in write_cards(facts, overwrite):
        _line(f"card: {path}")
    if finetune_configs is not None:
        for path in write_configs(facts, finetune_configs):
            _line(f"fine-tuning: {path}")
    for path in facts.evidence.stale:
        _line(f"not used, it is about other files: {path}", style="yellow")
    if not facts.evidence.measured:
        _line("no report of these files: the card says that nothing was measured", style="yellow")
    if facts.base.repo is None:
        _line(f"the source {facts.base.name} has no id on the hub: give --base-model to link it", style="yellow")
    if facts.licence is None:
        _line("no licence is stated in the folder: give --license", style="yellow")


def publish(
    folder: Folder,
    repo: Annotated[str, typer.Option(help="ORG/NAME on the hub; made if it does not exist.", rich_help_panel=WHERE)],
    revision: Annotated[
        str, typer.Option(help="Branch to publish on; made if it does not exist.", rich_help_panel=WHERE)
    ] = "main",
    pr: Annotated[
        bool, typer.Option("--pr", help="Open a pull request, not a commit on the branch.", rich_help_panel=WHERE)
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.", rich_help_panel=WHERE)
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what differs, and weight files that are no part of DIR.",
                     rich_help_panel=WHERE),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show exactly what would go; send and write nothing.", rich_help_panel=RUN)
    ] = False,
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Take a report for which no gate was set.", rich_help_panel=RUN)
    ] = False,
    report: Reports = None,
    keep_card: Annotated[
        bool, typer.Option("--keep-card", help="Publish README.md as it is, edited or not.", rich_help_panel=CARD)
    ] = False,
    base_model: BaseModel = None,
    licence: Licence = None,
) -> None:  # fmt: skip
    """Publish a variant on the Hugging Face hub, in one commit: weights, cards, reports, checksums.

    Refuses without a passing report whose fingerprint is that of the files as they are now. The token is HF_TOKEN or
    the login of `hf auth login`. After a fault run the same command again: what the hub has is not sent twice.
    """
    from quantkit.publish.run import PublishOptions, preview
    from quantkit.publish.run import publish as run

    options = PublishOptions(
        repo, revision, pr, private, overwrite, ungated, keep_card, tuple(report or ()), base_model, licence
    )
    if dry_run:
        _print_preview(preview(folder, options), options.pr)
        return
    _quiet_bars()
    with console.status(f"publishing {escape(str(folder))} as {escape(repo)}"):
        done = run(folder, options)
    _print_published(done)


def _quiet_bars() -> None:
    """No progress bars where nobody watches."""
    from huggingface_hub.utils import disable_progress_bars

    if not console.is_terminal:
        disable_progress_bars()


def _print_preview(found: Preview, pr: bool) -> None:
    plan = found.plan
    width = max(len(one.name) for one in plan.uploads)
    for one in plan.uploads:
        state = "same" if found.same(one.name) else "changed" if one.name in found.changed else "new"
        stored = "LFS" if found.lfs[one.name] else "-"
        _row(f"{one.name:<{width}}  {one.size:>12}  {stored:<3}  {one.sha256}  {state if found.asked else ''}")
    for name in found.deleted:
        _row(f"{name:<{width}}  deleted: a weight file that is no part of the variant")
    _print_left_out(plan)
    _line(f"{len(plan.uploads)} files, {megabytes(plan.total)}")
    _line(f"{'pull request' if pr else 'commit'}: {plan.message}")
    for line in plan.description.splitlines():
        _row(f"    {line}")
    if found.asked:
        _line("the repository does not exist yet" if found.remote is None else f"onto {found.remote.head[:12]}")
    else:
        _line(f"the hub was not asked ({found.why_not}); LFS as it usually is, what is there already is not known")
    _line("dry run: nothing was sent")


def _print_published(done: Published) -> None:
    plan = done.plan
    _print_left_out(plan)
    if not done.made:
        _line(f"nothing to do: all {len(plan.uploads)} files are there already")
    else:
        gone = f", {len(done.deleted)} deleted" if done.deleted else ""
        _line(f"published: {len(plan.uploads)} files, {megabytes(plan.total)}{gone}; compared with the hub's checksums")
    _line(done.address)


def _print_left_out(plan: Plan) -> None:
    for name, why in plan.left_out:
        _line(f"left out: {name} ({why})", style="yellow")


def _row(text: str) -> None:
    """A line whose spaces count; what is not printable in a file's name is shown as an escape."""
    from rich.text import Text

    shown = text.rstrip()
    shown = shown if shown.isprintable() else ascii(shown)[1:-1]
    console.print(Text(shown), highlight=False, soft_wrap=True)


def _line(text: str, style: str | None = None) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True, style=style)
