"""What every maker of the calibration set uses: fonts, a board to draw on, drafts, how pictures are stored.

A maker is a function `Draw -> Draft`. `Draw` carries the item's own random stream, so any item can be made alone and
comes out the same. A board has logical units: the same layout can be drawn at any size in pixels.
"""

import io
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

T = TypeVar("T")
Colour = tuple[int, int, int]
INK: Colour = (28, 30, 36)
WHITE: Colour = (255, 255, 255)
GREY: Colour = (132, 138, 148)
PALE: Colour = (236, 239, 243)
RULE: Colour = (196, 201, 209)
NAMED: dict[str, tuple[str, Colour]] = {
    "red": ("红色", (206, 46, 44)),
    "orange": ("橙色", (240, 138, 32)),
    "green": ("绿色", (46, 148, 84)),
    "blue": ("蓝色", (40, 98, 190)),
    "purple": ("紫色", (126, 74, 160)),
    "teal": ("青色", (20, 150, 156)),
    "brown": ("棕色", (134, 90, 52)),
    "pink": ("粉色", (226, 110, 150)),
}
DEJAVU = {
    "regular": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
    "serif": "DejaVuSerif.ttf",
    "italic": "DejaVuSerif-Italic.ttf",
}
NO_LINE_START = "，。、；：！？）》」”%"


class MissingFont(RuntimeError):
    """No font for Chinese on this machine."""


