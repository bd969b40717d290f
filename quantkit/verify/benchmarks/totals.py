"""A benchmark's own total scores from the scores of its items, shares in [0, 1] except for OCRBench's points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from quantkit.calibration import Conversation
from quantkit.verify.benchmarks.load import parse_name

Scored = Sequence[tuple[Conversation, float]]

# Yue et al. 2024, the six disciplines and their subjects
DISCIPLINES = {
    "Art & Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health & Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities & Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech & Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
_ROTATION = 1_000_000  # MMBench: index distance between two rotations of one question


def aggregate(name: str, rows: Scored) -> dict[str, float]:
    """Total scores by name, from (conversation of `load_benchmark`, its score); empty for no rows.

    MMBench: accuracy (unrotated rows), circular (questions right in every rotation, where all are there).
    OCRBench: points, items, points by question type. HallusionBench: aAcc (questions), fAcc (figures with every
    question right), qAcc (questions right on every figure). MMMU: overall and by discipline. RefCOCO: acc@0.5.
    Video-MME: overall and by duration.
    """
    return _TOTALS[parse_name(name)[0]](rows) if rows else {}


def _mean(scores: Iterable[float]) -> float:
    values = list(scores)
    return sum(values) / len(values)


def _grouped(rows: Scored, key: Callable[[Conversation], str]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for conversation, score in rows:
        groups[key(conversation)].append(score)
    return dict(sorted(groups.items()))


def _share_of_whole_groups(groups: Iterable[list[float]]) -> float:
    """The share of groups in which every score is 1."""
    return _mean(float(min(scores) >= 1.0) for scores in groups)


def _mmbench(rows: Scored) -> dict[str, float]:
    totals = {}
    plain = [score for conversation, score in rows if int(conversation.tags["index"]) < _ROTATION]
    if plain:
        totals["accuracy"] = _mean(plain)
    options = {str(int(c.tags["index"]) % _ROTATION): len(c.choices or ()) for c, _ in rows}
    groups = _grouped(rows, lambda c: str(int(c.tags["index"]) % _ROTATION))
    whole = [scores for index, scores in groups.items() if len(scores) == options[index]]
    if whole:
        totals["circular"] = _share_of_whole_groups(whole)
    return totals


def _ocrbench(rows: Scored) -> dict[str, float]:
    totals = {"points": sum(score for _, score in rows), "items": float(len(rows))}
    groups = _grouped(rows, lambda c: c.tags["question_type"])
    return totals | {f"points: {kind}": sum(scores) for kind, scores in groups.items()}


def _hallusionbench(rows: Scored) -> dict[str, float]:
    def key(last: str) -> Callable[[Conversation], str]:
        return lambda c: "\t".join(c.tags[name] for name in ("category", "subcategory", "set_id", last))

    # figure 0 of "visual supplement" is the question without a figure
    figures = [(c, score) for c, score in rows if (c.tags["category"], c.tags["figure_id"]) != ("VS", "0")]
    totals = {"aAcc": _mean(score for _, score in rows)}
    if figures:
        totals["fAcc"] = _share_of_whole_groups(_grouped(figures, key("figure_id")).values())
    totals["qAcc"] = _share_of_whole_groups(_grouped(rows, key("question_id")).values())
    return totals


def _mmmu(rows: Scored) -> dict[str, float]:
    groups = _grouped(rows, lambda c: _DISCIPLINE_OF.get(c.tags["subject"], "Other"))
    return {"overall": _mean(score for _, score in rows)} | {name: _mean(scores) for name, scores in groups.items()}


def _refcoco(rows: Scored) -> dict[str, float]:
    return {"acc@0.5": _mean(score for _, score in rows)}


def _video_mme(rows: Scored) -> dict[str, float]:
    groups = _grouped(rows, lambda c: c.tags["duration"])
    return {"overall": _mean(score for _, score in rows)} | {name: _mean(scores) for name, scores in groups.items()}


_TOTALS: dict[str, Callable[[Scored], dict[str, float]]] = {
    "MMBench": _mmbench,
    "OCRBench": _ocrbench,
    "HallusionBench": _hallusionbench,
    "MMMU": _mmmu,
    "RefCOCO": _refcoco,
    "Video-MME": _video_mme,
}
