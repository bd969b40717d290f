"""All that a card says, gathered once; the renderers look nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.card.evidence import Evidence, Measured, gather_evidence
from quantkit.card.licence import NAME as LICENCE_NAME
from quantkit.card.licence import find_licence
from quantkit.card.sizes import SOURCE_BYTES, FileSize, file_sizes
from quantkit.card.variant import Variant, open_variant, part
from quantkit.errors import QuantkitError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# how the method that chose the integers is called by people
METHODS = {
    "awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors", "bitsandbytes": "bitsandbytes",
    "gguf": "GGUF",
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The model that was quantized. repo: its id on the hub, None where it came from a folder and no id was given."""

    name: str
    repo: str | None
    revision: str | None
    fingerprint: str | None


@dataclass(frozen=True)
class Facts:
    """name: the variant's own. target: what a user passes to a runtime, the repository or the folder's name."""

    name: str
    target: str
    repo: str | None
    variant: Variant
    base: Base
    licence: str | None
    files: tuple[FileSize, ...]
    evidence: Evidence

    @property
    def record(self) -> dict[str, Any]:
        return self.variant.record

    @property
    def method(self) -> str:
        return METHODS.get(self.variant.method, self.variant.method)

    @cached_property
    def source_dtype(self) -> str:
        """The dtype of the source's weights; bfloat16 where no report says otherwise."""
        stated = [one.report.reference.dtype for one in self.evidence.measured]
        return next((dtype for dtype in stated if dtype in SOURCE_BYTES), "bfloat16")

    @property
    def source_bytes(self) -> int | None:
        """Bytes of the source's weights, as a report has them."""
        return next((one.report.reference.bytes for one in self.evidence.measured), None)

    @property
    def texts(self) -> list[FileSize]:
        """GGUF text models."""
        return [file for file in self.files if file.name in self.variant.texts]

    @property
    def visions(self) -> list[FileSize]:
        """GGUF vision files."""
        return [file for file in self.files if file.name not in self.variant.texts] if self.variant.is_gguf else []

    def report_stem(self, one: Measured) -> str:
        """The name that a report is published under: its own, if it lies in the folder; of several GGUF models the
        model's."""
        first = next((name for name in self.variant.texts if name in one.covers), None)
        if first is not None and len(self.variant.texts) > 1:
            return f"report-{first.removesuffix('.gguf')}"
        return one.path.stem if one.path.parent == self.variant.path else "report"

    def bits(self) -> list[str]:
        """How the quantized linears are stored, every way once."""
        packed = [part.stored for file in self.files for part in file.parts if part.what == "quantized linears"]
        return list(dict.fromkeys(packed))


def gather(
    folder: str | Path,
    *,
    repo: str | None = None,
    reports: Iterable[Path] = (),
    base_model: str | None = None,
    licence: str | None = None,
) -> Facts:
    """Read a variant's folder and its records.

    repo: ORG/NAME it is, or will be, published as. reports: beside those in the folder. base_model: the source's id on
    the hub, where quantkit.json names a folder. licence: where the folder does not state it. Raises QuantkitError.
    """
    for flag, value in (("--repo", repo), ("--base-model", base_model)):
        if value is not None and not is_hub_id(value):
            raise QuantkitError(f"{flag} {value!r}: write ORG/NAME, in letters, digits, '-', '_' and '.'")
    if licence is not None and not LICENCE_NAME.fullmatch(licence):
        raise QuantkitError(f"--license {licence!r}: write the hub's name of it, such as apache-2.0")
    variant = open_variant(folder)
    name = repo.partition("/")[2] if repo else variant.path.name
    return Facts(
        name, repo or variant.path.name, repo, variant, _base(variant, base_model),
        licence or find_licence(variant.path), tuple(file_sizes(variant)), gather_evidence(variant, reports),
    )  # fmt: skip


def is_hub_id(text: str) -> bool:
    """Whether a text is an id that the hub takes."""
    return HUB_ID.fullmatch(text) is not None and "--" not in text and ".." not in text and not text.endswith(".git")


def _base(variant: Variant, stated: str | None) -> Base:
    """From quantkit.json: an id where the source came from the hub, which a recorded revision shows."""
    source = part(variant.record, "source")
    name, revision, fingerprint = (source.get(key) for key in ("name", "revision", "fingerprint"))
    name = name if isinstance(name, str) and name else None
    revision = revision if isinstance(revision, str) and revision else None
    recorded = name if name and revision and is_hub_id(name) else None
    return Base(
        stated or name or "?", stated or recorded, revision if recorded and stated in (None, recorded) else None,
        fingerprint if isinstance(fingerprint, str) else None,
    )  # fmt: skip
