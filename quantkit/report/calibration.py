"""`quantkit calib inspect --html`: a mix on one self-contained page, first its figures, then its conversations.

The filter above the conversations is made of radio buttons and a style sheet's `:has()`; where a browser lacks that, or
on paper, all conversations are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.report.figures import count, plain
from quantkit.report.html import Section, document, section
from quantkit.report.markup import Markup, join, picture, render, said, tag
from quantkit.report.svg import NARROW, WIDE, chart, line, rect, shorten, words
from quantkit.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from quantkit.calibration.describe import Bucket, Description, Figures
    from quantkit.calibration.looks import Look, Thumbnail

CHOICES = 16  # of the filter, in all; the style sheet knows as many
ROW, TOP = 22, 8
HALF = 456  # pixels of one of two charts side by side
KINDS = {"text": "text", "image": "one image", "images": "several images", "video": "video"}


def write_calibration(
    found: Description, looks: Iterable[Look], path: str | Path, options: dict[str, Any], title: str
) -> Path:
    """Write the page of a mix; `looks` are the conversations to show, `title` names the mix, `options` made it."""
    from quantkit.verify.report import write_text

    target = Path(path)
    write_text(target, calibration_page(found, list(looks), options, title))
    return target


def calibration_page(found: Description, looks: Sequence[Look], options: dict[str, Any], title: str) -> str:
    """The page's text."""
    sections = [_mix(found), _pictures(found), _texts(found), _conversations(found, looks), _settings(found, options)]
    present = [entry for entry in sections if entry is not None]
    nav = tag("nav", *(tag("a", heading, href=f"#{name}") for name, heading, _ in present), aria_label="Contents")
    foot = tag("footer", f"quantkit calib inspect {plain(options.get('quantkit', ''))}".rstrip())
    body = join(_head(found, title), _tiles(found), _overlap(found), nav, *(entry[2] for entry in present), foot)
    return document(f"Calibration mix: {title}", body)


def _head(found: Description, title: str) -> Markup:
    sub = tag("p", "fingerprint ", tag("bdi", found.fingerprint[:16]), class_="sub")
    return tag(
        "header", tag("p", "quantkit calibration mix", class_="over"), tag("h1", tag("bdi", title)), sub, class_="top"
    )


def _tiles(found: Description) -> Markup:
    total, pictures = found.total, found.pictures
    share = total.vision_tokens / total.tokens if total.tokens else 0.0
    tiles = [
        ("conversations", count(total.samples), _left_out(found)),
        ("tokens", count(total.tokens), f"{share:.0%} visual"),
        ("images", count(pictures.images), f"{count(pictures.sliced)} of them sliced"),
        ("clips", count(pictures.clips), None),
        ("longest", f"{count(total.longest)} tokens", f"mean {total.mean:.0f}"),
    ]
    shown = [
        tag("div", tag("dt", name), tag("dd", value, None if small is None else tag("small", small)))
        for name, value, small in tiles
    ]
    return tag("section", tag("dl", *shown, class_="tiles"), id="figures", class_="figures", aria_label="Figures")


def _left_out(found: Description) -> str | None:
    parts = [
        f"{count(number)} {what}"
        for number, what in (
            (found.shortened, "shortened"),
            (found.too_long, "too long, left out"),
            (found.bad_rows, "bad rows left out"),
        )
        if number
    ]
    return ", ".join(parts) or None


def _overlap(found: Description) -> Markup | None:
    if not found.overlap:
        return None
    names = ", ".join(found.overlap[:12]) + (", …" if len(found.overlap) > 12 else "")
    text = f"Shares {count(len(found.overlap))} items with the evaluation data; figures measured there would flatter: "
    return tag("p", text, said(names), class_="warning", role="note")


def _mix(found: Description) -> Section:
    reading = (
        "Visual tokens are the placeholders that picture features fill; answer tokens are those of the last answer, "
        "part of the text."
    )
    heads = [Column("", False), Column("samples"), Column("text tokens"), Column("visual tokens"), Column("answer")]
    heads += [Column("mean"), Column("longest")]
    bodies: list[tuple[str | None, list[list[Cell]]]] = []
    for origin in found.sources:
        rows = [_row(KINDS[one.modality], one) for one in found.groups if one.source == origin.source]
        weight = f", weight {origin.weight:g}" if len(found.sources) > 1 else ""
        bodies.append((f"{origin.source}: {count(origin.samples)} of {count(origin.rows)} rows{weight}", rows))
    bodies.append(("all sources" if len(found.sources) > 1 else None, [_row("all", found.total)]))
    table = Table("Conversations and tokens, by source and modality", heads, bodies)
    others = [
        render(_bucket_table(caption, name, buckets))
        for caption, name, buckets in (
            ("Languages", "language", found.languages),
            ("Compression modes", "mode", found.modes),
        )
    ]
    return section("mix", "Mix", reading, _tokens_chart(found), render(table), tag("div", *others, class_="pair"))


