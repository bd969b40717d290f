"""`quantkit reproduce DIR`: run the recipe of a variant's quantkit.json again, and compare the files byte for byte.

What a run writes is compared; what was laid beside it later (reports, cards, checksums) is not looked at. Of
quantkit.json itself the timings are left out, the one entry that no two runs share.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import quantkit
from quantkit.errors import QuantkitError
from quantkit.recipe import COMMANDS, make_options
from quantkit.recipe.schema import SECTIONS, plain_values, recipe_model

RECORD = "quantkit.json"
TIMINGS = "seconds"
MOST_THREADS = 4096


@dataclass(frozen=True)
class Recorded:
    """What a variant says of itself. given: options by field; local: options whose data lay on the maker's machine, by
    the name that is known of it."""

    folder: Path
    method: str
    given: dict[str, Any]
    source: str
    revision: str | None
    fingerprint: str
    threads: int | None
    content: Mapping[str, Any]

    def options(self, typed: Mapping[str, Any], out: Path) -> Any:
        """The options of the run again; ``typed``: what stood elsewhere on the maker's machine."""
        model = {"model": self.source} | ({"revision": self.revision} if self.revision else {})
        return make_options(self.method, self.given | model | dict(typed) | {"out": out})

    def other_versions(self) -> dict[str, tuple[str, str]]:
        """Packages of which another version is installed here: (then, now)."""
        then = {"quantkit": self.content.get("quantkit"), **_mapping(self.content, "versions")}
        now = {name: quantkit.__version__ if name == "quantkit" else _installed(name) for name in then}
        return {name: (str(then[name]), now[name]) for name in then if _release(str(then[name])) != _release(now[name])}


def read_record(folder: Path) -> Recorded:
    """Read a variant's quantkit.json. Raises QuantkitError naming the file and the field."""
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantkitError(f"{path}: cannot be read ({error.strerror}); name a variant that quantkit wrote") from error
    except (ValueError, RecursionError) as error:
        raise QuantkitError(f"{path}: no valid JSON") from error
    recipe, source = _mapping(content, "recipe"), _mapping(content, "source")
    method = recipe.get("method")
    if method not in COMMANDS:
        raise QuantkitError(f"{path}: recipe.method {method!r} is unknown: another version of quantkit wrote it")
    try:
        recipe_model(method).model_validate(recipe)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, ("recipe", *fault["loc"][:1])))
        raise QuantkitError(f"{path}: {place}: {fault['msg'].lower()}: another version of quantkit wrote it") from error
    _check_no_places(path, str(method), recipe)
    given = plain_values(
        COMMANDS[method].kind, {name: value for name, value in recipe.items() if name not in ("method", *SECTIONS)}
    )
    threads, revision = content.get("threads"), source.get("revision")
    if not isinstance(revision, str | None):
        raise QuantkitError(f"{path}: source.revision: no text: another version of quantkit wrote it")
    return Recorded(
        folder, str(method), given, str(source.get("name")), revision, str(source.get("fingerprint")),
        threads if type(threads) is int and 0 < threads <= MOST_THREADS else None, content,
    )  # fmt: skip


def _check_no_places(path: Path, method: str, recipe: Mapping[str, Any]) -> None:
    """A record is another's text: it names nothing on this machine that would be read, and nothing to write."""
    kind = COMMANDS[method].kind
    places = {one.name for one in fields(kind) if one.metadata.get("place")}
    if found := sorted(places & recipe.keys()):
        raise QuantkitError(f"{path}: recipe.{found[0]}: quantkit records no places; this is not its own record")
    for name in ("calib", "eval_data"):
        values = recipe.get(name) or ()
        for value in (values,) if isinstance(values, str) else values:
            if value.startswith(("/", "~", "./", "../")):
                raise QuantkitError(f"{path}: recipe.{name}: names a path ({value}); this is not quantkit's own record")


def differences(made: Path, again: Path) -> dict[str, str]:
    """Every file that the run ``again`` wrote, with "same", "differs" or "missing" in ``made``."""
    found = {}
    for path in sorted(one for one in again.rglob("*") if one.is_file()):
        name = path.relative_to(again).as_posix()
        other = made / name
        if not other.is_file():
            found[name] = "missing"
        elif name == RECORD:
            found[name] = "same" if _untimed(path) == _untimed(other) else "differs"
        else:
            found[name] = "same" if filecmp.cmp(path, other, shallow=False) else "differs"
    return found


def _untimed(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name != TIMINGS}


def _mapping(content: Any, key: str) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _installed(package: str) -> str:
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):  # ValueError: no name of a package at all
        return "not installed"


def _release(text: str) -> str:
    """Without a build's own mark, such as +cu130."""
    return text.partition("+")[0]
