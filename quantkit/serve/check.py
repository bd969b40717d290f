"""`serve_check`: a server is started, asked and stopped, and only then judged: one model at a time is in memory."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.serve import picture, record
from quantkit.serve.ask import Reply, ask, check_client
from quantkit.serve.candidate import Candidate, find_candidate
from quantkit.serve.judge import judge
from quantkit.serve.record import NOT_RUN, Outcome, Run
from quantkit.serve.reference import Reference
from quantkit.serve.requests import REQUESTS, CardRequest
from quantkit.serve.runtimes import CONTEXT, DEVICES, RUNTIMES, Launch

Progress = Callable[[str, int, int], None]  # stage, done, total
ENGINES = ("dequantized", "transformers")


@dataclass(frozen=True)
class ServeOptions:
    """Options of `serve_check`; every field is described at the command line as well."""

    runtime: str
    reference: str | None = None  # of GGUF: the model it was made of
    mmproj: Path | None = None
    engine: str = "dequantized"
    device: str = "cpu"
    python: Path | None = None
    binary: Path | None = None
    server_args: tuple[str, ...] = ()
    timeout: float = 600.0  # seconds to start in, and for one answer
    log: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--runtime", self.runtime, tuple(RUNTIMES)), ("--engine", self.engine, ENGINES),
            ("--device", self.device, DEVICES),
        ):  # fmt: skip
            if value not in known:
                raise QuantkitError(f"{flag} {value}: unknown; known are {', '.join(known)}")
        if self.log is not None and not self.log.absolute().parent.is_dir():
            raise QuantkitError(f"--log {self.log}: there is no folder {self.log.parent}")


@dataclass(frozen=True)
class Checked:
    """What came of it. dropped: earlier runs that were left out because the files have changed."""

    run: Run
    place: Path
    dropped: int


def serve_check(name: str, options: ServeOptions, progress: Progress | None = None) -> Checked:
    """Serve a variant, send it the card's requests, judge the answers, add the run to the record.

    Raises `QuantkitError` where the runtime is missing or does not come up (nothing is then recorded), and for input
    that it cannot work with.
    """
    tell = progress or (lambda stage, done, total: None)
    check_client()
    candidate = find_candidate(name, options.reference, options.mmproj)
    place = options.out or candidate.place
    record.check_place(place)
    png = picture.draw()
    requests = [request for request in REQUESTS if candidate.vision or request.picture is None]
    with tempfile.TemporaryDirectory(prefix="quantkit-serve-") as folder:
        log = options.log or Path(folder) / "server.log"
        version, note, replies = _serve(candidate, options, requests, png, log, tell)
    judged_by, outcomes = _judge(candidate, options, requests, replies, png, tell)
    today = datetime.date.today().isoformat()
    run = Run(options.runtime, version, options.device, today, judged_by, outcomes, note)
    return Checked(run, place, record.add(place, candidate.fingerprint, run))


def _serve(
    candidate: Candidate, options: ServeOptions, requests: list[CardRequest], png: bytes, log: Path, tell: Progress
) -> tuple[str, str | None, list[Reply | None]]:
    """The runtime's version, what is to be noted of it, and its replies."""
    limit = max(1, int(options.timeout))
    launch = Launch(
        name=candidate.name,
        model=candidate.model,
        mmproj=candidate.mmproj,
        template=_template(candidate),
        context=_context(candidate),
        device=options.device,
        timeout=options.timeout,
        log=log,
        python=options.python,
        binary=options.binary,
        extra=options.server_args,
        tick=lambda seconds: tell("start", min(int(seconds), limit), limit),
    )
    tell("start", 0, limit)
    with picture.serving(png) as address, RUNTIMES[options.runtime](launch) as running:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            tell("ask", done, len(requests))

        tell("ask", 0, len(requests))
        replies = ask(running, requests, address, png, options.timeout, tick)
        return running.version, running.note, replies


def _judge(
    candidate: Candidate,
    options: ServeOptions,
    requests: list[CardRequest],
    replies: list[Reply | None],
    png: bytes,
    tell: Progress,
) -> tuple[str, tuple[Outcome, ...]]:
    """What judged, and every request's outcome."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        tell("reference", done, len(requests))

    tell("reference", 0, len(requests))
    reference = Reference(candidate, requests, png, options.engine)
    expected = reference.expect(tick)
    given = {request.name: reply for request, reply in zip(requests, replies, strict=True)}
    outcomes = []
    for request in REQUESTS:
        reply = given.get(request.name)
        if request.name not in given:
            outcomes.append(Outcome(request.name, NOT_RUN, "no mmproj file, so it sees no pictures"))
        elif reply is None:
            outcomes.append(Outcome(request.name, NOT_RUN, "the server had ended"))
        else:
            outcomes.append(judge(request, reply, expected[request.name], reference))
    return reference.note, tuple(outcomes)


def _template(candidate: Candidate) -> str:
    from quantkit.calibration import load_processor

    return str(load_processor(candidate.source.path).chat_template)


def _context(candidate: Candidate) -> int:
    longest = candidate.source.config.get("text_config", {}).get("max_position_embeddings")
    return min(CONTEXT, longest) if isinstance(longest, int) else CONTEXT
