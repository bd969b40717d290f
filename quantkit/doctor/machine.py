"""Cores, memory and disk: what a process here may use, which in a container is less than the machine has.

The limits are those of Linux's control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html: memory.max,
memory.current, cpu.max; version 1: memory.limit_in_bytes, cpu.cfs_quota_us): of the process's own group and of every
group above it the tightest counts. On macOS `sysctl hw.memsize`; elsewhere memory is not known.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.doctor.rows import Row, gigabytes, tidy

_UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 for no limit
LITTLE_DISK = 2_000_000_000  # a variant of the full-size model takes 1.9 GB
ROOT = Path("/")


@dataclass(frozen=True)
class Memory:
    """Bytes; None where they are not known. limit: of the container, where it has one."""

    total: int | None
    available: int | None
    limit: int | None

    @property
    def most(self) -> int | None:
        """What a process can have at the very most."""
        known = [one for one in (self.total, self.limit) if one is not None]
        return min(known, default=None)


def read_memory(root: Path = ROOT) -> Memory:
    """Memory of the machine and of the container."""
    total = available = None
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable") and rest.split():
            size = int(rest.split()[0]) * 1024
            total, available = (size, available) if name == "MemTotal" else (total, size)
    if total is None and platform.system() == "Darwin":
        total = _sysctl("hw.memsize")
    limit = None
    for group in _groups(root, "memory"):
        most = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if most is None or most > _UNLIMITED or (total is not None and most >= total):
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        left = max(0, most - max(0, used - _reclaimable(group)))
        available = left if available is None else min(available, left)
        limit = most if limit is None else min(limit, most)
    return Memory(total, available, limit)


def read_cores(root: Path = ROOT) -> tuple[int, float]:
    """Cores that this process may run on, and how many of them the container may keep busy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = float(cores)
    for group in _groups(root, "cpu"):
        words = _text(group / "cpu.max").split()
        quota = int(words[0]) if len(words) == 2 and words[0].isdigit() else _number(group / "cpu.cfs_quota_us")
        period = int(words[1]) if len(words) == 2 else _number(group / "cpu.cfs_period_us")
        if quota and quota > 0 and period:
            share = min(share, quota / period)
    return cores, share


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """The instruction sets that Linux names; empty elsewhere."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def machine_rows(cache: Path, hub: Path | None, root: Path = ROOT) -> list[Row]:
    """Cores, memory, and disk where something will be written."""
    return [_cores_row(root), _memory_row(root), *_disk_rows({"here": Path.cwd(), "cache": cache, "hub cache": hub})]


def _cores_row(root: Path) -> Row:
    cores, share = read_cores(root)
    less = f", of which the container may keep {share:.3g} busy" if share < cores else ""
    said = f"{cores} core{'s' if cores != 1 else ''}{less}; {_cpu_name(root)}"
    return Row("CPU", "ok", said, None, {"cores": cores, "share": share, "threads": os.environ.get("OMP_NUM_THREADS")})


def _memory_row(root: Path) -> Row:
    memory = read_memory(root)
    values = {"total": memory.total, "available": memory.available, "limit": memory.limit}
    if memory.total is None and memory.limit is None:
        return Row("memory", "note", "not known on this system", None, values)
    free = "" if memory.available is None else f"{gigabytes(memory.available)} available of "
    total = "" if memory.total is None else gigabytes(memory.total)
    limit = "" if memory.limit is None else f"; the container's limit is {gigabytes(memory.limit)}"
    return Row("memory", "ok", (free + total + limit).removeprefix("; "), None, values)


def _disk_rows(places: dict[str, Path | None]) -> Iterator[Row]:
    for what, path in places.items():
        if path is None:
            continue
        there = next((one for one in (path, *path.absolute().parents) if one.exists()), ROOT)
        try:
            free = shutil.disk_usage(there).free
        except OSError as error:
            yield Row(f"disk, {what}", "note", f"{tidy(path)}: {error.strerror}")
            continue
        values = {"path": str(path), "free": free, "writable": os.access(there, os.W_OK)}
        said = f"{gigabytes(free)} free at {tidy(path)}"
        if not values["writable"]:
            yield Row(f"disk, {what}", "note", f"{said}: not writable", None, values)
        elif free < LITTLE_DISK:
            yield Row(f"disk, {what}", "note", f"{said}: little for a full-size variant", None, values)
        else:
            yield Row(f"disk, {what}", "ok", said, None, values)


# ---- reading --------------------------------------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of all above it, in version 2's tree and version 1's."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controller
        else:
            continue
        inner = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inner), -1, -1):  # in a container the path may be the host's: what is not there, is not
            yield base.joinpath(*inner[:depth])


def _reclaimable(group: Path) -> int:
    """Bytes of files in the page cache that the system drops when memory is asked for."""
    for line in _text(group / "memory.stat").splitlines():
        name, _, count = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and count.strip().isdigit():
            return int(count)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _sysctl(name: str) -> int | None:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.strip()
    return int(text) if text.isdigit() else None
