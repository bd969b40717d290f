"""What a sweep file says: shared options, grids of variants, what is measured.

    model: openbmb/MiniCPM-V-4.6      # options that variants share, as in a recipe
    samples: 64
    variants:                         # grids: every list is an axis, and all combinations are made
      - method: [awq, gptq]
        group_size: [64, 128]
        seed: [0, 1, 2]
      - method: gguf
        type: [Q4_K_M, Q3_K_M]
        calib: [bundled, [bundled, photos]]   # an axis of two mixes
    verify: {samples: 128}            # as in a recipe; {} measures with the defaults
    gates: {max_kl: 0.02}

A shared option that a method does not have is left out for it. Every cell is a recipe, checked as one: a fault is an
error with the line before anything is loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.recipe import COMMANDS, Options, VerifyCommandOptions, recorded
from quantkit.recipe.document import Recipe, parse_recipe
from quantkit.recipe.schema import Limit, nearest
from quantkit.recipe.yaml_file import read_yaml

METHODS = tuple(name for name in COMMANDS if name != "imatrix")
SWEEP_KEYS = ("variants", "verify", "gates", "out")
_PLACED = ("out", "overwrite", "stats", "save_stats", "token")  # the sweep's own business
MOST_CELLS = 10_000
LONGEST_NAME = 120


@dataclass(frozen=True)
class Cell:
    """One variant. axes: option -> value, of those that differ within the sweep; options: without its place."""

    name: str
    method: str
    options: Any
    axes: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked."""

    path: Path
    model: str
    out: Path | None
    cells: tuple[Cell, ...]
    verify: VerifyCommandOptions
    gates: dict[str, Limit]


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file. Raises QuantkitError with file, line and the nearest valid name."""
    content, lines = read_yaml(path)
    entries = content.get("variants")
    if entries is None and "method" in content:
        raise QuantkitError(f"{path}: is a recipe; run it with quantkit run")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise QuantkitError(
            f"{path}:{lines.get('variants', 1)}: variants: list grids, each with a method, as - method: [awq, gptq]"
        )
    methods = {name for index, entry in enumerate(entries) for name in _methods(path, index, entry, lines)}
    shared = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
    _check_shared(path, shared, methods, lines)
    verify, gates = _measurement(path, content, lines)
    out = content.get("out")
    if out is not None and not isinstance(out, str):
        raise QuantkitError(f"{path}:{lines['out']}: out: write the folder's name")
    found: list[tuple[Recipe, dict[str, Any]]] = []
    for index, entry in enumerate(entries):
        for method in _methods(path, index, entry, lines):
            found += _grid(path, shared, entry, index, method, lines)
        if len(found) > MOST_CELLS:
            raise QuantkitError(f"{path}: more than {MOST_CELLS} variants; take axes out")
    cells = _name(path, found)
    models = {(cell.options.model, cell.options.revision) for cell in cells}
    if len(models) > 1:
        named = sorted(name if revision is None else f"{name} at {revision}" for name, revision in models)
        raise QuantkitError(f"{path}: model: a sweep is of one model, these are {', '.join(named)}")
    return Sweep(path, cells[0].options.model, Path(out) if out else None, cells, verify, gates)


def _methods(path: Path, index: int, entry: Mapping[str, Any], lines: Mapping[str, int]) -> list[str]:
    given = entry.get("method")
    names: list[Any] = given if isinstance(given, list) and given else [given or None]
    line = lines.get(f"variants.{index}.method", lines.get(f"variants.{index}", 1))
    for name in names:
        if name not in METHODS:
            said = "method is missing" if name is None else f"method: {name!r} is unknown{nearest(str(name), METHODS)}"
            raise QuantkitError(f"{path}:{line}: {said}; known are {', '.join(METHODS)}")
    return names


def _check_shared(path: Path, shared: Mapping[str, Any], methods: set[str], lines: Mapping[str, int]) -> None:
    known = {name for method in methods for name in COMMANDS[method].option_names()} - set(_PLACED)
    for key in shared:
        if key == "method":
            raise QuantkitError(f"{path}:{lines[key]}: method: stands in variants, once a grid")
        if key not in known:
            why = "is the sweep's own business" if key in _PLACED else "is no option of its methods"
            raise QuantkitError(f"{path}:{lines[key]}: {key}: {why}{nearest(key, [*known, *SWEEP_KEYS])}")


def _measurement(
    path: Path, content: Mapping[str, Any], lines: dict[str, int]
) -> tuple[VerifyCommandOptions, dict[str, Limit]]:
    """The sections verify and gates: checked as a recipe's."""
    plain = {key: content[key] for key in ("verify", "gates") if content.get(key) is not None}
    read = parse_recipe(path, {"method": "rtn", **plain}, lines)
    if read.verify is not None and {"report", "junit"} & read.verify.keys():
        raise QuantkitError(
            f"{path}:{lines['verify']}: verify: reports go to each variant's folder; leave report and junit out"
        )
    return read.verify_options() or VerifyCommandOptions(), read.gates


