"""The result of a verification: every field of `report.json`, schema "2".

The published JSON schema, `quantkit/verify/report.schema.json`, is generated from these classes. Shares and
probabilities are in [0, 1], KL divergence in nats a token, sizes in bytes, times in seconds. An `Interval` is a 95 %
bootstrap interval over items (tokens of one item are not independent, so whole items are drawn).
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantkit.errors import QuantkitError
from quantkit.output import atomic_file

SCHEMA = "2"
Positions = Literal["answer", "prompt", "text"]


class Part(BaseModel):
    """A part of the report: no unknown fields, NaN and infinity never written."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null", protected_namespaces=())


class Interval(Part):
    """A figure with its 95 % interval; low = value = high where there is nothing to draw from."""

    value: float
    low: float
    high: float


class TokenSummary(Part):
    """Two models' next-token distributions at some scored positions."""

    tokens: int
    kl_mean: Interval
    kl_p50: float
    kl_p90: float
    kl_p95: float
    kl_p99: Interval
    kl_p999: float
    kl_max: float
    top1: Interval = Field(description="share of positions where both models' first choice is the same token")
    top5: float = Field(description="mean share of the reference's five first choices among the candidate's five")
    rms_dp: float | None = Field(description="root mean square of p_candidate - p_reference of the token that follows")
    perplexity_reference: float
    perplexity_candidate: float | None = Field(description="null where the engine never says the token that follows")
    perplexity_ratio: Interval | None = Field(description="candidate / reference, over the tokens that both tell")
    logit_rms: float | None = Field(
        description="root mean square difference of centred logits; null where the engine gives no logits"
    )
    coverage: float = Field(description="reference probability mass on tokens whose candidate probability is known")


class McNemar(Part):
    """Exact two-sided McNemar test on items that only one model answers right (a score of 0.5 or more)."""

    only_reference: int
    only_candidate: int
    p_value: float


class Accuracy(Part):
    """Scores of both models' answers; a score is in [0, 1], by the item's own metric."""

    items: int
    metrics: dict[str, int] = Field(description="how many items were scored by which metric")
    reference: float
    candidate: float
    difference: Interval = Field(description="candidate - reference, paired bootstrap")
    mcnemar: McNemar


class Generation(Part):
    """Greedy answers of both models, free running."""

    items: int
    same: Interval = Field(description="share of items with the same tokens (same text, where an engine gives no ids)")
    diverged_at_median: float | None = Field(description="median index of the first differing token, if any differ")
    diverged_at_p10: float | None
    loops_reference: int
    loops_candidate: int
    empty_reference: int
    empty_candidate: int
    unfinished_reference: int = Field(description="answers cut off by the token limit")
    unfinished_candidate: int


class Group(Part):
    """Figures of some of the items: all of them, or those of one modality, compression mode, language."""

    by: Literal["all", "modality", "mode", "language"]
    value: str
    items: int
    ran: int = Field(description="items that the engine could run")
    answer: TokenSummary | None = Field(description="tokens of the last answer, its end token included")
    prompt: TokenSummary | None = Field(description="text tokens before the last answer")
    text: TokenSummary | None = Field(description="both: every token that is no placeholder of a picture")
    accuracy: Accuracy | None = None
    generation: Generation | None = None


class LayerError(Part):
    """Relative output error |candidate - reference| / |reference| of a module, each model on its own inputs."""

    name: str
    kind: Literal["vision", "merger", "block", "linear"]
    layer: int | None = Field(description="index of the language model's layer (of the vision tower's, for vision)")
    error: float
    growth: float | None = Field(default=None, description="error - error of the block before, for blocks")


class Item(Part):
    """One item with both models' answers; `pictures` (small JPEG data URIs) only on the worst ones."""

    id: str
    modality: str
    mode: str
    language: str
    prompt: str
    answer: str | None
    metric: str | None
    reference_text: str | None
    candidate_text: str | None
    reference_score: float | None
    candidate_score: float | None
    diverged_at: int | None = Field(description="index of the first differing token of the two greedy answers")
    diverged_at_char: int | None = Field(
        description="first character that differs, from the start of that token on, in the candidate's text"
    )
    tokens: int
    kl_mean: float | None
    kl_max: float | None
    kl_answer_mean: float | None
    pictures: list[str] = Field(default_factory=list)

    def severity(self) -> tuple[float, float]:
        """What items are ranked by: score lost, then answers that differ, then KL (over the answer, else all text)."""
        lost = (self.reference_score or 0.0) - (self.candidate_score or 0.0)
        differs = self.diverged_at is not None or self.reference_text != self.candidate_text
        kl = self.kl_answer_mean if self.kl_answer_mean is not None else self.kl_mean
        return (1.0 + lost if lost > 0 else float(differs)), -1.0 if kl is None else kl


class Histogram(Part):
    """Counts of token KL values, by modality; `edges` are log10 of nats, the first bin takes all below."""

    edges: list[float]
    counts: dict[str, list[int]]


class EngineResult(Part):
    """What one engine made of the candidate."""

    name: str
    status: Literal["ran", "not run"]
    why: str | None = Field(default=None, description="why it was not run")
    kernel: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    exact: bool = Field(default=True, description="whole distributions compared; false: the engine gives top-k only")
    left_out: dict[str, int] = Field(default_factory=dict, description="items this engine could not run, by reason")
    groups: list[Group] = Field(default_factory=list)
    benchmark: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="a benchmark's own total scores: {score: {reference, candidate}}"
    )
    layers: list[LayerError] = Field(default_factory=list)
    histogram: Histogram | None = None
    items: list[Item] = Field(default_factory=list)


