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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from quantkit.calibration import cache as cache_room
from quantkit.calibration import video
from quantkit.calibration.conversations import Conversation
from quantkit.calibration.identity import shared
from quantkit.calibration.images import Access
from quantkit.calibration.prepare import PrepareOptions, Preparer, Sample, joined_digest, load_processor
from quantkit.calibration.sampling import SPARE, Reservoir, Stratum
from quantkit.calibration.shelf import Conversations, Shelf
from quantkit.calibration.sources import Source, parse_source, parse_sources
from quantkit.calibration.taking import OnBad, Progress, Taken, Taker
from quantkit.errors import QuantkitError
from quantkit.recipe import CalibrationOptions

log = logging.getLogger(__name__)

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
    conversations: Conversations | None = None  # what the samples are of, one each; None from the cache
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
        return _mix(entry)
    return _Build(sources, load_processor(folder), options, how, progress).run(key)


def prepare_options(options: CalibrationOptions) -> PrepareOptions:
    """The part of the schema that decides the samples of given conversations."""
    return PrepareOptions(**{one.name: getattr(options, one.name) for one in fields(PrepareOptions)})


def build_from(options: CalibrationOptions, folder: Path, progress: Progress | None = None) -> Mix:
    """`build` by the schema's options, and refuse what is in the evaluation set unless that is allowed."""
    access = Access(private_urls=options.private_urls)
    how = MixOptions(access=access, skip_bad=options.skip_bad, cache=None if options.no_cache else options.cache)
    check_sources(options)  # before the work
    mix = build(options.calib, folder, prepare_options(options), how, progress)
    if not options.allow_overlap:
        check_overlap(mix, options.eval_data, options.calib, access)
    return mix


def check_sources(options: CalibrationOptions) -> None:
    """Raise `QuantkitError` for a source, or an evaluation set, under whose name there is nothing; no row is read."""
    parse_sources(options.calib)
    if not options.allow_overlap:
        evaluation_set(options.eval_data)


def evaluation_set(eval_data: str) -> Source:
    """The rows that `--eval-data` names; raises `QuantkitError` where there are none, or for a benchmark's name."""
    try:
        return parse_source(eval_data)
    except QuantkitError as error:
        words = f"--eval-data: {error}"
        if not Path(eval_data).suffix and "/" not in eval_data:
            words += " (a benchmark's name is not taken here: give the file or folder of its rows)"
        raise QuantkitError(words) from error


