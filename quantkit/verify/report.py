"""The result of a verification, and `report.json`.

Schema "1":

    schema        "1"
    reference, candidate   {name, path, fingerprint, bytes, quantization}
    data          {source, available, items, answers, fingerprint}: available, what the source holds; items, what ran
    options       engine, dtype, device, downsample_mode, max_tokens, samples, seed, max_new_tokens, generate
    metrics       {modality: {"answer" | "text": {tokens, kl_mean, kl_p50, kl_p90, kl_p95, kl_p99, kl_max,
                  top1_agreement, perplexity_reference, perplexity_candidate} or null}}, modality "all" included;
                  KL in nats a token
    accuracy      {modality: {items, reference, candidate, same_text}}: shares of items; same_text: both models alike
    items         [{id, modality, downsample_mode, tokens, kl_mean, kl_answer_mean, answer, reference, candidate}]
    environment   versions, processor, cores; seconds  {stage: wall time}

"answer" counts the tokens of the last answer and its end token, "text" all tokens that are no picture's placeholder.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantkit.calibration.conversations import MODALITIES

SCHEMA = "1"


@dataclass
class Report:
    """What two models did on the same items; see the module for every field."""

    reference: dict[str, Any]
    candidate: dict[str, Any]
    data: dict[str, Any]
    options: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any] | None]]
    accuracy: dict[str, dict[str, Any]]
    items: list[dict[str, Any]]
    environment: dict[str, Any]
    seconds: dict[str, float]
    schema: str = field(default=SCHEMA)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, as written to `report.json`."""
        return {"schema": self.schema, **asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write `report.json`: to `path`, or into it where it is a folder. Replaces the file at once."""
        target = Path(path)
        if target.is_dir():
            target = target / "report.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        try:
            partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def rows(self) -> list[dict[str, Any]]:
        """One row a modality that has items, "all" last: metrics at answer positions (at all text, without answers).

        Keys: modality, items, positions ("answer" or "text"), the metrics' own, accuracy_reference, accuracy_candidate
        (None where no item states its answer).
        """
        rows = []
        for modality in (*MODALITIES, "all"):
            metrics = self.metrics.get(modality)
            if metrics is None:
                continue
            positions = "answer" if metrics["answer"] else "text"
            accuracy = self.accuracy.get(modality, {})
            rows.append(
                {
                    "modality": modality,
                    "items": sum(modality in ("all", item["modality"]) for item in self.items),
                    "positions": positions,
                    **(metrics[positions] or {}),
                    "accuracy_reference": accuracy.get("reference"),
                    "accuracy_candidate": accuracy.get("candidate"),
                }
            )
        return rows


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