def _row(name: str, one: Figures) -> list[Cell]:
    figures = [one.samples, one.text_tokens, one.vision_tokens, one.answer_tokens]
    return [Cell(name), *(Cell(count(value)) for value in figures), Cell(f"{one.mean:.0f}"), Cell(count(one.longest))]


def _bucket_table(caption: str, heading: str, buckets: Sequence[Bucket]) -> Table:
    total = sum(bucket.count for bucket in buckets)
    rows = [
        [Cell(bucket.label, foreign=True), Cell(count(bucket.count)), Cell(f"{bucket.count / total:.0%}")]
        for bucket in buckets
    ]
    return Table(caption, [Column(heading, False), Column("samples"), Column("share")], [(None, rows)])


def _pictures(found: Description) -> Section | None:
    pictures = found.pictures
    if not pictures.images + pictures.clips or pictures.smallest is None or pictures.largest is None:
        return None
    (width, height), (most_wide, most_high) = pictures.smallest, pictures.largest
    reading = (
        f"Sizes before the processor, a clip counted once: {width} × {height} to {most_wide} × {most_high} pixels. "
        f"{count(pictures.sliced)} of {count(pictures.images)} images are cut into slices, "
        f"into {count(pictures.slices)} in all."
    )
    return section(
        "pictures", "Pictures", reading,
        tag("div", _bars("Longer side, pixels", pictures.long_sides), _bars("Width : height", pictures.shapes),
            class_="pair"),
    )  # fmt: skip


def _texts(found: Description) -> Section:
    reading = "Text tokens of a conversation: its template, questions and answers, without visual tokens."
    return section("texts", "Length of the text", reading, _bars("Text tokens", found.texts))


def _bars(title: str, buckets: Sequence[Bucket]) -> Markup:
    """Horizontal bars with their counts, drawn for half the page and for a phone."""
    top = max((bucket.count for bucket in buckets), default=0) or 1

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left, end = 118, width - 44
        shapes = []
        for index, bucket in enumerate(buckets):
            y = TOP + ROW * index
            long = round((end - left) * bucket.count / top, 1)
            shapes.append(words(left - 8, y + 14, shorten(bucket.label, left - 8), "label", "end"))
            shapes.append(rect(left, y + 3, long, ROW - 6, "bar", f"{bucket.label}: {bucket.count}"))
            shapes.append(words(left + long + 6, y + 14, count(bucket.count), "tick"))
        bottom = TOP + ROW * len(buckets)
        return bottom + 4, [*shapes, line(left, TOP, left, bottom, "base")]

    spoken = "; ".join(f"{bucket.label}: {bucket.count}" for bucket in buckets)
    drawn = []
    for width, class_ in ((HALF, "wide"), (NARROW, "narrow")):
        height, shapes = draw(width)
        title_ = tag("title", f"{title}: {spoken}")
        drawn.append(
            tag("svg", title_, *shapes, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img",
                class_=class_)
        )  # fmt: skip
    return tag("figure", tag("figcaption", title), tag("div", *drawn, class_="chart"))


def _tokens_chart(found: Description) -> Markup:
    """Tokens of each group, text and visual ones in one bar."""
    several = len(found.sources) > 1
    rows = [(f"{one.source}, {KINDS[one.modality]}" if several else KINDS[one.modality], one) for one in found.groups]
    top = max((one.tokens for _, one in rows), default=0) or 1

    def draw(width: int) -> tuple[int, Sequence[Markup]]:
        left, end = (220 if width == WIDE else 118), width - 66
        shapes = []
        for index, (label, one) in enumerate(rows):
            y, at = TOP + ROW * index, float(left)
            shapes.append(words(left - 8, y + 14, shorten(label, left - 8), "label", "end"))
            for value, class_, what in (
                (one.text_tokens, "bar reference", "text"),
                (one.vision_tokens, "bar", "visual"),
            ):
                long = round((end - left) * value / top, 1)
                shapes.append(rect(at, y + 3, long, ROW - 6, class_, f"{label}: {count(value)} {what} tokens"))
                at += long
            shapes.append(words(at + 6, y + 14, count(one.tokens), "tick"))
        bottom = TOP + ROW * len(rows)
        shapes.append(line(left, TOP, left, bottom, "base"))
        shapes += [rect(left, bottom + 12, 11, 11, "bar reference"), words(left + 17, bottom + 22, "text", "tick")]
        shapes += [rect(left + 60, bottom + 12, 11, 11, "bar"), words(left + 77, bottom + 22, "visual tokens", "tick")]
        return bottom + 30, shapes

    spoken = "; ".join(f"{label}: {one.text_tokens} and {one.vision_tokens}" for label, one in rows)
    return chart(draw, f"Text and visual tokens. {spoken}")


