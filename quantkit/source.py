"""From what the user typed after --model to a local folder: `tiny`, a folder, or a model id on the Hugging Face hub.

Only `huggingface_hub` ever reaches the network, and with its own rules: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and the
stored token are respected. What looks like a path is never sent to the hub.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError

TINY = "tiny"
# Weights only as safetensors, and nothing that could run. A `*` of these patterns matches across folders.
ALLOWED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*"]
IGNORED = ["*/*.safetensors", "onnx/*", "*.py"]
_HOW = f"name a folder, a hub id such as openbmb/MiniCPM-V-4.6, or {TINY} (the bundled checkpoint)"


@dataclass(frozen=True)
class Source:
    """A resolved checkpoint: `name` for people and cards, `path` on this machine, `revision` the hub's commit."""

    name: str
    path: Path
    revision: str | None = None


def tiny_folder() -> Path:
    """Return the bundled checkpoint's folder."""
    return Path(__file__).parent / "data" / TINY


def resolve(model: str | Path, revision: str | None = None, token: str | None = None) -> Source:
    """Find (for a hub id: fetch) the checkpoint's folder.

    Raises QuantkitError, one line, where there is none: no such folder, an id that the hub does not know, a gated
    repository, no network.
    """
    text = str(model)
    if text == TINY:
        return Source(TINY, tiny_folder())
    if isinstance(model, Path) or _looks_like_path(text):
        return _local(Path(text).expanduser())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise QuantkitError(f"--model {text!r}: no such folder; {_HOW}")
    path = _download(text, revision, token)
    return Source(text, path, path.name)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or os.path.lexists(text)


def _local(path: Path) -> Source:
    if path.is_file():
        raise QuantkitError(f"{path}: a file; give the folder of the checkpoint")
    if not path.is_dir():
        raise QuantkitError(f"{path}: no such folder; {_HOW}")
    return Source(path.resolve().name, path)


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, revision=revision, token=token, allow_patterns=ALLOWED, ignore_patterns=IGNORED)
        )
    # The library's HTTP client changed twice, each with its own exceptions: whatever ends a download is reported here.
    except Exception as error:
        raise QuantkitError(_reason(error, repo, revision)) from error


def _reason(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    status = _status(error) or _status(error.__cause__)
    if isinstance(error, errors.GatedRepoError):
        return f"{repo}: gated; accept its terms on the hub, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo}: the hub has no revision {revision}; give a branch, tag or commit of that repository"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return f"{repo}: no such folder, and the hub has no such model (if it is private: `hf auth login` or HF_TOKEN)"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            where = constants.HF_HUB_CACHE
            return f"{repo}{at}: not (completely) in the cache {where}, and HF_HUB_OFFLINE is set; unset it to download"
        if status:
            return f"{repo}{at}: not in the cache, and the hub answers with HTTP status {status}; try again later"
        known = "" if at else "no such folder, "
        return (
            f"{repo}{at}: {known}not in the hub's cache, and the hub cannot be reached; check the name and the network"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{repo}{at}: the download stopped: {error.strerror}; see HF_HOME for where it is stored"
    return f"{repo}{at}: the download failed: {' '.join(str(error).split()) or type(error).__name__}"


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the answer that an error is about, if it is about one."""
    return getattr(getattr(error, "response", None), "status_code", None)
