"""Values that no good file holds: NaN, infinities, scales that are zero, negative or absurd, odd bits in a scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.formats.words import unpack_rows
from quantkit.integrity.findings import Finding, error
from quantkit.integrity.stated import is_version_2, stated
from quantkit.integrity.subject import Linear, Subject
from quantkit.model import EMBEDDING, HEAD

FINITE, SCALES, TIED = "finite", "scales", "tied"
FLOAT16_MAX = 65504.0
_CHUNK = 1 << 24
# a scale this many times the median of its linear, or more; good: 60 times at most. (None is too small but subnormal
# ones: a group of zeros rightly has the smallest normal number.)
_ABSURD = 2.0**10
_STRAY = 1e-3  # share of scales that are no bfloat16 numbers, up to which those are strays and not the format's habit


def check_finite(subject: Subject) -> Iterator[Finding]:
    """No NaN and no infinity in any tensor; no value beyond float16 where the config says float16."""
    candidate = subject.candidate
    half = candidate.config.get("dtype", candidate.config.get("torch_dtype")) == "float16"
    for name in candidate.tensor_names:
        tensor = candidate.load(name)
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        bad, largest = _extremes(tensor)
        if bad:
            kind = "NaN" if bool(tensor.float().isnan().any()) else "infinity (an overflow)"
            yield error(FINITE, name, f"holds {kind} in {bad} of {tensor.numel()} values")
        elif half and largest > FLOAT16_MAX:
            yield error(FINITE, name, f"reaches {largest:.4g}: overflows float16, the dtype that config.json names")


def _extremes(tensor: Tensor) -> tuple[int, float]:
    """How many values are not finite, and the largest magnitude of the rest."""
    bad, largest = 0, 0.0
    flat = tensor.flatten()
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        part = part if part.dtype.itemsize > 1 else part.float()
        finite = part.isfinite()
        bad += int((~finite).sum())
        kept = part if bool(finite.all()) else part[finite]
        if kept.numel():
            largest = max(largest, float(kept.abs().max()))
    return bad, largest


def check_scales(subject: Subject) -> Iterator[Finding]:
    """Scales are positive, normal numbers of one size; zero points and channels are where the config says."""
    strays: list[str] = []
    total = 0
    for linear in subject.packed.values():
        if linear.scales is None:
            continue
        scales = subject.candidate.load(linear.scales)
        if not scales.is_floating_point() or not scales.numel():
            continue
        yield from _range(linear, scales.float(), torch.finfo(scales.dtype).tiny)
        found = _not_bfloat16(scales)
        total += scales.numel()
        strays += [f"{linear.scales}[{', '.join(map(str, place))}]" for place in found[:3].tolist()]
        strays += [linear.scales] * (len(found) - 3)
    if strays and len(strays) <= _STRAY * total:
        yield error(
            SCALES, strays[0], f"{len(strays)} of {total} scales are no bfloat16 numbers, all others are: a flipped bit"
        )
    yield from _zeros(subject)
    yield from _channel_order(subject)


def _range(linear: Linear, scales: Tensor, tiny: float) -> Iterator[Finding]:
    where = linear.scales or linear.name
    normal = scales[scales.isfinite()]
    if bool((normal <= 0).any()):
        count = int((normal <= 0).sum())
        yield error(SCALES, where, f"{count} of {scales.numel()} scales are not positive")
        return
    if bool((normal < tiny).any()):
        yield error(SCALES, where, f"{int((normal < tiny).sum())} scales are subnormal: kernels may read them as zero")
    if normal.numel() and float(normal.max()) >= _ABSURD * float(normal.median()):
        yield error(
            SCALES, where, f"a scale of {float(normal.max()):.3g} beside a median of {float(normal.median()):.3g}"
        )


def _not_bfloat16(scales: Tensor) -> Tensor:
    """Places of the float16 scales that bfloat16 rounds, [n, dimensions]; quantkit writes none."""
    if scales.dtype != torch.float16:
        return torch.empty(0, scales.dim(), dtype=torch.int64)
    values = scales.float()
    return ((values.bfloat16().float() != values) & values.isfinite()).nonzero()


def _zeros(subject: Subject) -> Iterator[Finding]:
    """A config without zero points needs the constant one in every word: readers ignore or read them as they like."""
    for linear in subject.packed.values():
        name = f"{linear.name}.qzeros"
        if name not in linear.tensors or linear.bits not in (2, 3, 4, 8):
            continue
        if linear.layout == "awq" and subject.quantization.get("zero_point", True) is False:
            words = subject.candidate.load(name)
            if words.numel() and bool((words != -0x77777778).any()):  # eight nibbles of 8
                yield error(SCALES, name, "zero points are stored, but quantization_config.zero_point is false")
        elif linear.layout == "gptq" and _says_symmetric(subject, linear):
            yield from _gptq_zeros(subject, name, linear.bits)


def _says_symmetric(subject: Subject, linear: Linear) -> bool:
    try:
        said = stated("gptq", subject.quantization, [linear.name])
    except QuantkitError:
        return False  # `config` reports the pattern that is none
    return said is not None and bool(said.symmetric)


def _gptq_zeros(subject: Subject, name: str, bits: int) -> Iterator[Finding]:
    """Zero points of a symmetric grid: the middle, less one in version 1 of the layout."""
    less = 0 if is_version_2(subject.quantization) else 1
    middle = 2 ** (bits - 1)
    words = subject.candidate.load(name)
    if words.dim() != 2 or words.shape[1] * 32 % bits or words.shape[1] % (bits if 32 % bits else 1):
        return
    found = unpack_rows(words, bits).int() + less
    wrong = found != middle
    if bool(wrong.any()):
        value = int(found[wrong][0])
        yield error(
            SCALES,
            name,
            f"{int(wrong.sum())} of {found.numel()} zero points are not {middle} (one is {value}), but "
            "quantization_config.sym is true: vLLM reads none",
        )


def _channel_order(subject: Subject) -> Iterator[Finding]:
    """GPTQ's g_idx gives every group as many channels, in order unless the config says desc_act."""
    free = bool(subject.quantization.get("desc_act"))
    for linear in subject.packed.values():
        name = f"{linear.name}.g_idx"
        if linear.layout != "gptq" or name not in linear.tensors or linear.group_size is None:
            continue
        found = subject.candidate.load(name).long()
        size = linear.in_features if linear.group_size == -1 else linear.group_size
        wanted = torch.arange(linear.in_features) // size
        if found.shape != wanted.shape:
            continue  # `accounting` reports it
        if not torch.equal(found.sort().values, wanted):
            yield error(SCALES, name, f"does not give every group {size} input channels")
        elif not free and not torch.equal(found, wanted):
            yield error(SCALES, name, "channels are not in the order of their groups, but desc_act is false")


