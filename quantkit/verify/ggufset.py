"""Which GGUF files a verification runs, and their fingerprint; needs no torch.

A text model may be split over files of llama.cpp's naming (NAME-00001-of-00003.gguf), and pictures go through a vision
file beside it. Figures are of all of them, so all of them are in the fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from quantkit.tensorfile import sha256_of

VISION = "mmproj"
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


def is_gguf(candidate: str | Path) -> bool:
    """Whether a candidate is a .gguf file or a folder of them."""
    path = Path(candidate).expanduser()
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    return path.suffix == ".gguf"


def is_vision(file: Path) -> bool:
    """Whether a file's name says that it holds a vision model."""
    return file.name.startswith(VISION)


def text_parts(file: Path) -> list[Path]:
    """A text model's files in order: itself, or every part of its split set that is there."""
    part = _PART.fullmatch(file.name)
    if part is None:
        return [file]
    siblings = [_PART.fullmatch(other.name) for other in sorted(file.parent.glob("*.gguf"))]
    return [file.with_name(one[0]) for one in siblings if one is not None and one.groups() == part.groups()]


def files_run(path: Path, mmproj: Path | None = None) -> list[Path]:
    """The files that a verification of `path` runs: of a folder every one; of a file its parts, and the vision file
    that was named or is the only one beside it."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
    elif not path.is_file():
        files = [path]
    else:
        files = text_parts(path)
        beside = sorted(path.parent.glob(f"{VISION}*.gguf"))
        if mmproj is None and len(beside) == 1 and not is_vision(path):
            files += beside
    return files if mmproj is None or mmproj in files else [*files, mmproj]


def file_fingerprint(files: Sequence[Path], digest: Callable[[Path], str] = sha256_of) -> str:
    """SHA-256 over the sizes and the SHA-256 of some files, in their order; all bytes count."""
    parts = [f"{file.stat().st_size} {digest(file)}\n" for file in files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
