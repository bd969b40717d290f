"""`verify`: integrity, data, the reference's pass, the engines, gates, report."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit import integrity
from quantkit.calibration import Conversation, PrepareOptions, load_conversations, load_processor, prepare
from quantkit.calibration import fingerprint as samples_fingerprint
from quantkit.calibration.identity import shared
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.verify import forward, gates, reference
from quantkit.verify.alarms import alarms, verdict
from quantkit.verify.benchmarks import is_benchmark, load_benchmark, parse_name
from quantkit.verify.engines import run_engine
from quantkit.verify.ggufset import is_gguf
from quantkit.verify.options import VerifyOptions
from quantkit.verify.report import Calibration, Data, EngineResult, Finding, Model, Report, environment
from quantkit.verify.summary import summarize_engine
from quantkit.verify.task import NotRun, Target, Task

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # stage, done, total
PROVENANCE = "quantkit.json"

# what two configs must agree on for their models to be comparable
SHARED_SETTINGS = (
    ("architectures",),
    ("model_type",),
    ("text_config", "vocab_size"),
    ("text_config", "hidden_size"),
    ("image_token_id",),
    ("video_token_id",),
)


def verify(
    original: str | Path | Checkpoint,
    candidate: str | Path,
    data: str | Path = "heldout",
    *,
    engine: str | Sequence[str] = "dequantized",
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Measure what `candidate` lost against `original` on the conversations of `data`.

    `original`: a folder, a hub id, "tiny" or an opened checkpoint. `candidate`: the same, or a .gguf file (or a
    folder of them) for the engine "llama.cpp"; with `url`, any name. `data`: "heldout", what `load_conversations`
    takes, or a benchmark's name. `engine`: one or several of `ENGINES`. `options`: the other fields of
    `VerifyOptions`, such as `samples=64`, `gates=(Gate("max_kl", 0.01),)`, `quick=True`. `progress` is told (stage,
    items done, items in all). Raises `QuantkitError` for input it cannot work with; a fault of the candidate is part
    of the report instead.
    """
    engines = (engine,) if isinstance(engine, str) else tuple(engine)
    settings = VerifyOptions(engines=engines, **options)
    run = _Run(settings, progress or (lambda stage, done, total: None))
    source = original if isinstance(original, Checkpoint) else open_checkpoint(original)
    target = _target(candidate, settings)
    if source.is_quantized and target.checkpoint is not None and not target.checkpoint.is_quantized:
        raise QuantkitError(
            f"{source.name} is quantized and {target.checkpoint.name} is not: name the unquantized one first, as in "
            "quantkit verify REF QUANT"
        )
    report = Report(
        verdict=verdict([], [], [], [], quick=True),
        reference=_describe(source, source),
        candidate=_describe_target(target, source),
        data=None,
        options=settings.recorded(),
        environment=environment(),
        seconds={},
    )
    run.integrity(report, source, target)
    # a file that cannot be loaded says so among the findings; running it would only fail less clearly
    broken = any(f.severity == "error" and f.check in ("accounting", "finite") for f in report.integrity)
    if not settings.quick and not broken:
        run.measure(report, source, target, data)
    report.gates = gates.judge(settings.gates, report.engines)
    if settings.gates and not report.engines:
        why = "quick runs no engine" if settings.quick else "the file's own faults come first"
        report.gates = gates.judge(
            settings.gates, [EngineResult(name=name, status="not run", why=why) for name in engines]
        )
    checked = bool(report.checks)
    report.verdict = verdict(report.integrity, report.alarms, report.gates, report.engines, settings.quick, checked)
    return report


