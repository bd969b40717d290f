"""Charts: bars, lines, pies and scatter plots, drawn from numbers that the answers are made from."""

import json
import math

from drawn.base import GREY, INK, NAMED, PALE, WHITE, Board, Draft, Draw, Picture, listed, markdown
from drawn.photo import photographed
from drawn.words import AS_JSON, AS_TABLE, DESCRIBE, MONTHS, SERIES, TOWNS, ask, pick, some

SIZES = (
    (640, 440, 1.0),
    (560, 400, 2.0),
    (420, 420, 0.6),
    (900, 360, 1.0),
    (480, 640, 1.1),
    (640, 480, 1.6),
    (360, 260, 0.8),
    (800, 500, 1.3),
    (640, 400, 3.0),
    (500, 380, 1.2),
)


def new_board(draw: Draw) -> tuple[Board, float, float]:
    """A white board of the size that is this item's turn."""
    width, height, scale = SIZES[draw.index % len(SIZES)]
    return Board(draw, width, height, scale, WHITE, smooth=2 if scale < 2 else 1), width, height


def nice_top(value: float) -> int:
    """A round number at or above `value`, divisible by four."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1) * 4
    return math.ceil(value / step) * step


def axes(board: Board, box: tuple[float, float, float, float], top: int) -> None:
    """Horizontal grid lines with their numbers, and both axes; the box is left, top, right, bottom."""
    left, upper, right, lower = box
    for part in range(5):
        y = lower - (lower - upper) * part / 4
        board.line([(left, y), (right, y)], PALE if part else INK, 1)
        board.text(left - 6, y, str(top * part // 4), 11, GREY, anchor="rm")
    board.line([(left, upper), (left, lower)], INK, 1)


def palette(draw: Draw, number: int) -> list[str]:
    """So many different colour names."""
    return draw.rng.sample(list(NAMED), number)


def colour_name(draw: Draw, name: str) -> str:
    """The colour in the language of the conversation."""
    return draw.say(name, NAMED[name][0])


def bar(draw: Draw) -> Draft:
    """A bar chart of one series, upright or lying, figures on the bars or not."""
    board, width, height = new_board(draw)
    goods, town = some(draw, SERIES, draw.rng.randrange(3, 7)), str(pick(draw, TOWNS))
    values = draw.rng.sample(range(15, 190), len(goods))
    colour = palette(draw, 1)[0]
    title = draw.say(f"Sold in {town} last year", f"{town}去年销量")
    board.text(width / 2, 14, title, 17, INK, "bold", "ma")
    top, marked = nice_top(max(values)), draw.rng.random() < 0.6
    if draw.index % 8 == 4:
        lying_bars(board, goods, values, NAMED[colour][1], (width, height, top))
    else:
        standing_bars(board, goods, values, NAMED[colour][1], (width, height, top), marked)
    exact = marked or draw.index % 8 == 4
    return Draft("chart", [Picture(board.done(), "flat:32")], bar_turns(draw, title, goods, values, colour, exact))


def standing_bars(
    board: Board,
    goods: list[str],
    values: list[int],
    colour: tuple[int, int, int],
    room: tuple[float, float, int],
    marked: bool,
) -> None:
    """Upright bars on a grid."""
    width, height, top = room
    axes(board, (56, 50, width - 20, height - 44), top)
    step = (width - 76) / len(goods)
    for index, (name, value) in enumerate(zip(goods, values, strict=True)):
        x, y = 56 + step * index, height - 44 - (height - 94) * value / top
        board.rect(x + step * 0.2, y, x + step * 0.8, height - 44, fill=colour)
        board.text(x + step / 2, height - 36, name, board.fit(name, 13, step * 0.96), INK, anchor="ma")
        if marked:
            board.text(x + step / 2, y - 3, str(value), 12, INK, "bold", "mb")


def lying_bars(
    board: Board, goods: list[str], values: list[int], colour: tuple[int, int, int], room: tuple[float, float, int]
) -> None:
    """Lying bars with their figures."""
    width, height, top = room
    step = (height - 70) / len(goods)
    for index, (name, value) in enumerate(zip(goods, values, strict=True)):
        y = 50 + step * index
        board.text(104, y + step / 2, name, board.fit(name, 13, 92), INK, anchor="rm")
        end = 112 + (width - 170) * value / top
        board.rect(112, y + step * 0.18, end, y + step * 0.82, fill=colour)
        board.text(end + 5, y + step / 2, str(value), 12, INK, "bold", "lm")


def bar_turns(
    draw: Draw, title: str, goods: list[str], values: list[int], colour: str, exact: bool
) -> list[tuple[str, str]]:
    """What one can ask about a bar chart; figures only where they are printed."""
    order = sorted(range(len(goods)), key=lambda i: -values[i])
    ranked = [goods[i] for i in order]
    high, low = order[0], order[-1]
    data = markdown(
        [draw.say("Item", "商品"), draw.say("Sold", "销量")], [[g, str(v)] for g, v in zip(goods, values, strict=True)]
    )
    en = [
        (
            ask(draw, DESCRIBE),
            f"A bar chart titled “{title}” with {len(goods)} {colour} bars: {listed(goods, False)}. "
            f"{goods[high]} sold most and {goods[low].lower()} least.",
        ),
        (
            "Which bar is the tallest or longest, and which the shortest?",
            f"{goods[high]} is first, {goods[low].lower()} is last.",
        ),
        ("Rank the items from most to least.", "\n".join(f"{i + 1}. {n}" for i, n in enumerate(ranked))),
    ]
    zh = [
        (
            ask(draw, DESCRIBE),
            f"这是一张题为“{title}”的条形图，共{len(goods)}个{NAMED[colour][0]}的条形：{listed(goods, True)}。"
            f"{goods[high]}卖得最多，{goods[low]}最少。",
        ),
        ("最长的是哪一项？最短的呢？", f"最长的是{goods[high]}，最短的是{goods[low]}。"),
        ("请从多到少排序。", "\n".join(f"{i + 1}. {n}" for i, n in enumerate(ranked))),
    ]
    if exact:
        en += [
            (ask(draw, AS_TABLE), data),
            (ask(draw, AS_JSON), json.dumps(dict(zip(goods, values, strict=True)))),
            (
                f"How much more of {goods[high].lower()} than {goods[low].lower()} was sold?",
                f"{values[high]} - {values[low]} = {values[high] - values[low]}",
            ),
        ]
        zh += [
            (ask(draw, AS_TABLE), data),
            (ask(draw, AS_JSON), json.dumps(dict(zip(goods, values, strict=True)), ensure_ascii=False)),
            (
                f"{goods[high]}比{goods[low]}多卖多少？",
                f"{values[high]} - {values[low]} = {values[high] - values[low]}，多卖{values[high] - values[low]}件。",
            ),
        ]
    return draw.say(en, zh)


def line(draw: Draw) -> Draft:
    """A chart of two lines over months, with a legend; every point has its figure."""
    board, width, height = new_board(draw)
    months, towns, colours = draw.say(*MONTHS)[: draw.rng.randrange(5, 9)], some(draw, TOWNS, 2), palette(draw, 2)
    level = [draw.rng.randrange(4, 12), draw.rng.randrange(24, 30)]
    series = [[level[k] + draw.rng.randrange(-3, 9) for _ in months] for k in range(2)]
    top = nice_top(max(map(max, series)) + 2)
    title = draw.say("Mean temperature, °C", "平均气温（°C）")
    board.text(56, 12, title, 17, INK, "bold")
    left, upper, right, lower = 56.0, 72.0, width - 24, height - 40
    axes(board, (left, upper, right, lower), top)
    for k, values in enumerate(series):
        colour = NAMED[colours[k]][1]
        points = [
            (left + (right - left) * (i + 0.5) / len(months), lower - (lower - upper) * v / top)
            for i, v in enumerate(values)
        ]
        board.line(points, colour, 2.5)
        for (x, y), value in zip(points, values, strict=True):
            board.disc(x, y, 4, fill=colour)
            board.text(x, y - 7, str(value), 10, INK, anchor="mb")
        board.rect(left + k * width * 0.4, 44, left + 14 + k * width * 0.4, 56, fill=colour)
        board.text(left + 20 + k * width * 0.4, 50, towns[k], 12, INK, anchor="lm")
    for index, month in enumerate(months):
        board.text(left + (right - left) * (index + 0.5) / len(months), lower + 8, month, 11, INK, anchor="ma")
    turns = line_turns(draw, months, towns, colours, series)
    return Draft("chart", [Picture(board.done(), "flat:32")], turns)


def line_turns(
    draw: Draw, months: tuple[str, ...], towns: list[str], colours: list[str], series: list[list[int]]
) -> list[tuple[str, str]]:
    """What one can ask about two lines."""
    k = draw.rng.randrange(2)
    peak = max(series[k])
    at = listed([m for m, v in zip(months, series[k], strict=True) if v == peak], draw.zh)
    rows = [[m, str(a), str(b)] for m, a, b in zip(months, *series, strict=True)]
    gap = [b - a for a, b in zip(*series, strict=True)]
    steps = ", ".join(f"{b} - {a} = {b - a}" for a, b in zip(*series, strict=True))
    widest = listed([m for m, g in zip(months, gap, strict=True) if g == max(gap)], draw.zh)
    names = [colour_name(draw, c) for c in colours]
    en = [
        (
            ask(draw, DESCRIBE),
            f"A line chart of the mean temperature from {months[0]} to {months[-1]}. The {names[0]} line is "
            f"{towns[0]}, the {names[1]} one {towns[1]}; {towns[1]} is warmer every month.",
        ),
        (ask(draw, AS_TABLE), markdown(["Month", *towns], rows)),
        (f"When was it warmest in {towns[k]}?", f"In {at}, at {peak} °C."),
        (
            "In which month do the towns differ most? Work it out.",
            f"The differences are {steps}. The largest is {max(gap)} degrees, in {widest}.",
        ),
        (f"What colour is the line of {towns[k]}?", f"It is {names[k]}."),
    ]
    zh = [
        (
            ask(draw, DESCRIBE),
            f"这是从{months[0]}到{months[-1]}的平均气温折线图。{names[0]}的线是{towns[0]}，{names[1]}的线是"
            f"{towns[1]}；{towns[1]}每个月都更暖和。",
        ),
        (ask(draw, AS_TABLE), markdown(["月份", *towns], rows)),
        (f"{towns[k]}哪个月最热？", f"{at}最热，{peak}°C。"),
        ("哪个月两地相差最大？请写出过程。", f"各月的差：{steps}。最大的差是{max(gap)}度，在{widest}。"),
        (f"{towns[k]}的线是什么颜色？", f"{names[k]}。"),
    ]
    return draw.say(en, zh)


def pie(draw: Draw) -> Draft:
    """A pie, or a ring, with percentages in a legend."""
    board, width, height = new_board(draw)
    goods, total = some(draw, SERIES, draw.rng.randrange(3, 6)), 100
    cuts = sorted(draw.rng.sample(range(1, 16), len(goods) - 1))
    shares = [(b - a) * 100 // 16 for a, b in zip([0, *cuts], [*cuts, 16], strict=True)]
    shares[shares.index(max(shares))] += total - sum(shares)
    colours = palette(draw, len(goods))
    title = draw.say("Share of orders", "订单占比")
    board.text(width / 2, 14, title, 17, INK, "bold", "ma")
    radius, angle = min(width * 0.3, height * 0.38), -90.0
    x, y = width * 0.34, height * 0.55
    for share, colour in zip(shares, colours, strict=True):
        board.slice(x, y, radius, angle, angle + share * 3.6, NAMED[colour][1])
        angle += share * 3.6
    ring = draw.rng.random() < 0.4
    if ring:
        board.disc(x, y, radius * 0.5, fill=WHITE)
    for index, (name, share, colour) in enumerate(zip(goods, shares, colours, strict=True)):
        top = height * 0.3 + index * 28
        board.rect(width * 0.68, top, width * 0.68 + 14, top + 14, fill=NAMED[colour][1])
        label = f"{name} {share}%"
        board.text(width * 0.68 + 20, top + 7, label, board.fit(label, 14, width * 0.32 - 32), INK, anchor="lm")
    return Draft("chart", [Picture(board.done(), "flat:32")], pie_turns(draw, goods, shares, colours, ring))


def pie_turns(draw: Draw, goods: list[str], shares: list[int], colours: list[str], ring: bool) -> list[tuple[str, str]]:
    """What one can ask about a pie."""
    k = draw.rng.randrange(len(goods))
    big = max(range(len(goods)), key=lambda i: shares[i])
    names = [colour_name(draw, c) for c in colours]
    pair = draw.rng.sample(range(len(goods)), 2)
    both = shares[pair[0]] + shares[pair[1]]
    data = [[g, f"{s}%"] for g, s in zip(goods, shares, strict=True)]
    parts = [f"{g} ({c}, {s}%)" for g, c, s in zip(goods, names, shares, strict=True)]
    kind = "ring chart" if ring else "pie chart"
    en = [
        (f"What share do {goods[k].lower()} have?", f"{shares[k]}%."),
        (ask(draw, AS_TABLE), markdown(["Item", "Share"], data)),
        (ask(draw, DESCRIBE), f"A {kind} of the share of orders: {listed(parts, False)}."),
        (
            f"How much do {goods[pair[0]].lower()} and {goods[pair[1]].lower()} make together?",
            f"{shares[pair[0]]}% + {shares[pair[1]]}% = {both}%, {'more' if both > 50 else 'not more'} than half.",
        ),
        ("Which slice is the largest?", f"The {names[big]} one: {goods[big].lower()}, {shares[big]}%."),
    ]
    zh = [
        (f"{goods[k]}占多少？", f"{shares[k]}%。"),
        (ask(draw, AS_TABLE), markdown(["商品", "占比"], data)),
        (
            ask(draw, DESCRIBE),
            f"这是一张订单占比的{'环形图' if ring else '饼图'}："
            + "、".join(f"{g}（{c}，{s}%）" for g, c, s in zip(goods, names, shares, strict=True))
            + "。",
        ),
        (
            f"{goods[pair[0]]}和{goods[pair[1]]}合起来占多少？",
            f"{shares[pair[0]]}% + {shares[pair[1]]}% = {both}%，{'超过' if both > 50 else '没有超过'}一半。",
        ),
        ("哪一块最大？", f"{names[big]}的那一块最大，是{goods[big]}，占{shares[big]}%。"),
    ]
    return draw.say(en, zh)


def scatter(draw: Draw) -> Draft:
    """A cloud of points that rises, falls or does neither, with one point far off."""
    board, width, height = new_board(draw)
    slope, number, colour = draw.rng.choice((-1, 0, 1)), draw.rng.randrange(16, 40), palette(draw, 1)[0]
    board.text(width / 2, 12, draw.say("Height and weight of seedlings", "幼苗的高度与重量"), 16, INK, "bold", "ma")
    axes(board, (56, 48, width - 24, height - 52), 40)
    board.text(width / 2, height - 28, draw.say("height, cm", "高度（厘米）"), 12, GREY, anchor="ma")
    for _ in range(number):
        u = draw.rng.uniform(0.05, 0.95)
        v = 0.45 + slope * (u - 0.5) * 0.6 + draw.rng.uniform(-0.09, 0.09) * (1 if slope else 2.5)
        board.disc(
            56 + (width - 80) * u, height - 52 - (height - 100) * v, 4, fill=NAMED[colour][1], edge=WHITE, line=0.7
        )
    odd = (0.12, 0.92) if slope >= 0 else (0.9, 0.92)
    board.disc(56 + (width - 80) * odd[0], height - 52 - (height - 100) * odd[1], 5, fill=INK)
    where = draw.say("left" if odd[0] < 0.5 else "right", "左" if odd[0] < 0.5 else "右")
    trend = {
        1: ("rises with height", "随高度上升"),
        -1: ("falls with height", "随高度下降"),
        0: ("shows no clear relation to height", "与高度没有明显关系"),
    }[slope]
    name = colour_name(draw, colour)
    en = [
        (
            ask(draw, DESCRIBE),
            f"A scatter plot of seedlings with {name} points. The weight {trend[0]}, and one black point lies "
            f"apart at the top {where}.",
        ),
        ("Is there a trend?", f"The weight {trend[0]}."),
        ("Is there an outlier?", f"Yes, a black point at the top {where}."),
        ("What does the horizontal axis show?", "The height in centimetres."),
    ]
    zh = [
        (ask(draw, DESCRIBE), f"这是幼苗的散点图，点是{name}的。重量{trend[1]}，另有一个黑点单独在{where}上方。"),
        ("有什么趋势？", f"重量{trend[1]}。"),
        ("有离群点吗？", f"有，{where}上方有一个黑点。"),
        ("横轴表示什么？", "高度，单位是厘米。"),
    ]
    return Draft("chart", [Picture(board.done(), "flat:24")], draw.say(en, zh))


def chart(draw: Draw) -> Draft:
    """One of the four in turn; every fifth lies printed on a table."""
    draft = (bar, line, pie, scatter)[draw.index % 4](draw)
    if draw.index % 5 == 3:
        draft.pictures[0] = photographed(draw, draft.pictures[0].image)
    return draft


KINDS = {"chart": chart}
