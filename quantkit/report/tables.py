"""A report's tables as plain data, which `html` and `markdown` both set: the two pages cannot say different things."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantkit.report import figures
from quantkit.report.figures import MISSING, bits, clean, count, number, p_value, plain, share, signed, size, span

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Finding, Group, Interval, Report, TokenSummary


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether it holds figures, and what the heading means."""

    heading: str
    numeric: bool = True
    title: str | None = None


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller line below (an interval), its tone, and whether a stranger wrote it."""

    shown: str
    small: str | None = None
    tone: str | None = None  # "good", "bad", "weak"
    foreign: bool = False


@dataclass(frozen=True)
class Table:
    """A table; each body has a heading of its own, or None."""

    caption: str
    columns: list[Column]
    bodies: list[tuple[str | None, list[list[Cell]]]] = field(default_factory=list)
    compact: bool = False  # many rows: the style sheet aligns figures, not a class on every cell


Figure = tuple[Column, Callable[["TokenSummary"], Cell]]


def _interval(interval: Interval | None, shown: Callable[[float], str] = number) -> Cell:
    if interval is None:
        return Cell(MISSING)
    return Cell(shown(interval.value), span(interval, shown))


KL: list[Figure] = [
    (Column("mean", title="mean KL divergence, nats a token"), lambda s: _interval(s.kl_mean)),
    (Column("median"), lambda s: Cell(number(s.kl_p50))),
    (Column("p90", title="90th percentile"), lambda s: Cell(number(s.kl_p90))),
    (Column("p95", title="95th percentile"), lambda s: Cell(number(s.kl_p95))),
    (Column("p99", title="99th percentile"), lambda s: _interval(s.kl_p99)),
    (Column("p99.9", title="99.9th percentile"), lambda s: Cell(number(s.kl_p999))),
    (Column("max"), lambda s: Cell(number(s.kl_max))),
]
AGREEMENT: list[Figure] = [
    (Column("top-1", title="both models' first choice is the same token"), lambda s: _interval(s.top1, share)),
    (Column("top-5", title="mean overlap of the five first choices"), lambda s: Cell(share(s.top5))),
    (Column("RMS Δp", title="root mean square difference of the true token's probability"), lambda s: _rms(s)),
    (Column("perplexity, reference"), lambda s: Cell(number(s.perplexity_reference))),
    (Column("candidate"), lambda s: Cell(number(s.perplexity_candidate))),
    (Column("ratio", title="perplexity, candidate / reference"), lambda s: _interval(s.perplexity_ratio, _ratio)),
]


def _rms(summary: TokenSummary) -> Cell:
    return Cell(MISSING if summary.rms_dp is None else f"{100 * summary.rms_dp:.2f} %")


def _ratio(value: float) -> str:
    return f"{value:.4f}" if value < 10 else number(value)


def _logit(noise: float | None) -> list[Figure]:
    """The logit difference, and how many times the reference's own noise it is."""

    def against(summary: TokenSummary) -> Cell:
        if summary.logit_rms is None or not noise:
            return Cell(MISSING)
        return Cell(figures.ratio(summary.logit_rms, noise))

    return [
        (Column("logit RMS", title="root mean square difference of centred logits"), lambda s: _or_none(s.logit_rms)),
        (Column("× noise floor", title="logit RMS / the reference's own"), against),
    ]


# shown for engines that give their largest probabilities only
COVERAGE: Figure = (
    Column("mass covered", title="reference probability on tokens whose candidate probability is known"),
    lambda s: Cell(share(s.coverage)),
)


def _or_none(value: float | None) -> Cell:
    return Cell(number(value))