@cache
def matplotlib_fonts() -> Path:
    """The folder of the DejaVu fonts that matplotlib brings."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def is_chinese(text: str) -> bool:
    """Whether a text needs the CJK font."""
    return any("\u2e80" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uffef" for c in text)


class Fonts:
    """Fonts by size, style and script; Chinese from fontconfig's Noto Sans CJK SC, or from the file given."""

    def __init__(self, cjk: Path | None = None) -> None:
        self.cjk = cjk
        self.made: dict[tuple[int, str, bool], ImageFont.FreeTypeFont] = {}

    def get(self, size: int, style: str, chinese: bool) -> ImageFont.FreeTypeFont:
        """A font of `size` pixels. Raises `MissingFont` where Chinese is asked for and there is none."""
        key = (size, style, chinese)
        if key not in self.made:
            file, index = self.chinese(style == "bold") if chinese else (matplotlib_fonts() / DEJAVU[style], 0)
            self.made[key] = ImageFont.truetype(file, size, index=index, layout_engine=ImageFont.Layout.BASIC)
        return self.made[key]

    def chinese(self, bold: bool) -> tuple[Path, int]:
        """File and face index of the CJK font."""
        if self.cjk:
            return self.cjk, 0
        query = ["fc-match", "-f", "%{file}|%{index}|%{family}", f"Noto Sans CJK SC:{'bold' if bold else 'regular'}"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("|")
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingFont("fontconfig's fc-match does not run; give --cjk-font FILE") from error
        if len(found) != 3 or "CJK" not in found[2]:
            raise MissingFont("no Noto Sans CJK font found; install fonts-noto-cjk or give --cjk-font FILE")
        return Path(found[0]), int(found[1])


@dataclass(frozen=True)
class Draw:
    """What a maker gets: its random stream, the language, its place among its kind, the fonts."""

    rng: random.Random
    language: str  # "en" or "zh"
    index: int
    fonts: Fonts

    @property
    def zh(self) -> bool:
        """Whether the conversation is in Chinese."""
        return self.language == "zh"

    def say(self, english: T, chinese: T) -> T:
        """One of the two, by the language."""
        return chinese if self.zh else english

    def one(self, english: Sequence[T], chinese: Sequence[T]) -> T:
        """A random one of the pool of the language."""
        return self.rng.choice(self.say(english, chinese))

    def noise(self) -> np.random.Generator:
        """A NumPy stream seeded from the item's own."""
        return np.random.default_rng(self.rng.getrandbits(32))


@dataclass(frozen=True)
class Picture:
    """A drawn picture and how it is stored: "flat:N" (PNG, N colours), "jpeg:Q", "webp:Q"."""

    image: Image.Image
    codec: str = "flat:32"

    @property
    def suffix(self) -> str:
        """The file's ending."""
        return {"flat": "png", "jpeg": "jpg", "webp": "webp"}[self.codec.split(":")[0]]

    def encode(self) -> bytes:
        """The file's bytes."""
        kind, number = self.codec.split(":")
        buffer, picture = io.BytesIO(), self.image.convert("RGB")
        if kind == "jpeg":
            picture.save(buffer, "JPEG", quality=int(number), optimize=True)
        elif kind == "webp":
            picture.save(buffer, "WEBP", quality=int(number), method=6)
        else:
            palette = picture.quantize(int(number), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            palette.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


@dataclass
class Draft:
    """One conversation on its way: pictures and questions with answers, or the messages of a chat of text alone.

    `turns` holds every question that the picture answers; the set's writer keeps one to four of them. With `all_turns`
    it keeps all, with `apart` picture i comes with turn i.
    """

    task: str
    pictures: list[Picture] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    system: str = ""
    clip: bool = False
    all_turns: bool = False
    apart: bool = False


class Board:
    """A canvas of `width` x `height` units, `scale` pixels a unit, drawn at twice the size for smooth edges."""

    def __init__(
        self, draw: Draw, width: float, height: float, scale: float = 1.0, colour: Colour = WHITE, smooth: int = 2
    ) -> None:
        self.width, self.height, self.fonts = width, height, draw.fonts
        self.smooth, self.zoom = smooth, scale * smooth
        self.size = (max(1, round(width * scale)), max(1, round(height * scale)))
        self.image = Image.new("RGB", (self.size[0] * smooth, self.size[1] * smooth), colour)
        self.pen = ImageDraw.Draw(self.image)

    def under(self, array: np.ndarray) -> None:
        """Lay a picture [h, w, 3] uint8 under everything, stretched to the canvas."""
        self.image.paste(Image.fromarray(array).resize(self.image.size, Image.Resampling.BICUBIC))

    def px(self, *values: float) -> list[float]:
        """Units as pixels of the doubled canvas."""
        return [v * self.zoom for v in values]

    def thick(self, width: float) -> int:
        """A line's thickness in pixels, at least one."""
        return max(1, round(width * self.zoom))

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Colour | None = None,
        edge: Colour | None = None,
        line: float = 1.0,
        round_: float = 0.0,
    ) -> None:
        """A rectangle, with rounded corners of radius `round_`."""
        box = self.px(x0, y0, x1, y1)
        width = self.thick(line) if edge else 0
        self.pen.rounded_rectangle(box, round_ * self.zoom, fill=fill, outline=edge, width=width)

    def disc(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        fill: Colour | None = None,
        edge: Colour | None = None,
        line: float = 1.0,
    ) -> None:
        """An ellipse around (x, y)."""
        ry = rx if ry is None else ry
        box = self.px(x - rx, y - ry, x + rx, y + ry)
        self.pen.ellipse(box, fill=fill, outline=edge, width=self.thick(line) if edge else 0)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour = INK, width: float = 1.0) -> None:
        """A line through points, with round joints."""
        flat = [tuple(self.px(*p)) for p in points]
        self.pen.line(flat, fill=colour, width=self.thick(width), joint="curve")

    def shape(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """A filled polygon."""
        self.pen.polygon([tuple(self.px(*p)) for p in points], fill=fill)

    def slice(self, x: float, y: float, radius: float, start: float, end: float, fill: Colour) -> None:
        """A slice of a pie; angles in degrees, clockwise from three o'clock."""
        self.pen.pieslice(self.px(x - radius, y - radius, x + radius, y + radius), start, end, fill=fill)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, colour: Colour = INK, width: float = 1.5) -> None:
        """A line with a head at (x1, y1)."""
        direction = np.array([x1 - x0, y1 - y0], dtype=float)
        direction /= max(1e-6, float(np.hypot(*direction)))
        side, head, tip = np.array([-direction[1], direction[0]]), 4.0 * width, np.array([x1, y1])
        base = tip - direction * head
        self.line([(x0, y0), tuple(base)], colour, width)
        self.shape([tuple(tip), tuple(base + side * head * 0.5), tuple(base - side * head * 0.5)], colour)

    def font(self, text: str, size: float, style: str) -> ImageFont.FreeTypeFont:
        """The font for this text at `size` units."""
        return self.fonts.get(max(6, round(size * self.zoom)), style, is_chinese(text))

    def wide(self, text: str, size: float, style: str = "regular") -> float:
        """The text's width in units."""
        return self.font(text, size, style).getlength(text) / self.zoom

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        colour: Colour = INK,
        style: str = "regular",
        anchor: str = "la",
    ) -> None:
        """One line of text; `anchor` as in Pillow."""
        self.pen.text(self.px(x, y), text, fill=colour, font=self.font(text, size, style), anchor=anchor)

    def fit(self, text: str, size: float, width: float, style: str = "regular") -> float:
        """The size, or the smaller one at which the text is no wider than `width`."""
        return min(size, size * width / max(1e-6, self.wide(text, size, style)))

    def wrap(self, text: str, size: float, width: float, style: str = "regular") -> list[str]:
        """The text in lines no wider than `width`: English between words, Chinese between characters."""
        pieces = list(text) if is_chinese(text) else [word + " " for word in text.split(" ")]
        lines, current = [], ""
        for piece in pieces:
            too_wide = self.wide((current + piece).rstrip(), size, style) > width
            if current and too_wide and piece not in NO_LINE_START:
                lines.append(current.rstrip())
                current = ""
            current += piece
        return [*lines, current.rstrip()]

    def paragraph(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        size: float = 12,
        colour: Colour = INK,
        style: str = "regular",
        leading: float = 1.5,
    ) -> float:
        """Wrapped text; returns the y below its last line."""
        for line in self.wrap(text, size, width, style):
            self.text(x, y, line, size, colour, style)
            y += size * leading
        return y

    def done(self) -> Image.Image:
        """The finished picture."""
        return self.image.resize(self.size, Image.Resampling.BOX) if self.smooth > 1 else self.image


