"""Judging an answer: pure functions from the model's text and the accepted answers to a score in [0, 1].

| metric | rule | source |
| --- | --- | --- |
| exact | the same text, white space at both ends aside | |
| anls | normalized edit similarity, 0 below one half | Biten et al. 2019, "Scene Text Visual Question Answering" |
| relaxed | numbers within 5 %, anything else the same text | Masry et al. 2022, "ChartQA"; Methani et al. 2020 |
| choice | the letter that the text names, see `quantkit.verify.choice` | Liu et al. 2023, "MMBench" |
| yesno | the one of yes and no that the text says | Guan et al. 2024, "HallusionBench" |
| contains | an accepted answer stands somewhere in the text | Liu et al. 2023, "OCRBench" |
| formula | contains, blanks removed and case kept: handwritten maths expressions | the same, data set HME100k |
| open | numbers or short texts in the concluding phrases | Yue et al. 2024, "MMMU", open questions |
| iou | a box that overlaps by at least one half | Yu et al. 2016, "RefCOCO"; Acc@0.5 |

The best accepted answer counts. A text that cannot be read scores 0; nothing is ever guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from quantkit.errors import QuantkitError
from quantkit.verify.choice import extract_choice

Choices = dict[str, str]

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
IOU_THRESHOLD = 0.5


def score(metric: str, text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """The score in [0, 1] of an answer `text` by a metric's name; `choices` (letter -> text) with "choice" only.

    Raises `QuantkitError` for an unknown metric, no accepted answer, or "choice" without choices.
    """
    if metric not in METRICS:
        raise QuantkitError(f"unknown metric '{metric}'; known: {', '.join(METRICS)}")
    if not accepted:
        raise QuantkitError(f"metric '{metric}' needs at least one accepted answer; give the item's 'answer'")
    return METRICS[metric](text, accepted, choices)


def exact(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where the text is an accepted answer, white space at both ends aside."""
    return float(text.strip() in {answer.strip() for answer in accepted})


# ---- ANLS ----


def anls(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 - distance / longer length against the nearest answer, or 0 where that distance is half the length or more.

    Lower case and single blanks on both sides, as in the data set's own evaluation.
    """
    return max(_similarity(_plain(text), _plain(answer)) for answer in accepted)


def _similarity(text: str, answer: str) -> float:
    longer = max(len(text), len(answer))
    distance = levenshtein(text, answer) / longer if longer else 0.0
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def levenshtein(first: str, second: str) -> int:
    """The least number of insertions, deletions and replacements of characters that turn one text into the other."""
    if len(first) < len(second):
        first, second = second, first
    above = list(range(len(second) + 1))  # distances of the prefix of `first` so far to every prefix of `second`
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            replaced = above[column - 1] + (letter != other)
            current.append(min(replaced, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


# ---- relaxed accuracy ----

_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "%": 1e-2}
_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\s*(?P<currency>[$\u20ac\u00a3\u00a5]?)\s*"
    r"(?P<digits>\d{1,3}(?:[, '\u00a0\u202f]\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+)"
    r"\s*(?P<scale>(?:thousand|million|billion|trillion)s?|%|percent)?\s*(?P<unit>[^\W\d_]\D{0,15}|[$\u20ac\u00a3\u00a5])?"
)


def relaxed(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """ChartQA's relaxed accuracy: a number may be off by 5 % of the accepted one, a text must be the same.

    A number is the whole text: sign, currency sign ($, EUR, GBP and JPY signs), digits with thousands separators
    (comma, blank, apostrophe), then "%", "percent", or thousand / million / billion / trillion, then a unit. Each of
    these counts only where both sides write it: 5 meets 5 % and 0.05 meets 5 %, 3.2 meets 3.2 million, 12 meets 12 km;
    12 kg does not meet 12 km. A decimal comma is not read as a number. Texts: lower case, single blanks, no full stop.
    """
    return float(any(_relaxed_equal(text, answer) for answer in accepted))


def _relaxed_equal(text: str, answer: str) -> bool:
    text, answer = _plain(text).rstrip("."), _plain(answer).rstrip(".")
    if text == answer:
        return True
    found, wanted = _NUMBER.fullmatch(text), _NUMBER.fullmatch(answer)
    if found is None or wanted is None:
        return False
    for part in ("unit", "currency"):
        if found[part] and wanted[part] and found[part].strip() != wanted[part].strip():
            return False
    both = bool(found["scale"] and wanted["scale"])
    return any(_near(value, goal) for value in _values(found, both) for goal in _values(wanted, both))


def _values(match: re.Match[str], scaled: bool) -> list[float]:
    """The number with its scale word where both sides have one; with and without it otherwise."""
    digits = re.sub(r"[, '\u00a0\u202f]", "", match["digits"])
    value = float(digits) * (-1.0 if match["sign"] in ("-", "\u2212") else 1.0)
    scale = _SCALES[match["scale"].replace("percent", "%").rstrip("s")] if match["scale"] else 1.0
    return [value * scale] if scaled or scale == 1.0 else [value, value * scale]


def _near(value: float, goal: float) -> bool:
    # the slack of 1e-9 lets 105 pass beside 100 in floating point
    return abs(value - goal) <= RELAXED_TOLERANCE * abs(goal) * (1 + 1e-9)


# ---- choices, yes and no ----


def choice(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where the one option that the text names is accepted, by letter or by its text."""
    if not choices:
        raise QuantkitError("metric 'choice' needs the item's choices (letter -> text)")
    letter = extract_choice(text, choices)
    wanted = {answer.strip() for answer in accepted}
    return float(letter is not None and (letter in wanted or choices[letter].strip() in wanted))


_YES_NO = re.compile(r"(?<![a-z])(yes|no|true|false)(?![a-z])|(不是|没有|不对|否)|(是的|是|有|对)")


def yesno(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where the text says yes and an accepted answer does, or both say no.

    A leading yes or no decides ("Yes, there is no cat"); elsewhere the text must hold only one of the two.
    """
    found = _yes_or_no(text)
    return float(found is not None and found in {_yes_or_no(answer) for answer in accepted})


def _yes_or_no(text: str) -> bool | None:
    plain = _plain(unicodedata.normalize("NFKC", text)).lstrip(" *_\"'([.")
    matches = list(_YES_NO.finditer(plain))
    said = [match[3] is not None or match[1] in ("yes", "true") for match in matches]
    if said and matches[0].start() == 0 and matches[0][1] is not None:
        return said[0]
    return said[0] if len(set(said)) == 1 else None


# ---- OCRBench ----


def contains(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where an accepted answer stands in the text: case aside, line ends read as blanks."""
    held = text.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in held for answer in accepted if answer.strip()))