def _tokens_table(
    caption: str, rows: Iterable[tuple[str | None, list[tuple[Cell, int, TokenSummary | None]]]], columns: list[Figure]
) -> Table:
    """Rows of (name, items, figures) under headings."""
    heads = [Column("", numeric=False), Column("items"), Column("tokens"), *(column for column, _ in columns)]
    bodies = []
    for title, entries in rows:
        lines = []
        for name, items, values in entries:
            if values is not None:
                cells = [figure(values) for _, figure in columns]
                lines.append([name, Cell(count(items)), Cell(count(values.tokens)), *cells])
        if lines:
            bodies.append((title, lines))
    return Table(caption, heads, bodies)


def _named(group: Group) -> Cell:
    return Cell("all" if group.by == "all" else clean(group.value), foreign=group.by != "all")


def divergence(report: Report, engine: EngineResult) -> list[Table]:
    """KL, and agreement with perplexity and logits, by group, at the headline positions."""
    where = figures.positions(engine)
    rows = [
        (None if title == figures.BY["all"] else title, [(_named(g), g.items, getattr(g, where)) for g in groups])
        for title, groups in figures.ordered(engine)
    ]
    named = figures.POSITIONS[where]
    noise = max((row.logit_rms for row in figures.floors(report, where)), default=None)
    agreement = AGREEMENT + _logit(noise) + ([] if engine.exact else [COVERAGE])
    return [
        _tokens_table(f"KL divergence in nats a token, over {named}; 95 % intervals below", rows, KL),
        _tokens_table(f"Agreement and perplexity, over {named}", rows, agreement),
    ]


def positions(report: Report, engine: EngineResult) -> list[Table]:
    """The same by position: the answer, the prompt, both; for all items and each modality."""
    rows = []
    for title, groups in figures.ordered(engine)[:2]:
        for group in groups if title != figures.BY["language"] else []:
            entries = [(Cell(name), group.items, getattr(group, where)) for where, name in figures.POSITIONS.items()]
            rows.append((_named(group).shown, entries))
    short = [KL[index] for index in (0, 1, 4, 6)] + [AGREEMENT[index] for index in (0, 5)]
    return [_tokens_table("KL divergence (nats a token) and agreement by position", rows, short)]


def accuracy(engine: EngineResult) -> Table:
    """Scores of both models, their difference and McNemar's test."""
    columns = [Column("", numeric=False), Column("items"), Column("reference"), Column("candidate")]
    columns += [Column("difference, points"), Column("only ref.", title="only the reference is right")]
    columns += [Column("only cand.", title="only the candidate is right"), Column("McNemar p")]
    columns += [Column("scored by", numeric=False)]
    bodies = []
    for title, groups in figures.ordered(engine):
        rows = []
        for group in groups:
            if group.accuracy is None:
                continue
            found = group.accuracy
            metrics = ", ".join(f"{name} ({times})" for name, times in found.metrics.items())
            rows.append(
                [
                    _named(group), Cell(count(found.items)), Cell(share(found.reference)), Cell(share(found.candidate)),
                    _interval(found.difference, signed), Cell(count(found.mcnemar.only_reference)),
                    Cell(count(found.mcnemar.only_candidate)), Cell(p_value(found.mcnemar.p_value)),
                    Cell(clean(metrics), foreign=True),
                ]
            )  # fmt: skip
        if rows:
            bodies.append((None if title == figures.BY["all"] else title, rows))
    return Table("Task accuracy of both models on the same items; 95 % intervals below", columns, bodies)


def benchmark(engine: EngineResult) -> Table:
    """A published benchmark's own totals."""
    rows = []
    for name, scores in engine.benchmark.items():
        reference, candidate = scores.get("reference"), scores.get("candidate")
        change = MISSING if reference is None or candidate is None else number(candidate - reference)
        rows.append([Cell(clean(name), foreign=True), _or_none(reference), _or_none(candidate), Cell(change)])
    columns = [Column("score", numeric=False), Column("reference"), Column("candidate"), Column("difference")]
    return Table("The benchmark's own scores", columns, [(None, rows)] if rows else [])


