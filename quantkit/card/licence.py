"""The licence of the source, where something in the folder states it; a card makes none up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# the first words of a licence's text -> the hub's name for it
_HEADINGS = (
    (re.compile(r"^\s*apache license\s+version 2\.0", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"^\s*(the )?mit license", re.IGNORECASE), "mit"),
    (re.compile(r"^\s*bsd 3-clause license", re.IGNORECASE), "bsd-3-clause"),
)
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


def find_licence(folder: Path) -> str | None:
    """The hub's name of the licence that README.md's metadata or a LICENSE file of the folder states, else None."""
    stated = metadata(folder / "README.md").get("license")
    if isinstance(stated, str) and NAME.fullmatch(stated):
        return stated
    for path in sorted(folder.glob("LICENSE*")):
        if path.is_file() and not path.is_symlink():
            heading = path.read_text(encoding="utf-8", errors="replace")[:400]
            found = next((name for pattern, name in _HEADINGS if pattern.match(heading)), None)
            if found is not None:
                return found
    return None


def metadata(card: Path) -> dict[str, Any]:
    """The YAML block at the top of a card, {} where there is none or it is damaged."""
    import yaml

    if not card.is_file():
        return {}
    block = re.match(r"---\r?\n(.*?)\r?\n---\s", card.read_text(encoding="utf-8", errors="replace") + "\n", re.DOTALL)
    try:
        found = yaml.safe_load(block[1]) if block is not None else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
