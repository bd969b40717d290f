"""What a mix holds, as figures: by source and modality, languages, modes, sizes of pictures, lengths of texts.

A picture is sliced where its placeholders come in several runs: the processor puts one kind of token before a picture's
first run (the whole picture) and another before each of its slices, so the token before a run tells which it is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from quantkit.calibration.conversations import MODALITIES
from quantkit.calibration.mix import Mix
from quantkit.calibration.prepare import Sample

LONG_SIDES = (64, 128, 224, 448, 896, 1344, 2000)  # pixels, upper ends
TEXTS = (32, 64, 128, 256, 512, 1024, 2048)  # tokens, upper ends
SHAPES = (  # upper ends of width / height
    ("taller than 1:4", 1 / 4),
    ("1:4 to 1:2", 1 / 2),
    ("1:2 to 4:5", 4 / 5),
    ("about square", 5 / 4),
    ("5:4 to 2:1", 2.0),
    ("2:1 to 4:1", 4.0),
    ("wider than 4:1", float("inf")),
)


@dataclass(frozen=True)
class Figures:
    """Conversations of one source and modality, and their tokens; answer tokens are those of the last answer."""

    source: str
    modality: str
    samples: int
    text_tokens: int
    vision_tokens: int
    answer_tokens: int
    longest: int

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.vision_tokens

    @property
    def mean(self) -> float:
        return self.tokens / self.samples if self.samples else 0.0


@dataclass(frozen=True)
class Bucket:
    """How many lie in a range."""

    label: str
    count: int


@dataclass(frozen=True)
class Pictures:
    """Images and clips as they were before the processor, by long side and by width / height."""

    images: int
    clips: int
    sliced: int  # images that are cut into slices
    slices: int  # into how many, in all
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    long_sides: list[Bucket]
    shapes: list[Bucket]


@dataclass(frozen=True)
class Origin:
    """A source of the mix: the rows it has, and what was taken of it."""

    source: str
    weight: float
    rows: int
    samples: int
    tokens: int


@dataclass(frozen=True)
class Description:
    """A mix in figures."""

    fingerprint: str
    cached: bool
    total: Figures
    sources: list[Origin]
    groups: list[Figures]
    languages: list[Bucket]
    modes: list[Bucket]
    texts: list[Bucket]  # by text tokens
    pictures: Pictures
    bad_rows: int  # left out, with --skip-bad
    shortened: int
    too_long: int  # left out, as no cut of them fits
    overlap: list[str] = field(default_factory=list)  # ids in the evaluation set that the mix holds too


def describe(mix: Mix, overlap: Sequence[str] = ()) -> Description:
    """The figures of a mix; `overlap`: what `identity.shared` found."""
    groups = []
    for name, samples in by_source(mix):
        for modality in MODALITIES:
            own = [sample for sample in samples if sample.modality == modality]
            if own:
                groups.append(_figures(name, modality, own))
    samples = mix.samples
    return Description(
        fingerprint=mix.fingerprint,
        cached=mix.cached,
        total=_figures("all", "all", samples),
        sources=[Origin(one.source, one.weight, one.rows, one.samples, one.tokens) for one in mix.counts],
        groups=groups,
        languages=_counted(sample.language for sample in samples),
        modes=_counted(sample.downsample_mode for sample in samples),
        texts=_buckets([text_tokens(sample) for sample in samples], TEXTS),
        pictures=_pictures(samples),
        bad_rows=len(mix.skipped),
        shortened=sum(sample.shortened for sample in samples),
        too_long=mix.too_long,
        overlap=list(overlap),
    )


def by_source(mix: Mix) -> list[tuple[str, list[Sample]]]:
    """The samples under the name of their source: a mix lists them in the order of its sources."""
    found, start = [], 0
    for one in mix.counts:
        found.append((one.source, mix.samples[start : start + one.samples]))
        start += one.samples
    return found


def text_tokens(sample: Sample) -> int:
    """Tokens that are no placeholder."""
    return sample.input_ids.numel() - int(sample.vision_mask.sum())


def slices_of(sample: Sample) -> list[int]:
    """For each image of a sample in order, into how many slices it is cut beside the whole; 0 where it is not."""
    if "target_sizes" not in sample.inputs:
        return []
    ids = sample.input_ids[0].tolist()
    runs = [(start, ids[start]) for start, _ in runs_of(sample.vision_mask)]
    kinds = Counter(kind for _, kind in runs)
    if len(kinds) > 1:  # clips as well: the image token is the one that occurs as often as there are image features
        expected = len(sample.inputs["target_sizes"])
        image = min(kinds, key=lambda kind: abs(kinds[kind] - expected))
        runs = [run for run in runs if run[1] == image]
    counts: list[int] = []
    first = ids[runs[0][0] - 1] if runs else None
    for start, _ in runs:
        if ids[start - 1] == first:
            counts.append(0)
        else:
            counts[-1] += 1
    return counts


def runs_of(mask: torch.Tensor) -> list[tuple[int, int]]:
    """First index and length of every run of True in [T] bool."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _figures(source: str, modality: str, samples: Sequence[Sample]) -> Figures:
    return Figures(
        source=source,
        modality=modality,
        samples=len(samples),
        text_tokens=sum(text_tokens(sample) for sample in samples),
        vision_tokens=sum(int(sample.vision_mask.sum()) for sample in samples),
        answer_tokens=sum(sample.input_ids.numel() - sample.prompt_length for sample in samples),
        longest=max((sample.input_ids.numel() for sample in samples), default=0),
    )


def _counted(values: Iterable[str]) -> list[Bucket]:
    return [Bucket(label, count) for label, count in sorted(Counter(values).items(), key=lambda e: (-e[1], e[0]))]


def _buckets(values: Sequence[float], ends: Sequence[int]) -> list[Bucket]:
    """Counts up to each end, and above the last; empty ones outside of what occurs are left out."""
    labels = [f"up to {ends[0]}", *(f"{low + 1} to {high}" for low, high in itertools.pairwise(ends))]
    places = Counter(sum(value > end for end in ends) for value in values)
    return _spanned([*labels, f"above {ends[-1]}"], places)


def _shapes(sizes: Sequence[tuple[int, int]]) -> list[Bucket]:
    places = Counter(sum(width / height > end for _, end in SHAPES) for width, height in sizes)
    return _spanned([label for label, _ in SHAPES], places)


def _spanned(labels: Sequence[str], places: Counter[int]) -> list[Bucket]:
    if not places:
        return []
    return [Bucket(labels[place], places[place]) for place in range(min(places), max(places) + 1)]


def _pictures(samples: Sequence[Sample]) -> Pictures:
    sizes = [size for sample in samples for size in sample.sizes]
    slices = [count for sample in samples for count in slices_of(sample)]
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return Pictures(
        images=len(slices),
        clips=len(sizes) - len(slices),
        sliced=sum(count > 0 for count in slices),
        slices=sum(slices),
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
        long_sides=_buckets([max(size) for size in sizes], LONG_SIDES),
        shapes=_shapes(sizes),
    )
