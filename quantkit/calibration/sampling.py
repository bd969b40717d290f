"""Which conversations are taken: shares by source and modality, short and long ones alike, decided by the seed alone.

A conversation's `priority` is a hash of the seed, its source and its place there, so the choice depends neither on how
many workers decode nor on what else is in the mix. Of a stream only the `Reservoir` stays in memory: the conversations
of least priority of each stratum (source and modality).

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

BINS = 3  # short, middling, long
SPARE = 32  # candidates beyond those asked for, where some turn out too long or bad
CHARACTERS_A_TOKEN = 3.5
IMAGE_TOKENS = 64  # of one slice at 16x; only the order of lengths matters


@dataclass(frozen=True)
class Candidate:
    """A conversation that may be taken; `position` is its place in the whole mix."""

    conversation: Conversation
    source: int
    position: int
    priority: int

    @property
    def length(self) -> float:
        """An estimate of its tokens from its text and the number of its pictures."""
        characters = pictures = 0
        for message in self.conversation.messages:
            for part in message["content"]:
                if part["type"] == "text":
                    characters += len(part["text"])
                elif part["type"] == "video" and not isinstance(part["video"], str):
                    pictures += len(part["video"])
                else:
                    pictures += 1
        return characters / CHARACTERS_A_TOKEN + pictures * IMAGE_TOKENS


@dataclass
class Stratum:
    """The conversations of one source and modality: how many there are, and the candidates kept of them."""

    source: int
    modality: str
    rows: int = 0
    kept: list[tuple[int, int, Candidate]] = field(default_factory=list)  # a heap, largest priority first

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
    """Keeps of each stratum the `most` conversations of least priority, whatever the length of the stream."""

    def __init__(self, seed: int, most: int | None) -> None:
        self.seed, self.most = seed, most
        self.strata: dict[tuple[int, str], Stratum] = {}
        self._position = 0

    def add(self, conversations: Iterable[Conversation], source: int = 0, name: str = "") -> int:
        """Pass the conversations of one source by; `name` tells it from others. Returns how many there were."""
        row = 0
        for conversation in conversations:
            row += 1
            self._position += 1
            key = (source, conversation.modality)
            stratum = self.strata.setdefault(key, Stratum(*key))
            stratum.rows += 1
            rank = priority(self.seed, name, row)
            if self.most is not None and len(stratum.kept) >= self.most and -stratum.kept[0][0] <= rank:
                continue
            candidate = Candidate(conversation, source, self._position, rank)
            heapq.heappush(stratum.kept, (-rank, self._position, candidate))
            if self.most is not None and len(stratum.kept) > self.most:
                heapq.heappop(stratum.kept)
        return row

    def sorted(self) -> list[Stratum]:
        """The strata by source and modality."""
        return [self.strata[key] for key in sorted(self.strata, key=lambda k: (k[0], MODALITIES.index(k[1])))]


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
