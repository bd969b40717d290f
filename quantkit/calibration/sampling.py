"""Which conversations are taken: shares by source and modality, short and long ones alike, decided by the seed alone.

A conversation's `priority` is a hash of the seed, its source and its place there, so the choice depends neither on how
many workers decode nor on what else is in the mix. Of a stream only the `Reservoir` is kept: the conversations of least
priority of each stratum (source and modality). Where these are used up, as many turned out too long or bad, the stream
is read again for those that come next by priority.

Within a stratum short, middling and long conversations take turns. Between strata the next conversation comes from
the one that is furthest behind its share, by the rule of Webster and Sainte-Lague for seats in parliaments. A source's
share is its weight; a modality's share within the source is that of its conversations. What is counted is tokens where
there is a token budget, conversations otherwise; so the shares hold wherever the budget ends.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quantkit.calibration.conversations import MODALITIES, Conversation
from quantkit.calibration.shelf import Kept, Shelf

BINS = 3  # short, middling, long
SPARE = 32  # candidates beyond those asked for, where some turn out too long or bad
MORE = 4096  # candidates that a further look at a stream keeps at most; each look keeps twice as many as the last
CHARACTERS_A_TOKEN = 3.5
IMAGE_TOKENS = 64  # of one slice at 16x; only the order of lengths matters


@dataclass(frozen=True)
class Candidate:
    """A conversation that may be taken; `position` is its place in the whole mix."""

    kept: Kept
    source: int
    position: int
    priority: int
    length: float  # an estimate of its tokens

    @property
    def conversation(self) -> Conversation:
        """The conversation, from its file where it lies in one."""
        return self.kept.load()


@dataclass
class Stratum:
    """The conversations of one source and modality: how many there are, and the candidates kept of them."""

    source: int
    modality: str
    rows: int = 0
    kept: list[tuple[int, int, Candidate]] = field(default_factory=list)  # a heap, largest priority first
    drawn: int = 0  # candidates that were handed out by `draw`
    reached: int = -1  # the priority up to which they were

    @property
    def left(self) -> int:
        """How many conversations were not handed out yet."""
        return self.rows - self.drawn

    def draw(self, seed: int) -> list[Candidate]:
        """Hand out the candidates kept, in the order in which they are to be taken."""
        found = self.ordered(seed)
        self.kept = []
        self.drawn += len(found)
        self.reached = max((candidate.priority for candidate in found), default=self.reached)
        return found

    def ordered(self, seed: int) -> list[Candidate]:
        """The candidates in the order in which they are to be taken: short, middling and long ones in turn."""
        by_length = sorted((entry[2] for entry in self.kept), key=lambda c: (c.length, c.priority))
        share, more = divmod(len(by_length), BINS)
        ranked: list[tuple[float, int, Candidate]] = []
        start = 0
        turn = priority(seed, self.modality, self.source) % BINS  # no bin is always first
        for number in range(BINS):
            size = share + (number < more)
            members = sorted(by_length[start : start + size], key=lambda c: c.priority)
            start += size
            first = (number + turn) % BINS
            ranked += [((place + 0.5) / size, first, member) for place, member in enumerate(members)]
        return [member for _, _, member in sorted(ranked, key=lambda entry: entry[:2])]


class Reservoir:
    """Keeps of each stratum the `most` conversations of least priority, whatever the length of the stream.

    shelf: where they are put; None: all stay in memory.
    """

    def __init__(self, seed: int, most: int | None, shelf: Shelf | None = None) -> None:
        self.seed, self.most, self.shelf = seed, most, shelf
        self.strata: dict[tuple[int, str], Stratum] = {}
        self._position = 0
        self._starts: dict[int, int] = {}  # of each source the position before its first row
        self._again: dict[tuple[int, str], int] = {}  # of each stratum how many the last look kept at most

    def add(self, conversations: Iterable[Conversation], source: int = 0, name: str = "") -> int:
        """Pass the conversations of one source by; `name` tells it from others. Returns how many there were."""
        start = self._starts[source] = self._position
        for conversation in conversations:
            self._position += 1
            key = (source, conversation.modality)
            stratum = self.strata.setdefault(key, Stratum(*key))
            stratum.rows += 1
            self._offer(stratum, conversation, self._position, name, self.most)
        return self._position - start

    def refill(self, stratum: Stratum, conversations: Iterable[Conversation], name: str) -> None:
        """Pass a source by once more, for the next conversations by priority of a stratum that is used up.

        A stratum that gets none has nothing left from then on: its data is no more what it was.
        """
        key, start = (stratum.source, stratum.modality), self._starts[stratum.source]
        last = self._again.get(key, self.most or 0)
        self._again[key] = most = max(min(2 * last, MORE), last)
        for row, conversation in enumerate(conversations, start=1):
            if conversation.modality == stratum.modality:
                self._offer(stratum, conversation, start + row, name, most)
        if not stratum.kept:
            stratum.rows = stratum.drawn

    def _offer(self, stratum: Stratum, conversation: Conversation, position: int, name: str, most: int | None) -> None:
        rank = priority(self.seed, name, position - self._starts[stratum.source])
        if rank <= stratum.reached or (most is not None and len(stratum.kept) >= most and -stratum.kept[0][0] <= rank):
            return
        kept = Kept(conversation) if self.shelf is None else self.shelf.put(conversation)
        candidate = Candidate(kept, stratum.source, position, rank, estimate(conversation))
        heapq.heappush(stratum.kept, (-rank, position, candidate))
        if most is not None and len(stratum.kept) > most:
            heapq.heappop(stratum.kept)

    def sorted(self) -> list[Stratum]:
        """The strata by source and modality."""
        return [self.strata[key] for key in sorted(self.strata, key=lambda k: (k[0], MODALITIES.index(k[1])))]


def estimate(conversation: Conversation) -> float:
    """An estimate of a conversation's tokens from its text and the number of its pictures."""
    characters = pictures = 0
    for message in conversation.messages:
        for part in message["content"]:
            if part["type"] == "text":
                characters += len(part["text"])
            elif part["type"] == "video" and not isinstance(part["video"], str):
                pictures += len(part["video"])
            else:
                pictures += 1
    return characters / CHARACTERS_A_TOKEN + pictures * IMAGE_TOKENS


def priority(seed: int, name: str, row: int) -> int:
    """A hash of seed, source and row: 64 bits, uniform."""
    digest = hashlib.blake2b(f"{seed}/{name}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def shares(strata: Sequence[Stratum], weights: Sequence[float]) -> list[float]:
    """Of every stratum its share of the whole: its source's weight, and its part of the source's conversations."""
    rows: dict[int, int] = {}
    for stratum in strata:
        rows[stratum.source] = rows.get(stratum.source, 0) + stratum.rows
    total = sum(weights[source] for source in rows)
    return [weights[stratum.source] / total * stratum.rows / rows[stratum.source] for stratum in strata]


def furthest_behind(taken: Sequence[float], share: Sequence[float], left: Sequence[bool]) -> int | None:
    """The index of the stratum, among those with something left, with the least ``(taken + 1/2) / share``."""
    ready = [index for index, more in enumerate(left) if more and share[index] > 0]
    return min(ready, key=lambda index: ((taken[index] + 0.5) / share[index], index), default=None)