class NoiseRow(Part):
    """The reference against itself, computed in another way."""

    name: str
    what: str
    positions: Literal["answer", "text"]
    items: int
    tokens: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    logit_rms: float


class CacheInfo(Part):
    """The stored reference pass."""

    key: str
    hit: bool
    bytes: int
    positions: int
    bytes_per_position: float
    kl_error_bound: float = Field(description="largest error that storing can bring into any KL figure; 0: exact")


class GateResult(Part):
    """One limit, judged on the pessimistic end of the figure's interval."""

    gate: str
    group: str
    engine: str
    limit: float
    value: float | None = Field(description="the pessimistic end; null where there was nothing to judge")
    passed: bool
    message: str


class Finding(Part):
    """One thing that integrity checks or plausibility alarms found."""

    severity: Literal["error", "warning"]
    check: str
    where: str
    message: str


class Verdict(Part):
    """status: "pass" and "fail" speak of gates and alarms; "measured": none was set and nothing is wrong."""

    status: Literal["pass", "fail", "measured"]
    headline: str
    lines: list[str] = Field(default_factory=list)


class Calibration(Part):
    """What a checkpoint was calibrated on, as its quantkit.json says."""

    fingerprint: str = Field(description="SHA-256 over the prepared inputs")
    samples: int
    tokens: int
    sources: list[str] = Field(default_factory=list, description="names, without places")


class Model(Part):
    """One of the two checkpoints."""

    name: str
    fingerprint: str
    bytes: int
    parameters: int
    bits_per_weight: float = Field(description="8 * bytes / parameters of the unquantized model")
    bits_per_quantized_weight: float | None = Field(
        default=None, description="the same over quantized linears alone, scales and zero points counted"
    )
    dtype: str | None
    quantization: dict[str, Any] | None
    calibration: Calibration | None = None


class Data(Part):
    """The items: `available` in the source, `items` that ran."""

    source: str
    available: int
    items: int
    answers: int
    fingerprint: str
    overlap: Literal["none", "unknown", "found"] = Field(description="items that the candidate was calibrated on")
    overlapping: list[str] = Field(default_factory=list)


class Report(Part):
    """What two models did on the same items."""

    schema_version: Literal["2"] = "2"
    verdict: Verdict
    reference: Model
    candidate: Model
    data: Data | None
    options: dict[str, Any]
    noise_floor: list[NoiseRow] = Field(default_factory=list)
    cache: CacheInfo | None = None
    integrity: list[Finding] = Field(default_factory=list)
    checks: list[str] = Field(default_factory=list, description="names of the integrity checks that ran")
    alarms: list[Finding] = Field(default_factory=list)
    engines: list[EngineResult] = Field(default_factory=list)
    gates: list[GateResult] = Field(default_factory=list)
    environment: dict[str, Any]
    seconds: dict[str, float]

    def engine(self, name: str | None = None) -> EngineResult:
        """The result of an engine by name; without one, the first that ran (the first of all, if none did).

        Raises `QuantkitError` where the report has none such, as after `quick=True`.
        """
        ran = [result for result in self.engines if result.status == "ran"]
        chosen = [*ran, *self.engines] if name is None else [one for one in self.engines if one.name == name]
        if not chosen:
            known = ", ".join(result.name for result in self.engines) or "none, as no model was run"
            raise QuantkitError(f"the report has no figures of {name or 'any engine'}; it has those of: {known}")
        return chosen[0]

    def group(self, by: str = "all", value: str = "all", engine: str | None = None) -> Group | None:
        """The figures of one group of items, None where the engine has none."""
        return next((g for g in self.engine(engine).groups if g.by == by and g.value == value), None)

    def to_json(self) -> str:
        """`report.json`'s text."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write `report.json`: to `path`, or into it where it is a folder. Replaces the file at once."""
        target = Path(path)
        if target.is_dir():
            target = target / "report.json"
        write_text(target, self.to_json())
        return target

    @staticmethod
    def load(path: str | Path) -> Report:
        """Read a `report.json` (or the one in a folder); raises `QuantkitError` naming the file and field."""
        target = Path(path)
        if target.is_dir():
            target = target / "report.json"
        try:
            content = json.loads(target.read_text(encoding="utf-8"))
        except OSError as error:
            raise QuantkitError(f"{target}: cannot be read ({error.strerror}); run quantkit verify first") from error
        except ValueError as error:
            raise QuantkitError(f"{target}: no valid JSON ({error}); run quantkit verify again") from error
        found = content.get("schema_version", content.get("schema")) if isinstance(content, dict) else None
        if found != SCHEMA:
            raise QuantkitError(f"{target}: report schema {found!r}, this version reads {SCHEMA!r}; verify again")
        try:
            return Report.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise QuantkitError(f"{target}: field {field}: {first['msg']}; run quantkit verify again") from error


def write_text(target: Path, text: str) -> None:
    """Write a file so that it is complete or not there; an existing one is replaced at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def json_schema() -> dict[str, Any]:
    """The JSON schema of `report.json`, as published in `report.schema.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema(mode="serialization")}


def environment() -> dict[str, Any]:
    """Versions and machine that a figure depends on."""
    return {
        "quantkit": _version("quantkit"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
