"""Formulas set by a small layout of our own; the LaTeX, the drawing and the worked answer come from one tree."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from drawn.base import INK, WHITE, Board, Colour, Draft, Draw, Picture
from drawn.words import ask

LATEX = (
    ("Write this formula in LaTeX.", "Transcribe the formula as LaTeX.", "LaTeX code, please."),
    ("请用LaTeX写出这个公式。", "把公式转写成LaTeX。", "给出公式的LaTeX代码。"),
)
WORK = (
    ("Work it out step by step.", "What is the result? Show the steps.", "Solve it and explain."),
    ("请一步一步计算。", "结果是多少？写出步骤。", "求出结果并说明过程。"),
)
Extent = tuple[float, float, float]  # width, height above and depth below the axis


@dataclass(frozen=True)
class Node:
    """A piece of a formula: its LaTeX, how large it is at a font size, how to draw it with its axis at y."""

    latex: str
    extent: Callable[[Board, float], Extent]
    draw: Callable[[Board, float, float, float], None]


def text(value: str, latex: str | None = None, style: str | None = None) -> Node:
    """Letters in italics, anything else upright."""
    face = style or ("italic" if value.isalpha() and value.isascii() else "serif")
    return Node(
        latex if latex is not None else value,
        lambda b, s: (b.wide(value, s, face), s * 0.55, s * 0.45),
        lambda b, x, y, s: b.text(x, y, value, s, INK, face, "lm"),
    )


def row(*parts: Node | str) -> Node:
    """Pieces side by side."""
    nodes = [p if isinstance(p, Node) else text(p) for p in parts]

    def extent(board: Board, size: float) -> Extent:
        sizes = [n.extent(board, size) for n in nodes]
        gaps = size * 0.14 * (len(nodes) - 1)
        return sum(s[0] for s in sizes) + gaps, max(s[1] for s in sizes), max(s[2] for s in sizes)

    def draw(board: Board, x: float, y: float, size: float) -> None:
        for node in nodes:
            node.draw(board, x, y, size)
            x += node.extent(board, size)[0] + size * 0.14

    return Node(" ".join(n.latex for n in nodes), extent, draw)


def frac(top: Node, bottom: Node) -> Node:
    """A fraction."""

    def extent(board: Board, size: float) -> Extent:
        a, b = top.extent(board, size * 0.85), bottom.extent(board, size * 0.85)
        return max(a[0], b[0]) + size * 0.3, a[1] + a[2] + size * 0.15, b[1] + b[2] + size * 0.15

    def draw(board: Board, x: float, y: float, size: float) -> None:
        width = extent(board, size)[0]
        a, b = top.extent(board, size * 0.85), bottom.extent(board, size * 0.85)
        top.draw(board, x + (width - a[0]) / 2, y - a[2] - size * 0.1, size * 0.85)
        bottom.draw(board, x + (width - b[0]) / 2, y + b[1] + size * 0.1, size * 0.85)
        board.line([(x, y), (x + width, y)], INK, size * 0.05)

    return Node(rf"\frac{{{top.latex}}}{{{bottom.latex}}}", extent, draw)


def power(base: Node, exponent: Node) -> Node:
    """A raised exponent."""

    def extent(board: Board, size: float) -> Extent:
        a, b = base.extent(board, size), exponent.extent(board, size * 0.6)
        return a[0] + b[0], max(a[1], size * 0.4 + b[1]), a[2]

    def draw(board: Board, x: float, y: float, size: float) -> None:
        base.draw(board, x, y, size)
        exponent.draw(board, x + base.extent(board, size)[0], y - size * 0.4, size * 0.6)

    return Node(f"{base.latex}^{{{exponent.latex}}}", extent, draw)


def root(inner: Node) -> Node:
    """A square root."""

    def extent(board: Board, size: float) -> Extent:
        a = inner.extent(board, size)
        return a[0] + size * 0.75, a[1] + size * 0.2, a[2]

    def draw(board: Board, x: float, y: float, size: float) -> None:
        wide, up, down = inner.extent(board, size)
        top = y - up - size * 0.08
        board.line(
            [
                (x, y + down * 0.3),
                (x + size * 0.15, y + down * 0.1),
                (x + size * 0.35, y + down),
                (x + size * 0.55, top),
                (x + size * 0.7 + wide, top),
            ],
            INK,
            size * 0.05,
        )
        inner.draw(board, x + size * 0.62, y, size)

    return Node(rf"\sqrt{{{inner.latex}}}", extent, draw)


def large(sign: str, latex: str, lower: Node, upper: Node) -> Node:
    """A sum or an integral with its limits below and above."""

    def extent(board: Board, size: float) -> Extent:
        width = max(
            board.wide(sign, size * 1.7, "serif"),
            lower.extent(board, size * 0.6)[0],
            upper.extent(board, size * 0.6)[0],
        )
        return width + size * 0.15, size * 1.75, size * 1.75

    def draw(board: Board, x: float, y: float, size: float) -> None:
        width = extent(board, size)[0]
        board.text(x + width / 2, y, sign, size * 1.7, INK, "serif", "mm")
        for node, offset in ((lower, 1.4), (upper, -1.4)):
            node.draw(board, x + (width - node.extent(board, size * 0.6)[0]) / 2, y + size * offset, size * 0.6)

    return Node(rf"{latex}_{{{lower.latex}}}^{{{upper.latex}}}", extent, draw)


def matrix(cells: list[list[int]], bars: bool = False) -> Node:
    """A matrix in brackets, or a determinant between bars."""
    kind = "vmatrix" if bars else "pmatrix"
    latex = rf"\begin{{{kind}}} " + r" \\ ".join(" & ".join(map(str, line)) for line in cells) + rf" \end{{{kind}}}"

    def extent(board: Board, size: float) -> Extent:
        return size * (2.0 * len(cells[0]) + 0.1), size * 0.75 * len(cells), size * 0.75 * len(cells)

    def draw(board: Board, x: float, y: float, size: float) -> None:
        wide, up, down = extent(board, size)
        for edge, side in ((x + size * 0.1, 1), (x + wide - size * 0.1, -1)):
            bow = 0.0 if bars else size * 0.18 * side
            board.line(
                [(edge + bow, y - up), (edge, y - up * 0.6), (edge, y + down * 0.6), (edge + bow, y + down)]
                if bow
                else [(edge, y - up), (edge, y + down)],
                INK,
                size * 0.05,
            )
        for i, line in enumerate(cells):
            for j, value in enumerate(line):
                spot = (x + size * (1.05 + 2.0 * j), y - up + size * (0.75 + 1.5 * i))
                board.text(*spot, minus(str(value)), size, INK, "serif", "mm")

    return Node(latex, extent, draw)


Made = tuple[Node, str, str]  # formula, worked answer in English, in Chinese


def fractions(draw: Draw) -> Made:
    """The sum of two fractions."""
    a, c = draw.rng.randrange(1, 9), draw.rng.randrange(1, 9)
    b, d = draw.rng.sample((3, 4, 5, 6, 7, 8, 9, 12), 2)
    total, base = Fraction(a, b) + Fraction(c, d), math.lcm(b, d)
    steps = f"{a}/{b} = {a * base // b}/{base}, {c}/{d} = {c * base // d}/{base}"
    shown = f"{a * base // b + c * base // d}/{base}"
    end = "" if shown == str(total) else f" = {total}"
    node = row(frac(text(str(a)), text(str(b))), "+", frac(text(str(c)), text(str(d))), "=", "?")
    return (
        node,
        f"The common denominator of {b} and {d} is {base}: {steps}. The sum is {shown}{end}.",
        f"{b}和{d}的公分母是{base}：{steps}。相加得{shown}{end}。",
    )


def squares(draw: Draw) -> Made:
    """A sum of powers."""
    n, p = draw.rng.randrange(3, 8), draw.rng.choice((1, 2, 3))
    terms = [k**p for k in range(1, n + 1)]
    inner = power(text("k"), text(str(p))) if p > 1 else text("k")
    node = row(large("∑", r"\sum", row("k", "=", "1"), text(str(n))), inner)
    sums = " + ".join(map(str, terms))
    return node, f"The terms are {sums}. Their sum is {sum(terms)}.", f"各项为{sums}，总和是{sum(terms)}。"


def hypotenuse(draw: Draw) -> Made:
    """The root of a sum of two squares."""
    a, b, c = triple(draw)
    node = row(root(row(power(text(str(a)), text("2")), "+", power(text(str(b)), text("2")))), "=", "?")
    return (
        node,
        f"{a}² = {a * a} and {b}² = {b * b}. Their sum is {a * a + b * b}, and its root is {c}.",
        f"{a}² = {a * a}，{b}² = {b * b}，和为{a * a + b * b}，平方根是{c}。",
    )


def triple(draw: Draw) -> tuple[int, int, int]:
    """Three whole numbers with a² + b² = c²."""
    times = draw.rng.randrange(1, 4)
    a, b, c = draw.rng.choice(((3, 4, 5), (5, 12, 13), (8, 15, 17)))
    return a * times, b * times, c * times


def determinant(draw: Draw) -> Made:
    """A determinant of 2 x 2."""
    (a, b), (c, d) = cells = [[draw.rng.randrange(-6, 10) for _ in range(2)] for _ in range(2)]
    steps = f"({a})·({d}) − ({b})·({c}) = {a * d} − ({b * c}) = {a * d - b * c}"
    return row(matrix(cells, True), "=", "?"), f"The determinant is {steps}.", f"行列式为{steps}。"


def product(draw: Draw) -> Made:
    """A matrix times a vector."""
    m = [[draw.rng.randrange(0, 7) for _ in range(2)] for _ in range(2)]
    x, y = draw.rng.randrange(1, 7), draw.rng.randrange(1, 7)
    first, second = m[0][0] * x + m[0][1] * y, m[1][0] * x + m[1][1] * y
    lines = (
        f"{m[0][0]}·{x} + {m[0][1]}·{y} = {first}",
        f"{m[1][0]}·{x} + {m[1][1]}·{y} = {second}",
    )
    return (
        row(matrix(m), matrix([[x], [y]]), "=", "?"),
        f"First row: {lines[0]}. Second row: {lines[1]}. The result is the vector ({first}, {second}).",
        f"第一行：{lines[0]}。第二行：{lines[1]}。结果是向量({first}, {second})。",
    )


def integral(draw: Draw) -> Made:
    """A definite integral of a polynomial."""
    p, q, end = 3 * draw.rng.randrange(1, 4), 2 * draw.rng.randrange(1, 5), draw.rng.randrange(1, 5)
    value = p // 3 * end**3 + q // 2 * end**2
    inner = row("(", text(str(p)), power(text("x"), text("2")), "+", text(str(q)), "x", ")")
    node = row(large("∫", r"\int", text("0"), text(str(end))), inner, text("d", r"\,d"), "x")
    first, second = p // 3, q // 2
    shown = f"{'' if first == 1 else first}x³ + {'' if second == 1 else second}x²"
    values = f"{first}·{end**3} + {second}·{end**2} = {value}"
    return (
        node,
        f"An antiderivative is {shown}. At {end} it is {values}, at 0 it is 0, so the integral is {value}.",
        f"原函数是{shown}。代入{end}得{values}，代入0得0，所以积分等于{value}。",
    )


def minus(value: str) -> str:
    """The text with the sign for minus instead of hyphens."""
    return value.replace("-", "−")


def quadratic(draw: Draw) -> Made:
    """A quadratic equation with whole roots, by the formula."""
    r, s = draw.rng.sample((-6, -4, -3, -2, -1, 1, 2, 3, 5, 7), 2)
    b, c = -(r + s), r * s
    under = row(
        power(text(minus(f"({b})"), f"({b})"), text("2")),
        text("−", "-"),
        text("4·", r"4 \cdot"),
        text(minus(f"({c})"), f"({c})"),
    )
    node = row("x", "=", frac(row(text(minus(f"-({b})"), f"-({b})"), text("±", r"\pm"), root(under)), text("2")))
    width = b * b - 4 * c
    up, down = (-b + math.isqrt(width)) // 2, (-b - math.isqrt(width)) // 2
    steps = f"({b})² − 4·({c}) = {width}"
    return (
        node,
        f"Under the root: {steps}, whose root is {math.isqrt(width)}. So x = ({-b} ± {math.isqrt(width)})/2, "
        f"which gives x = {up} or x = {down}.",
        f"根号下：{steps}，平方根为{math.isqrt(width)}。所以x = ({-b} ± "
        f"{math.isqrt(width)})/2，即x = {up}或x = {down}。",
    )


MAKERS = (fractions, squares, quadratic, determinant, integral, hypotenuse, product)
SIZES = (26.0, 44.0, 60.0, 20.0, 90.0, 34.0, 48.0)


def formula(draw: Draw) -> Draft:
    """One formula on paper or a dark board, with its LaTeX and its value."""
    node, en, zh = MAKERS[draw.index % len(MAKERS)](draw)
    size = SIZES[draw.index % len(SIZES)]
    trial = Board(draw, 10, 10, 1.0, WHITE)
    width, up, down = node.extent(trial, size)
    paper: Colour = draw.rng.choice((WHITE, (250, 248, 240), (238, 242, 248)))
    board = Board(draw, width + size * 2, up + down + size * 1.6, 1.0, paper)
    node.draw(board, size, up + size * 0.8, size)
    code = f"$$ {node.latex} $$"
    turns = [(ask(draw, LATEX), code), (ask(draw, WORK), draw.say(en, zh))]
    return Draft("formula", [Picture(board.done(), "flat:12")], turns)


KINDS = {"formula": formula}
