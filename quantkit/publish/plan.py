"""What goes to the hub: files by name, their sizes and SHA-256, a list of checksums, the commit's words.

An allowlist: a file that nobody foresaw stays at home and is named. A link or a pickle stops everything.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import quantkit
from quantkit.card.evidence import RUNTIMES, Measured
from quantkit.card.facts import Facts
from quantkit.card.texts import LANGUAGES
from quantkit.card.variant import PROVENANCE
from quantkit.errors import QuantkitError
from quantkit.tensorfile import CHECKSUM_FILE, git_blob_sha1_of, listed_checksums, sha256_of

_NAMES = frozenset({
    "config.json", "quantize_config.json", "generation_config.json", "configuration.json",
    "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", PROVENANCE,
})  # fmt: skip
_PATTERNS = re.compile(r"(LICENSE|NOTICE|Modelfile)[\w.-]*|additional_chat_templates/[\w.-]+\.jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PLAIN_NAME = re.compile(r"[^\x00-\x1f\x7f\\]+")  # what SHA256SUMS can hold without escapes
LFS_BYTES = 10_000_000  # larger ones are LFS files on the hub, whatever they are
LFS_SUFFIXES = (".safetensors", ".gguf", ".model")


@dataclass(frozen=True)
class Upload:
    """One file: its name in the repository, and a path or bytes."""

    name: str
    source: Path | bytes
    size: int
    sha256: str

    @property
    def blob(self) -> str:
        """Git's id of the file, by which the hub knows those that are not in LFS."""
        if isinstance(self.source, Path):
            return git_blob_sha1_of(self.source)
        return hashlib.sha1(b"blob %d\0" % self.size + self.source, usedforsecurity=False).hexdigest()

    @property
    def expected_lfs(self) -> bool:
        """Whether the hub will keep it in LFS, if the repository has the hub's own settings."""
        return self.size > LFS_BYTES or self.name.endswith(LFS_SUFFIXES)


@dataclass(frozen=True)
class Plan:
    """uploads: by name. left_out: name and reason. message, description: the commit's."""

    facts: Facts
    uploads: tuple[Upload, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    message: str = ""
    description: str = ""
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(one.size for one in self.uploads))


def make_plan(facts: Facts, measured: Iterable[Measured], cards: Mapping[str, str | Path]) -> Plan:
    """Choose, check and hash the files of a variant. cards: by name, as text or as the file to take.

    Raises QuantkitError for a link, a pickle, or a file that differs from the folder's own SHA256SUMS.
    """
    folder = facts.variant.path
    reports = report_files(facts, measured)
    chosen: dict[str, Path | bytes] = {}
    left_out: list[tuple[str, str]] = []
    known = set(reports.values())
    for name, path in _walk(folder):
        why = _why_not(facts, name, path)
        if why is None:
            chosen[name] = path
        elif path not in known and name not in cards and name != CHECKSUM_FILE:
            left_out.append((name, why))
    chosen |= reports
    chosen |= {name: card.encode() if isinstance(card, str) else card for name, card in cards.items()}
    uploads = [_upload(name, source) for name, source in sorted(chosen.items())]
    _check_sums(folder, uploads)
    sums = "".join(f"{one.sha256}  {one.name}\n" for one in uploads).encode()
    uploads.append(_upload(CHECKSUM_FILE, sums))
    message, description = _words(facts, uploads[-1].sha256)
    return Plan(facts, tuple(uploads), tuple(left_out), message, description)


def report_files(facts: Facts, measured: Iterable[Measured]) -> dict[str, Path | bytes]:
    """The reports' files under the names that they get."""
    found: dict[str, Path | bytes] = {}
    for one in measured:
        stem = facts.report_stem(one)
        if f"{stem}.json" in found:
            raise QuantkitError(f"{one.path}: a second report of the same files; leave one out")
        for end in (".json", ".md", ".html"):
            path = one.path.with_suffix(end)
            if path.is_symlink():
                raise QuantkitError(f"{path}: a link; put the file itself in its place")
            if path.is_file():
                found[f"{stem}{end}"] = path
    return found


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below the folder but hidden ones and caches, by its name in the repository; links are refused."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in [*folders, *sorted(names)]:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if path.is_symlink():
                raise QuantkitError(f"{path}: a link; put the file itself in its place, or take it out of the folder")
            if name not in folders:
                yield path.relative_to(folder).as_posix(), path


def _why_not(facts: Facts, name: str, path: Path) -> str | None:
    """Why a file stays at home; None where it goes."""
    if name.lower().endswith(_PICKLES):
        raise QuantkitError(f"{path}: a pickle can run code when read and is not published; take it out of the folder")
    if path in facts.variant.weights or path == facts.variant.index:
        return None
    if name.endswith((".safetensors", ".gguf", ".index.json")):
        return "no part of the variant"
    if name.endswith(RUNTIMES):
        return None if path in facts.evidence.runtimes else "about other files"
    if name in LANGUAGES.values() or name == CHECKSUM_FILE:
        return "written anew"
    if name.startswith("report") and "/" not in name:
        return "no report of these files"
    if not _PLAIN_NAME.fullmatch(name):
        return "its name cannot stand in SHA256SUMS"
    return None if name in _NAMES or _PATTERNS.fullmatch(name) else "not a file of a model"


def _upload(name: str, source: Path | bytes) -> Upload:
    if isinstance(source, bytes):
        return Upload(name, source, len(source), hashlib.sha256(source).hexdigest())
    try:
        return Upload(name, source, source.stat().st_size, sha256_of(source))
    except OSError as error:
        raise QuantkitError(f"{source}: cannot be read ({error.strerror})") from error


def _check_sums(folder: Path, uploads: Iterable[Upload]) -> None:
    """What the folder's own SHA256SUMS says of weights and side files; reports and cards are written after it."""
    listed = listed_checksums(folder)
    for one in uploads:
        ours = one.name not in LANGUAGES.values()
        records = one.name.startswith("report") or one.name.endswith(RUNTIMES)
        if ours and not records and listed.get(one.name, one.sha256) != one.sha256:
            raise QuantkitError(
                f"{folder / one.name}: does not match {CHECKSUM_FILE}: damaged or changed; make it again"
            )


def _words(facts: Facts, sums: str) -> tuple[str, str]:
    """The commit's first line and the rest."""
    ways = facts.bits()
    how = f"{facts.method}, {'; '.join(map(str, ways[:3]))}" if ways else str(facts.method)
    verdicts = "; ".join(f"{one.report.verdict.headline} ({', '.join(one.covers)})" for one in facts.evidence.measured)
    source = facts.base.name + (f" at {facts.base.revision}" if facts.base.revision else "")
    lines = [
        f"Quantized from {source}.",
        f"Fingerprint {facts.variant.fingerprint}.",
        f"Verified: {verdicts}." if verdicts else "",
        f"{CHECKSUM_FILE}: {sums}.",
    ]
    message = f"{facts.name}: {how} (quantkit {quantkit.__version__})"
    return " ".join(message.split()), "\n".join(line for line in lines if line)
