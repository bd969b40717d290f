"""Does a quantized checkpoint answer in a runtime as it does elsewhere? Judged with code that quantkit does not own.

    python scripts/check_runtimes.py --candidate DIR --runtime vllm --create-env DIR [--reference DIR] [--json OUT]
    python scripts/check_runtimes.py --candidate DIR --runtime transformers --python PYTHON

Held-out questions (text, pictures, several pictures, clips) are answered greedily by the candidate, in the runtime and
in a baseline, and compared token by token; `--agreement` (0.95) of the items must be identical, over all and over those
with pictures. The baseline of vLLM is Transformers with its own kernels; that of Transformers is quantkit's reading of
the file in plain float arithmetic. With `--reference`, the unquantized checkpoint takes the same trip, which shows how
far the two engines differ without any quantization: the noise floor of the comparison.

`--runtime transformers` also unpacks every packed weight with gptqmodel's and compressed-tensors' readers and compares
codes, zero points and scales with quantkit's, bit for bit.

Exit status: 0 passed, 1 failed, 2 wrong arguments, 3 not run (0 with `--allow-missing`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from runtime_envs import EnvironmentFault, create

from quantkit.calibration import Conversation, load_conversations
from quantkit.errors import QuantkitError

WORKERS = Path(__file__).resolve().parent
BASELINES = {"vllm": "transformers", "transformers": "dequantized"}
EXIT_MISSING = 3
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
STATUS = {PASSED: 0, FAILED: 1, NOT_RUN: 3}


class NotRun(Exception):
    """A runtime is not there; the message says what is missing."""


class Refused(Exception):
    """A runtime is there and stopped with an error; the message is its last line."""


@dataclass(frozen=True)
class Difference:
    """Where two answers part: the token's place, and by how much the baseline's own token beat its second best."""

    id: str
    baseline: str
    runtime: str
    place: int
    margin: float | None


@dataclass(frozen=True)
class Comparison:
    """One checkpoint's answers in the baseline and in the runtime."""

    model: str  # "candidate" or "reference"
    kernels: dict[str, str]
    seconds: dict[str, float]
    items: dict[str, int]  # by modality
    identical: dict[str, int]  # by modality: items whose tokens are the same
    same_prompt: int
    exact: dict[str, int]  # by engine: answers equal to the expected one
    expected: int  # items that state an answer
    differences: list[Difference]

    def share(self, modalities: Sequence[str] | None = None) -> float:
        """Share of items with identical tokens, over all modalities or those given; 1 where there is none."""
        names = [name for name in self.items if modalities is None or name in modalities]
        total = sum(self.items[name] for name in names)
        return sum(self.identical[name] for name in names) / total if total else 1.0


