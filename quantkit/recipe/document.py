"""A recipe in YAML: the options of one method, what is measured afterwards, and the limits of it.

    method: awq                     # awq, gptq, rtn, bnb, gguf or imatrix
    model: openbmb/MiniCPM-V-4.6    # every option of that command, with _ for -
    group_size: 64
    verify: {samples: 64}           # options of `quantkit verify`; {} measures with its defaults
    gates: {max_kl: 0.01}           # limits, or limits by group: {all: 0.01, video: 0.02}

What may stand there is derived from the options' own classes (`schema`). An unknown key, a value of another type, a
key that stands twice: each is an error with file, line and the nearest valid name. Paths are relative to the working
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.recipe.commands import COMMANDS, make_options
from quantkit.recipe.measure import VerifyCommandOptions
from quantkit.recipe.schema import SECTIONS, Limit, check, nearest, plain_values, recipe_model
from quantkit.recipe.yaml_file import read_yaml

_FLAG = re.compile(r"--[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Recipe:
    """given: options of `method` by field, as the file states them; verify: options of `quantkit verify`, None where
    nothing is to be measured; gates: limits by name; lines: of each key ("bits", "verify.samples")."""

    path: Path
    method: str
    given: dict[str, Any]
    verify: dict[str, Any] | None = None
    gates: dict[str, Limit] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def options(self, typed: Mapping[str, Any] | None = None) -> Any:
        """The options object: what was typed comes before the file, the file before the defaults."""
        typed = typed or {}
        try:
            return make_options(self.method, self.given | dict(typed))
        except QuantkitError as error:
            raise self.located(error, typed) from error

    def verify_options(self) -> VerifyCommandOptions | None:
        """Options of the measurement; None where the file asks for none."""
        if self.verify is None and not self.gates:
            return None
        variables = {one.name: one.metadata["envvar"] for one in fields(VerifyCommandOptions)}
        secrets: dict[str, Any] = {name: os.environ.get(one) or None for name, one in variables.items() if one}
        try:
            return VerifyCommandOptions(**secrets, **(self.verify or {}))
        except QuantkitError as error:
            raise self.located(error, section="verify") from error

    def located(self, error: QuantkitError, typed: Iterable[str] = (), section: str | None = None) -> QuantkitError:
        """The error with file and line in front, where it names an option that this file sets."""
        for flag in _FLAG.findall(str(error)):
            name = flag[2:].replace("-", "_").removeprefix("no_")
            line = self.lines.get(f"{section}.{name}" if section else name)
            if line is not None and name not in typed:
                return QuantkitError(f"{self.path}:{line}: {error}")
        return error

    def error(self, key: str, message: str) -> QuantkitError:
        """An error about a key of this file."""
        return QuantkitError(f"{self.path}:{self.lines.get(key, 1)}: {key}: {message}")


def bundled() -> dict[str, Path]:
    """The recipes that come with quantkit, by name."""
    here = Path(__file__).parent.parent
    folder = next((one for one in (here / "_recipes", here.parent / "recipes") if one.is_dir()), here / "_recipes")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: Path) -> Path:
    """A file, or a recipe that comes with quantkit by its name; the file comes first."""
    known = bundled()
    if name.is_file() or len(name.parts) > 1 or name.suffix:
        return name
    if str(name) not in known:
        raise QuantkitError(
            f"{name}: no such file, and no recipe of that name comes with quantkit{nearest(str(name), known)}; "
            "quantkit recipe list shows them"
        )
    return known[str(name)]


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; nothing is loaded or made. Raises QuantkitError with file, line and the nearest name."""
    content, lines = read_yaml(path)
    return parse_recipe(path, content, lines)


def parse_recipe(path: Path, content: Mapping[str, Any], lines: dict[str, int]) -> Recipe:
    """A recipe from what `read_yaml` gave."""
    method = content.get("method")
    if not isinstance(method, str) or method not in COMMANDS:
        raise QuantkitError(_bad_method(path, method, lines))
    check(path, recipe_model(method), content, lines, method)
    given = plain_values(
        COMMANDS[method].kind, {key: content[key] for key in content if key not in ("method", *SECTIONS)}
    )
    verify = content.get("verify")
    if verify is not None:
        verify = plain_values(VerifyCommandOptions, verify)
    gates = {name: value for name, value in (content.get("gates") or {}).items() if value is not None}
    return Recipe(path, method, given, verify, gates, lines)


def _bad_method(path: Path, method: Any, lines: Mapping[str, int]) -> str:
    known = ", ".join(COMMANDS)
    if method is None:
        if "variants" in lines:
            return f"{path}: is a sweep; run it with quantkit sweep"
        return f"{path}: method is missing; write method: with one of {known}"
    if not isinstance(method, str):
        return f"{path}:{lines['method']}: method: write one of {known}; several are for quantkit sweep"
    return f"{path}:{lines['method']}: method: {method!r} is unknown{nearest(str(method), COMMANDS)}; known are {known}"
