"""From candidates to samples: decoded beside each other, processed one after another, until count or budget is reached.

A candidate that is longer than what is left of the token budget is passed over; a stratum has nothing left for the
budget after `MISSES` of them. Where nothing was taken yet, all are tried. Of the two compression modes a conversation
has the one that its own hash says, so that it has the same in whatever set and order it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.identity import Identity, identify
from quantkit.calibration.images import Decoder
from quantkit.calibration.prepare import MODES, PrepareOptions, Preparer, Ready, Sample
from quantkit.calibration.sampling import Candidate, Stratum, furthest_behind, shares
from quantkit.errors import QuantkitError

Progress = Callable[[str, int, int], None]  # stage, done, total
OnBad = Callable[[QuantkitError], None]
Refill = Callable[[Stratum], None]  # keeps the next candidates of a stratum that is used up
AHEAD = 2  # conversations of each stratum that are decoded before their turn
MISSES = 16  # candidates of a stratum that may exceed what is left of a budget


@dataclass(frozen=True)
class Found:
    """What is known of a candidate once it is decoded."""

    conversation: Conversation
    ready: Ready
    identity: Identity
    files: dict[str, list[str]]  # those it refers to: kind and SHA-256


@dataclass(frozen=True)
class Taken:
    """A sample, and what it was made of."""

    candidate: Candidate
    sample: Sample
    identity: Identity
    files: dict[str, list[str]]


class Taker:
    """Takes samples from strata; `refill`: where more candidates come from, None: there are no more."""

    def __init__(
        self,
        preparer: Preparer,
        workers: int,
        on_bad: OnBad | None = None,
        progress: Progress | None = None,
        refill: Refill | None = None,
    ) -> None:
        self.preparer, self.options, self.workers = preparer, preparer.options, workers
        self.on_bad, self.progress, self.refill = on_bad, progress, refill
        self.samples = self.tokens = self.bad = 0

    def take(self, strata: Sequence[Stratum], weights: Sequence[float]) -> Iterator[Taken]:
        """Samples in the order of their choice, until the count or the token budget is reached or nothing is left."""
        share, rows = shares(strata, weights), sum(stratum.rows for stratum in strata)
        taken, missed = [0.0] * len(strata), [0] * len(strata)
        budget = self.options.token_budget
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            queues = [_Queue(stratum, self.preparer, pool, self.refill) for stratum in strata]
            try:
                while self.options.samples is None or self.samples < self.options.samples:
                    ready = [count < MISSES and queue.left for count, queue in zip(missed, queues, strict=True)]
                    index = furthest_behind(taken, share, ready)
                    if index is None and not self.samples and any(missed):
                        missed = [0] * len(strata)  # nothing was taken yet: try the rest
                        continue
                    if index is None:
                        return
                    if (found := self._next(queues[index])) is None:
                        continue
                    length = found.sample.input_ids.shape[1]
                    if budget is not None and self.tokens + length > budget:
                        missed[index] += 1
                        continue
                    self.samples, self.tokens = self.samples + 1, self.tokens + length
                    taken[index] += 1 if budget is None else length
                    self._tell(rows)
                    yield found
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _next(self, queue: _Queue) -> Taken | None:
        """The next candidate's sample; None where there is none or it is too long or bad."""
        entry = queue.next()
        if entry is None:
            return None
        candidate, decoding = entry
        try:
            found = decoding.result()
            sample = self.preparer.build(found.conversation, found.ready, mode_of(self.options, found.identity))
        except QuantkitError as error:
            if self.on_bad is None:
                raise
            self.bad += 1
            self.on_bad(error)
            return None
        return None if sample is None else Taken(candidate, sample, found.identity, found.files)

    def _tell(self, rows: int) -> None:
        if self.progress is None:
            return
        if self.options.token_budget is not None:
            self.progress("preparing", self.tokens, self.options.token_budget)
        else:
            self.progress("preparing", self.samples, min(rows, self.options.samples or rows))


class _Queue:
    """The candidates of one stratum in their order, decoded a little ahead of their turn."""

    def __init__(self, stratum: Stratum, preparer: Preparer, pool: ThreadPoolExecutor, refill: Refill | None) -> None:
        self.stratum, self.preparer, self.pool, self.refill = stratum, preparer, pool, refill
        self.waiting = deque(stratum.draw(preparer.options.seed))
        self.ahead: deque[tuple[Candidate, Future[Found]]] = deque()
        self._fill()

    @property
    def left(self) -> bool:
        """Whether there may be more, from memory or by a further look at the source."""
        return bool(self.ahead) or (self.refill is not None and self.stratum.left > 0)

    def next(self) -> tuple[Candidate, Future[Found]] | None:
        if not self.ahead and self.refill is not None:
            self.refill(self.stratum)
            self.waiting.extend(self.stratum.draw(self.preparer.options.seed))
            self._fill()
        if not self.ahead:
            return None
        found = self.ahead.popleft()
        self._fill()
        return found

    def _fill(self) -> None:
        while len(self.ahead) < AHEAD and self.waiting:
            candidate = self.waiting.popleft()
            self.ahead.append((candidate, self.pool.submit(self._work, candidate)))

    def _work(self, candidate: Candidate) -> Found:
        conversation = candidate.conversation
        ready = self.preparer.decode(conversation)
        identity = identify(conversation, ready.decoder)
        return Found(conversation, ready, identity, _files_read(conversation, ready.decoder))


def mode_of(options: PrepareOptions, identity: Identity) -> str:
    """The compression mode of a conversation: the one asked for, of both the one that its hash says."""
    return MODES[int(identity.item, 16) % 2] if options.downsample_mode == "both" else options.downsample_mode


def _files_read(conversation: Conversation, decoder: Decoder) -> dict[str, list[str]]:
    """The files that a conversation refers to, by reference: kind and SHA-256. What a row or a URL holds is no file."""
    found = {}
    for message in conversation.messages:
        for part in message["content"]:
            if part["type"] == "text":
                continue
            whole = part["type"] == "video" and isinstance(part["video"], str)
            kind = "video" if whole else "image"
            references = part["video"] if part["type"] == "video" and not whole else [part[kind]]
            for reference in references:
                if not reference.startswith(("data:", "http://", "https://")):
                    found[reference] = [kind, decoder.digest(reference, kind)]
    return found
