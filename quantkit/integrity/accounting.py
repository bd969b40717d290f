"""Every tensor of the source is in the candidate exactly once, with its shape; what no fold touches has its values.

Without a source, the config says what must be there: every linear of the model map, packed or plain, and its norms.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quantkit.checkpoint import FLOATS
from quantkit.integrity.findings import Finding, error, some, warning
from quantkit.integrity.subject import Linear, Subject, is_vision
from quantkit.model import EMBEDDING, HEAD, LANGUAGE_PREFIX, VISION_PREFIXES

NAME, COPIES = "accounting", "copies"
_CHUNK = 1 << 24


def check_accounting(subject: Subject) -> Iterator[Finding]:
    """Names, shapes and dtypes, from headers alone."""
    yield from _layouts(subject)
    if subject.reference is not None:
        yield from _against_source(subject)
    elif subject.map is not None:
        yield from _against_map(subject)
    else:
        yield warning(NAME, "config.json", "not checked: no source to compare with, and an architecture not known here")


def _layouts(subject: Subject) -> Iterator[Finding]:
    """Packed linears whose tensors do not belong together, and linears stored twice."""
    candidate = subject.candidate
    for name, linear in subject.packed.items():
        shapes = {tensor.removeprefix(f"{name}."): candidate.shape(tensor) for tensor in linear.tensors}
        if linear.layout == "unknown":
            fault = "scales are transposed, or" if _is_transposed(shapes) else "packed"
            yield error(NAME, name, f"{fault} tensors do not belong together: {_shapes(shapes)}")
        elif not _fits(linear, shapes):
            yield error(NAME, name, f"packed tensors do not belong together: {_shapes(shapes)}")
        if linear.layout in ("awq", "gptq") and f"{name}.weight" in candidate:
            yield error(NAME, name, "stored twice: packed and as weight")
        if is_vision(name):
            yield error(NAME, name, f"the vision side is quantized ({linear.layout}): it was to stay as it is")
    if "awq" in {linear.layout for linear in subject.packed.values()}:
        mixed = {linear.layout for linear in subject.packed.values()} - {"awq"}
        if mixed:
            yield error(NAME, "quantization_config", f"linears are packed in several layouts (awq and {some(mixed)})")


def _fits(linear: Linear, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether zero points have the groups of the scales and words of as many outputs; g_idx names every input."""
    bits, out = linear.bits, linear.out_features
    if linear.layout in ("awq", "gptq"):
        scales, qzeros = shapes["scales"], shapes.get("qzeros", ())
        order = shapes.get("g_idx", (linear.in_features,))
        return bits is not None and qzeros == (scales[0], out * bits // 32) and order == (linear.in_features,)
    if "weight_packed" in shapes and bits is not None:
        scales, zeros = shapes["weight_scale"], shapes.get("weight_zero_point")
        return scales[0] == out and zeros in (None, (-(-out * bits // 32), scales[1]))
    return True


def _is_transposed(shapes: dict[str, tuple[int, ...]]) -> bool:
    scales, qweight = shapes.get("scales", ()), shapes.get("qweight", ())
    return len(scales) == 2 and len(qweight) == 2 and scales[0] == qweight[1] * 8


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _against_source(subject: Subject) -> Iterator[Finding]:
    candidate, reference = subject.candidate, subject.reference
    assert reference is not None
    tied = bool(subject.map and subject.map.tied)
    used: set[str] = set()
    for name in reference.tensor_names:
        linear = subject.packed.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if linear is not None:
            used |= set(linear.tensors)
            known = linear.layout not in ("unknown", "bitsandbytes")
            if known and (linear.out_features, linear.in_features) != reference.shape(name):
                packed = [linear.out_features, linear.in_features]
                yield error(
                    NAME, linear.name, f"packs a weight {packed}, the source's is {list(reference.shape(name))}"
                )
        elif name in candidate:
            used.add(name)
            yield from _same_form(subject, name)
        elif not (name == HEAD and tied):
            yield error(NAME, name, "missing: the source has this tensor, the candidate has not")
    extra = [name for name in candidate.tensor_names if name not in used and not (name == HEAD and tied)]
    for name in extra:
        yield error(NAME, name, "extra: belongs to no tensor of the source")


def _same_form(subject: Subject, name: str) -> Iterator[Finding]:
    candidate, reference = subject.candidate, subject.reference
    assert reference is not None
    if candidate.shape(name) != reference.shape(name):
        shapes = f"{list(candidate.shape(name))}, the source's is {list(reference.shape(name))}"
        yield error(NAME, name, f"has shape {shapes}")
    if candidate.dtype(name) not in FLOATS:
        yield error(NAME, name, f"is stored as {candidate.dtype(name)} without the tensors that would unpack it")


def _against_map(subject: Subject) -> Iterator[Finding]:
    assert subject.map is not None
    candidate = subject.candidate
    for name, shape in subject.map.linears().items():
        linear = subject.linears.get(name)
        if linear is None:
            yield error(NAME, name, "missing: config.json implies this linear, it is stored neither packed nor plain")
        elif linear.layout not in ("unknown", "bitsandbytes") and (linear.out_features, linear.in_features) != shape:
            found = [linear.out_features, linear.in_features]
            yield error(NAME, name, f"has a weight {found}, config.json implies {list(shape)}")
    norms = [
        f"{block.prefix}{group.feeder.module}.weight"
        for block in subject.map.blocks
        for group in block.groups
        if group.feeder.kind != "rows"
    ]
    for name in (EMBEDDING, *norms, f"{LANGUAGE_PREFIX}norm.weight"):
        if name not in candidate:
            yield error(NAME, name, "missing: config.json implies this tensor")
    if not any(name.startswith(VISION_PREFIXES) for name in candidate.tensor_names):
        yield error(NAME, VISION_PREFIXES[0], "missing: no tensor of the vision side")


def check_copies(subject: Subject) -> Iterator[Finding]:
    """What no fold touches is the source's, value by value (converted, where the candidate's dtype is another)."""
    candidate, reference = subject.candidate, subject.reference
    if reference is None or reference.is_quantized:
        return
    folded = set(_folded(subject))
    for name in reference.tensor_names:
        if name in folded or name not in candidate or candidate.shape(name) != reference.shape(name):
            continue
        if candidate.dtype(name) in FLOATS and name.removesuffix(".weight") not in subject.packed:
            yield from _compare(subject, name)


def _folded(subject: Subject) -> Iterator[str]:
    """Names of the weights that a fold may change, which `weights` judges."""
    for block in subject.map.blocks if subject.map else ():
        for group in block.groups:
            for module in (*group.linears, *group.passengers, group.feeder.module):
                yield f"{block.prefix}{module}.weight"


def _compare(subject: Subject, name: str) -> Iterator[Finding]:
    assert subject.reference is not None
    found, wanted = subject.candidate.load(name), subject.reference.load(name)
    different, largest = _difference(found, wanted)
    if not different:
        return
    if found.numel() > 1 and bool((found == found.flatten()[0]).all()):
        value = float(found.flatten()[0])
        yield error(COPIES, name, f"holds {value:g} everywhere: left at its initial value, or never written")
        return
    yield error(
        COPIES, name, f"differs from the source in {different} of {found.numel()} values (by up to {largest:.3g})"
    )


def _difference(found: Tensor, wanted: Tensor) -> tuple[int, float]:
    """How many values differ after conversion to the candidate's dtype, and by how much at most."""
    if found.dtype == wanted.dtype and torch.equal(found, wanted):
        return 0, 0.0
    different, largest = 0, 0.0
    mine, theirs = found.flatten(), wanted.flatten()
    for start in range(0, mine.numel(), _CHUNK):
        one, other = mine[start : start + _CHUNK], theirs[start : start + _CHUNK].to(found.dtype)
        unequal = one != other
        count = int(unequal.sum())
        if count:
            different += count
            largest = max(largest, float((one.float() - other.float()).abs().nan_to_num(torch.inf).max()))
    return different, largest
