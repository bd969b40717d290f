"""A server as a group of processes of its own: started, waited for, and stopped with all its children at the end."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.output import stopped_by_signals

LINES, WIDTH = 6, 240  # of a log's end, in an error
GRACE = 10.0  # seconds to stop in, before the group is killed
PAUSE = 0.25
LOOPBACK = "127.0.0.1,localhost"
_RAISED = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)$")
_GENERIC = re.compile("root cause|Engine core initialization failed")


@dataclass(frozen=True)
class ServerProcess:
    """A server that was started. what: its name in messages; log: what it writes."""

    what: str
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self, within: float = 0.0) -> bool:
        """Whether it is gone, or goes within some seconds: a socket closes a little earlier than its process ends."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def words(self) -> str:
        """What it said last, in a line."""
        return end_of_log(self.log)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def offline_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This environment for a server: nothing is fetched from a hub, and no proxy stands before a loopback address."""
    found = {**os.environ, **extra, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = f"{found[name]},{LOOPBACK}" if found.get(name) else LOOPBACK
    return found


@contextmanager
def running(
    what: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    settings: str | None = None,
    answers: Path | None = None,
) -> Iterator[ServerProcess]:
    """Start a command in a group of its own; at the end of the block, whatever ended it, the group is stopped.

    settings: a line for its stdin, which then stays open. answers: a file for its stdout, which otherwise is the log's.
    Raises `QuantkitError` where it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_by_signals())
        sink = stack.enter_context(log.open("wb"))
        out = stack.enter_context(answers.open("wb")) if answers is not None else sink
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL if settings is None else subprocess.PIPE,
                stdout=out,
                stderr=sink,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise QuantkitError(f"{what}: {command[0]} cannot be started ({error.strerror})") from error
        try:
            if settings is not None:
                _tell(process, settings)
            yield ServerProcess(what, process, log)
        finally:
            _stop(process)


def wait_until(server: ServerProcess, ready: Callable[[], bool], timeout: float, tick: Callable[[float], None]) -> None:
    """Wait until `ready()`; raises `QuantkitError` with the end of the log where the server ends, or where `timeout`
    seconds have passed. `tick` is told the seconds so far."""
    started = time.monotonic()
    while not ready():
        passed = time.monotonic() - started
        if server.ended():
            status = server.process.returncode
            raise QuantkitError(f"{server.what} ended with status {status} before it answered: {server.words()}")
        if passed > timeout:
            raise QuantkitError(
                f"{server.what} did not answer within {timeout:.0f} s; give it longer with --timeout. {server.words()}"
            )
        tick(passed)
        time.sleep(PAUSE)


def answers_at(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether this address answers with status 200."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with _opener().open(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def read_from(url: str, headers: Mapping[str, str] | None = None) -> bytes | None:
    """What this address answers with; None where it does not."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    try:
        with _opener().open(request, timeout=30) as reply:
            return bytes(reply.read())
    except (OSError, http.client.HTTPException):
        return None


def end_of_log(log: Path) -> str:
    """The error that a log names, and its last lines, as one line."""
    try:
        text = log.read_bytes()[-200_000:].decode(errors="replace")
    except OSError:
        text = ""
    lines = [" ".join(line.split())[:WIDTH] for line in re.split(r"[\r\n]+", text) if line.strip()]
    if not lines:
        return "it wrote nothing"
    last = lines[-LINES:]
    raised = [match[1] for line in lines if (match := _RAISED.search(line)) and not _GENERIC.search(line)]
    cause = f"{raised[-1]}; " if raised and not any(raised[-1] in line for line in last) else ""
    return f"{cause}the end of its log: {' / '.join(last)}"


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _tell(process: subprocess.Popen[bytes], settings: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: whoever waits for it says so
        process.stdin.write(settings.encode() + b"\n")
        process.stdin.flush()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: politely first, so that it frees what outlives processes (shared memory)."""
    try:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        _signal(process, signal.SIGKILL)  # children may be left when the first process has ended
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
