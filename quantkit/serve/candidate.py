"""What is to be served: a checkpoint's folder or a GGUF file, its fingerprint, and the model that gives the prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.reader import GgufFile
from quantkit.serve import record
from quantkit.verify.engines.llamacpp import gguf_files
from quantkit.verify.ggufset import is_gguf
from quantkit.verify.reference import target_fingerprint
from quantkit.verify.task import Target

PROVENANCE = "quantkit.json"
MODES = {4: "16x", 2: "4x"}  # merged patches along an edge, in an mmproj file -> downsample mode


@dataclass(frozen=True)
class Candidate:
    """A variant. model: the folder or .gguf file that a server is given. source: config, processor and chat template.

    place: where its record lies unless told otherwise. mode: how pictures are downsampled. vision: whether it sees any.
    """

    name: str
    model: Path
    mmproj: Path | None
    source: Checkpoint
    fingerprint: str
    place: Path
    mode: str
    vision: bool = True

    @property
    def is_gguf(self) -> bool:
        return self.model.suffix == ".gguf"


def find_candidate(name: str, reference: str | None = None, mmproj: Path | None = None) -> Candidate:
    """A folder, a hub id, `tiny`, a .gguf file or a folder of them; `reference`: the model that a GGUF was made of."""
    path = Path(name).expanduser()
    if is_gguf(path):
        return _of_gguf(path, reference, mmproj)
    for option, value in (("--reference", reference), ("--mmproj", mmproj)):
        if value is not None:
            raise QuantkitError(f"{option}: is for GGUF files, and {name} is none; leave it out")
    checkpoint = open_checkpoint(name, verify_checksums=False)  # as verify does: a report's fingerprint is the same
    return Candidate(
        name=checkpoint.name,
        model=checkpoint.path.absolute(),
        mmproj=None,
        source=checkpoint,
        fingerprint=checkpoint.fingerprint(),
        place=(path if path.is_dir() else Path()) / record.NAME,
        mode=str(checkpoint.config.get("downsample_mode") or "16x"),
    )


def _of_gguf(path: Path, reference: str | None, mmproj: Path | None) -> Candidate:
    target = Target(path=path, mmproj=mmproj)
    text, vision = gguf_files(target)
    if reference is None:
        made = _made_of(text)
        of = f" ({made}, says {PROVENANCE})" if made else ""
        raise QuantkitError(f"{path}: a GGUF file has no processor; name the model it was made of{of}: --reference REF")
    return Candidate(
        name=text.stem,
        model=text.absolute(),
        mmproj=vision.absolute() if vision else None,
        source=open_checkpoint(reference, verify_checksums=False),
        fingerprint=target_fingerprint(target),
        place=path / record.NAME if path.is_dir() else path.with_suffix(f".{record.NAME}"),
        mode=_mode(vision) if vision else "16x",
        vision=vision is not None,
    )


def _made_of(text: Path) -> str | None:
    try:
        made = json.loads((text.parent / PROVENANCE).read_text(encoding="utf-8"))["source"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made if isinstance(made, str) else None


def _mode(mmproj: Path) -> str:
    found = GgufFile(mmproj).metadata.get("clip.vision.projector.scale_factor")
    if found is None or found.value not in MODES:
        raise QuantkitError(f"{mmproj}: does not say its downsample mode (clip.vision.projector.scale_factor 4 or 2)")
    return MODES[found.value]
