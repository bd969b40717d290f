"""Commands from options: the fields of an options class become the flags of a command; they are stated in `recipe`."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from quantkit.recipe import PANELS, Options, flag_of


def with_options(kind: type[Options], leave_out: Collection[str] = ()) -> Callable[[Callable[..., None]], Any]:
    """Decorates ``function(given, ...)``: the command takes the flags of `kind` and the function's own other arguments.

    `given` are the values of `kind` by field. `leave_out`: fields that this command has no flag for.
    """

    def decorate(function: Callable[..., None]) -> Any:
        hints = typing.get_type_hints(kind)
        chosen = [one for one in fields(kind) if one.metadata and one.name not in leave_out]
        chosen.sort(key=lambda one: (PANELS.index(one.metadata["panel"]), one.metadata["late"]))
        flags = [_parameter(one, hints[one.name]) for one in chosen]
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]

        def command(**given: Any) -> None:
            rest = {one.name: given.pop(one.name) for one in own}
            function(
                {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}, **rest
            )

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        made = signature.replace(
            parameters=[one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*flags, *own]]
        )
        command.__signature__ = made  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in made.parameters.values()}
        return command

    return decorate


def _parameter(one: Field[Any], hint: Any) -> inspect.Parameter:
    notes, default = one.metadata, one.default
    if typing.get_origin(hint) is typing.Literal:
        hint = str
    elif typing.get_origin(hint) is tuple:
        hint = list[str]
        default = [*default]  # type: ignore[misc]
    names = [notes["flag"] or _flag(one.name, hint)]
    if notes["short"]:
        names.append(notes["short"])
    flag = typer.Option(
        *names,
        help=notes["help"],
        rich_help_panel=notes["panel"],
        envvar=notes["envvar"],
        show_envvar=False,
        show_default=default is not None and default is not False and default != [],
        min=notes["least"],
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, flag]
    )


def _flag(name: str, hint: Any) -> str:
    """The flag; of a yes-or-no that may be left open, both its forms."""
    flag = flag_of(name)
    open_choice = isinstance(hint, types.UnionType) and bool in typing.get_args(hint)
    return f"{flag}/--no-{flag.removeprefix('--')}" if open_choice else flag
