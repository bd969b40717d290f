"""A plot's SVG as a PNG, for whoever cannot place SVG.

What is drawn is the SVG itself, read back: its lines, rectangles, circles, polylines, polygons and text with the styles
of `style`, which is all that plots are made of; anything else is an error. Pillow draws them, which quantkit needs
anyway, and the letters are those of the scalable font that Pillow brings, so no font of the machine is asked for.
Shapes are drawn at twice the size and made smaller, since Pillow's own have hard edges.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree as ET

from quantkit.report.sweep.style import PAPER, Style, style_of

logger = logging.getLogger(__name__)
SVG = "{http://www.w3.org/2000/svg}"
SCALE = 3  # pixels of the picture a pixel of the drawing
SMOOTH = 2  # times that, before it is made smaller
DPI = 300
# what Pillow's font lacks, as what it has
LIKE = str.maketrans({"\u2212": "-", "\u2264": "<=", "\u202f": " "})
Point = tuple[float, float]


def to_png(svg: str) -> bytes:
    """The picture of a plot's SVG, `SCALE` times its size. ValueError for an element that no plot has."""
    from PIL import Image, ImageDraw

    root = ET.fromstring(svg)
    width, height = round(float(root.attrib["width"])), round(float(root.attrib["height"]))
    large = Image.new("RGB", (width * SCALE * SMOOTH, height * SCALE * SMOOTH), PAPER)
    letters: list[tuple[ET.Element, Style]] = []
    for element in _elements(root):
        name = element.tag.removeprefix(SVG)
        style = style_of(name, element.get("class", ""))
        if name == "text":
            letters.append((element, style))
        elif name in _SHAPES:
            _SHAPES[name](ImageDraw.Draw(large), element, style)
        elif name not in ("style", "title", "svg", "g"):
            raise ValueError(f"<{name}>: not drawn in a PNG")
    picture = large.reduce(SMOOTH)
    draw = ImageDraw.Draw(picture)
    for element, style in letters:
        _text(draw, element, style)
    out = io.BytesIO()
    picture.save(out, "PNG", dpi=(DPI, DPI))
    return out.getvalue()


def _elements(root: ET.Element) -> list[ET.Element]:
    return [element for element in root.iter() if element.tag != f"{SVG}title"]


def _at(value: str | None) -> float:
    return float(value or 0) * SCALE * SMOOTH


def _line(draw: Any, element: ET.Element, style: Style) -> None:
    ends = [(_at(element.get(f"x{end}")), _at(element.get(f"y{end}"))) for end in (1, 2)]
    _stroke(draw, ends, style)


def _polyline(draw: Any, element: ET.Element, style: Style) -> None:
    _stroke(draw, _points(element), style)


def _polygon(draw: Any, element: ET.Element, style: Style) -> None:
    corners = _points(element)
    draw.polygon(corners, fill=style.fill or "#000000")
    _stroke(draw, [*corners, corners[0], corners[1]], style)


def _rect(draw: Any, element: ET.Element, style: Style) -> None:
    left, top = _at(element.get("x")), _at(element.get("y"))
    right, bottom = left + _at(element.get("width")), top + _at(element.get("height"))
    if right > left and bottom > top and style.fill != "none":
        draw.rectangle((left, top, right - 1, bottom - 1), fill=style.fill or "#000000")


def _circle(draw: Any, element: ET.Element, style: Style) -> None:
    x, y, radius = (_at(element.get(name)) for name in ("cx", "cy", "r"))
    half = _at(str(style.width or 0)) / 2 if style.stroke else 0.0
    for reach, colour in ((radius + half, style.stroke), (radius - half, style.fill or "#000000")):
        if colour and colour != "none":
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)


_SHAPES = {"line": _line, "polyline": _polyline, "polygon": _polygon, "rect": _rect, "circle": _circle}


def _points(element: ET.Element) -> list[Point]:
    pairs = (pair.split(",") for pair in element.get("points", "").split())
    return [(_at(x), _at(y)) for x, y in pairs]


def _stroke(draw: Any, points: list[Point], style: Style) -> None:
    """A line through points, in dashes where the style says so."""
    if style.stroke is None or len(points) < 2:
        return
    width = max(1, round(_at(str(style.width or 1))))
    if style.dash is None:
        draw.line(points, fill=style.stroke, width=width, joint="curve")
        return
    for dash in _dashes(points, [_at(str(length)) for length in style.dash]):
        draw.line(dash, fill=style.stroke, width=width)


def _dashes(points: list[Point], lengths: list[float]) -> list[tuple[Point, Point]]:
    """The drawn parts of a dashed line; the pattern runs on around corners, as in SVG."""
    found, index, left = [], 0, lengths[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        whole, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while whole - done > 1e-9:
            step = min(left, whole - done)
            if index % 2 == 0:
                a, b = done / whole, (done + step) / whole
                found.append(((x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)))
            done, left = done + step, left - step
            if left <= 1e-9:
                index += 1
                left = lengths[index % 2]
    return found


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text(draw: Any, element: ET.Element, style: Style) -> None:
    font = _font(round((style.size or 12) * SCALE))
    content = _known("".join(element.itertext()).translate(LIKE), font)
    x, y = (float(element.get(name, "0")) * SCALE for name in ("x", "y"))
    anchor = {"middle": "ms", "end": "rs"}.get(element.get("text-anchor", ""), "ls")
    halo = {"stroke_width": 2 * SCALE, "stroke_fill": style.halo} if style.halo else {}
    if halo:
        draw.text((x, y), content, font=font, fill=style.halo, anchor=anchor, **halo)
    draw.text((x, y), content, font=font, fill=style.fill or "#000000", anchor=anchor)


def _known(content: str, font: Any) -> str:
    """The text with "?" for what the font cannot write, which is said once for each text."""
    kept = "".join(character if _has(font, character) else "?" for character in content)
    if kept != content:
        logger.warning("PNG: Pillow's font cannot write all of %r; the SVG has it", content)
    return kept


@lru_cache(maxsize=4096)
def _has(font: Any, character: str) -> bool:
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
