"""Write a folder so that its name only ever stands for a complete one.

Work goes into a hidden folder beside the target and is renamed at the end; an older folder is exchanged with the new
one in a single step where the system can (Linux renameat2). Names of the hidden folders, all beside the target NAME::

    .NAME.partial-OWNER   being written, or being deleted: rubbish once its owner is dead
    .NAME.previous-OWNER  the old folder during the two renames of a system without exchange: always complete

OWNER is `host-boot-pid-start-number`: a later run can tell a dead process from one that still writes, after a reboot
and after the pid was given to another process as well. SIGKILL leaves such folders behind; the next run with the same
target puts a previous one back where the target is missing, and deletes the rest.
"""

import ctypes
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError
from quantkit.tensorfile import build_header, dtype_name, tensor_bytes, write_checksums

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5_000_000_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STOPS = ("SIGTERM", "SIGHUP")
_numbers = itertools.count()
_RENAME_NOREPLACE, _RENAME_EXCHANGE, _AT_FDCWD = 1, 2, -100


# ---- the target ---------------------------------------------------------------------------------------------------


def check_target(target: str | Path, overwrite: bool = False, source: Path | None = None) -> Path:
    """Return the target's absolute path, after checking before any work that it can be written; clean up dead runs.

    Raises QuantkitError if the target is there (without `overwrite`), is a file, is, holds or lies in the `source`
    folder, holds something else than a model, or cannot be created.
    """
    path = Path(os.path.abspath(Path(target).expanduser()))
    if source is not None:
        _check_apart(path, source)
    parent = _nearest_existing(path.parent)
    if not os.path.isdir(parent):
        raise QuantkitError(f"{path}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise QuantkitError(f"{path}: cannot write into {parent}; change its permissions or choose another --out")
    if parent == path.parent:
        _recover(path)
    if path.is_symlink():
        raise QuantkitError(f"{path}: a link; give the folder that it leads to, or another --out")
    if path.exists() and not path.is_dir():
        raise QuantkitError(f"{path}: a file; choose another --out")
    if path.exists() and not overwrite:
        raise QuantkitError(f"{path}: is there already; add --overwrite to replace it, or choose another --out")
    if path.exists():
        _check_replaceable(path)
    return path


def check_target_file(target: str | Path, overwrite: bool = False) -> Path:
    """As `check_target`, for one file."""
    path = Path(os.path.abspath(Path(target).expanduser()))
    parent = path.parent
    if not os.path.isdir(parent):
        raise QuantkitError(f"{path}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise QuantkitError(f"{path}: cannot write into {parent}; change its permissions or choose another --out")
    if path.is_dir():
        raise QuantkitError(f"{path}: a folder; give the name of a file to --out")
    if os.path.lexists(path) and not overwrite:
        raise QuantkitError(f"{path}: is there already; add --overwrite to replace it, or choose another --out")
    return path


def require_free_space(folder: str | Path, needed: int) -> None:
    """Raise QuantkitError unless the file system of `folder` (it need not exist yet) has `needed` bytes left."""
    free = shutil.disk_usage(_nearest_existing(Path(folder).absolute())).free
    if free < needed:
        raise QuantkitError(
            f"{folder}: {_size(needed)} needed, {_size(free)} free on its disk; free some space or choose another --out"
        )


@contextmanager
def atomic_output(target: str | Path, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to write into; at the end of the block it becomes `target`, complete or not at all.

    An exception, Ctrl-C, SIGTERM or SIGHUP removes the folder and leaves the target as it was; a full disk becomes a
    QuantkitError. Everything is synced to the disk before the target's name changes.
    """
    path = check_target(target, overwrite, source)
    partial = _hidden(path, "partial")
    with stopped_by_signals(), _disk_errors(path):
        try:
            _make(partial)
            yield partial
            _sync_tree(partial)
            _put_in_place(partial, path, overwrite)
            _sync(path.parent)
        finally:
            _remove(partial)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a name beside `target` to write one file to; at the end of the block it becomes `target`, or is removed.

    As `atomic_output`: an exception, Ctrl-C, SIGTERM or SIGHUP leaves the target as it was. Raises OSError.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    with stopped_by_signals():
        try:
            yield partial
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def _make(partial: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise QuantkitError(f"{partial.parent}: {error.strerror}; choose another --out") from error


def _check_apart(path: Path, source: Path) -> None:
    real, origin = Path(os.path.realpath(path)), source.resolve()
    if real == origin:
        raise QuantkitError(f"{path}: is the source itself; choose another --out")
    if origin.is_relative_to(real):
        raise QuantkitError(f"{path}: holds the source {origin}; choose another --out")
    if real.is_relative_to(origin):
        raise QuantkitError(f"{path}: lies in the source folder {origin}; choose another --out")


def _check_replaceable(path: Path) -> None:
    """Refuse to replace (that is, to delete) a folder that is not empty and holds no model.

    GGUF files of many models are often kept in one folder: such a one is a model's where quantkit wrote it.
    """
    names = [entry.name for entry in path.iterdir()]
    ours = "config.json" in names or "quantkit.json" in names
    if names and not ours and not any(name.endswith(".safetensors") for name in names):
        raise QuantkitError(f"{path}: holds no model, so --overwrite will not delete it; choose another --out")


def _nearest_existing(path: Path) -> Path:
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


# ---- the two ends of a run ----------------------------------------------------------------------------------------


def _put_in_place(partial: Path, path: Path, overwrite: bool) -> None:
    """Give `partial` the target's name. The old folder, if any, ends under `partial`'s name, to be deleted."""
    taken = f"{path}: appeared while this run worked; add --overwrite, or choose another --out"
    if overwrite and os.path.lexists(path):
        _exchange(partial, path)
        return
    try:
        if not _renameat2(partial, path, _RENAME_NOREPLACE):
            partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise QuantkitError(taken) from error


def _exchange(partial: Path, path: Path) -> None:
    """Swap the two folders' names, in one step where the system can."""
    if not _renameat2(partial, path, _RENAME_EXCHANGE):
        previous = _hidden(path, "previous")
        try:
            path.rename(previous)
            partial.rename(path)
        except BaseException:
            if previous.exists() and not path.exists():
                previous.rename(path)
            raise
        previous.rename(partial)


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Rename with flags; False where the system or the file system has no such call."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(new))


def _recover(path: Path) -> None:
    """Put back a previous folder whose target is missing, and delete what dead runs for this target left behind."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(partial|previous)-([0-9a-f]+-[0-9a-f]+-\d+-\d+-\d+)")
    found = [(entry, pattern.fullmatch(entry.name)) for entry in path.parent.iterdir()]
    left = [(entry, match[1]) for entry, match in found if match and _is_dead(entry, match[2])]
    for entry, kind in sorted(left):
        if kind == "previous" and not os.path.lexists(path):
            logger.warning("%s: put back after an interrupted run", path)
            entry.rename(path)
            continue
        logger.info("%s: left by an interrupted run, deleted", entry)
        if kind == "previous":  # a half-deleted folder must not look like a complete one
            rubbish = _hidden(path, "partial")
            entry.rename(rubbish)
            entry = rubbish
        _remove(entry)


def _is_dead(entry: Path, owner: str) -> bool:
    host, boot, pid, start, _ = owner.split("-")
    mine = _owner().split("-")
    if host != mine[0]:
        logger.warning("%s: left by a run on another host; delete it if that run is over", entry)
        return False
    return boot != mine[1] or _process_start(int(pid)) != start


def _hidden(path: Path, kind: str) -> Path:
    """Return a name beside `path` that no other run, in this process or another, uses."""
    return path.parent / f".{path.name}.{kind}-{_owner()}-{next(_numbers)}"


def _owner() -> str:
    """Return `host-boot-pid-start` of this process; a container with pids of its own counts as a host."""
    try:
        space = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        space = boot = ""
    host = hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]
    pid = os.getpid()
    return f"{host}-{hashlib.sha256(boot.encode()).hexdigest()[:8]}-{pid}-{_process_start(pid)}"


def _process_start(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the boot ("0" where unknown); None if it is not running."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return "0"
        return "0"
    return None if fields[0] == "Z" else fields[19]


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as an exit (128 + number) that cleans up, unless the caller handles them."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours: list[int] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _STOPS if hasattr(signal, name)]
        ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise QuantkitError(
            f"{path}: the disk is full ({os.strerror(error.errno)}), nothing was written; "
            "free some space or choose another --out"
        ) from error


def _remove(folder: Path) -> None:
    """Delete a folder; what cannot be deleted is logged, so that the reason for coming here is not hidden."""
    if os.path.lexists(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        logger.warning("%s: could not be deleted; delete it by hand", folder)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- weights ------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Write safetensors shards tensor by tensor, in any order, holding none of them.

    All names, dtypes and shapes are declared first, so every tensor has its place before its bytes exist: headers are
    written at once and `add` writes straight to the place. Shards are cut in the declared order; inside a shard the
    layout is that of `safetensors.torch.save_file`, byte for byte. Use as a context manager, and call `finish` in it.
    """

    def __init__(
        self,
        folder: Path,
        specs: "Mapping[str, tuple[torch.dtype | str, tuple[int, ...]]]",
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """Create the files. specs: {name: (torch dtype or safetensors' spelling, shape)}."""
        if not specs:
            raise ValueError("no tensor declared")
        self.folder = folder
        self._specs = {name: (dtype_name(dtype), tuple(shape)) for name, (dtype, shape) in specs.items()}
        self.total_bytes = sum(tensor_bytes(*spec) for spec in self._specs.values())
        require_free_space(folder, self.total_bytes)
        self._missing = set(self._specs)
        self._weight_map: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        self._handles: dict[str, int] = {}
        shards = _cut(self._specs, max_shard_bytes)
        try:
            for number, names in enumerate(shards, 1):
                self._create(_shard_name(number, len(shards)), names)
        except BaseException:
            self.close()
            raise

    def _create(self, file: str, names: list[str]) -> None:
        first, offsets = build_header({name: self._specs[name] for name in names})
        self._handles[file] = os.open(self.folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        _write_at(self._handles[file], memoryview(first), 0)
        self._offsets.update(offsets)
        self._weight_map.update(dict.fromkeys(names, file))

    def add(self, name: str, tensor: "torch.Tensor") -> None:
        """Write one tensor to its place; ValueError if undeclared, added before, or of another dtype or shape."""
        if name not in self._specs:
            raise ValueError(f"tensor {name} was not declared")
        if name not in self._missing:
            raise ValueError(f"tensor {name} was added twice")
        found = (dtype_name(tensor.dtype), tuple(tensor.shape))
        if found != self._specs[name]:
            raise ValueError(f"tensor {name} was declared as {self._specs[name]}, but is {found}")
        if tensor.numel():
            _write_at(self._handles[self._weight_map[name]], _bytes_of(tensor), self._offsets[name])
        self._missing.remove(name)

    def finish(self) -> list[str]:
        """Close the shards, write the index (for more than one) and SHA256SUMS; return all names that were written.

        ValueError if a declared tensor was never added.
        """
        if self._missing:
            raise ValueError(
                f"{len(self._missing)} declared tensors were never added, the first is {min(self._missing)}"
            )
        files = list(self._handles)
        self.close()
        if len(files) > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self._weight_map}
            files.append("model.safetensors.index.json")
            (self.folder / files[-1]).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_checksums(self.folder, files)
        return [*files, "SHA256SUMS"]

    def close(self) -> None:
        """Close the files, finished or not."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _cut(specs: Mapping[str, tuple[str, tuple[int, ...]]], limit: int) -> list[list[str]]:
    """Cut the names, in order, into shards of at most `limit` bytes (a larger tensor gets one of its own)."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, spec in specs.items():
        size = tensor_bytes(*spec)
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    """Return a dense tensor's bytes, without a copy if it is contiguous and on the CPU."""
    import torch

    array: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:  # one call writes at most 2 GiB, and less on a disk that fills up
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count
