"""From sources to prepared samples: read, choose, decode beside each other, process one after another, keep on disk.

    build(["bundled", "photos,weight=0.5"], folder, options) -> Mix        with a cache, for calibration
    prepare(conversations, processor, options) -> list[Sample]             of a list that is here, in memory

Pictures and clips are decoded by threads a few conversations ahead; the processor runs in one, in an order that depends
on the seed alone, so any number of workers gives the same samples.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from quantkit.calibration import cache as cache_room
from quantkit.calibration.conversations import Conversation
from quantkit.calibration.identity import Identity, identify, shared
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.prepare import (
    MODES,
    PrepareOptions,
    Preparer,
    Ready,
    Sample,
    joined_digest,
    load_processor,
)
from quantkit.calibration.sampling import SPARE, Candidate, Reservoir, Stratum, furthest_behind, shares
from quantkit.calibration.sources import Source, load_conversations, parse_sources
from quantkit.errors import QuantkitError
from quantkit.recipe import CalibrationOptions

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # stage, done, total
OnBad = Callable[[QuantkitError], None]
Hashed = tuple[Identity, dict[str, list[str]]]  # of a conversation, and of the files it refers to
Look = Callable[[Conversation, Decoder], Hashed]
AHEAD = 2  # conversations of each stratum that are decoded before their turn
BEHIND = 4  # samples that wait to be written
SHORTEST = 32  # tokens of a short conversation: how many a token budget may take in at most


@dataclass(frozen=True)
class MixOptions:
    """How to read, beside what decides the samples (`PrepareOptions`)."""

    access: Access = field(default_factory=Access)
    skip_bad: bool = False  # leave bad rows out and count them, instead of stopping at the first
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    cache: Path | None = None  # None: nothing is kept


@dataclass(frozen=True)
class Count:
    """One source of a mix: its weight, the rows it has, and what was taken of it."""

    source: str
    weight: float
    rows: int
    samples: int
    tokens: int


@dataclass(frozen=True)
class Mix:
    """Samples ready for the model, in the order of their sources."""

    samples: list[Sample]
    fingerprint: str  # SHA-256 over the inputs
    items: list[str]  # identities of the conversations
    pictures: list[str]  # and of their pictures
    counts: list[Count]
    skipped: list[str]  # bad rows that were left out, each as its error
    conversations: list[Conversation] | None = None  # what the samples are of, one each; None from the cache
    too_long: int = 0  # conversations left out because no cut of them fits

    @property
    def cached(self) -> bool:
        """Whether the samples came from the cache."""
        return self.conversations is None


def build(
    specs: Sequence[str],
    folder: Path,
    options: PrepareOptions,
    how: MixOptions | None = None,
    progress: Progress | None = None,
) -> Mix:
    """Prepare a mix of sources with the processor of the checkpoint in `folder`, or take it from the cache.

    `specs`: as `parse_sources` reads them. Raises `QuantkitError` naming source and row, or where nothing is left.
    """
    how, progress = how or MixOptions(), progress or (lambda stage, done, total: None)
    sources = parse_sources(specs)
    key = _key(sources, folder, options, how)
    if how.cache is not None and (entry := cache_room.load(how.cache, key)) is not None:
        return _mix(entry, None)
    return _Build(sources, load_processor(folder), options, how, progress).run(key)


def prepare_options(options: CalibrationOptions) -> PrepareOptions:
    """The part of the schema that decides the samples of given conversations."""
    return PrepareOptions(**{one.name: getattr(options, one.name) for one in fields(PrepareOptions)})


def build_from(options: CalibrationOptions, folder: Path, progress: Progress | None = None) -> Mix:
    """`build` by the schema's options, and refuse what is in the evaluation set unless that is allowed."""
    access = Access(private_urls=options.private_urls)
    how = MixOptions(access=access, skip_bad=options.skip_bad, cache=None if options.no_cache else options.cache)
    mix = build(options.calib, folder, prepare_options(options), how, progress)
    if not options.allow_overlap:
        check_overlap(mix, options.eval_data, options.calib)
    return mix


def check_overlap(mix: Mix, eval_data: str, calib: Sequence[str]) -> None:
    """Raise where a conversation or a picture of the mix is in the evaluation set, by their hashes."""
    found = shared(load_conversations(eval_data), mix.items, mix.pictures)
    if found:
        names = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise QuantkitError(
            f"--calib {' '.join(calib)}: shares {len(found)} items with --eval-data {eval_data} ({names}), so figures "
            "measured there would flatter; leave them out, or say --allow-overlap"
        )


