"""Programs asked for a word about themselves, all at once and with one deadline.

`nvidia-smi` may take seconds and a program of that name may never answer; the examination waits for none of them longer
than it has promised. What has not answered is ended, with whatever it has started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

PATIENCE = 1.8  # seconds from the start of the first program: the whole command is to take less than three
_MOST = 1 << 16  # bytes of an answer


@dataclass(frozen=True)
class Answer:
    """path: of the program, None where there is none; text: both its outputs; None: no answer in time, or an error."""

    path: str | None
    text: str | None = None


class Probes:
    """Starts programs at once; `answers` waits for them."""

    def __init__(self, programs: dict[str, Sequence[str]], patience: float = PATIENCE) -> None:
        self._deadline = time.monotonic() + patience
        self._paths: dict[str, str | None] = {}
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        for name, arguments in programs.items():
            path = shutil.which(arguments[0])
            self._paths[name] = path
            if path is not None:
                self._start(name, [path, *arguments[1:]])

    def _start(self, name: str, command: list[str]) -> None:
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `_text`
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError:
            output.close()
            return
        self._running[name] = (process, output)

    def answers(self) -> dict[str, Answer]:
        """What each program said."""
        texts = {name: self._text(*running) for name, running in self._running.items()}
        return {name: Answer(path, texts.get(name)) for name, path in self._paths.items()}

    def _text(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> str | None:
        with output:
            try:
                process.wait(max(0.0, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _end(process)
                return None
            output.seek(0)
            return output.read(_MOST).decode("utf-8", "replace") if process.returncode == 0 else None


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver dies when that lets go of it
        process.wait(0.2)
