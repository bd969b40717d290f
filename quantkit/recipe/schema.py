"""What a recipe may hold: pydantic models made from the options' classes, their JSON Schema, and words for faults."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from quantkit.errors import Faults
from quantkit.recipe.commands import COMMANDS
from quantkit.recipe.measure import LIMITS, VerifyCommandOptions

if TYPE_CHECKING:
    from dataclasses import Field as DataclassField

    from quantkit.recipe.fields import Options

SECTIONS = ("verify", "gates")
_NOT_IN_VERIFY = {*LIMITS, "recipe"}  # these stand in the section gates
Limit = typing.Union[float, dict[str, float]]


def recipe_model(method: str) -> type[BaseModel]:
    """The pydantic model of one method's recipes, made from the options' class."""
    command = COMMANDS[method]
    own: dict[str, Any] = {"method": (Literal[method], Field(description="The command whose options these are."))}
    own |= model_fields(command.kind, command.option_names())
    own["verify"] = (
        verify_model() | None,
        Field(default=None, description="Measure what was lost, with these options of quantkit verify."),
    )
    own["gates"] = (gates_model() | None, Field(default=None, description="Limits; exit code 3 where one is missed."))
    return _create(f"{method}_recipe", own)


def verify_model() -> type[BaseModel]:
    """The section `verify`."""
    names = [one.name for one in fields(VerifyCommandOptions) if one.name not in _NOT_IN_VERIFY]
    return _create("verify", model_fields(VerifyCommandOptions, names))


def gates_model() -> type[BaseModel]:
    """The section `gates`."""
    helps = {one.name: one.metadata["help"] for one in fields(VerifyCommandOptions) if one.name in LIMITS}
    return _create(
        "gates",
        {name: (Limit | None, Field(default=None, description=helps[name].partition(" May be")[0])) for name in LIMITS},
    )


def _create(name: str, own: dict[str, Any]) -> type[BaseModel]:
    made = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **own)
    return cast("type[BaseModel]", made)


def model_fields(kind: type[Options], names: Iterable[str]) -> dict[str, Any]:
    """pydantic's fields of options, by name; secrets are left out: they belong in the environment."""
    hints = typing.get_type_hints(kind)
    by_name = {one.name: one for one in fields(kind)}
    return {
        name: (_yaml_type(hints[name], by_name[name]), _yaml_field(by_name[name]))
        for name in names
        if not by_name[name].metadata["envvar"]
    }


def _yaml_type(hint: Any, one: DataclassField[Any]) -> Any:
    """How a field is written in YAML: a path as a text, a tuple as a list or a single text."""
    choices = one.metadata["choices"]
    if choices:
        plain: Any = Literal[tuple(choices)]
        return plain | None if one.default is None else plain
    if typing.get_origin(hint) is tuple:
        return str | list[str]
    if isinstance(hint, types.UnionType):
        parts = [str if part is Path else part for part in typing.get_args(hint)]
        return typing.Union[tuple(parts)]
    return str if hint is Path else hint


def _yaml_field(one: DataclassField[Any]) -> Any:
    default = list(one.default) if isinstance(one.default, tuple) else one.default
    return Field(default=default, description=one.metadata["help"], ge=one.metadata["least"])


def plain_values(kind: type[Options], content: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the options' class wants them: paths, tuples."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in content.items():
        parts = typing.get_args(hints[name])
        if typing.get_origin(hints[name]) is tuple:
            value = (value,) if isinstance(value, str) else tuple(value)
        elif value is not None and (hints[name] is Path or Path in parts):
            value = Path(value)
        elif isinstance(value, int) and not isinstance(value, bool) and hints[name] is float:
            value = float(value)
        found[name] = value
    return found


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    models: Any = typing.Union[tuple(recipe_model(method) for method in COMMANDS)]
    adapter: TypeAdapter[Any] = TypeAdapter(typing.Annotated[models, Field(discriminator="method")])
    made = adapter.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "quantkit recipe", **made}


def check(
    path: Path, model: type[BaseModel], content: Any, lines: Mapping[str, int], method: str, place: str = ""
) -> None:
    """Raise Faults: all of them, each with file, line and the nearest valid name.

    place: where ``content`` stands in the file, as in ``lines``.
    """
    try:
        model.model_validate(content)
    except ValidationError as error:
        faults: dict[int, str] = {}  # the first of a line: where a choice of types fails, each of them has its words
        for one in error.errors():
            faults.setdefault(_line(lines, place, one["loc"]), _fault(model, one, method))
        raise Faults([f"{path}:{line}: {faults[line]}" for line in sorted(faults)]) from error


def _line(lines: Mapping[str, int], place: str, loc: tuple[Any, ...]) -> int:
    """Of the innermost key that the file has; what pydantic adds for a choice of types stands nowhere."""
    line, at = lines.get(place, 1), place
    for part in loc:
        at = f"{at}.{part}" if at else str(part)
        line = lines.get(at, line)
    return line


def _fault(model: type[BaseModel], fault: Any, method: str) -> str:
    loc = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        return _unknown(model, loc, method)
    key = ".".join(loc[:2] if loc[0] in SECTIONS else loc[:1])
    if fault["type"] == "literal_error":
        expected = fault["ctx"]["expected"].replace("'", "")
        choices = re.split(r", | or ", expected)
        return f"{key}: {fault['input']!r} is unknown{nearest(str(fault['input']), choices)}; use {expected}"
    shown = f"found {fault['input']!r}" if not isinstance(fault["input"], (dict, list)) else "found several values"
    words = {
        "int_type": "write a whole number", "float_type": "write a number", "bool_type": "write true or false",
        "string_type": "write a text (numbers and dates need quotes)", "greater_than_equal": fault["msg"].lower(),
        "list_type": "write a list of texts", "model_type": "write options as name: value",
        "dict_type": "write a number, or numbers by group",
    }  # fmt: skip
    return f"{key}: {words.get(fault['type'], fault['msg'].lower())}; {shown}"


def _unknown(model: type[BaseModel], loc: list[str], method: str) -> str:
    key, inside = loc[-1], loc[0] if len(loc) > 1 else None
    known = {"verify": verify_model, "gates": gates_model}[inside]().model_fields if inside else model.model_fields
    if not inside and (owners := [name for name in COMMANDS if key in COMMANDS[name].option_names()]):
        if key in COMMANDS[method].option_names():
            return (
                f"{key}: a secret does not belong in a file; see quantkit {method} --help for the environment variable"
            )
        return f"{key}: is no option of {method} (of {', '.join(owners)})"
    return f"{'.'.join(loc)}: unknown{nearest(key, known)}; quantkit recipe schema lists all"


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