def generation(engine: EngineResult) -> Table:
    """Greedy answers: agreement, divergence, degeneration."""
    columns = [Column("", numeric=False), Column("items"), Column("same answer")]
    columns += [Column("first difference, median", title="index of the first differing token, where they differ")]
    columns += [Column("p10"), Column("loops"), Column("empty"), Column("unfinished", title="cut off by the limit")]
    bodies = []
    for title, groups in figures.ordered(engine):
        rows = []
        for group in groups:
            found = group.generation
            if found is None:
                continue
            pairs = (
                (found.loops_reference, found.loops_candidate),
                (found.empty_reference, found.empty_candidate),
                (found.unfinished_reference, found.unfinished_candidate),
            )
            places = (found.diverged_at_median, found.diverged_at_p10)
            rows.append(
                [
                    _named(group), Cell(count(found.items)), _interval(found.same, share),
                    *(Cell(MISSING if place is None else f"{place:g}") for place in places),
                    *(Cell(f"{before} → {after}", tone="bad" if after > before else None) for before, after in pairs),
                ]
            )  # fmt: skip
        if rows:
            bodies.append((None if title == figures.BY["all"] else title, rows))
    return Table("Greedy answers, free running; loops, empty and unfinished: reference → candidate", columns, bodies)


def gates(report: Report) -> Table:
    """Each limit, and the pessimistic end that it was judged on."""
    columns = [Column("gate", False), Column("group", False), Column("engine", False), Column("limit")]
    columns += [Column("pessimistic value"), Column("result", False), Column("in words", False)]
    rows = []
    for gate in sorted(report.gates, key=lambda entry: entry.passed):
        result = Cell("pass" if gate.passed else "FAIL", tone="good" if gate.passed else "bad")
        names = [Cell(clean(name), foreign=True) for name in (gate.gate, gate.group, gate.engine)]
        rows.append([*names, Cell(f"{gate.limit:g}"), _or_none(gate.value), result, Cell(clean(gate.message))])
    return Table("Gates, failed ones first", columns, [(None, rows)] if rows else [])


def findings(caption: str, found: list[Finding]) -> Table:
    """Integrity findings or alarms, errors first."""
    columns = [Column(name, False) for name in ("severity", "check", "where", "what was found")]
    rows = []
    for entry in sorted(found, key=lambda one: one.severity != "error"):
        tone = "bad" if entry.severity == "error" else "weak"
        texts = [Cell(clean(part), foreign=True) for part in (entry.check, entry.where, entry.message)]
        rows.append([Cell(entry.severity.upper(), tone=tone), *texts])
    return Table(caption, columns, [(None, rows)] if rows else [])


def sizes(report: Report) -> Table:
    """Both checkpoints' sizes."""
    columns = [Column("", False), Column("bytes"), Column("size"), Column("of the reference"), Column("parameters")]
    columns += [Column("bits a weight"), Column("bits a quantized weight")]
    rows = []
    for role, model in (("reference", report.reference), ("candidate", report.candidate)):
        part = share(model.bytes / report.reference.bytes) if report.reference.bytes else MISSING
        quantized = Cell(bits(model.bits_per_quantized_weight))
        numbers = [Cell(count(model.bytes)), Cell(size(model.bytes)), Cell(part), Cell(count(model.parameters))]
        rows.append([Cell(role, small=clean(model.name)), *numbers, Cell(bits(model.bits_per_weight)), quantized])
    return Table("Size of both checkpoints on disk", columns, [(None, rows)])


