"""`quantkit calib`: look at a calibration mix, write it as one file, check every row of its sources."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.options import with_options
from quantkit.cli.shared import console, default_cache, errors, escape, progress, quiet_libraries
from quantkit.errors import QuantkitError
from quantkit.recipe import DATA, RUN, CalibrationOptions

if TYPE_CHECKING:
    from quantkit.calibration import Mix
    from quantkit.calibration.check import Tally
    from quantkit.calibration.describe import Bucket, Description, Figures
    from quantkit.calibration.sources import Source

calib = typer.Typer(
    name="calib",
    help="Calibration data: look at the mix that would be used, write it as one file, check every row.",
    no_args_is_help=True,
)
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE", help="The same as --calib; both may be given, and all are read.", show_default=False
    ),
]
NAMES = 5  # ids that a line lists


@calib.command(epilog="Example: quantkit calib inspect bundled photos,weight=0.5 --html mix.html")
@with_options(CalibrationOptions, leave_out=["allow_overlap"])
def inspect(
    given: dict[str, Any],
    ctx: typer.Context,
    sources: Sources = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with thumbnails to this file.", rich_help_panel=RUN),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.", rich_help_panel=RUN)
    ] = None,
) -> None:
    """Show what quantkit awq would calibrate on with the same options: samples, tokens, sizes, languages, modes.

    An overlap with --eval-data is reported, not refused.
    """
    options = _options(given | {"allow_overlap": True}, ctx, sources)
    _loaded()
    from quantkit.calibration.describe import describe

    with progress() as report:
        mix = _build(options, report)
        found = describe(mix, _shared(mix, options))
        if html is not None:
            _write_page(html, mix, found, options, report)
    if json_file is not None:
        content = asdict(found) | {"options": options.provenance()}
        _write(json_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _print_description(found, options)
    for path in (html, json_file):
        if path is not None:
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@calib.command(epilog="Example: quantkit calib build bundled wikitext,weight=0.5 --samples 256 --out mix.parquet")
@with_options(CalibrationOptions)
def build(
    given: dict[str, Any],
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .parquet.", rich_help_panel=RUN)],
    sources: Sources = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file, once it is complete.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Write the mix that quantkit awq would calibrate on as one Parquet file, pictures included.

    --calib FILE.parquet reads it back to the same samples.
    """
    options = _options(given, ctx, sources)
    _loaded()
    from quantkit.calibration.export import check_target, write_parquet
    from quantkit.calibration.originals import originals
    from quantkit.calibration.sources import parse_sources

    check_target(out, overwrite)
    access = _access(options)
    with progress() as report:
        mix = _build(options, report)
        chosen = originals(mix, parse_sources(options.calib))
        notes = {"fingerprint": mix.fingerprint, "options": options.provenance()}
        total = len(mix.samples)
        counted = _counted(chosen, lambda done: report("writing", done, total))
        write_parquet(counted, out, notes, access, overwrite)
    tokens = sum(sample.input_ids.numel() for sample in mix.samples)
    console.print(f"wrote {out}: {total} conversations, {tokens} tokens", markup=False, highlight=False, soft_wrap=True)
    console.print(f"fingerprint {mix.fingerprint}", highlight=False)
    _print_skipped(len(mix.skipped))
    stated = " ".join(["--calib", str(out), "--samples", str(total), *_same(options)])
    console.print(f"next: quantkit awq {stated}", markup=False, highlight=False, soft_wrap=True)


@calib.command(epilog="Example: quantkit calib check rows.jsonl")
@with_options(CalibrationOptions, leave_out=["samples", "token_budget", "seed", "allow_overlap", "cache", "no_cache"])
def check(
    given: dict[str, Any],
    ctx: typer.Context,
    sources: Sources = None,
    process: Annotated[
        bool,
        typer.Option("--process/--no-process", help="Run the model's processor too, or only decode.",
                     rich_help_panel=DATA),
    ] = True,
) -> None:  # fmt: skip
    """Read, decode and process every row of the sources, and list each bad one with its file and row.

    Exit code 2 where any is bad; 0 with --skip-bad, which says how many would be left out.
    """
    options = _options(given | {"samples": None}, ctx, sources)
    _loaded()
    from quantkit.calibration.sources import parse_sources

    parsed = parse_sources(options.calib)
    started = time.monotonic()
    tally = _check(parsed, options, process)
    _print_tally(tally, options, time.monotonic() - started)
    if tally.bad and not options.skip_bad:
        raise typer.Exit(2)


