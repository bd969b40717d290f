"""`quantkit run`, `quantkit recipe` and `quantkit reproduce`: what a file says, typed options before it."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.gguf import run_gguf, run_imatrix
from quantkit.cli.quantize import run_bnb, run_quantize
from quantkit.cli.shared import console, errors, escape, quiet_libraries, stop_behind
from quantkit.cli.verify import GATE_FAILED, measure
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from quantkit.recipe.document import Recipe

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": True}
File = Annotated[Path, typer.Argument(help="A YAML file, or the name of a recipe that comes along.", metavar="RECIPE")]
recipe = typer.Typer(name="recipe", help="What a recipe says, and what it may say.", no_args_is_help=True)


def run(
    context: typer.Context,
    file: File,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Leave out the recipe's section verify.")] = False,
) -> None:
    """Run a recipe: one YAML file with a method, its options, what is measured afterwards, and the limits.

    Every option of the recipe's method may follow and comes before the file: quantkit run RECIPE --out DIR --bits 3;
    --no-sequential, or --no- before another flag's name, turns off what the file turns on.
    With a section verify or gates the variant is measured at once. Exit code 3: a gate was missed.
    """
    from quantkit.recipe.document import find_recipe, read_recipe

    found = read_recipe(find_recipe(file))
    typed, dry_run = _typed(found.method, context.args)
    options = found.options(typed)
    verify = None if no_verify or dry_run else found.verify_options()
    gates = []
    if verify is not None:
        if found.method == "imatrix":
            raise found.error("verify" if found.verify is not None else "gates", "an imatrix is no model; leave it out")
        with console.status("loading torch and transformers"):
            quiet_libraries()
            from quantkit.verify.asked import check_asked
            from quantkit.verify.gates import from_section
        try:
            gates = from_section(found.gates)
        except QuantkitError as error:
            raise found.error("gates", str(error).removeprefix("gates.")) from error
        try:
            check_asked(verify, gates)
        except QuantkitError as error:
            raise found.located(error, section="verify") from error
    try:
        execute(found.method, options, dry_run)
    except QuantkitError as error:
        raise found.located(error, typed) from error
    if verify is not None:
        try:
            _measure(options, verify, gates)
        except BaseException as error:
            if not isinstance(stop_behind(error), KeyboardInterrupt):
                raise
            place = options.out.expanduser()
            words = f"interrupted; {place} is written, and not measured: quantkit verify {options.model} {place}"
            errors.print(words, markup=False, highlight=False, soft_wrap=True)
            sys.exit(128 + signal.SIGINT)


def execute(method: str, options: Any, dry_run: bool) -> None:
    """Run a method's command with its options made."""
    if method == "imatrix":
        if dry_run:
            raise QuantkitError("--dry-run: is not for imatrix")
        run_imatrix(options)
    elif method == "gguf":
        run_gguf(options, dry_run)
    elif method == "bnb":
        run_bnb(options, dry_run)
    else:
        run_quantize(options, dry_run)


def _measure(options: Any, verify: Any, gates: list[Any]) -> None:
    """Verify what was written: the folder, or each text file of GGUF ones, whose report then has the file's name."""
    from quantkit.checkpoint import open_checkpoint
    from quantkit.verify.asked import measured_files

    worst = "pass"
    reference = open_checkpoint(options.model, options.revision, options.token)
    for candidate, report in measured_files(options.out.expanduser()):
        asked = verify if verify.report is not None else replace(verify, report=report)
        if measure(reference, candidate, asked, gates) == "fail":
            worst = "fail"
    if worst == "fail":
        raise typer.Exit(GATE_FAILED)


def _typed(method: str, arguments: list[str]) -> tuple[dict[str, Any], bool]:
    """What was typed of a method's options (or stands in the environment), by field; whether --dry-run was.

    A flag that the file may have set is turned off by --no- before its name, also where its command, which has it off
    anyhow, knows no such form.
    """
    from quantkit.cli import app

    command = typer.main.get_command(app).commands[method]  # type: ignore[attr-defined]
    flags = {f"--no-{one.opts[0][2:]}": one.name for one in command.params if one.opts and one.default is False}
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    off = {argument: flags[argument] for argument in arguments if argument in flags and argument not in known}
    context = command.make_context(f"quantkit {method}", [one for one in arguments if one not in off])
    stated = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in context.params.items()
        if context.get_parameter_source(name).name in ("COMMANDLINE", "ENVIRONMENT")
    }
    stated |= dict.fromkeys(off.values(), False)
    return stated, bool(stated.pop("dry_run", False))


# ---- recipe ---------------------------------------------------------------------------------------------------------


@recipe.command("list", epilog="Example: quantkit recipe list")
def list_recipes() -> None:
    """The recipes that come with quantkit: what each is for, what it weighs and loses."""
    from quantkit.recipe.document import bundled

    table = Table(title="quantkit run NAME", title_justify="left")
    for heading in ("name", "what", "size and loss"):
        table.add_column(heading, no_wrap=heading == "name")
    for name, path in bundled().items():
        told = [line.partition(": ")[2] for line in path.read_text(encoding="utf-8").splitlines()[:3]]
        table.add_row(name, escape(told[0]), escape(told[2]))
    console.print(table)
    console.print("size at the published shapes; loss: mean KL at answers' tokens, 0.001 nats", style="dim")


