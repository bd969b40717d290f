"""The conversations behind a mix, read again from its sources: whole, and with what else their rows say.

A cache keeps what the model sees, not where it came from; so who wants to show a mix or write it as a file reads the
sources a second time, and keeps nothing but the row at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from quantkit.calibration.conversations import Conversation
from quantkit.calibration.describe import by_source
from quantkit.calibration.mix import Mix
from quantkit.calibration.prepare import Sample
from quantkit.calibration.rows import read_row
from quantkit.calibration.sources import Source
from quantkit.errors import QuantkitError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Original:
    """A sample, what it was made of, and the row that this was read from."""

    sample: Sample
    conversation: Conversation
    source: str
    row: dict[str, Any] = field(default_factory=dict)  # {} where the row is no object, or of the hub


def originals(mix: Mix, sources: Sequence[Source], wanted: set[int] | None = None) -> Iterator[Original]:
    """The originals of a mix in its order, those of the indices `wanted` alone where these are given.

    `sources`: the same that the mix was built of. Raises `QuantkitError` where a row is not there any more.
    """
    start = 0
    for source, (name, samples) in zip(sources, by_source(mix), strict=True):
        chosen = {index: samples[index - start] for index in range(start, start + len(samples))}
        chosen = {index: sample for index, sample in chosen.items() if wanted is None or index in wanted}
        start += len(samples)
        if source.path is None and mix.conversations is not None:  # nothing is fetched twice
            for index, sample in chosen.items():
                yield Original(sample, mix.conversations[index], name)
        else:
            yield from _again(source, name, list(chosen.values()))


def _again(source: Source, name: str, samples: list[Sample]) -> Iterator[Original]:
    """The rows that these samples came from, in the order of both.

    Told by their ids, which a source has once each: where a row lies may have changed since its sample was kept.
    """
    waiting = iter(samples)
    sample = next(waiting, None)
    if sample is None:
        return
    for raw in islice(source.raw_rows(), source.limit):
        try:
            conversation = read_row(raw, source.columns)
        except QuantkitError as error:
            log.debug("passed by: %s", error)  # a bad row, left out of the mix before
            continue
        if conversation.id != sample.id:
            continue
        yield Original(sample, conversation, name, raw.value if isinstance(raw.value, dict) else {})
        sample = next(waiting, None)
        if sample is None:
            return
    raise QuantkitError(f"{name}: row '{sample.id}' is not there any more; the data changed while it was read")