def octaves(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int], levels: int = 5) -> np.ndarray:
    """Fractal noise [height, width] float32 in 0..1: random grids, each twice as fine and half as strong."""
    total, strength = np.zeros((height, width), dtype=np.float32), 1.0
    rows, columns = cells
    for _ in range(levels):
        grid = Image.fromarray(rng.random((rows + 1, columns + 1), dtype=np.float32))
        total += strength * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        rows, columns, strength = min(height, rows * 2), min(width, columns * 2), strength / 2
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(1e-6, high - low)


def blend(low: Colour, high: Colour, amount: np.ndarray) -> np.ndarray:
    """Colours between two, [h, w] of 0..1 -> [h, w, 3] uint8."""
    first, second = np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)
    return np.clip(first + amount[..., None] * (second - first), 0, 255).round().astype(np.uint8)


def camera(draw: Draw, picture: Image.Image, strength: float = 4.0) -> Image.Image:
    """The picture with a sensor's noise and darker corners."""
    rows, columns = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j].astype(np.float32)
    corners = 1 - 0.12 * (rows**2 + columns**2)
    noise = draw.noise().normal(0, strength, (picture.height, picture.width, 1))
    lit = np.asarray(picture, dtype=np.float32) * corners[..., None] + noise
    return Image.fromarray(np.clip(lit, 0, 255).round().astype(np.uint8))


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """The colour `amount` of the way from the first to the second."""
    r, g, b = (round(a + (c - a) * amount) for a, c in zip(first, second, strict=True))
    return r, g, b


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def article(word: str) -> str:
    """ "a red", "an orange"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def listed(words: Sequence[str], zh: bool) -> str:
    """ "a, b and c" or "a、b和c"."""
    if len(words) < 2:
        return "".join(words)
    return ("、" if zh else ", ").join(words[:-1]) + ("和" if zh else " and ") + words[-1]