@recipe.command("show", context_settings=PASS_ON, epilog="Example: quantkit recipe show awq --resolved")
def show(
    context: typer.Context,
    file: File,
    resolved: Annotated[bool, typer.Option("--resolved", help="Also what is left to the defaults.")] = False,
) -> None:
    """Print what a recipe says, options typed after it included; with --resolved every option, and where it is from."""
    from quantkit.recipe.document import find_recipe, read_recipe

    found = read_recipe(find_recipe(file))
    typed, _dry_run = _typed(found.method, context.args)
    for line in _shown(found, typed, resolved):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(found: Recipe, typed: Mapping[str, Any], resolved: bool) -> Iterable[str]:
    from quantkit.recipe import COMMANDS, VerifyCommandOptions
    from quantkit.recipe.schema import verify_model

    options = found.options(typed)
    yield f"method: {found.method}"
    for one in fields(options):
        name = one.name
        if name not in COMMANDS[found.method].option_names() or one.metadata["envvar"]:
            continue
        origin = "command line" if name in typed else f"line {found.lines[name]}" if name in found.given else "default"
        if resolved or origin != "default":
            yield f"{name}: {_yaml(getattr(options, name))}" + (f"  # {origin}" if resolved else "")
    verify = found.verify_options()
    if verify is not None:
        yield "verify:" if resolved or found.verify else "verify: {}"
        for name in verify_model().model_fields:
            stated = name in (found.verify or {})
            if stated or resolved:
                default = getattr(VerifyCommandOptions(), name)
                value = getattr(verify, name)
                origin = f"line {found.lines[f'verify.{name}']}" if stated else "default"
                yield f"  {name}: {_yaml(value if stated else default)}" + (f"  # {origin}" if resolved else "")
    if found.gates:
        yield "gates:"
        for name, limit in found.gates.items():
            yield f"  {name}: {_yaml(limit)}"


def _yaml(value: Any) -> str:
    """One value on one line."""
    import yaml

    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return str(text).removesuffix("\n").removesuffix("\n...")


@recipe.command("schema", epilog="Example: quantkit recipe schema --out recipe.schema.json")
def schema(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write. (default: print it)")] = None,
) -> None:
    """Print the JSON Schema of a recipe, for editors that complete and check YAML."""
    from quantkit.recipe.schema import schema as made

    text = json.dumps(made(), indent=2) + "\n"
    if out is None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QuantkitError(f"--out {out}: cannot be written ({error.strerror})") from error


# ---- reproduce ------------------------------------------------------------------------------------------------------


def reproduce(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A variant that quantkit wrote.", metavar="DIR")],
    keep: Annotated[Path | None, typer.Option(help="Keep the second run's files in this folder.")] = None,
) -> None:
    """Run the recipe in a variant's quantkit.json again, and say which files agree byte for byte.

    What lay on the maker's machine under a name of its own is named again: --model DIR, --calib FILE, --imatrix FILE.
    Exit code 3: a file differs.
    """
    from quantkit.reproduce import differences, read_record

    folder, keep = folder.expanduser(), keep.expanduser() if keep is not None else None
    made = read_record(folder)
    typed, dry_run = _typed(made.method, context.args)
    if dry_run or "out" in typed:
        raise QuantkitError(f"{'--dry-run' if dry_run else '--out'}: is not for reproduce; --keep DIR keeps its files")
    if keep is not None and keep.resolve() == folder.resolve():
        raise QuantkitError(f"--keep {keep}: is what is compared with; choose another folder")
    with tempfile.TemporaryDirectory(prefix="quantkit-") as place:
        again = keep if keep is not None else Path(place) / "again"
        if "imatrix" in made.content and "imatrix" not in typed:
            raise QuantkitError(f"{folder}: was rounded with an importance matrix; name its file with --imatrix")
        options = made.options(typed, again)
        with console.status("loading torch and transformers"):
            quiet_libraries()
            import torch

            from quantkit.checkpoint import open_checkpoint
        source = open_checkpoint(options.model, options.revision, options.token, verify_checksums=False)
        if source.fingerprint() != made.fingerprint:
            raise QuantkitError(
                f"--model {options.model}: is not the {made.source} that {folder} was made from (fingerprint "
                f"{source.fingerprint()[:12]}, recorded {made.fingerprint[:12]})"
            )
        if made.threads:
            torch.set_num_threads(made.threads)  # sums in another order move codes
        console.quiet = True  # the run's own table is about a place that nobody needs
        try:
            execute(made.method, options, dry_run=False)
        except QuantkitError as error:
            hint = f"; {folder} holds no paths: name what lay on the maker's machine, as --calib FILE or --stats DIR"
            raise error if "calib" in typed else QuantkitError(f"{error}{hint}") from error
        finally:
            console.quiet = False
        found = differences(folder, again)
        if not found:
            raise QuantkitError(f"{folder}: its recipe writes no variant, so there is nothing to compare")
    table = Table(title=escape(f"{folder}, made again"), title_justify="left")
    table.add_column("file")
    table.add_column("bytes")
    for name, state in found.items():
        table.add_row(escape(name), state if state == "same" else f"[red]{state}[/]")
    console.print(table)
    for package, (then, now) in made.other_versions().items():
        console.print(f"[yellow]note:[/] {package} was {escape(then)}, here it is {escape(now)}", highlight=False)
    apart = [name for name, state in found.items() if state != "same"]
    if apart:
        console.print(f"[red]differs:[/] {escape(', '.join(apart))}", highlight=False, soft_wrap=True)
        raise typer.Exit(GATE_FAILED)
    console.print("[green]the same bytes[/]", highlight=False)