def check_overlap(mix: Mix, eval_data: str, calib: Sequence[str], access: Access | None = None) -> None:
    """Raise where a conversation or a picture of the mix is in the evaluation set, by their hashes."""
    found = shared(evaluation_set(eval_data), mix.items, mix.pictures, access)
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
    taker = Taker(Preparer(processor, options), workers=1)
    chosen = [(one.candidate.position, one.sample) for one in taker.take(reservoir.sorted(), [1.0])]
    _report(taker, len(conversations))
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
        store = cache_room.Store(self.how.cache, key)
        reservoir = Reservoir(self.options.seed, _most(self.options), Shelf(store.folder.parent))
        rows = []
        for number, source in enumerate(self.sources):
            self.progress("reading", number, len(self.sources))
            rows.append(reservoir.add(source.rows(self.on_bad), number, source.name))
        self.progress("reading", len(self.sources), len(self.sources))

        def refill(stratum: Stratum) -> None:
            source = self.sources[stratum.source]
            log.info("%s: read again for further conversations of kind %s", source.name, stratum.modality)
            # bad rows were counted at the first look
            reservoir.refill(stratum, source.rows(None if self.on_bad is None else _pass_by), source.name)

        taker = Taker(self.preparer, self.how.workers, self.on_bad, self.progress, refill)
        taken = self._stored(taker, reservoir, store)
        _report(taker, sum(rows))
        return self._finished(taken, rows, store)

    def _stored(self, taker: Taker, reservoir: Reservoir, store: cache_room.Store) -> list[tuple[Taken, str]]:
        """What was taken in the order of the mix, each sample written and with its digest."""
        kept: list[tuple[Taken, str]] = []
        keeping: deque[Future[tuple[Taken, str]]] = deque()
        weights = [source.weight for source in self.sources]

        def keep(one: Taken) -> tuple[Taken, str]:
            sample, digest = store.add(one.sample)
            return replace(one, sample=sample), digest

        with ThreadPoolExecutor(1, thread_name_prefix="keep") as keeper:
            for one in taker.take(reservoir.sorted(), weights):
                keeping.append(keeper.submit(keep, one))
                if len(keeping) > BEHIND:
                    kept.append(keeping.popleft().result())
            kept += [one.result() for one in keeping]
        return sorted(kept, key=lambda pair: pair[0].candidate.position)

    def _finished(self, stored: list[tuple[Taken, str]], rows: list[int], store: cache_room.Store) -> Mix:
        """The mix; kept in the cache unless a row was left out as bad: whether it is so still, no key can tell."""
        taken = [one for one, _ in stored]
        entry = cache_room.Entry(
            fingerprint=joined_digest(digest for _, digest in stored),
            items=sorted({name for one in taken for name in one.identity.names}),
            pictures=sorted({name for one in taken for name in one.identity.pictures}),
            counts=[asdict(count) for count in self._counts(rows, taken)],
            samples=[one.sample for one in taken],
            read={reference: found for one in taken for reference, found in one.files.items()},
            too_long=self.preparer.too_long,
        )
        if self.skipped:
            log.info("prepared samples are not cached: %d bad rows were left out", len(self.skipped))
        else:
            entry = store.finish(entry)
        return _mix(entry, self.skipped, Conversations([one.candidate.kept for one in taken]))

    def _counts(self, rows: list[int], taken: list[Taken]) -> list[Count]:
        counts = []
        for number, source in enumerate(self.sources):
            own = [one.sample for one in taken if one.candidate.source == number]
            tokens = sum(sample.input_ids.numel() for sample in own)
            counts.append(Count(source.name, source.weight, rows[number], len(own), tokens))
            if not own:
                log.warning("%s: no conversation of this source was taken", source.name)
        return counts


def _pass_by(error: QuantkitError) -> None:
    log.debug("passed by: %s", error)


def _most(options: PrepareOptions) -> int | None:
    """Candidates to keep of each stratum: enough for the whole choice to come from one, with some to spare."""
    bounds = [
        bound
        for bound in (options.samples, options.token_budget and options.token_budget // SHORTEST)
        if bound is not None
    ]
    return min(bounds) + SPARE if bounds else None


def _report(taker: Taker, rows: int) -> None:
    preparer, options = taker.preparer, taker.options
    if preparer.shortened or preparer.too_long:
        log.warning("over-long conversations: %d shortened, %d left out", preparer.shortened, preparer.too_long)
    if not taker.samples:
        limit = f"fits {options.max_tokens} tokens; raise max_tokens"
        if options.token_budget is not None and options.token_budget < options.max_tokens:
            limit = f"fits a budget of {options.token_budget} tokens; raise it"
        if taker.bad == rows:
            limit = "is good; mend them"
        bad = f" ({taker.bad} of them bad)" if 0 < taker.bad < rows else ""
        raise QuantkitError(f"no calibration tokens: none of {rows} conversations{bad} {limit} or give other data")
    if options.samples is not None and options.token_budget is None and taker.samples < options.samples:
        log.warning("%d samples asked for, %d taken of %d conversations", options.samples, taker.samples, rows)


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
        "access": asdict(how.access),
        "video": video.version(),
        "files": cache_room.file_hashes(folder),
        "libraries": [library.__version__ for library in (numpy, PIL, tokenizers, torch, torchvision, transformers)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _mix(entry: cache_room.Entry, skipped: Sequence[str] = (), conversations: Conversations | None = None) -> Mix:
    counts = [Count(**count) for count in entry.counts]
    same = {name: getattr(entry, name) for name in ("samples", "fingerprint", "items", "pictures", "too_long")}
    return Mix(counts=counts, skipped=list(skipped), conversations=conversations, **same)
