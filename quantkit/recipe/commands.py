"""The commands that write something: which options each has, and what its output is called by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quantkit.recipe.common import CalibrationOptions, ModelOptions
from quantkit.recipe.fields import Options
from quantkit.recipe.methods import BnbOptions, GgufOptions, ImatrixOptions, QuantizeOptions

_CALIBRATION = {one.name for one in fields(CalibrationOptions)} - {one.name for one in fields(ModelOptions)}
_NEEDS_DATA = {
    "solver", "scales", "act_order", "damping", "sequential", "tune", "stats", "save_stats", "budget", "budget_bits",
}  # fmt: skip
_NOT_FOR_GGUF = {"max_shard_size", "keep", "dtype"}


@dataclass(frozen=True)
class Command:
    """kind: the class of its options; leave_out: fields that it has no flag for; fixed: what these are then, if not
    their defaults; suffix: of the default output's name, with ``{type}`` where that is part of it."""

    kind: type[Options]
    suffix: str
    leave_out: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def option_names(self) -> list[str]:
        """Every option, in the order of the class."""
        return [one.name for one in fields(self.kind) if one.metadata and one.name not in self.leave_out]


COMMANDS: dict[str, Command] = {
    "awq": Command(QuantizeOptions, "-AWQ", frozenset({"scales"}), {"method": "awq"}),
    "gptq": Command(QuantizeOptions, "-GPTQ", fixed={"method": "gptq"}),
    "rtn": Command(QuantizeOptions, "-RTN", frozenset(_CALIBRATION | _NEEDS_DATA), {"method": "rtn", "solver": "rtn"}),
    "bnb": Command(BnbOptions, "-{type}"),
    "gguf": Command(GgufOptions, "-GGUF", frozenset(_NOT_FOR_GGUF)),
    "imatrix": Command(ImatrixOptions, "-imatrix.gguf", frozenset(_NOT_FOR_GGUF | {"scales", "act_order", "damping"})),
}


def make_options(method: str, given: Mapping[str, Any]) -> Any:
    """The options object of a command from what was given; `out` gets its default name.

    Raises QuantkitError naming the flag where a value or a pair of them does not go.
    """
    command = COMMANDS[method]
    options = dict(given) | dict(command.fixed)
    if options.get("out") is None:
        model = str(options.get("model", ModelOptions.model)).rstrip("/").split("/")[-1]
        suffix = command.suffix.format(type=str(options.get("type", BnbOptions.type)).upper())
        options["out"] = Path(model + suffix)
    return command.kind(**options)


def command_of(options: Options) -> str:
    """The command whose options these are."""
    method = getattr(options, "method", None)
    return (
        str(method)
        if method in COMMANDS
        else next(name for name, command in COMMANDS.items() if isinstance(options, command.kind))
    )


def recorded(options: Options) -> dict[str, object]:
    """The resolved recipe as ``quantkit.json`` has it: the method and every option that decides the bytes, but for the
    model, which is recorded as the source."""
    method = command_of(options)
    names = set(COMMANDS[method].option_names())
    return {"method": method} | {name: value for name, value in options.provenance().items() if name in names}