def _grid(
    path: Path, shared: Mapping[str, Any], entry: Mapping[str, Any], index: int, method: str, lines: Mapping[str, int]
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Every combination of an entry's axes as a recipe, with what it takes on each axis."""
    names = set(COMMANDS[method].option_names())
    place = f"variants.{index}"
    for key in entry:
        if key in _PLACED:
            raise QuantkitError(f"{path}:{lines[f'{place}.{key}']}: {key}: is the sweep's own business; leave it out")
    given = {key: value for key, value in shared.items() if key in names}
    axes = {key: value for key, value in entry.items() if key != "method" and isinstance(value, list)}
    for key, values in axes.items():
        if not values:
            raise QuantkitError(f"{path}:{lines[f'{place}.{key}']}: {key}: an empty list is no axis")
    if math.prod(map(len, axes.values())) > MOST_CELLS:
        raise QuantkitError(f"{path}:{lines[place]}: more than {MOST_CELLS} variants; take axes out")
    fixed = {key: value for key, value in entry.items() if key not in axes and key != "method"}
    own = {key: lines.get(f"{place}.{key}", 1) for key in entry}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        content = {"method": method, **given, **fixed, **chosen}
        if method == "gguf" and isinstance(content.get("type"), list):
            raise QuantkitError(
                f"{path}:{own.get('type', lines.get('type', 1))}: type: one a variant, as an axis in variants"
            )
        yield parse_recipe(path, content, {**lines, **own}), chosen


def _name(path: Path, found: list[tuple[Recipe, dict[str, Any]]]) -> tuple[Cell, ...]:
    """Names from the axes that each cell's grid has; axes from what differs anywhere in the sweep."""
    made = [recipe.options({"out": Path("unset")}) for recipe, _chosen in found]
    values: dict[str, set[str]] = {}
    for (recipe, _chosen), options in zip(found, made, strict=True):
        for name, value in _axis_values(recipe.method, options).items():
            values.setdefault(name, set()).add(repr(value))
    differing = {name for name, different in values.items() if len(different) > 1}
    differing |= {name for _recipe, chosen in found for name in chosen}
    names = [
        _short("-".join([recipe.method, *(_word(key, value) for key, value in chosen.items())]))
        for recipe, chosen in found
    ]
    first: dict[str, str] = {}
    for options, name in zip(made, names, strict=True):
        same = repr(sorted({**recorded(options), **data_of(options)}.items()))
        if same in first:
            raise QuantkitError(f"{path}: {first[same]} and {name} are the same variant; leave one")
        first[same] = name
    counts, used = Counter(names), Counter[str]()
    cells = []
    for (recipe, _chosen), options, name in zip(found, made, names, strict=True):
        used[name] += 1
        unique = name if counts[name] == 1 else f"{name}-{used[name]}"
        axes = {key: value for key, value in _axis_values(recipe.method, options).items() if key in differing}
        cells.append(Cell(unique, recipe.method, options, axes))
    return tuple(cells)


def data_of(options: Options) -> dict[str, Any]:
    """What a variant reads besides the model, as it is named: a record holds only the last part of a path."""
    return {name: getattr(options, name) for name in ("calib", "eval_data", "imatrix") if hasattr(options, name)}


def _axis_values(method: str, options: Options) -> dict[str, Any]:
    """Options that may be axes, in words that a table shows."""
    hints = typing.get_type_hints(type(options))
    found: dict[str, Any] = {}
    for one in fields(options):
        if one.name in COMMANDS[method].option_names() and one.name not in (
            *_PLACED,
            "model",
            "device",
            "cache",
            "no_cache",
        ):
            value = getattr(options, one.name)
            found[one.name] = " + ".join(value) if typing.get_origin(hints[one.name]) is tuple else value
            found[one.name] = found[one.name].name if isinstance(found[one.name], Path) else found[one.name]
    return found


_WORDS = {"group_size": "g", "bits": "w", "seed": "s", "samples": "n", "type": "", "solver": "", "budget": ""}


def _short(name: str) -> str:
    """As a folder's name, with room for what a run that works on it puts around."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _word(key: str, value: Any) -> str:
    """``group_size``, 64 -> "g64": a piece of a folder's name."""
    plain = "+".join(value) if isinstance(value, list) else str(value)
    short = _WORDS.get(key, key.replace("_", "-") + "-")
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", f"{short}{plain}")[:60].strip("-.") or key
