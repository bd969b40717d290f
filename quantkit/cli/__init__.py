"""The command line: arguments in, one call, a table out. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from quantkit import __version__
from quantkit.cli.calib import calib
from quantkit.cli.chat import chat
from quantkit.cli.doctor import doctor
from quantkit.cli.gguf import gguf, imatrix
from quantkit.cli.inspect import inspect
from quantkit.cli.publish import card, publish
from quantkit.cli.quantize import awq, bnb, gptq, rtn
from quantkit.cli.recipe import PASS_ON, recipe, reproduce, run
from quantkit.cli.serve_check import serve_check
from quantkit.cli.shared import console, errors, escape, stop_behind
from quantkit.cli.sweep import sweep
from quantkit.cli.verify import compare, verify
from quantkit.errors import Faults, QuantkitError

app = typer.Typer(
    name="quantkit",
    help="Quantized variants of MiniCPM-V 4.6 that load in the runtimes people use, with a measured report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130


def _version(value: bool) -> None:
    if value:
        console.print(f"quantkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command(epilog="Example: quantkit awq --model openbmb/MiniCPM-V-4.6 --out MiniCPM-V-4.6-AWQ")(awq)
app.command(epilog="Example: quantkit gptq --model openbmb/MiniCPM-V-4.6 --bits 3 --out MiniCPM-V-4.6-GPTQ-3bit")(gptq)
app.command(epilog="Example: quantkit rtn --model tiny --out tiny-rtn")(rtn)
app.command(epilog="Example: quantkit bnb --model openbmb/MiniCPM-V-4.6 --type nf4 --out MiniCPM-V-4.6-NF4")(bnb)
app.command(epilog="Example: quantkit gguf --model openbmb/MiniCPM-V-4.6 --type Q4_K_M --out MiniCPM-V-4.6-GGUF")(gguf)
app.command(epilog="Example: quantkit imatrix --model openbmb/MiniCPM-V-4.6 --out imatrix.gguf")(imatrix)
app.command(context_settings=PASS_ON, epilog="Example: quantkit run awq --model tiny --out tiny-AWQ")(run)
app.command(context_settings=PASS_ON, epilog="Example: quantkit reproduce tiny-AWQ")(reproduce)
app.add_typer(recipe)
app.command(epilog="Example: quantkit sweep sweep.yaml --dry-run")(sweep)
app.command(epilog="Example: quantkit verify tiny tiny-AWQ")(verify)
app.command(epilog="Example: quantkit compare tiny-AWQ tiny-RTN --out compare.html")(compare)
app.command(epilog="Example: quantkit inspect tiny-AWQ --layers")(inspect)
app.command(epilog="Example: quantkit doctor --model openbmb/MiniCPM-V-4.6")(doctor)
app.command(epilog="Example: quantkit card tiny-AWQ --repo ORG/tiny-AWQ")(card)
app.command(epilog="Example: quantkit publish tiny-AWQ --repo ORG/tiny-AWQ --dry-run")(publish)
app.command(epilog="Example: quantkit serve-check tiny-AWQ --runtime transformers-serve")(serve_check)
app.command(epilog="Example: quantkit chat tiny-AWQ 'Which digit do you see?' --image digit.png")(chat)
app.add_typer(calib)


def main() -> None:
    """Entry point: every error a user can mend is one line and exit code 2; Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)  # typer's Exit comes back as its code, and Ctrl-C as 130
        if code == INTERRUPTED:
            _interrupted()
        sys.exit(code or 0)
    except QuantkitError as error:
        for fault in error.faults if isinstance(error, Faults) else (str(error),):
            errors.print(f"[bold red]error:[/] {escape(fault)}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _interrupted()
    except Exception as error:  # noqa: BLE001 - typer carries its own copy of click: its errors have no public class
        stop = stop_behind(error)
        if isinstance(stop, SystemExit):
            sys.exit(stop.code)
        if stop is not None:
            _interrupted()
        _click_error(error)


def _interrupted() -> NoReturn:
    errors.print("interrupted; nothing was written", highlight=False)
    sys.exit(INTERRUPTED)


def _click_error(error: Exception) -> None:
    """typer's own usage errors keep their form; anything else is a bug and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(getattr(error, "exit_code", 2))