class _Run:
    """One verification on its way: options, progress, seconds."""

    def __init__(self, options: VerifyOptions, tell: Progress) -> None:
        self.options = options
        self.tell = tell

    def integrity(self, report: Report, source: Checkpoint, target: Target) -> None:
        """The checks that run no model."""
        if target.checkpoint is None:
            return
        clock = time.perf_counter()
        self.tell("integrity", 0, 1)
        outcome = integrity.check(target.checkpoint, source)
        report.checks = list(outcome.checks)
        report.integrity = [
            Finding(
                severity=f.severity,
                check=f.check,
                where=f.where,
                message=_unplaced(f.message, target, source),
            )
            for f in outcome.findings
        ]
        self.tell("integrity", 1, 1)
        report.seconds["integrity"] = round(time.perf_counter() - clock, 3)

    def measure(self, report: Report, source: Checkpoint, target: Target, data: str | Path) -> None:
        """Everything that runs a model."""
        options = self.options
        if target.checkpoint is not None:
            _check_compatible(source, target.checkpoint)
        clock = time.perf_counter()
        conversations, benchmark = _load(data, options)
        task = make_task(conversations, source, options)
        overlap = _overlap(target, task, conversations)
        report.data = _data(_shown(str(data)), len(conversations), task, overlap)
        report.seconds["prepare"] = round(time.perf_counter() - clock, 3)
        clock = time.perf_counter()
        with_noise = options.noise
        made = reference.reference_pass(
            source, task, options.dtype, options.device, options.cache, with_noise,
            self._ticker("reference", reference.units(task, with_noise)),
        )  # fmt: skip
        report.noise_floor, report.cache = made.noise, made.cache
        report.seconds["reference"] = round(time.perf_counter() - clock, 3)
        for name in options.engines:
            clock = time.perf_counter()
            try:
                result = self._engine(name, task, source, target, made, benchmark)
            except QuantkitError as problem:
                # the other engines' figures are not lost for it, and the verdict is "fail"
                why = _unplaced(str(problem), target, source)
                result = EngineResult(name=name, status="not run", why=why)
                report.alarms.append(Finding(severity="error", check="engine", where=name, message=why))
            report.engines.append(result)
            report.seconds[name] = round(time.perf_counter() - clock, 3)
        report.alarms += alarms(report.engines)
        if overlap:
            message = f"{len(overlap)} of the items calibrated on, {overlap[0]} among them: figures would flatter"
            report.alarms.append(Finding(severity="error", check="overlap", where=report.data.source, message=message))

    def _engine(
        self,
        name: str,
        task: Task,
        source: Checkpoint,
        target: Target,
        made: reference.ReferencePass,
        benchmark: str | None,
    ) -> EngineResult:
        total = len(task.samples) * (2 if task.generate else 1)
        made.observed.head = None  # a gigabyte at full size, while the candidate is in memory
        try:
            observed = run_engine(name, task, target, self._ticker(name, total))
        except NotRun as why:
            return EngineResult(name=name, status="not run", why=_unplaced(str(why), target, source))
        if task.samples and len(observed.left_out) == len(task.samples):
            reason = Counter(observed.left_out.values()).most_common(1)[0][0]
            return EngineResult(name=name, status="not run", why=f"it could run no item: {reason}")
        made.observed.head = reference.head_of(source, self.options.dtype)
        return summarize_engine(name, task, made.observed, observed, self.options.device, benchmark)

    def _ticker(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            self.tell(stage, min(done, total), total)

        self.tell(stage, 0, total)
        return tick


# ---- the candidate ---------------------------------------------------------------------------------------------------


def _target(candidate: str | Path, options: VerifyOptions) -> Target:
    path = Path(candidate).expanduser()
    plain = is_gguf(path)
    named = options.url is not None and not path.exists()  # only a server knows it
    # checksums are a check of their own, so that a flipped bit is a finding
    checkpoint = None if plain or named else open_checkpoint(candidate, verify_checksums=False)
    if plain and not path.exists():
        raise QuantkitError(f"{path}: no such file")
    return Target(
        path=checkpoint.path if checkpoint is not None else path,
        checkpoint=checkpoint,
        mmproj=options.mmproj,
        url=options.url,
        python=options.engine_python,
        dtype=options.dtype,
        device=options.device,
        served_name=options.served_name or (str(candidate) if named else None),
        api_key=options.api_key,
        timeout=options.timeout,
    )


def _unplaced(text: str, target: Target, source: Checkpoint) -> str:
    """A message for the report: files by their names, no folder of this machine."""
    for path in (target.path, target.mmproj, target.python, source.path):
        if path is not None and path.is_absolute():
            text = text.replace(str(path), path.name).replace(str(path.parent) + "/", "")
    return text


def _check_compatible(source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise unless both configs describe one architecture over one vocabulary."""
    for path in SHARED_SETTINGS:
        found = []
        for checkpoint in (source, candidate):
            value: Any = checkpoint.config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            found.append(value)
        if found[0] != found[1]:
            raise QuantkitError(
                f"{candidate.path}: config.json's {'.'.join(path)} is {found[1]}, the reference's is {found[0]}; "
                "only variants of one model can be compared"
            )


def _describe_target(target: Target, source: Checkpoint) -> Model:
    if target.checkpoint is not None:
        return _describe(target.checkpoint, source)
    files = reference.target_files(target)
    size = sum(file.stat().st_size for file in files)
    parameters = source.num_parameters()
    return Model(
        name=target.path.name,
        fingerprint=reference.target_fingerprint(target),
        bytes=size,
        parameters=parameters,
        bits_per_weight=8 * size / parameters,
        dtype=None,
        quantization={"quant_method": "gguf", "files": [file.name for file in files]} if files else None,
    )


def _describe(checkpoint: Checkpoint, source: Checkpoint) -> Model:
    parameters = source.num_parameters()
    return Model(
        name=checkpoint.name,
        fingerprint=checkpoint.fingerprint(),
        bytes=checkpoint.total_bytes,
        parameters=parameters,
        bits_per_weight=8 * checkpoint.total_bytes / parameters,
        bits_per_quantized_weight=_quantized_bits(checkpoint, source),
        dtype=checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype")),
        quantization=checkpoint.config.get("quantization_config"),
        calibration=_calibration(checkpoint),
    )


def _calibration(checkpoint: Checkpoint) -> Calibration | None:
    """What the files say of their calibration; None where they do not, or not as quantkit writes it."""
    said = _provenance(checkpoint)
    if not said or said.get("fingerprint") is None:
        return None
    try:
        return Calibration(
            fingerprint=said["fingerprint"],
            samples=said["samples"],
            tokens=said["tokens"],
            sources=[source["source"] for source in said.get("sources", [])],
        )
    except (ValueError, KeyError, TypeError):
        return None


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part "calibration" of quantkit.json, empty where there is none."""
    file = checkpoint.path / PROVENANCE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["calibration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("%s: does not say what it was calibrated on (%s)", file, type(error).__name__)
        return {}
    return said if isinstance(said, dict) else {}


def _quantized_bits(checkpoint: Checkpoint, source: Checkpoint) -> float | None:
    """Bits a weight of the linears that the source stores plain and the candidate does not."""
    size = count = 0
    packed = {name.rpartition(".")[0] for name in checkpoint.tensor_names if name not in source}
    for linear in packed:
        if f"{linear}.weight" not in source or f"{linear}.weight" in checkpoint:
            continue
        shape = source.shape(f"{linear}.weight")
        count += shape[0] * shape[1] if len(shape) == 2 else 0
        size += sum(checkpoint.nbytes(name) for name in checkpoint.tensor_names if name.rpartition(".")[0] == linear)
    return 8 * size / count if count else None


# ---- the items -------------------------------------------------------------------------------------------------------


def _load(data: str | Path, options: VerifyOptions) -> tuple[list[Conversation], str | None]:
    """The conversations, and the benchmark's name where they are one's."""
    if isinstance(data, str) and is_benchmark(data) and not Path(data).exists():
        name, _, _ = parse_name(data)
        return load_benchmark(data, limit=options.samples), name
    return load_conversations(data), None


def make_task(conversations: Sequence[Conversation], source: Checkpoint, options: VerifyOptions) -> Task:
    """Prepare the items with the reference's own processor."""
    processor = load_processor(source.path)
    for name in ("image_token_id", "video_token_id"):
        configured, used = source.config.get(name), getattr(processor, name)
        if configured != used:
            raise QuantkitError(f"{source.path}: config.json's {name} is {configured}, its tokenizer's is {used}")
    samples = prepare(
        conversations,
        processor,
        PrepareOptions(
            samples=options.samples,
            max_tokens=options.max_tokens,
            downsample_mode=options.downsample_mode,
            max_slice_nums=options.max_slice_nums,
            seed=options.seed,
        ),
    )
    known = {conversation.id: conversation for conversation in conversations}
    stops = stop_ids(source, processor)
    return Task(
        # as the sample was made of it: an over-long conversation without a stated answer may have been shortened
        conversations=[replace(known[sample.id], messages=sample.messages) for sample in samples],
        samples=samples,
        places=[forward.scored(sample, stops) for sample in samples],
        processor=processor,
        stop_ids=stops,
        vocab_size=int(source.config["text_config"]["vocab_size"]),
        max_new_tokens=options.max_new_tokens,
        generate=options.generate,
    )


def stop_ids(source: Checkpoint, processor: Any) -> set[int]:
    """The tokens that end an answer: the generation config's, the config's and the tokenizer's."""
    from transformers import GenerationConfig

    found = [source.config.get("eos_token_id"), processor.tokenizer.eos_token_id]
    settings = source.path / "generation_config.json"
    if settings.is_file():
        try:
            found.append(GenerationConfig.from_pretrained(str(source.path), local_files_only=True).eos_token_id)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise QuantkitError(f"{settings}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    ids = {token for value in found for token in (value if isinstance(value, list) else [value]) if token is not None}
    if not ids:
        raise QuantkitError(f"{source.path}: no config names an end-of-sequence token (eos_token_id)")
    return ids


def _overlap(target: Target, task: Task, conversations: Sequence[Conversation]) -> list[str] | None:
    """Ids of items that the candidate was calibrated on; None where its files do not say.

    Compared are whole conversations, as calibration records them, not what was left of an over-long one.
    """
    if target.checkpoint is None:
        return None
    said = _provenance(target.checkpoint)
    items, pictures = said.get("items"), said.get("pictures")
    if not isinstance(items, list) or not isinstance(pictures, list):
        return None
    if not all(isinstance(one, str) for one in (*items, *pictures)):
        return None
    taken = {sample.id for sample in task.samples}
    return shared([one for one in conversations if one.id in taken], items, pictures)


def _shown(source: str) -> str:
    """The data's name for a report: no place of this machine, also where a benchmark is read from a local copy."""
    name, equals, place = source.partition("=") if is_benchmark(source) else ("", "", source)
    path = Path(place).expanduser()
    return name + equals + (path.name if path.is_absolute() else place)


def _data(source: str, available: int, task: Task, overlap: list[str] | None) -> Data:
    return Data(
        source=source,
        available=available,
        items=len(task.samples),
        answers=sum(conversation.answer is not None for conversation in task.conversations),
        fingerprint=samples_fingerprint(task.samples),
        overlap="unknown" if overlap is None else "found" if overlap else "none",
        overlapping=overlap or [],
    )
