"""Every row of some sources, read, decoded and processed as calibration would: which are bad, and why.

Rows are decoded by threads a few ahead of their turn and processed one after another, so that faults come in the order
of the rows and memory stays bounded however many there are. Of each row that is good, hashes of its conversation and
pictures are kept, to count what occurs twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.describe import runs_of
from quantkit.calibration.identity import Identity, identify
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.prepare import MODES, Preparer, Ready, Sample
from quantkit.calibration.sources import Source
from quantkit.errors import QuantkitError

Decoding = Future[tuple[Ready | None, Identity]]


@dataclass
class Tally:
    """What was found."""

    rows: int = 0
    bad: int = 0
    shortened: int = 0  # rows that calibration would shorten to fit
    too_long: int = 0  # and leave out, as no cut of them fits
    repeated: int = 0  # rows that say the same as an earlier one, and show the same pictures
    repeated_pictures: int = 0  # pictures and frames that occurred before, in other rows
    overlap: list[str] = field(default_factory=list)  # rows, "file:row", that share with the evaluation set

    @property
    def good(self) -> int:
        return self.rows - self.bad


class Known:
    """Hashes of the evaluation set's conversations and pictures."""

    def __init__(self, conversations: Iterable[Conversation], access: Access | None = None) -> None:
        self.items: set[str] = set()
        self.pictures: set[str] = set()
        for one in conversations:
            identity = identify(one, Decoder(one.source, access))
            self.items.update(identity.names)
            self.pictures.update(identity.pictures)

    def holds(self, identity: Identity) -> bool:
        return not (self.items.isdisjoint(identity.names) and self.pictures.isdisjoint(identity.pictures))


def check(
    sources: Sequence[Source],
    preparer: Preparer | None,
    on_bad: Callable[[QuantkitError], None],
    known: Known | None = None,
    access: Access | None = None,
    workers: int = 2,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Check every row; each bad one goes to `on_bad`, in order. `preparer` None: stop after decoding.

    Raises `QuantkitError` for a source that cannot be read at all, at once where it is the first or shows at opening.
    """
    if len(sources) > 1:
        for source in sources:
            next(source.raw_rows(), None)
    run = _Run(preparer, known, access)
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        try:
            for entry in run.decoded_ahead(sources, pool, 2 * workers):
                run.take(entry, on_bad)
                if progress is not None:
                    progress(run.tally)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if preparer is not None:
        run.tally.shortened, run.tally.too_long = run.shortened, run.too_long
    return run.tally


Entry = QuantkitError | tuple[Conversation, Decoding]


class _Run:
    """One check on its way."""

    def __init__(self, preparer: Preparer | None, known: Known | None, access: Access | None) -> None:
        self.preparer, self.known, self.access = preparer, known, access
        self.tally = Tally()
        self.shortened = self.too_long = 0
        self.items: set[int] = set()
        self.pictures: set[int] = set()

    def decoded_ahead(self, sources: Sequence[Source], pool: ThreadPoolExecutor, ahead: int) -> Iterator[Entry]:
        """The rows in order, or their faults; so many of them decoded before their turn."""
        waiting: deque[Entry] = deque()
        for row in _rows(sources):
            waiting.append(row if isinstance(row, QuantkitError) else (row, pool.submit(self.decode, row)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting

    def decode(self, conversation: Conversation) -> tuple[Ready | None, Identity]:
        if self.preparer is not None:
            ready = self.preparer.decode(conversation)
            return ready, identify(conversation, ready.decoder)
        decoder = Decoder(conversation.source, self.access)
        decoder.chat(conversation.messages)
        return None, identify(conversation, decoder)

    def take(self, entry: Entry, on_bad: Callable[[QuantkitError], None]) -> None:
        self.tally.rows += 1
        try:
            if isinstance(entry, QuantkitError):
                raise entry
            conversation, decoding = entry
            ready, identity = decoding.result()
            if ready is not None:
                self.process(conversation, ready)
        except QuantkitError as error:
            self.tally.bad += 1
            on_bad(error)
            return
        self.count(conversation, identity)

    def process(self, conversation: Conversation, ready: Ready) -> None:
        assert self.preparer is not None
        asked = self.preparer.options.downsample_mode
        sample: Sample | None = None
        for mode in MODES if asked == "both" else (asked,):
            sample = self.preparer.build(conversation, ready, mode)
            if sample is not None and (fault := mismatch(sample)) is not None:
                raise QuantkitError(f"{conversation.source}: {fault}")
        self.too_long += sample is None
        self.shortened += sample is not None and sample.shortened

    def count(self, conversation: Conversation, identity: Identity) -> None:
        item, pictures = int(identity.item, 16), {int(picture, 16) for picture in identity.pictures}
        self.tally.repeated += item in self.items
        self.tally.repeated_pictures += len(pictures & self.pictures)
        self.items.add(item)
        self.pictures |= pictures
        if self.known is not None and self.known.holds(identity):
            self.tally.overlap.append(conversation.source)


def _rows(sources: Sequence[Source]) -> Iterator[Conversation | QuantkitError]:
    """The rows of all sources in order; those that cannot be read as their faults."""
    for source in sources:
        faults: list[QuantkitError] = []
        for conversation in source.rows(faults.append):
            yield from faults
            faults.clear()
            yield conversation
        yield from faults


def mismatch(sample: Sample) -> str | None:
    """What is wrong where placeholders and visual features do not match, one run of tokens for each slice; else None.

    Of a slice of h x w patches the model makes h w / 16 features, h w / 4 at 4x.
    """
    sizes = [sample.inputs[name] for name in ("target_sizes", "target_sizes_videos") if name in sample.inputs]
    patches = torch.cat([size.prod(-1) for size in sizes]).tolist() if sizes else []
    divisor = 4 if sample.downsample_mode == "4x" else 16
    expected = sorted(count // divisor for count in patches)
    found = sorted(length for _, length in runs_of(sample.vision_mask))
    if expected != found:
        return f"{sum(found)} placeholders in {len(found)} runs for {sum(expected)} features of {len(expected)} slices"
    pixels = [sample.inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in sample.inputs]
    held = sum(one.shape[-1] // one.shape[-2] for one in pixels)  # [1, 3, patch, patches * patch]
    return None if held == sum(patches) else f"{held} patches of pixels for {sum(patches)} in the sizes"
