"""The worst items as cards, with the first differing token marked, and all items as one compact table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from quantkit.report.figures import MISSING, clean, count, number
from quantkit.report.markup import Markup, join, picture, render, said, tag
from quantkit.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from quantkit.verify.report import EngineResult, Item

WORST = 12
# a guess at the token that starts here: white space and a word, a single character of a script without spaces, a sign
TOKEN = re.compile(r"\s*(?:[^\W\u2e80-\u9fff\uac00-\ud7ff]+|\S)|\s+")


def worst(engine: EngineResult, most: int = WORST) -> list[Item]:
    """Items that lost their score first, then those answered otherwise, then by KL."""
    return sorted(engine.items, key=lambda item: item.severity(), reverse=True)[:most]


def kl_of(item: Item) -> float | None:
    """Mean KL over the answer, over all text where there is no answer."""
    return item.kl_answer_mean if item.kl_answer_mean is not None else item.kl_mean


def divergence(item: Item) -> int | None:
    """Index of the character where the two answers part; None where they are the same or one is missing.

    `diverged_at_char` where the texts agree up to it, else the end of what they share.
    """
    reference, candidate = item.reference_text, item.candidate_text
    if reference is None or candidate is None or (item.diverged_at is None and reference == candidate):
        return None
    stated = item.diverged_at_char
    if stated is not None and 0 <= stated <= len(candidate) and reference[:stated] == candidate[:stated]:
        return stated
    pairs = zip(reference, candidate, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(reference), len(candidate)))


def split(answer: str, place: int) -> tuple[str, str, str]:
    """An answer taken apart: what both models say, the first differing token, the rest."""
    found = TOKEN.match(answer, place)
    end = found.end() if found else place
    return answer[:place], answer[place:end], answer[end:]


def card(item: Item) -> Markup:
    """One item: picture, prompt, both answers side by side, expected answer and scores."""
    shown = [picture(source, f"Picture {i + 1} of item {item.id}") for i, source in enumerate(item.pictures)]
    pictures = [entry for entry in shown if entry is not None]
    badges = [said(value, class_="badge") for value in (item.modality, item.mode, item.language) if value]
    where, kl = ("answer", item.kl_answer_mean) if item.kl_answer_mean is not None else ("all text", item.kl_mean)
    facts = [f"KL {number(kl)} ({where})", f"max {number(item.kl_max)}", f"{count(item.tokens)} tokens"]
    if item.diverged_at is not None:
        facts.append(f"answers differ from token {item.diverged_at}")
    body = tag(
        "div",
        tag("p", tag("b", "Prompt"), " ", said(item.prompt, class_="text"), class_="prompt"),
        _answers(item),
        None if item.answer is None else tag("p", tag("b", "Expected"), " ", said(item.answer, class_="text")),
        class_="body",
    )
    head = tag("header", tag("h3", said(item.id)), tag("p", *badges), tag("p", " · ".join(facts), class_="facts"))
    side = tag("div", *pictures, class_="pictures") if pictures else None
    return tag(
        "article",
        head,
        tag("div", side, body, class_=("with" if len(pictures) == 1 else "with many") if pictures else None),
        class_="card",
    )


def _answers(item: Item) -> Markup | None:
    if item.reference_text is None and item.candidate_text is None:
        return tag("p", "No answers were generated.", class_="weak")
    place = divergence(item)
    sides = []
    for role, answer, score in (
        ("reference", item.reference_text, item.reference_score),
        ("candidate", item.candidate_text, item.candidate_score),
    ):
        result = None if score is None else tag("span", f"{item.metric or 'score'} {score:g}", class_="score")
        sides.append(tag("div", tag("h4", role.capitalize(), " ", result), _marked(answer, place, role), class_=role))
    return tag("div", *sides, class_="answers")


def _marked(answer: str | None, place: int | None, role: str) -> Markup:
    if answer is None:
        return tag("p", "not generated", class_="weak")
    if place is None:
        return said(answer, "p", class_="text") if answer else tag("p", "(empty)", class_="weak")
    before, token, after = split(answer, place)
    mark = tag("mark", token, class_=role) if token else tag("mark", "(ends)", class_=f"{role} end")
    return said(join(before, mark, after), "p", class_="text")


def table(engine: EngineResult) -> Table:
    """All items, the worst first."""
    columns = [Column("item", False), Column("modality", False), Column("mode", False), Column("lang.", False)]
    columns += [Column("KL, answer"), Column("KL, all text"), Column("KL max"), Column("tokens")]
    columns += [Column("differs at", title="index of the first differing token"), Column("ref."), Column("cand.")]
    rows = [_row(item) for item in worst(engine, len(engine.items))]
    return Table(
        "All items, the worst first; scores of both models in the last columns", columns, [(None, rows)], compact=True
    )


def _row(item: Item) -> list[Cell]:
    lost = item.reference_score is not None and item.candidate_score is not None
    lost = lost and (item.candidate_score or 0.0) < (item.reference_score or 0.0)
    texts = [Cell(clean(item.id), foreign=True), *(Cell(clean(v)) for v in (item.modality, item.mode, item.language))]
    kl = [Cell(number(value)) for value in (item.kl_answer_mean, item.kl_mean, item.kl_max)]
    at = Cell(MISSING if item.diverged_at is None else str(item.diverged_at))
    scores = [
        Cell(MISSING if value is None else f"{value:.3g}", tone="bad" if lost and index else None)
        for index, value in enumerate((item.reference_score, item.candidate_score))
    ]
    return [*texts, *kl, Cell(count(item.tokens)), at, *scores]


def full_list(engine: EngineResult) -> Markup:
    """The table of all items, folded up."""
    total = len(engine.items)
    return tag("details", tag("summary", f"All items ({total})"), render(table(engine), class_="items"), class_="all")
