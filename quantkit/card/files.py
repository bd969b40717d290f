"""README.md and README_zh.md on disk. A card ends with a hash of itself, so that one edited by hand is told apart."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from quantkit.card.facts import Facts
from quantkit.card.page import render
from quantkit.card.texts import LANGUAGES
from quantkit.errors import QuantkitError
from quantkit.output import atomic_file

State = Literal["absent", "generated", "edited", "foreign"]
_SEAL = re.compile(r"\n<!-- quantkit card ([0-9a-f]{64}) -->\n?\Z")


def card_texts(facts: Facts) -> dict[str, str]:
    """The cards by file name, sealed."""
    return {name: _sealed(render(facts, language)) for language, name in LANGUAGES.items()}


def card_state(path: Path) -> State:
    """Whether a card is there, and whose it is: as generated, edited since, or written by somebody else."""
    if not path.is_file():
        return "absent"
    content = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    seal = _SEAL.search(content)
    if seal is None:
        return "foreign"
    return "generated" if _hash(content[: seal.start()]) == seal[1] else "edited"


def check_cards(folder: Path, mend: str) -> None:
    """Raise QuantkitError where a card would be lost that nothing can make again; ``mend`` says what to do."""
    for name in LANGUAGES.values():
        state = card_state(folder / name)
        if state in ("edited", "foreign"):
            whose = "was edited by hand" if state == "edited" else "was not written by quantkit"
            raise QuantkitError(f"{folder / name}: {whose}; {mend}")


def write_cards(facts: Facts, overwrite: bool = False) -> list[Path]:
    """Write both cards into the variant's folder; raises QuantkitError before it replaces one that is not generated."""
    folder = facts.variant.path
    if not overwrite:
        check_cards(folder, "add --overwrite to replace it")
    written = []
    for name, content in card_texts(facts).items():
        try:
            with atomic_file(folder / name) as partial:
                partial.write_text(content, encoding="utf-8")
        except OSError as error:
            raise QuantkitError(f"{folder / name}: cannot be written ({error.strerror})") from error
        written.append(folder / name)
    return written


def _sealed(content: str) -> str:
    return f"{content}\n<!-- quantkit card {_hash(content)} -->\n"


def _hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
