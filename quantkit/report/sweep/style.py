"""How shapes look on paper: one table, from which the SVG's style sheet is written and the PNG is drawn.

The pages' own style sheets name the same classes, in their light and dark colours.
"""

from __future__ import annotations

from dataclasses import dataclass

INK, WEAK, LINE, PAPER = "#16191d", "#56606b", "#d8dce1", "#ffffff"
SERIES_COLOURS = ("#1d5a96", "#b4530a", "#1a7a48", "#8a3a9e", "#b3243e", "#0a7c84", "#7a6400", "#5b6570")
HEAT = ("#f1f5f9", "#dbe7f3", "#bfd5ea", "#97bcdd", "#6fa3cf", "#3573a8", "#245f95", "#123f6b")
FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Style:
    """What a class says; None: nothing. Widths in pixels; `halo`: colour around letters."""

    fill: str | None = None
    stroke: str | None = None
    width: float | None = None
    dash: tuple[float, float] | None = None
    size: float | None = None
    halo: str | None = None

    def css(self) -> str:
        """As a rule's body."""
        parts = {
            "fill": self.fill, "stroke": self.stroke, "stroke-width": self.width,
            "stroke-dasharray": None if self.dash is None else "{:g} {:g}".format(*self.dash),
            "font-size": None if self.size is None else f"{self.size:g}px",
        }  # fmt: skip
        if self.halo is not None:
            parts |= {"paint-order": "stroke", "stroke": self.halo, "stroke-width": 4, "stroke-linejoin": "round"}
        return "; ".join(f"{name}: {value}" for name, value in parts.items() if value is not None)

    def under(self, other: Style) -> Style:
        """This style with what another says put on top."""
        values = {
            name: mine if (mine := getattr(other, name)) is not None else getattr(self, name)
            for name in self.__dataclass_fields__
        }
        return Style(**values)


TEXT = Style(fill=INK, size=12)
# in the order of a style sheet: a later class goes on top of an earlier one
CLASSES: dict[str, Style] = {
    "paper": Style(fill=PAPER),
    "tick": Style(fill=WEAK, size=11),
    "axis": Style(fill=WEAK, size=11),
    "noise-label": Style(fill=WEAK, size=11),
    "cell": Style(size=10.5),
    "on": Style(halo=PAPER),
    "grid": Style(stroke=LINE, width=1),
    "base": Style(stroke=WEAK, width=1),
    "whisker": Style(stroke=WEAK, width=1.1),
    **{f"w{index}": Style(stroke=colour) for index, colour in enumerate(SERIES_COLOURS)},
    "floor": Style(stroke=WEAK, width=1, dash=(4, 3)),
    "front": Style(fill="none", stroke=WEAK, width=1.4, dash=(2, 3)),
    "mark": Style(stroke=PAPER, width=1),
    **{f"s{index}": Style(fill=colour) for index, colour in enumerate(SERIES_COLOURS)},
    **{f"q{index}": Style(fill=colour) for index, colour in enumerate(HEAT)},
    **{f"on{index}": Style(fill=INK if index < 5 else PAPER) for index in range(len(HEAT))},
}


def style_of(tag: str, classes: str) -> Style:
    """The style of an element by its classes, as a browser would find it."""
    names = classes.split()
    found = TEXT if tag == "text" else Style()
    for name, style in CLASSES.items():
        if name in names:
            found = found.under(style)
    return found


def style_sheet() -> str:
    """The same as CSS."""
    rules = [f"text {{ {TEXT.css()}; font-family: {FONTS} }}"]
    return "\n".join([*rules, *(f".{name} {{ {style.css()} }}" for name, style in CLASSES.items())])
