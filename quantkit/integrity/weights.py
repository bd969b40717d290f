"""The audit: does every linear of the language model hold the source's weights, up to the folds that the map allows?

A method may move a scale from the input channels of a group of linears into what feeds them (``quantkit.model``). What
a norm was divided by is read from its stored weight, ``(1 + w) / (1 + w')`` or ``w / w'``, and every consumer must
carry exactly that. A scale between two linears (``rows``) is read from the consumer's columns, and the feeder's rows
must carry its inverse. What is left is rounding, judged by ``fit.py``; what is more is named by ``diagnose.py``.

One group of linears is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quantkit.errors import QuantkitError
from quantkit.fold import expand
from quantkit.grid import QuantizedWeight
from quantkit.integrity.diagnose import Case, name_fault
from quantkit.integrity.findings import Finding, error, some, warning
from quantkit.integrity.fit import Fit, Limits, carries_scale, leans_to_scale, limits, measure
from quantkit.integrity.subject import Subject
from quantkit.integrity.unpack import in_order, read_linear, readable
from quantkit.model import Block, Feeder, Group

NAME = "weights"
# of a stored float against the product it should be: rounded to its dtype once in the source and once here
_ROUNDING = {"BF16": 2**-7, "F16": 2**-9, "F32": 1e-4}
# squared distance from the weight without its group's scale, as a share of that from the scaled one; good: 0.999
# (2 bits), 1.01 (3), 1.06 (4), 1.7 (8) at least; a weak scale that a linear lacks: 0.81
_NEARER = 0.95
_FEW = 8  # telling channels under which a coarse grid says nothing of a scale
_FAINT = 1e-6  # absolute difference that float16's smallest numbers make


def check_weights(subject: Subject) -> Iterator[Finding]:
    """Hold every linear of the language model, and the norms that feed them, against the source."""
    if subject.reference is None or subject.map is None:
        return
    if subject.reference.is_quantized:
        yield warning(NAME, subject.reference.name, "not checked: the reference is quantized itself")
        return
    unread = [name for name, linear in subject.packed.items() if not readable(linear)]
    if unread:
        layout = subject.packed[unread[0]].layout
        yield warning(NAME, some(unread), f"not checked: quantkit does not unpack this layout ({layout})")
    ordered = [name for name, linear in subject.packed.items() if not in_order(subject.candidate, linear)]
    if ordered:
        yield warning(NAME, some(ordered), "not checked: channels are ordered by activation (g_idx)")
    for block in subject.map.blocks:
        yield from _Audit(subject, block).findings()


@dataclass
class _Stored:
    """A linear of the candidate, packed or plain, and the scale that its input channels should carry."""

    weight: QuantizedWeight | None
    plain: Tensor | None
    dtype: str

    def values(self) -> Tensor:
        """float32 [out, in]."""
        if self.weight is not None:
            return self.weight.dequantize()
        assert self.plain is not None
        return self.plain.float()


@dataclass
class _Verdict:
    """What came of one linear. channels: slope of its input channels; carries: they have a scale that nothing undoes;
    leans: they may have one, which counts if all linears of the group do; unscaled: they should carry one and have
    none; fault: what else is wrong; rows: its row scale against the source."""

    channels: Tensor
    carries: bool = False
    leans: bool = False
    unscaled: bool = False
    fault: str | None = None
    rows: Tensor | None = None


@dataclass
class _Audit:
    subject: Subject
    block: Block
    # feeder -> the scale of its consumers' columns, and whether that is well above the steps, both [channels]
    rows_of: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def findings(self) -> Iterator[Finding]:
        for group in self.block.groups:
            if group.feeder.kind == "rows":
                scale = self._consumers_scale(group)
                if scale is not None:
                    self.rows_of[group.feeder.module] = scale
        for group in self.block.groups:
            yield from self._group(group)

    # ---- reading ----

    def _source(self, name: str) -> Tensor:
        assert self.subject.reference is not None
        return self.subject.reference.load(f"{self.block.prefix}{name}.weight").float()

    def _stored(self, name: str) -> _Stored | None:
        """The linear ``name`` of the block; None if it is missing, misshaped, not finite or in a layout not read here:
        other checks report those."""
        assert self.subject.reference is not None
        full, candidate = self.block.prefix + name, self.subject.candidate
        linear = self.subject.linears.get(full)
        if linear is None or f"{full}.weight" not in self.subject.reference:
            return None
        if (linear.out_features, linear.in_features) != self.subject.reference.shape(f"{full}.weight"):
            return None
        if linear.layout == "plain":
            plain = candidate.load(f"{full}.weight")
            return _Stored(None, plain, candidate.dtype(f"{full}.weight")) if plain.isfinite().all() else None
        if not readable(linear):
            return None
        try:
            weight = read_linear(candidate, linear)
        except QuantkitError:
            return None
        return _Stored(weight, None, "I32") if weight.scales.isfinite().all() else None

    def _norm(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A norm's weight in the source and in the candidate, float32 [channels]."""
        assert self.subject.reference is not None
        full = f"{self.block.prefix}{name}.weight"
        if full not in self.subject.candidate or full not in self.subject.reference:
            return None
        before, after = self.subject.reference.load(full).float(), self.subject.candidate.load(full).float()
        return (before, after) if before.shape == after.shape and bool(after.isfinite().all()) else None

    def _others(self, name: str) -> dict[int, Tensor]:
        assert self.subject.reference is not None and self.subject.map is not None
        found = {}
        for block in self.subject.map.blocks:
            full = f"{block.prefix}{name}.weight"
            if block.index != self.block.index and full in self.subject.reference:
                found[block.index] = self.subject.reference.load(full).float()
        return found

    # ---- scales ----

    def _consumers_scale(self, group: Group) -> tuple[Tensor, Tensor] | None:
        """The scale that the group's columns carry, by least squares, and whether it tells, [feeder channels]."""
        sums = torch.zeros(4, group.in_features)
        for name in group.linears:
            stored = self._stored(name)
            if stored is None:
                return None
            sums += _column_sums(stored, self._source(name))
        dot, energy, found, steps = (_to_feeder(values, group.feeder) for values in sums)
        scale = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 1.0)
        return scale, (energy > 0) & (found > self._limits(group.linears[0]).channel_energy * steps)

    def _limits(self, name: str) -> Limits:
        linear = self.subject.linears.get(self.block.prefix + name)
        return limits(linear.bits if linear is not None and linear.bits else 16)

    def _columns(self, group: Group) -> Tensor | None:
        """The scale that the input channels should carry, [in]; None where the feeder cannot be read."""
        if group.feeder.kind == "rows":
            found = self.rows_of.get(group.feeder.module)
            return None if found is None else expand(found[0], group.feeder)
        norm = self._norm(group.feeder.module)
        return None if norm is None else expand(_norm_scale(*norm, _offset(group.feeder)), group.feeder)

    # ---- judging ----

    def _group(self, group: Group) -> Iterator[Finding]:
        columns = self._columns(group)
        if columns is None:
            return
        verdicts = {}
        for name in (*group.linears, *group.passengers):
            stored = self._stored(name)
            if stored is not None:
                verdicts[name] = self._judge(name, group, stored, columns)
        carriers = [name for name, verdict in verdicts.items() if verdict.carries]
        if group.feeder.kind != "rows" and self._blames_norm(group, carriers, verdicts):
            yield self._norm_fault(group, columns, verdicts)
            carriers = []
        for name in carriers:
            yield error(NAME, self.block.prefix + name, _scale_fault(verdicts[name], group))
        for name, verdict in verdicts.items():
            if verdict.fault:
                yield error(NAME, self.block.prefix + name, verdict.fault)
            elif verdict.rows is not None and name in self.rows_of:
                yield from self._compensation(name, verdict.rows)

    def _judge(self, name: str, group: Group, stored: _Stored, columns: Tensor) -> _Verdict:
        source = self._source(name)
        target, rows = source * columns, None
        if name in self.rows_of:
            rows = _row_scale(stored, target)
            target = target * rows.unsqueeze(1)
        if stored.weight is None:
            return self._judge_plain(name, stored, source, target, rows)
        fit = measure(stored.weight, target)
        if group.feeder.kind == "rows":
            if fit.healthy:
                return _Verdict(fit.channels, rows=rows)
        elif _fits_better(stored, target / columns, target) and measure(stored.weight, target / columns).healthy:
            return _Verdict(1 / columns, carries=True, unscaled=True, rows=rows)
        else:
            carries = carries_scale(fit)
            if fit.healthy and not carries:
                return _Verdict(fit.channels, leans=leans_to_scale(fit), rows=rows)
            if carries and measure(stored.weight, target * fit.channels).healthy:
                unscaled = _is_flat((fit.channels * columns)[fit.telling], columns[fit.telling])
                return _Verdict(fit.channels, carries=True, unscaled=unscaled, rows=rows)
        return _Verdict(fit.channels, fault=name_fault(self._case(name, target, stored, fit)))

    def _judge_plain(self, name: str, stored: _Stored, source: Tensor, target: Tensor, rows: Tensor | None) -> _Verdict:
        found = stored.values()
        ones = torch.ones(found.shape[1])
        if _equal(found, target, stored.dtype):
            return _Verdict(ones, rows=rows)
        dot, energy = (found * target).sum(0), target.square().sum(0)
        carried = torch.where(energy > 0, dot / energy.clamp(min=1e-30), 1.0)
        if _equal(found, target * carried, stored.dtype):
            return _Verdict(carried, carries=True, unscaled=_equal(found, source, stored.dtype), rows=rows)
        return _Verdict(ones, fault=name_fault(self._case(name, target, stored, None)))

    def _case(self, name: str, target: Tensor, stored: _Stored, fit: Fit | None) -> Case:
        assert self.subject.reference is not None
        text = self.subject.reference.config["text_config"]
        head, key, value = (int(text[f]) for f in ("head_dim", "linear_key_head_dim", "linear_value_head_dim"))
        units = {"q_proj": 2 * head, "k_proj": head, "v_proj": head, "in_proj_qkv": key, "in_proj_z": value}
        short = name.rpartition(".")[2]
        return Case(
            target,
            stored.weight,
            stored.plain,
            fit,
            unit=units.get(short, 0),
            gated=short == "q_proj",
            unit_in={"o_proj": head, "out_proj": value}.get(short, 0),
            others=lambda: self._others(name),
        )

    # ---- wording ----

    def _blames_norm(self, group: Group, carriers: list[str], verdicts: dict[str, _Verdict]) -> bool:
        """All consumers carry a scale that the norm does not undo; or most of them do, and the norm is as it was; or it
        holds one value, which it did not."""
        norm = self._norm(group.feeder.module)
        if norm is not None and _is_constant(norm[1]) and not _is_constant(norm[0]):
            return True  # of 2 bits, columns alone do not show it
        if verdicts and all(verdict.carries or verdict.leans for verdict in verdicts.values()):
            return True
        return norm is not None and torch.equal(*norm) and 2 * len(carriers) > len(verdicts)

    def _norm_fault(self, group: Group, columns: Tensor, verdicts: dict[str, _Verdict]) -> Finding:
        """Every consumer disagrees with the norm in the same way: the norm is the one to blame."""
        norm = self._norm(group.feeder.module)
        assert norm is not None
        where = f"{self.block.prefix}{group.feeder.module}.weight"
        if torch.equal(*norm):
            return error(NAME, where, "norm is not compensated: it is the source's own, its consumers carry a scale")
        if _is_constant(norm[1]):
            return error(NAME, where, f"norm holds {float(norm[1][0]):g} everywhere: left at its initial value")
        if all(verdict.unscaled for verdict in verdicts.values()):
            return error(NAME, where, "norm was divided by a scale that none of its consumers carries")
        wrong = 1.0 - _offset(group.feeder)
        other = expand(_norm_scale(*norm, wrong), group.feeder)
        carried = columns * torch.stack([verdict.channels for verdict in verdicts.values()]).median(0).values
        if float((carried / other).clamp(min=1e-6).log().abs().median()) < 0.05:
            kinds = ("weight", "1 + weight")
            return error(NAME, where, f"norm was folded as if it multiplied by {kinds[int(wrong)]}; it does not")
        return error(NAME, where, "norm does not undo the scale that its consumers carry")

    def _compensation(self, name: str, rows: Tensor) -> Iterator[Finding]:
        """The feeder's rows must carry the inverse of what its consumers' columns carry."""
        scale, telling = self.rows_of[name]
        fed = next(group for group in self.block.groups if group.feeder.module == name)
        least = min((self._limits(one) for one in (name, *fed.linears)), key=lambda limits: -limits.undone)
        logs = (scale * rows)[telling].clamp(min=1e-6).log()
        if len(logs) < _FEW:
            return
        middle = float(logs.median())
        spread = float((logs - middle).square().mean().sqrt())
        far = ((logs - middle).abs() > least.undone_channel).sum()
        if spread > least.undone or abs(middle) > least.undone_median or far:
            yield error(
                NAME,
                f"{self.block.prefix}{name}",
                "feeder rows are not compensated: they do not undo the scale that the columns of the linear they feed "
                f"carry (off by a factor of {2.718281828**spread:.2f} in the mean, {int(far)} channels far off)",
            )


