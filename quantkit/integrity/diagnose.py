"""Give the fault a name: a linear does not hold the weights that it should, so what does it hold?

Codes are compared with the target row by row after taking each group's mean off, so that orders and origins can be told
whatever the scales and zero points are; if the codes are right, scales and zero points are compared with those that the
codes and the target imply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.grid import QuantizedWeight
from quantkit.integrity.findings import some
from quantkit.integrity.fit import Fit, implied_grid, row_cosine

_WORD = 8  # outputs that share a word of AutoAWQ's layout
_SAME = 0.75  # cosine from which on two rows are the same row
_ROWS = 2048  # rows that a search looks at


@dataclass(frozen=True)
class Case:
    """One linear that failed. target: [out, in], what it should hold; weight: what is stored (packed), or plain.

    unit: rows of one attention head, 0 where rows belong to none. gated: query and gate of each head share these rows.
    unit_in: the same for the columns. others: the source's same linear in other layers, by layer.
    """

    target: Tensor
    weight: QuantizedWeight | None
    plain: Tensor | None
    fit: Fit | None
    unit: int = 0
    gated: bool = False
    unit_in: int = 0
    others: Callable[[], dict[int, Tensor]] = dict


def name_fault(case: Case) -> str:
    """One line that says what is wrong, as exactly as the numbers allow."""
    found = _pattern(case)
    if float(found.abs().max()) == 0:
        return "holds one value everywhere: left at its initial value, or never written"
    cosine = row_cosine(found, _centre(case, case.target))
    wrong = (cosine < _SAME).nonzero().flatten()
    # rows whose codes and values are both wrong are not a matter of the grid
    if case.fit is not None and not bool((case.fit.bad_rows & (cosine < _SAME)).any()):
        grid = _grid_fault(case)
        if grid:
            return grid
    return (
        _word_order(found, _centre(case, case.target), case)
        or _moved(found, _centre(case, case.target), wrong, case.unit, case.gated, "rows")
        or _moved_columns(case)
        or _other_layer(found, case)
        or _nothing(case, wrong)
    )


def _pattern(case: Case) -> Tensor:
    """The stored matrix [out, in] without scales and zero points."""
    if case.weight is None:
        assert case.plain is not None
        return _centre(case, case.plain.float())
    return _centre(case, case.weight.codes.float())


def _centre(case: Case, matrix: Tensor) -> Tensor:
    groups = 1 if case.weight is None else case.weight.scales.shape[1]
    grouped = matrix.reshape(matrix.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    if case.weight is not None:
        # one length for every group: codes have lost the groups' scales
        centred = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return centred.view(matrix.shape)


# ---- orders and origins -------------------------------------------------------------------------------------------


def _word_order(found: Tensor, wanted: Tensor, case: Case) -> str | None:
    """Outputs permuted within every word of eight: the nibbles are read in another order than they were written."""
    if case.weight is None or found.shape[0] % _WORD:
        return None
    mine, theirs = (_unit_rows(matrix).view(-1, _WORD, matrix.shape[1]) for matrix in (found, wanted))
    cosine = torch.einsum("wij,wkj->ik", mine, theirs) / mine.shape[0]
    best, order = cosine.max(1)
    if sorted(order.tolist()) == list(range(_WORD)) and order.tolist() != list(range(_WORD)) and best.min() > 0.6:
        return f"nibble order is wrong: every word of eight outputs holds them in the order {order.tolist()}"
    return None


def _moved(found: Tensor, wanted: Tensor, wrong: Tensor, unit: int, gated: bool, what: str) -> str | None:
    """Rows that are right but in another place."""
    some_wrong = wrong[:_ROWS]
    best, place = (_unit_rows(found[some_wrong]) @ _unit_rows(wanted).T).max(1)
    certain = best > _SAME
    if not len(some_wrong) or float(certain.float().mean()) < 0.5:
        return None
    rows, places = some_wrong[certain], place[certain]
    if gated and unit:
        half = unit // 2
        swapped = torch.where(rows % unit < half, rows + half, rows - half)
        if float((places == swapped).float().mean()) > 0.9:
            return "query and gate halves are swapped"
    if unit and float((rows % unit == places % unit).float().mean()) > 0.9:
        heads = sorted({(int(a), int(b)) for a, b in zip(rows // unit, places // unit, strict=True)})
        return "heads are permuted: " + some((f"head {a} holds head {b}" for a, b in heads), 4)
    first = f"{what[:-1]} {int(rows[0])} holds {what[:-1]} {int(places[0])}"
    return f"{len(wrong)} of {found.shape[0]} {what} are in the wrong place ({first})"


def _moved_columns(case: Case) -> str | None:
    plain = case.plain if case.weight is None else case.weight.dequantize()
    assert plain is not None
    found, wanted = plain.float().T, case.target.T
    wrong = (row_cosine(found, wanted) < _SAME / 2).nonzero().flatten()
    return _moved(found, wanted, wrong, case.unit_in, False, "columns")


def _other_layer(found: Tensor, case: Case) -> str | None:
    for index, weight in case.others().items():
        cosine = row_cosine(found, _centre(case, weight))
        if float(cosine.median()) > _SAME:
            return f"holds the weights of layer {index}"
    return None


def _nothing(case: Case, wrong: Tensor) -> str:
    found = case.plain if case.weight is None else case.weight.dequantize()
    assert found is not None
    rows = f"{len(wrong)} of {len(found)} rows" if len(wrong) < len(found) else "every row"
    return (
        f"{rows} match neither the source, nor another place, nor another layer: left at its initial value, or damaged "
        f"(standard deviation {float(found.float().std()):.3g}, the source's {float(case.target.std()):.3g})"
    )


def _unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True).clamp(min=1e-12)


# ---- scales and zero points ---------------------------------------------------------------------------------------


def _grid_fault(case: Case) -> str | None:
    """The codes are right: compare scales and zero points with what codes and target imply."""
    weight, fit = case.weight, case.fit
    if weight is None or fit is None:
        return None
    scales, zeros = implied_grid(weight, case.target)
    return _scales_fault(weight.scales.float(), scales, fit) or _zeros_fault(weight.zeros.float(), zeros, fit)


def _scales_fault(stored: Tensor, implied: Tensor, fit: Fit) -> str | None:
    def away(scales: Tensor) -> Tensor:
        return (scales.clamp(min=1e-12).log() - implied.clamp(min=1e-12).log()).abs()

    def distance(scales: Tensor) -> float:
        return float(away(scales).median())

    # a wrong zero point bends the slope as well, but not the line through the codes
    bad = fit.bad_slopes & (away(stored) > 0.15)
    now, count = distance(stored), int(bad.sum())
    if not count and now < 0.1:
        return None
    if now < 0.1 and count <= max(1, bad.numel() // 100):
        row, group = (int(value) for value in bad.nonzero()[0])
        factor = float(stored[row, group] / implied[row, group].clamp(min=1e-12))
        return (
            f"{count} of {bad.numel()} scales are wrong (output {row}, group {group}: {factor:.3g} times what it was)"
        )
    others = {
        f"scales are shifted by {shift} of {stored.shape[1]} groups": stored.roll(-shift, 1)
        for shift in range(1, stored.shape[1])
    }
    others["scales are transposed"] = stored.T.contiguous().view(stored.shape)
    best = min(others, key=lambda name: distance(others[name]))
    if distance(others[best]) < 0.5 * now:
        return best
    return f"scales do not belong to these codes ({count} of {bad.numel()}, off by {100 * now:.0f} % in the median)"


def _zeros_fault(stored: Tensor, implied: Tensor, fit: Fit) -> str | None:
    away = stored - implied
    middle = float(away.median())
    if abs(middle) > 0.5:
        return f"zero points are off by {round(middle):+d}" if abs(middle) < 8 else "zero points do not belong here"
    bad = away.abs() > 0.7
    count = int(bad.sum())
    if count > bad.numel() // 20:
        return f"zero points do not belong to these codes ({count} of {bad.numel()} groups)"
    bad = fit.bad_shifts | (bad & fit.bad_slopes)
    count = int(bad.sum())
    if not count:
        return None
    row, group = (int(value) for value in bad.nonzero()[0])
    where = f"output {row}, group {group}: off by {round(float(away[row, group])):+d}"
    return f"{count} of {fit.shift.numel()} zero points are wrong ({where})"