def prepare(conversations: Sequence[Conversation], processor: Any, options: PrepareOptions) -> list[Sample]:
    """Select and process conversations; the same arguments give the same samples, in the conversations' order.

    Raises `QuantkitError` where nothing is left or a row cannot be processed.
    """
    reservoir = Reservoir(options.seed, None)
    reservoir.add(conversations)
    preparer = Preparer(processor, options)
    taken = _take(reservoir.sorted(), [1.0], preparer, options, MixOptions(workers=1), _nothing, None)
    chosen = [(candidate.position, sample) for candidate, sample, _ in taken]
    _report(preparer, len(conversations), len(chosen), options)
    return [sample for _, sample in sorted(chosen, key=lambda pair: pair[0])]


class _Build:
    """One mix on its way."""

    def __init__(
        self, sources: list[Source], processor: Any, options: PrepareOptions, how: MixOptions, progress: Progress
    ) -> None:
        self.sources, self.options, self.how, self.progress = sources, options, how, progress
        self.preparer = Preparer(processor, options, how.access)
        self.skipped: list[str] = []
        self.on_bad: OnBad | None = (lambda error: self.skipped.append(str(error))) if how.skip_bad else None

    def run(self, key: str) -> Mix:
        reservoir = Reservoir(self.options.seed, _most(self.options))
        rows = []
        for number, source in enumerate(self.sources):
            self.progress("reading", number, len(self.sources))
            rows.append(reservoir.add(source.rows(self.on_bad), number, source.name))
        self.progress("reading", len(self.sources), len(self.sources))
        strata = reservoir.sorted()
        store = cache_room.Store(self.how.cache, key)
        chosen: list[Candidate] = []
        items: set[str] = set()
        pictures: set[str] = set()
        read: dict[str, list[str]] = {}
        kept: list[tuple[Sample, str]] = []
        keeping: deque[Future[tuple[Sample, str]]] = deque()
        weights = [source.weight for source in self.sources]
        with ThreadPoolExecutor(1, thread_name_prefix="keep") as keeper:
            for candidate, sample, hashed in _take(
                strata, weights, self.preparer, self.options, self.how, _hashes, self.on_bad, self.progress
            ):
                identity, files = hashed
                items.add(identity.item)
                pictures.update(identity.pictures)
                read |= files
                chosen.append(candidate)
                keeping.append(keeper.submit(store.add, sample))
                if len(keeping) > BEHIND:
                    kept.append(keeping.popleft().result())
            kept += [one.result() for one in keeping]
        _report(self.preparer, sum(rows), len(chosen), self.options)
        order = sorted(range(len(chosen)), key=lambda index: chosen[index].position)
        samples = [kept[index][0] for index in order]
        counts = self._counts(rows, [(one, sample) for one, (sample, _) in zip(chosen, kept, strict=True)])
        entry = cache_room.Entry(
            joined_digest(kept[index][1] for index in order),
            sorted(items),
            sorted(pictures),
            self.skipped,
            [asdict(c) for c in counts],
            samples,
            read,
            self.preparer.too_long,
        )
        conversations = [chosen[index].conversation for index in order]
        return _mix(store.finish(entry, order), conversations)

    def _counts(self, rows: list[int], taken: list[tuple[Candidate, Sample]]) -> list[Count]:
        counts = []
        for number, source in enumerate(self.sources):
            own = [sample for candidate, sample in taken if candidate.source == number]
            tokens = sum(sample.input_ids.numel() for sample in own)
            counts.append(Count(source.name, source.weight, rows[number], len(own), tokens))
            if not own:
                log.warning("%s: no conversation of this source was taken", source.name)
        return counts


class _Queue:
    """The candidates of one stratum in their order, decoded a little ahead of their turn."""

    def __init__(self, candidates: list[Candidate], preparer: Preparer, pool: ThreadPoolExecutor, look: Look) -> None:
        self.waiting = iter(candidates)
        self.preparer, self.pool, self.look = preparer, pool, look
        self.ahead: deque[tuple[Candidate, Future[tuple[Ready, Hashed]]]] = deque()
        self._fill()

    def __bool__(self) -> bool:
        return bool(self.ahead)

    def next(self) -> tuple[Candidate, Future[tuple[Ready, Hashed]]]:
        found = self.ahead.popleft()
        self._fill()
        return found

    def _fill(self) -> None:
        while len(self.ahead) < AHEAD and (candidate := next(self.waiting, None)) is not None:
            self.ahead.append((candidate, self.pool.submit(self._work, candidate.conversation)))

    def _work(self, conversation: Conversation) -> tuple[Ready, Hashed]:
        ready = self.preparer.decode(conversation)
        return ready, self.look(conversation, ready.decoder)


