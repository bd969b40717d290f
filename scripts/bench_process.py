"""Runs other programs one after the other and measures each: seconds, processor seconds, peak memory.

Peak memory is the largest resident set of a process, as the kernel counts it. The kernel counts from the fork on, when
the process still has its parent's memory: the figures are right only where the parent is small, so a benchmark that
uses this module imports nothing heavy itself.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
KILO = 1 if sys.platform == "darwin" else 1024  # unit of the kernel's peak memory, in bytes


class Failed(Exception):
    """A step of the benchmark ended with an error; the message is one line."""


@dataclass(frozen=True)
class Child:
    """A process that has ended: seconds of the clock and of the processors, peak memory in bytes, what it printed."""

    wall: float
    cpu: float
    peak: int
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """What it said last, for an error message."""
        lines = [line.strip() for text in (self.stdout, self.stderr) for line in text.splitlines() if line.strip()]
        return lines[-1][:600] if lines else "no message"


def environment(threads: int, work: Path) -> dict[str, str]:
    """The environment of every process: threads, and temporary files where they will be removed."""
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GPTQMODEL_CPU_WORKERS": "4",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(work),
        "COLUMNS": "250",
    }
    return dict(os.environ) | settings


@dataclass(frozen=True)
class Answer:
    """A worker's process and the result it wrote."""

    child: Child
    result: dict[str, Any]


@dataclass
class Runner:
    """Starts processes one after the other. work: a folder for their files; timeout in seconds for each."""

    work: Path
    environment: dict[str, str]
    timeout: float

    def run(self, what: str, command: Sequence[str], foreign: bool = False) -> Child:
        """Run a command; Failed if it ends with an error.

        foreign: another Python, which must not see this one's packages, on a program that may drop files where it runs.
        """
        hidden = ("PYTHONPATH", "PYTHONHOME") if foreign else ()
        settings = {name: value for name, value in self.environment.items() if name not in hidden}
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
        child = measure(command, settings, self.work if foreign else Path.cwd(), self.timeout)
        if child.code == -signal.SIGKILL and child.wall >= self.timeout:
            raise Failed(f"{what} did not end within {self.timeout:.0f} s")
        if child.code:
            raise Failed(f"{what} ended with status {child.code}: {child.last_line}")
        return child

    def script(self, *words: str, python: Path | None = None) -> Child:
        """Run a script that lies beside this file, with its arguments; python: another one than this."""
        what = " ".join(word for word in words if not word.startswith(str(self.work)))
        return self.run(what, [str(python or sys.executable), str(SCRIPTS / words[0]), *words[1:]], python is not None)

    def worker(self, *words: str, job: Mapping[str, Any], python: Path | None = None) -> Answer:
        """Run a worker script on a job and read the result it writes; Failed if there is none."""
        job_path, result_path = self.work / "job.json", self.work / "result.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        result_path.unlink(missing_ok=True)
        child = self.script(*words, str(job_path), str(result_path), python=python)
        if not result_path.is_file():
            raise Failed(f"{words[0]} wrote no result: {child.last_line}")
        return Answer(child, json.loads(result_path.read_text(encoding="utf-8")))


def measure(command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float) -> Child:
    """Run a command in `folder` and measure it; it and all it started are killed after `timeout` seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=folder, env=dict(environment), start_new_session=True
        )
        timer = Timer(timeout, _kill_group(process.pid))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill_group(process.pid)()
            process.wait()
            raise
        finally:
            timer.cancel()
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    cpu = usage.ru_utime + usage.ru_stime
    return Child(wall, cpu, usage.ru_maxrss * KILO, process.returncode, stdout=texts[0], stderr=texts[1])


def _kill_group(group: int) -> Callable[[], None]:
    def kill() -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return

    return kill


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, and how busy it was before."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": usable,
        "memory": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