# ---- shared


def _options(given: dict[str, Any], ctx: typer.Context, sources: Sequence[str] | None) -> CalibrationOptions:
    """The options; sources given as arguments take the place of --calib's default, or come before what it states."""
    if sources:
        stated = getattr(ctx.get_parameter_source("calib"), "name", "") not in ("DEFAULT", "")
        given = given | {"calib": (*sources, *(given["calib"] if stated else ()))}
    return CalibrationOptions(**given)


def _loaded() -> None:
    with console.status("loading torch and transformers"):
        quiet_libraries()
        import quantkit.calibration  # noqa: F401


def _access(options: CalibrationOptions) -> Any:
    from quantkit.calibration.images import Access

    return Access(private_urls=options.private_urls)


def _folder(options: CalibrationOptions) -> Path:
    from quantkit.checkpoint import open_checkpoint

    return open_checkpoint(options.model, options.revision, options.token, verify_checksums=False).path


def _build(options: CalibrationOptions, report: Any) -> Mix:
    """The mix of the options by the way of `quantize`, from the same cache."""
    from quantkit.calibration import build_from

    cache = None if options.no_cache else (options.cache or default_cache())
    return build_from(replace(options, cache=cache), _folder(options), report)


def _shared(mix: Mix, options: CalibrationOptions) -> list[str]:
    from quantkit.calibration.identity import shared
    from quantkit.calibration.mix import evaluation_set

    return shared(evaluation_set(options.eval_data), mix.items, mix.pictures, _access(options))


def _counted(entries: Iterator[Any], tell: Callable[[int], None]) -> Iterator[Any]:
    for done, entry in enumerate(entries, start=1):
        yield entry
        tell(done)


def _write(path: Path, text: str) -> None:
    from quantkit.verify.report import write_text

    with _writable(path):
        write_text(path, text)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be written ({error.strerror or error})") from error


# ---- inspect


def _write_page(path: Path, mix: Mix, found: Description, options: CalibrationOptions, report: Any) -> None:
    from quantkit import __version__
    from quantkit.calibration.looks import looks
    from quantkit.calibration.sources import parse_sources
    from quantkit.report.calibration import write_calibration

    parsed = parse_sources(options.calib)
    shown = looks(mix, parsed, _access(options), progress=report)
    stated = options.provenance() | {"quantkit": __version__}
    with _writable(path):
        write_calibration(found, shown, path, stated, ", ".join(one.source for one in found.sources))


def _print_description(found: Description, options: CalibrationOptions) -> None:
    names = " + ".join(one.source for one in found.sources)
    table = Table(title=escape(f"{names}: what would be calibrated on"), title_justify="left")
    for heading in ("source", "modality", "samples", "text", "vision", "answer", "mean", "longest"):
        table.add_column(heading, justify="left" if heading in ("source", "modality") else "right")
    for one in found.groups:
        table.add_row(*_cells(one))
    table.add_section()
    table.add_row(*_cells(found.total))
    console.print(table)
    console.print("tokens: text, vision (placeholders) and, of the text, those of the last answer", style="dim")
    _print_figures(found)
    came = "from the cache" if found.cached else "prepared now"
    console.print(f"fingerprint {found.fingerprint} ({came})", highlight=False, soft_wrap=True)
    _print_skipped(found.bad_rows)
    _print_overlap(found.overlap, options, "awq would refuse it without --allow-overlap")


def _cells(one: Figures) -> list[str]:
    figures = (one.samples, one.text_tokens, one.vision_tokens, one.answer_tokens, round(one.mean), one.longest)
    return [escape(one.source), one.modality, *map(str, figures)]