# ---- conversations


def _conversations(found: Description, looks: Sequence[Look]) -> Section | None:
    if not looks:
        return None
    hidden = found.total.samples - len(looks)
    reading = f"All {count(len(looks))} conversations" if not hidden else f"{count(len(looks))} conversations"
    reading += ": the first question and its answer, pictures made small."
    if hidden:
        reading += f" {count(hidden)} more are not shown; these are evenly taken over the mix."
    filters, classes = _filters(looks)
    several = len(found.sources) > 1
    cards = [_card(look, classes, several) for look in looks]
    deck = tag("div", *filters, tag("div", *cards, class_="looks"), class_="deck")
    return section("conversations", "Conversations", reading, deck)


def _filters(looks: Sequence[Look]) -> tuple[list[Markup], dict[tuple[str, str], str]]:
    """A row of radio buttons for each property that differs, and the class of every value."""
    rows: list[Markup] = []
    classes: dict[tuple[str, str], str] = {}
    for name in ("modality", "source", "mode", "language"):
        values = list(dict.fromkeys(getattr(look, name) for look in looks))
        if name == "modality":
            values = [kind for kind in KINDS if kind in values]
        if len(values) < 2 or len(classes) + len(values) > CHOICES:
            continue
        buttons = [_button(name, "all", f"{name}-all", True)]
        for value in values:
            class_ = f"k{len(classes)}"
            classes[name, value] = class_
            buttons.append(_button(name, KINDS.get(value, value), f"f-{class_}", False, class_))
        rows.append(tag("fieldset", tag("legend", name), *buttons))
    return rows, classes


def _button(name: str, label: str, id_: str, checked: bool, class_: str | None = None) -> Markup:
    return tag(
        "label", tag("input", type="radio", name=name, id=id_, checked=checked, class_=class_), tag("span", said(label))
    )


def _card(look: Look, classes: dict[tuple[str, str], str], several: bool) -> Markup:
    own = [classes.get((name, getattr(look, name))) for name in ("modality", "source", "mode", "language")]
    badges = [KINDS[look.modality], look.mode, look.language, *([look.source] if several else [])]
    badges += [f"{look.turns} turns"] if look.turns > 1 else []
    badges += [f"{look.tools} tools"] if look.tools else []
    badges += ["shortened"] if look.shortened else []
    facts = f"{count(look.tokens)} tokens"
    if look.vision_tokens:
        facts += f", {count(look.vision_tokens)} of them visual"
    shown = [_thumbnail(one, look, number) for number, one in enumerate(look.thumbnails, start=1)]
    if look.more:
        shown.append(tag("figure", f"+ {look.more}", class_="more"))
    answer = look.answer or "no answer"
    return tag(
        "article",
        tag("h3", said(look.id)),
        tag("p", *(said(badge, class_="badge") for badge in badges)),
        tag("div", *shown, class_="thumbs") if shown else None,
        said(look.question or "no text", "p", class_="text asked" if look.question else "weak"),
        said(answer, "p", class_="text answered" if look.answer else "weak"),
        tag("p", facts, class_="facts"),
        class_=" ".join(["look", *filter(None, own)]),
    )


def _thumbnail(one: Thumbnail, look: Look, number: int) -> Markup | None:
    what = "Frame" if one.frame else "Picture"
    image = picture(one.uri, f"{what} {number} of {look.id}")
    caption = tag("figcaption", f"{one.width} × {one.height}")
    return None if image is None else tag("figure", image, caption, class_="frame" if one.frame else None)


def _settings(found: Description, options: dict[str, Any]) -> Section:
    reading = "The same sources and options give the same inputs, to the last bit: the fingerprint is a hash of these."
    rows = [[Cell("fingerprint"), Cell(found.fingerprint)]]
    rows += [[Cell(name.replace("_", " ")), Cell(plain(value))] for name, value in options.items() if value is not None]
    table = Table("Options", [Column("option", False), Column("value", False)], [(None, rows)])
    return section("settings", "Options and fingerprint", reading, render(table, class_="pairs"))