def engines(report: Report) -> Table:
    """What ran, with which kernel, and what did not and why."""
    columns = [Column("engine", False), Column("status", False), Column("KL mean"), Column("top-1")]
    columns += [Column("kernel", False), Column("distributions", False), Column("versions", False)]
    columns += [Column("left out, or why not run", False)]
    rows = []
    for engine in report.engines:
        done = engine.status == "ran"
        found = figures.summary(figures.overall(engine), figures.positions(engine))
        left = "; ".join(f"{times} × {reason}" for reason, times in engine.left_out.items())
        rows.append(
            [
                Cell(clean(engine.name), foreign=True), Cell(engine.status, tone=None if done else "weak"),
                Cell(MISSING) if found is None else _interval(found.kl_mean),
                Cell(MISSING) if found is None else _interval(found.top1, share),
                Cell(clean(engine.kernel or MISSING), foreign=True),
                Cell(("whole" if engine.exact else "top-k only") if done else MISSING),
                Cell(clean(plain(engine.versions)) if engine.versions else MISSING, foreign=True),
                Cell(clean((left or "nothing left out") if done else engine.why or MISSING), foreign=True),
            ]
        )  # fmt: skip
    return Table("Engines that were asked for", columns, [(None, rows)] if rows else [])


def noise(report: Report) -> Table:
    """The reference against itself."""
    columns = [
        Column("noise floor", False),
        Column("at", False),
        Column("items"),
        Column("tokens"),
        Column("KL mean"),
        Column("p99"),
    ]
    columns += [Column("max"), Column("top-1"), Column("logit RMS"), Column("what is compared", False)]
    rows = []
    for row in report.noise_floor:
        values = [number(row.kl_mean), number(row.kl_p99), number(row.kl_max), share(row.top1), number(row.logit_rms)]
        cells = [Cell(value) for value in (count(row.items), count(row.tokens), *values)]
        where = Cell(figures.POSITIONS[row.positions])
        rows.append([Cell(clean(row.name), foreign=True), where, *cells, Cell(clean(row.what), foreign=True)])
    return Table("The reference against itself, KL in nats a token", columns, [(None, rows)] if rows else [])


def settings(report: Report) -> list[Table]:
    """Data, options, environment, times and fingerprints, each as names and values."""
    models = (("reference", report.reference), ("candidate", report.candidate))
    prints = {f"{role}: {model.name}": model.fingerprint for role, model in models}
    kept: dict[str, Any] = {f"{role} dtype": model.dtype for role, model in models}
    kept["candidate quantization"] = report.candidate.quantization
    calibrated = report.candidate.calibration
    if calibrated is not None:
        prints["candidate's calibration"] = calibrated.fingerprint
        sources = ", ".join(calibrated.sources)
        kept["candidate calibrated on"] = (
            f"{count(calibrated.samples)} conversations, {count(calibrated.tokens)} tokens of {sources}"
        )
    data = {}
    if report.data is not None:
        found = report.data
        prints["data"] = found.fingerprint
        data = {"source": found.source, "items that ran": f"{found.items} of {found.available}"}
        data |= {"items with an answer": str(found.answers), "overlap with calibration": found.overlap}
        if found.overlapping:
            data["overlapping items"] = ", ".join(found.overlapping)
    if report.cache is not None:
        prints["stored reference pass"] = report.cache.key
    seconds = {name: f"{value:.2f} s" for name, value in report.seconds.items()}
    parts: dict[str, dict[str, Any]] = {"Fingerprints": prints, "Data": data, "Models": kept, "Options": report.options}
    parts |= {"Environment": report.environment, "Time": seconds}
    return [_pairs(title, values) for title, values in parts.items() if values]


def _pairs(caption: str, values: dict[str, Any]) -> Table:
    rows = [[Cell(clean(name)), Cell(clean(plain(value)), foreign=True)] for name, value in values.items()]
    return Table(caption, [Column("name", False), Column("value", False)], [(None, rows)])


def cache_line(report: Report) -> str | None:
    """What was stored of the reference, and the error that storing can bring in."""
    cache = report.cache
    if cache is None:
        return None
    bound = "exact, no error from storing" if not cache.kl_error_bound else (
        f"storing changes no KL figure by more than {number(cache.kl_error_bound)} nats"
    )  # fmt: skip
    used = "read from the cache" if cache.hit else "computed and stored"
    each = f"{number(cache.bytes_per_position)} bytes a position"
    return f"Reference pass {used}: {count(cache.positions)} positions, {size(cache.bytes)} ({each}); {bound}."