def _offset(feeder: Feeder) -> float:
    return 1.0 if feeder.kind == "one_plus_weight" else 0.0


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())


def _norm_scale(before: Tensor, after: Tensor, offset: float) -> Tensor:
    """What a norm was divided by, [channels]; 1 for a channel that it shuts off."""
    gain, new_gain = before + offset, after + offset
    usable = (gain != 0) & (new_gain != 0)
    return torch.where(usable, gain / torch.where(usable, new_gain, 1.0), 1.0)


def _to_feeder(values: Tensor, feeder: Feeder) -> Tensor:
    """Sum over the input channels [in] that one feeder channel reaches, [channels]; NaN where all of them are."""
    if feeder.index is None:
        return values
    index = torch.tensor(feeder.index)
    return torch.zeros(feeder.channels, dtype=values.dtype).index_add(0, index, values)


def _column_sums(stored: _Stored, source: Tensor) -> Tensor:
    """Sums over the rows, [4, in]: stored times source, source squared, stored squared, steps squared."""
    values = stored.values()
    steps = torch.zeros(source.shape[1])
    if stored.weight is not None:
        groups = stored.weight.scales.shape[1]
        squares = stored.weight.scales.float().square().sum(0)
        steps = squares.unsqueeze(-1).expand(groups, source.shape[1] // groups).flatten()
    return torch.stack([(values * source).sum(0), source.square().sum(0), values.square().sum(0), steps])


def _row_scale(stored: _Stored, target: Tensor) -> Tensor:
    """Least-squares scale of every row against ``target``, [out]; 1 for a row of zeros."""
    energy = target.square().sum(1)
    return torch.where(energy > 0, (stored.values() * target).sum(1) / energy.clamp(min=1e-30), 1.0)


def _fits_better(stored: _Stored, one: Tensor, other: Tensor) -> bool:
    """Whether the weights are nearer to ``one`` than to ``other``, by more than rounding does."""
    found = stored.values()
    return float((found - one).square().sum()) < _NEARER * float((found - other).square().sum())


def _equal(found: Tensor, wanted: Tensor, dtype: str) -> bool:
    return bool(((found - wanted).abs() <= _ROUNDING[dtype] * wanted.abs() + _FAINT).all())


def _is_flat(found: Tensor, wanted: Tensor) -> bool:
    """Whether input channels carry no scale though they should."""
    logs, expected = (scale.clamp(min=1e-6).log().abs() for scale in (found, wanted))
    return bool(len(logs)) and float(logs.median()) < 0.25 * float(expected.median())


def _scale_fault(verdict: _Verdict, group: Group) -> str:
    if verdict.unscaled:
        return f"not scaled with its group: {group.feeder.module} was divided by a scale that it does not carry"
    return f"its input channels carry a scale that {group.feeder.module} does not undo"