def formula(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where an accepted LaTeX expression stands in the text, all white space removed; case matters in maths."""
    held = "".join(text.split())
    return float(any("".join(answer.split()) in held for answer in accepted if answer.strip()))


# ---- MMMU, open questions ----

_CONCLUDES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_ANY_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?")


def open_answer(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """MMMU's rule for open questions: read the phrases that conclude, then compare numbers and short texts.

    A phrase is what follows the last concluding word of a sentence (in the last one, an equals sign too); the whole
    text where there is none. Right: an accepted number is among the phrases' numbers (both rounded to two places), or
    an accepted text stands in a phrase. A text of one character must stand alone.
    """
    phrases = _conclusions(text)
    numbers = {_rounded(number) for phrase in phrases for number in _ANY_NUMBER.findall(phrase)}
    return float(any(_concluded(_plain(answer), phrases, numbers) for answer in accepted if answer.strip()))


def _conclusions(text: str) -> list[str]:
    sentences = [part for part in re.split(r"\.\s|\n", text.lower().strip().rstrip(".")) if part.strip()]
    phrases = []
    for index, sentence in enumerate(sentences):
        marks = (*_CONCLUDES, "=") if index == len(sentences) - 1 else _CONCLUDES
        tails = [sentence.rpartition(mark)[2].strip() for mark in marks if mark in sentence]
        phrases += [min((tail for tail in tails if tail.strip(":,.!?;'")), key=len, default="")]
    return [f" {_plain(phrase)} " for phrase in phrases if phrase] or [f" {_plain(text)} "]


def _concluded(answer: str, phrases: list[str], numbers: set[float]) -> bool:
    if _ANY_NUMBER.fullmatch(answer):
        return _rounded(answer) in numbers
    held = f" {answer} " if len(answer) == 1 else answer
    return any(held in phrase.rstrip(" .") + " " for phrase in phrases)


def _rounded(number: str) -> float:
    return round(float(number.replace(",", "")), 2)


# ---- boxes ----

Box = tuple[float, float, float, float]
_BOX = re.compile(r"[^-\d.]*?".join([r"(-?\d+(?:\.\d+)?|-?\.\d+)"] * 4))


def iou(text: str, accepted: Sequence[str], choices: Choices | None = None) -> float:
    """1 where the text's box overlaps an accepted one with intersection over union of at least 0.5.

    A box is the first four numbers [x1, y1, x2, y2] (left, top, right, bottom), however they are bracketed. Whether
    they are pixels, thousandths or shares of the picture cannot be told from the numbers: an item writes its box in
    each scale that it accepts ("[100, 200, 500, 600]", "[0.1, 0.2, 0.5, 0.6]") and its prompt says which it wants.
    """
    box = parse_box(text)
    targets = [target for target in map(parse_box, accepted) if target is not None]
    if len(targets) < len(accepted):
        raise QuantkitError("metric 'iou': an accepted answer is no box of four numbers [x1, y1, x2, y2]")
    if box is None:
        return 0.0
    return float(any(overlap(box, target) >= IOU_THRESHOLD for target in targets))


def parse_box(text: str) -> Box | None:
    """The first four numbers that follow an opening bracket or tag, else of the text; None for no upright box."""
    start = re.search(r"\[\s*[-\d.]|\(\s*[-\d.]|<box>", text)
    match = _BOX.search(text, start.start() if start else 0)
    if match is None:
        return None
    left, top, right, bottom = (float(part) for part in match.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two upright boxes (left, top, right, bottom), in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


METRICS: dict[str, Callable[[str, Sequence[str], Choices | None], float]] = {
    "exact": exact,
    "anls": anls,
    "relaxed": relaxed,
    "choice": choice,
    "yesno": yesno,
    "contains": contains,
    "formula": formula,
    "open": open_answer,
    "iou": iou,
}