def check_tied(subject: Subject) -> Iterator[Finding]:
    """Config and file agree on whether head and embedding are one matrix, and with the source."""
    candidate, reference = subject.candidate, subject.reference
    tied = _tied(candidate.config)
    if reference is not None and tied != _tied(reference.config):
        words = {True: "tied", False: "untied"}
        yield error(
            TIED,
            "tie_word_embeddings",
            f"{words[tied]} in config.json, {words[not tied]} in the source: head and embedding part",
        )
    head_is_packed = HEAD.removesuffix(".weight") in subject.packed
    if not tied and HEAD not in candidate and not head_is_packed:
        yield error(TIED, HEAD, "config.json says untied, but no head is stored")
    if tied and head_is_packed:
        yield error(TIED, HEAD, "config.json says tied, but a packed head is stored")
    if tied and HEAD in candidate and EMBEDDING in candidate:
        same = candidate.shape(HEAD) == candidate.shape(EMBEDDING)
        if not same or not torch.equal(candidate.load(HEAD), candidate.load(EMBEDDING)):
            yield error(TIED, HEAD, "config.json says tied, but the stored head differs from the embedding")


def _tied(config: dict[str, object]) -> bool:
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings", False) if isinstance(text, dict) else False
    return bool(config.get("tie_word_embeddings", inner))
