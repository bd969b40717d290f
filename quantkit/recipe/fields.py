"""What an option is: a field of a plain dataclass with its help, limits and flag; nothing heavy is imported for it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from quantkit.errors import QuantkitError

PANELS = MODEL, ASK, GRID, DATA, PICTURES, ANSWERS, ITEMS, RUN, ENGINES, GATES, REPORTS = (
    "Model", "Question", "Grid", "Calibration", "Pictures and clips", "Answer", "Data", "Run", "Engines", "Gates",
    "Reports",
)  # fmt: skip
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def option(
    default: Any,
    help_text: str,
    panel: str,
    *,
    choices: tuple[str, ...] = (),
    least: int | None = None,
    flag: str | None = None,
    short: str | None = None,
    envvar: str | None = None,
    place: bool = False,
    late: bool = False,
) -> Any:
    """A field of an options class. `flag`: its name on the command line where that differs ("--a/--b" for a choice of
    two); `place`: names a place, a secret or a way of running: no part of what makes the bytes; `late`: listed at the
    end of its panel."""
    notes = {"help": help_text, "panel": panel, "choices": choices, "least": least, "flag": flag, "short": short,
             "envvar": envvar, "place": place, "late": late}  # fmt: skip
    return field(default=default, metadata=notes, repr=envvar is None)


def flag_of(name: str) -> str:
    """How a field is called on the command line."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks its fields against their limits; raises `QuantkitError` naming the flag."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value, notes = getattr(self, one.name), one.metadata
            if notes.get("choices") and value is not None and value not in notes["choices"]:
                raise QuantkitError(f"{flag_of(one.name)} {value!r}: use {' or '.join(notes['choices'])}")
            if notes.get("least") is not None and value is not None and value < notes["least"]:
                raise QuantkitError(f"{flag_of(one.name)} {value}: must be at least {notes['least']}")

    def provenance(self) -> dict[str, object]:
        """What ``quantkit.json`` records: the options that decide the bytes, none that names a place or a secret."""
        places = {one.name for one in fields(self) if one.metadata.get("place")}
        return {name: value for name, value in asdict(self).items() if name not in places}


def parse_budget(text: str) -> tuple[float | None, int | None]:
    """``4.5bpw`` -> (4.5, None), bits a weight; ``1.7GB`` -> (None, bytes)."""
    number = text[:-3]
    if text.lower().endswith("bpw"):
        if not _NUMBER.fullmatch(number) or float(number) <= 0:
            raise QuantkitError(f"--budget {text!r}: write it as 4.5bpw, or as a size: 1.7GB")
        return float(number), None
    try:
        return None, parse_size(text, "--budget")
    except QuantkitError as error:
        raise QuantkitError(f"--budget {text!r}: write it as 4.5bpw, or as a size: 1.7GB") from error


def parse_widths(text: str) -> tuple[int, ...]:
    """``3,4,16`` -> (3, 4, 16), in ascending order, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(part) and "." not in part for part in parts):
        raise QuantkitError(f"--budget-bits {text!r}: write it as 3,4,8,16")
    return tuple(sorted({int(part) for part in parts}))


def parse_size(text: str, flag: str) -> int:
    """Bytes of a size written as 5GB or 500MB; raises `QuantkitError` naming the flag."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text[:-2], text[-2:].upper()
    if unit not in units or not _NUMBER.fullmatch(number) or float(number) <= 0:
        raise QuantkitError(f"{flag} {text!r}: write it as 5GB or 500MB")
    return int(float(number) * units[unit])