def _take(
    strata: list[Stratum],
    weights: list[float],
    preparer: Preparer,
    options: PrepareOptions,
    how: MixOptions,
    look: Look,
    on_bad: OnBad | None,
    progress: Progress | None = None,
) -> Iterator[tuple[Candidate, Sample, Hashed]]:
    """Samples in the order of their choice, until the count or the token budget is reached or nothing is left.

    `look`: what else the threads find out of a decoded conversation.
    """
    share = shares(strata, weights)
    taken, used = [0.0] * len(strata), [0] * len(strata)
    tokens = 0
    with ThreadPoolExecutor(how.workers, thread_name_prefix="decode") as pool:
        queues = [_Queue(stratum.ordered(options.seed), preparer, pool, look) for stratum in strata]
        try:
            while options.samples is None or sum(used) < options.samples:
                index = furthest_behind(taken, share, [bool(queue) for queue in queues])
                if index is None:
                    break
                candidate, decoding = queues[index].next()
                mode = MODES[used[index] % 2] if options.downsample_mode == "both" else options.downsample_mode
                try:
                    ready, found = decoding.result()
                    sample = preparer.build(candidate.conversation, ready, mode)
                except QuantkitError as error:
                    if on_bad is None:
                        raise
                    on_bad(error)
                    continue
                if sample is None:
                    continue
                length = sample.input_ids.shape[1]
                if options.token_budget is not None and tokens + length > options.token_budget:
                    break
                tokens += length
                used[index] += 1
                taken[index] += 1 if options.token_budget is None else length
                if progress is not None:
                    _tell(progress, options, sum(used), tokens, sum(stratum.rows for stratum in strata))
                yield candidate, sample, found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _hashes(conversation: Conversation, decoder: Decoder) -> Hashed:
    return identify(conversation, decoder), _files_read(conversation, decoder)


def _nothing(conversation: Conversation, decoder: Decoder) -> Hashed:
    return Identity("", ()), {}


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


def _tell(progress: Progress, options: PrepareOptions, samples: int, tokens: int, rows: int) -> None:
    if options.token_budget is not None:
        progress("preparing", tokens, options.token_budget)
    else:
        progress("preparing", samples, min(rows, options.samples or rows))


def _most(options: PrepareOptions) -> int | None:
    """Candidates to keep of each stratum: enough for the whole choice to come from one, with some to spare."""
    bounds = [
        bound
        for bound in (options.samples, options.token_budget and options.token_budget // SHORTEST)
        if bound is not None
    ]
    return min(bounds) + SPARE if bounds else None


def _report(preparer: Preparer, rows: int, taken: int, options: PrepareOptions) -> None:
    if preparer.shortened or preparer.too_long:
        log.warning("over-long conversations: %d shortened, %d left out", preparer.shortened, preparer.too_long)
    if not taken:
        limit = f"fits {options.max_tokens} tokens; raise max_tokens" if rows else "is there"
        if options.token_budget is not None and options.token_budget < options.max_tokens:
            limit = f"fits a budget of {options.token_budget} tokens; raise it"
        raise QuantkitError(f"no calibration tokens: none of {rows} conversations {limit} or give other data")
    if options.samples is not None and options.token_budget is None and taken < options.samples:
        log.warning("%d samples asked for, %d taken of %d conversations", options.samples, taken, rows)


def _key(sources: list[Source], folder: Path, options: PrepareOptions, how: MixOptions) -> str:
    """SHA-256 over everything that decides the samples."""
    import numpy
    import PIL
    import tokenizers
    import torch
    import torchvision
    import transformers

    content = {
        "version": cache_room.VERSION,
        "sources": [(source.name, source.weight, source.key()) for source in sources],
        "options": asdict(options),
        "skip_bad": how.skip_bad,
        "max_pixels": how.access.max_pixels,
        "files": cache_room.file_hashes(folder),
        "libraries": [library.__version__ for library in (numpy, PIL, tokenizers, torch, torchvision, transformers)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _mix(entry: cache_room.Entry, conversations: list[Conversation] | None) -> Mix:
    counts = [Count(**count) for count in entry.counts]
    same = ("samples", "fingerprint", "items", "pictures", "skipped", "too_long")
    return Mix(counts=counts, conversations=conversations, **{name: getattr(entry, name) for name in same})