def _print_figures(found: Description) -> None:
    pictures = found.pictures
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    grid.add_row("languages", _line(found.languages))
    grid.add_row("modes", _line(found.modes))
    if pictures.largest is not None and pictures.smallest is not None:
        sizes = f"{pictures.smallest[0]} x {pictures.smallest[1]} to {pictures.largest[0]} x {pictures.largest[1]}"
        grid.add_row(
            "pictures",
            f"{pictures.images} images, {pictures.sliced} of them sliced ({pictures.slices} slices); "
            f"{pictures.clips} clips; {sizes} pixels",
        )
        grid.add_row("longer side", _line(pictures.long_sides))
        grid.add_row("width:height", _line(pictures.shapes))
    grid.add_row("text tokens", _line(found.texts))
    if found.shortened or found.too_long:
        grid.add_row("over-long", f"{found.shortened} shortened, {found.too_long} left out")
    console.print(grid, highlight=False)


def _line(buckets: Sequence[Bucket]) -> str:
    return escape(", ".join(f"{bucket.label}: {bucket.count}" for bucket in buckets if bucket.count))


def _print_skipped(count: int) -> None:
    if count:
        console.print(f"left out {count} bad rows (quantkit calib check lists them)", highlight=False)


def _print_overlap(names: Sequence[str], options: CalibrationOptions, meaning: str) -> None:
    if not names:
        console.print(f"nothing of --eval-data {options.eval_data} is in it", highlight=False, markup=False)
        return
    listed = ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else "")
    console.print(
        f"[bold red]overlap:[/] shares {len(names)} items with --eval-data {escape(options.eval_data)} "
        f"({escape(listed)}): {meaning}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _same(options: CalibrationOptions) -> list[str]:
    """The flags, beside sources and counts, that must be given again for the same samples."""
    stated = []
    default = CalibrationOptions()
    for name in ("model", "max_tokens", "downsample_mode", "max_slice_nums", "max_num_frames", "stack_frames"):
        if getattr(options, name) != getattr(default, name):
            stated += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    for name in ("use_image_id", "enable_thinking"):
        value = getattr(options, name)
        if value is not None:
            stated.append(("--" if value else "--no-") + name.replace("_", "-"))
    return stated


# ---- check


def _check(parsed: list[Source], options: CalibrationOptions, process: bool) -> Tally:
    from quantkit.calibration.check import Known, check
    from quantkit.calibration.mix import MixOptions, evaluation_set, prepare_options
    from quantkit.calibration.prepare import Preparer, load_processor

    access = _access(options)
    preparer = Preparer(load_processor(_folder(options)), prepare_options(options), access) if process else None
    known = Known(evaluation_set(options.eval_data), access)
    with _counter() as tell:
        return check(parsed, preparer, _print_bad, known, access, MixOptions().workers, tell)


def _print_bad(error: QuantkitError) -> None:
    console.print(" ".join(str(error).split()), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _counter() -> Iterator[Callable[[Tally], None]]:
    """A line that counts rows while bad ones are printed above it; a stream does not tell how many are to come."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    both = sys.stdout.isatty()  # what goes into a file or a pipe must not be drawn to the terminal
    with Progress(*columns, console=errors, transient=True, redirect_stdout=both) as bars:
        task = bars.add_task("checking", total=None)

        def tell(tally: Tally) -> None:
            bars.update(task, description=f"{tally.rows} rows, {tally.bad} bad", completed=tally.rows)

        yield tell


def _print_tally(tally: Tally, options: CalibrationOptions, seconds: float) -> None:
    if tally.bad and options.skip_bad:
        console.print(f"{tally.bad} of {tally.rows} rows are bad and would be left out", highlight=False)
    if tally.shortened or tally.too_long:
        console.print(
            f"longer than {options.max_tokens} tokens: {tally.shortened} would be shortened, {tally.too_long} left out",
            highlight=False,
        )
    if tally.repeated or tally.repeated_pictures:
        console.print(
            f"repeated: {tally.repeated} rows say and show what an earlier one does, {tally.repeated_pictures} "
            "pictures are in an earlier row too",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    _print_overlap(tally.overlap, options, "figures measured there would flatter")
    console.print(
        f"{tally.rows} rows: {tally.good} good, {tally.bad} bad; {seconds:.1f} seconds", highlight=False, style="bold"
    )