@dataclass
class Outcome:
    """The verdict on one runtime and what it rests on."""

    runtime: str
    status: str
    detail: str
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    unpackers: dict[str, dict[str, Any]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        outcome = check(options)
    except QuantkitError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        return 2
    show(outcome, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(outcome), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if outcome.status == NOT_RUN and options.allow_missing else STATUS[outcome.status]


def parser() -> argparse.ArgumentParser:
    """Every option, once."""
    result = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = result.add_argument
    add("--candidate", type=Path, required=True, help="folder of the quantized checkpoint")
    add("--reference", type=Path, help="folder of the unquantized checkpoint, for the noise floor")
    add("--data", default="heldout", help="questions: heldout (bundled), or a folder with manifest.jsonl")
    add("--runtime", choices=sorted(BASELINES), required=True)
    place = result.add_mutually_exclusive_group()
    add_place = place.add_argument
    add_place("--python", type=Path, help="Python of an environment that holds the runtime [default: this one]")
    add_place("--create-env", type=Path, metavar="DIR", help="make such an environment there, or use it if it is made")
    add("--baseline", choices=("transformers", "dequantized"), help="what to compare with")
    add("--items", type=int, default=100, help="questions, spread over the data's modalities")
    add("--agreement", type=float, default=0.95, help="least share of items with identical tokens")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--max-new-tokens", type=int, default=32)
    add("--max-model-len", type=int, default=2048)
    add("--timeout", type=float, default=1800, help="seconds one engine may take")
    add("--json", type=Path, metavar="OUT", help="write the result there")
    add("--allow-missing", action="store_true", help="exit with 0 where the runtime is not there")
    return result


def check(options: argparse.Namespace) -> Outcome:
    """Run baseline and runtime and compare. Raises QuantkitError for bad arguments."""
    models = {"candidate": options.candidate, "reference": options.reference}
    models = {name: Path(folder).resolve() for name, folder in models.items() if folder}
    for folder in models.values():
        if not (folder / "config.json").is_file():
            raise QuantkitError(f"{folder}: no checkpoint there (config.json is missing)")
    items = choose(load_conversations(options.data), options.items)
    try:
        python = create(options.runtime, options.create_env) if options.create_env else options.python
        python = Path(python or sys.executable)
        baseline = options.baseline or BASELINES[options.runtime]
        answers = {
            engine: ask(engine, place, list(models.values()), items, options)
            for engine, place in ((options.runtime, python), (baseline, Path(sys.executable)))
        }
        unpackers = unpack_check(python, models["candidate"]) if options.runtime == "transformers" else {}
    except (NotRun, EnvironmentFault) as error:
        return Outcome(options.runtime, NOT_RUN, str(error))
    except Refused as error:
        return Outcome(options.runtime, FAILED, str(error))
    comparisons = [
        compare(name, items, {engine: answers[engine]["runs"][number] for engine in (baseline, options.runtime)})
        for number, name in enumerate(models)
    ]
    status, detail = verdict(comparisons[0], unpackers, options.agreement)
    versions = {engine: result["versions"] for engine, result in answers.items()}
    return Outcome(options.runtime, status, detail, versions, comparisons, unpackers)


def choose(conversations: Sequence[Conversation], count: int) -> list[Conversation]:
    """`count` of them, evenly spaced in each modality, each modality by its share and at least one."""
    if count < 1:
        raise QuantkitError(f"--items {count} must be at least 1")
    chosen = []
    for modality in dict.fromkeys(conversation.modality for conversation in conversations):
        members = [conversation for conversation in conversations if conversation.modality == modality]
        quota = min(len(members), max(1, round(count * len(members) / len(conversations))))
        chosen += [members[place * len(members) // quota] for place in range(quota)]
    return chosen


def question_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages without the last answer."""
    answered = conversation.messages[-1]["role"] == "assistant"
    return conversation.messages[:-1] if answered else conversation.messages


def ask(
    runtime: str, python: Path, models: list[Path], items: Sequence[Conversation], options: argparse.Namespace
) -> dict[str, Any]:
    """The worker's answers (see `runtime_worker.py`) of every model in one process of `python`."""
    job = {
        "runtime": runtime,
        "dtype": options.dtype,
        "max_new_tokens": options.max_new_tokens,
        "max_model_len": options.max_model_len,
        "max_num_seqs": 16,
        "models": [str(model) for model in models],
        "items": [{"id": item.id, "messages": question_messages(item)} for item in items],
    }
    return run_worker("runtime_worker.py", runtime, python, job, options.timeout)


def run_worker(script: str, what: str, python: Path, job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Start a worker script on a job and read its result. Raises NotRun or Refused."""
    if not python.exists():
        raise NotRun(f"{python}: no such Python; make the environment with --create-env")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if python == Path(sys.executable):
        environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path = Path(folder) / "job.json", Path(folder) / "result.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), str(WORKERS / script), str(job_path), str(result_path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=environment
            )
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{what} gave no answer within {timeout:.0f} s") from error
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        if done.returncode == EXIT_MISSING:
            raise NotRun(f"{what} cannot start with {python}: {lines[-1][:600]}")
        if done.returncode or not result_path.is_file():
            raise Refused(f"{what} ended with status {done.returncode}: {lines[-1][:600]}")
        result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        return result


def compare(name: str, items: Sequence[Conversation], runs: dict[str, dict[str, Any]]) -> Comparison:
    """Token by token; `runs`: the baseline's and the runtime's answers to `items`, in this order."""
    (_, first), (_, second) = runs.items()
    counts = dict.fromkeys([item.modality for item in items], 0)
    identical, exact = dict(counts), dict.fromkeys(runs, 0)
    differences, same_prompt = [], 0
    for item, one, other in zip(items, first["answers"], second["answers"], strict=True):
        counts[item.modality] += 1
        same_prompt += one["prompt"] == other["prompt"]
        for engine, run_answer in zip(runs, (one, other), strict=True):
            exact[engine] += item.answer is not None and run_answer["text"] == item.answer.strip()
        if one["tokens"] == other["tokens"]:
            identical[item.modality] += 1
        else:
            differences.append(difference(one, other))
    return Comparison(
        model=name,
        kernels={engine: run["kernel"] for engine, run in runs.items()},
        seconds={engine: round(run["seconds"], 1) for engine, run in runs.items()},
        items=counts,
        identical=identical,
        same_prompt=same_prompt,
        exact=exact,
        expected=sum(item.answer is not None for item in items),
        differences=differences,
    )


def difference(one: dict[str, Any], other: dict[str, Any]) -> Difference:
    """Where the baseline's answer `one` and the runtime's `other` part."""
    pairs = zip(one["tokens"], other["tokens"], strict=False)
    shorter = min(len(one["tokens"]), len(other["tokens"]))
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
    margins = one.get("margins", [])
    return Difference(one["id"], one["text"], other["text"], place, margins[place] if place < len(margins) else None)


def unpack_check(python: Path, candidate: Path) -> dict[str, dict[str, Any]]:
    """By reader: {"linears": n, "differ": names whose codes, zeros or scales are not quantkit's bit for bit}."""
    from runtime_unpackers import digest

    from quantkit.checkpoint import open_checkpoint
    from quantkit.formats import awq

    checkpoint = open_checkpoint(candidate)
    spec = awq.spec_of(checkpoint.config["quantization_config"])
    own = {}
    for name in awq.quantized_names(checkpoint.tensor_names):
        qweight, qzeros, scales = (checkpoint.load(f"{name}.{suffix}") for suffix in awq.SUFFIXES)
        weight = awq.unpack(qweight, qzeros, scales, spec.bits, spec.group_size)
        own[name] = digest(weight.codes, weight.zeros, weight.scales)
    theirs = run_worker("runtime_unpackers.py", "unpacking", python, {"model": str(candidate)}, timeout=600)
    return {
        reader: {"linears": len(found), "differ": sorted(name for name in own if found.get(name) != own[name])}
        for reader, found in theirs.items()
    }


def verdict(comparison: Comparison, unpackers: dict[str, dict[str, Any]], agreement: float) -> tuple[str, str]:
    """Status and the sentence that gives its reason."""
    wrong = [reader for reader, found in unpackers.items() if found["differ"]]
    if wrong:
        return FAILED, f"{' and '.join(wrong)} read other integers than quantkit"
    pictures = [modality for modality in comparison.items if modality != "text"]
    shares = {"all items": comparison.share(), "items with pictures": comparison.share(pictures)}
    low = [f"{share:.1%} of {what}" for what, share in shares.items() if share < agreement]
    if low:
        return FAILED, f"identical tokens in only {' and '.join(low)}; {agreement:.0%} are needed"
    return PASSED, f"identical tokens in {shares['all items']:.1%} of {sum(comparison.items.values())} items"


def show(outcome: Outcome, console: Console) -> None:
    """A table of what was measured, then the verdict."""
    for comparison in outcome.comparisons:
        baseline, runtime = comparison.kernels
        table = Table(title=f"{comparison.model}: {runtime} against {baseline}", title_justify="left")
        for heading in ("modality", "items", "identical tokens"):
            table.add_column(heading, justify="left" if heading == "modality" else "right")
        for modality, count in comparison.items.items():
            table.add_row(modality, str(count), f"{comparison.identical[modality]}")
        total = sum(comparison.items.values())
        table.add_row("all", str(total), f"{sum(comparison.identical.values())} ({comparison.share():.1%})")
        console.print(table)
        console.print(f"same prompt tokens: {comparison.same_prompt} of {total}")
        for engine, kernel in comparison.kernels.items():
            right = f"{comparison.exact[engine]} of {comparison.expected} answers right"
            console.print(f"{engine}: kernel {kernel}; {right}; {comparison.seconds[engine]:.0f} s", highlight=False)
        for item in comparison.differences[:10]:
            margin = "" if item.margin is None else f" (won by {item.margin:.3f} in the baseline)"
            text = f"  {item.id}, token {item.place}{margin}: {item.baseline!r} against {item.runtime!r}"
            console.print(text, markup=False, highlight=False)
    for reader, found in outcome.unpackers.items():
        console.print(f"{reader}: {found['linears']} linears unpacked, {len(found['differ'])} differ", highlight=False)
    for engine, packages in outcome.versions.items():
        listed = ", ".join(f"{name} {number}" for name, number in packages.items())
        console.print(f"{engine}: {listed}", highlight=False)
    console.print(f"{outcome.runtime}: {outcome.status} - {outcome.detail}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
