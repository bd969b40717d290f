"""Pictures of extreme size or shape: tiny icons, banners, tall lists, time lines, rulers."""

from drawn.base import GREY, INK, NAMED, PALE, WHITE, Board, Colour, Draft, Draw, Picture, listed
from drawn.words import DESCRIBE, GOODS, MONTHS, SHOPS, TRANSCRIBE, ask, pick

COLOURS = ("red", "blue", "green", "orange", "purple")


def icon(draw: Draw) -> Draft:
    """A symbol of 64 pixels: envelope, heart, lock, bell, house, arrow."""
    colour = draw.rng.choice(list(NAMED))
    fill = NAMED[colour][1]
    board = Board(draw, 64, 64, 1.0, tuple(PALE), smooth=4)
    name = (
        ("house", "房子"),
        ("envelope", "信封"),
        ("lock", "锁"),
        ("battery", "电池"),
        ("clock", "时钟"),
        ("flag", "旗子"),
    )[draw.index % 6]
    {
        "house": icon_house,
        "envelope": icon_envelope,
        "lock": icon_lock,
        "battery": icon_battery,
        "clock": icon_clock,
        "flag": icon_flag,
    }[name[0]](board, fill)
    article = "an" if name[0] == "envelope" else "a"
    turns = draw.say(
        [
            ("What icon is this?", f"{article.capitalize()} {name[0]}."),
            ("What colour is the symbol?", f"It is {colour}."),
            (ask(draw, DESCRIBE), f"A tiny {colour} icon of {article} {name[0]} on a pale ground."),
        ],
        [
            ("这是什么图标？", f"{name[1]}。"),
            ("图标是什么颜色？", f"{NAMED[colour][0]}。"),
            (ask(draw, DESCRIBE), f"浅色背景上的一个{NAMED[colour][0]}{name[1]}小图标。"),
        ],
    )
    return Draft("icon", [Picture(board.done(), "flat:16")], turns)


def icon_house(board: Board, fill: Colour) -> None:
    """A house."""
    board.shape([(32, 8), (58, 32), (6, 32)], fill)
    board.rect(13, 32, 51, 56, fill=fill)
    board.rect(27, 40, 37, 56, fill=PALE)


def icon_envelope(board: Board, fill: Colour) -> None:
    """An envelope."""
    board.rect(6, 16, 58, 50, fill=fill, round_=4)
    board.line([(8, 18), (32, 36), (56, 18)], PALE, 3)


def icon_lock(board: Board, fill: Colour) -> None:
    """A closed lock."""
    board.disc(32, 26, 14, 16, edge=fill, line=6)
    board.rect(12, 28, 52, 56, fill=fill, round_=5)
    board.disc(32, 41, 4, fill=PALE)


def icon_battery(board: Board, fill: Colour) -> None:
    """A battery, nearly full."""
    board.rect(5, 19, 54, 45, edge=fill, line=4, round_=4)
    board.rect(11, 25, 40, 39, fill=fill)
    board.rect(55, 27, 60, 37, fill=fill)


def icon_clock(board: Board, fill: Colour) -> None:
    """A clock at three."""
    board.disc(32, 32, 26, edge=fill, line=5)
    board.line([(32, 32), (32, 15)], fill, 4)
    board.line([(32, 32), (45, 32)], fill, 4)


def icon_flag(board: Board, fill: Colour) -> None:
    """A flag on its pole."""
    board.rect(14, 6, 18, 60, fill=GREY)
    board.shape([(18, 8), (56, 20), (18, 34)], fill)


def strip(draw: Draw) -> Draft:
    """Pictures of extreme shape: a banner, a tall menu, a time line, a thermometer, a film strip of colours."""
    return (banner, menu, timeline, ruler, ribbon, ladder)[draw.index % 6](draw)


def banner(draw: Draw) -> Draft:
    """A banner of 2000 x 200."""
    shop_, item, cut = str(pick(draw, SHOPS)), draw.rng.choice(draw.say(*GOODS))[0], draw.rng.choice((10, 20, 25, 30))
    colour = draw.rng.choice(COLOURS)
    board = Board(draw, 1000, 100, 2.0, NAMED[colour][1], smooth=1)
    words = draw.say(f"{cut}% off {item.lower()}, this week only", f"{item}本周优惠{cut}%")
    board.text(24, 50, shop_, board.fit(shop_, 34, 360, "bold"), WHITE, "bold", "lm")
    board.text(976, 50, words, board.fit(words, 26, 560), WHITE, anchor="rm")
    turns = draw.say(
        [
            (ask(draw, TRANSCRIBE), f"{shop_}\n{words}"),
            ("What is on offer?", f"{item}, {cut}% cheaper, this week only, at {shop_}."),
            ("What shape is the picture?", f"A very wide {colour} banner, ten times as wide as it is high."),
        ],
        [
            (ask(draw, TRANSCRIBE), f"{shop_}\n{words}"),
            ("什么在打折？", f"{shop_}的{item}，本周优惠{cut}%。"),
            ("这张图是什么形状？", f"很宽的{NAMED[colour][0]}横幅，宽是高的十倍。"),
        ],
    )
    return Draft("strip", [Picture(board.done(), "flat:16")], turns)


def menu(draw: Draw) -> Draft:
    """A tall list of prices, 1:6."""
    goods = draw.rng.sample(draw.say(*GOODS), 10)
    board = Board(draw, 220, 1320, 1.0, (252, 248, 238), smooth=1)
    title = draw.say("MENU", "价目表")
    board.text(110, 40, title, 34, INK, "bold", "ma")
    for index, (name, price) in enumerate(goods):
        y = 130 + index * 118
        board.text(110, y, name, board.fit(name, 20, 200), INK, anchor="ma")
        board.text(110, y + 30, f"{price:.2f}", 20, (150, 70, 40), "bold", "ma")
        board.line([(60, y + 80), (160, y + 80)], (220, 206, 180), 2)
    text = "\n".join(f"{n} {p:.2f}" for n, p in goods)
    cheap, k = min(goods, key=lambda g: g[1]), draw.rng.randrange(10)
    turns = draw.say(
        [
            (ask(draw, TRANSCRIBE), f"{title}\n{text}"),
            ("What is the cheapest thing?", f"{cheap[0]}, at {cheap[1]:.2f}."),
            (f"What is number {k + 1} from the top?", f"{goods[k][0]}, {goods[k][1]:.2f}."),
        ],
        [
            (ask(draw, TRANSCRIBE), f"{title}\n{text}"),
            ("最便宜的是什么？", f"{cheap[0]}，{cheap[1]:.2f}元。"),
            (f"从上往下第{k + 1}项是什么？", f"{goods[k][0]}，{goods[k][1]:.2f}元。"),
        ],
    )
    return Draft("strip", [Picture(board.done(), "flat:16")], turns)


def timeline(draw: Draw) -> Draft:
    """Five events along a line, 5:1."""
    events = draw.say(
        ["Mill built", "Bridge opened", "Great flood", "School moved", "Station closed"],
        ["建成磨坊", "大桥通车", "特大洪水", "学校搬迁", "车站关闭"],
    )
    order, years = draw.rng.sample(events, 5), sorted(draw.rng.sample(range(1820, 1990), 5))
    board = Board(draw, 900, 180, 1.4, WHITE)
    board.line([(40, 90), (860, 90)], INK, 3)
    for index, (event, year) in enumerate(zip(order, years, strict=True)):
        x = 90 + index * 180
        board.disc(x, 90, 9, fill=NAMED[COLOURS[index]][1])
        board.text(x, 66, str(year), 20, INK, "bold", "ms")
        board.text(x, 116, event, board.fit(event, 17, 165), INK, anchor="ma")
    k = draw.rng.randrange(4)
    gap = years[k + 1] - years[k]
    every = "\n".join(f"- {y}: {e}" for y, e in zip(years, order, strict=True))
    turns = draw.say(
        [
            ("List all events with their years.", every),
            (
                f"How many years lie between “{order[k]}” and “{order[k + 1]}”?",
                f"{years[k + 1]} - {years[k]} = {gap} years.",
            ),
            (f"What happened in {years[k]}?", f"{order[k]}."),
        ],
        [
            ("列出所有事件和年份。", every),
            (f"“{order[k]}”和“{order[k + 1]}”相隔多少年？", f"{years[k + 1]} - {years[k]} = {gap}，相隔{gap}年。"),
            (f"{years[k]}年发生了什么？", f"{order[k]}。"),
        ],
    )
    return Draft("strip", [Picture(board.done(), "flat:24")], turns)


def ruler(draw: Draw) -> Draft:
    """A thermometer of 64 x 1024."""
    degrees = draw.rng.randrange(-5, 39)
    board = Board(draw, 64, 1024, 1.0, WHITE)
    board.rect(24, 40, 40, 960, fill=PALE, round_=8)
    for mark in range(-10, 41, 10):
        y = 920 - (mark + 10) * 17
        board.line([(6, y), (20, y)], INK, 2)
        board.text(44, y, str(mark), 12, INK, anchor="lm")
    board.rect(27, 920 - (degrees + 10) * 17, 37, 960, fill=(206, 46, 44))
    board.disc(32, 970, 20, fill=(206, 46, 44))
    near = round(degrees / 10) * 10
    between = (degrees // 10 * 10, degrees // 10 * 10 + 10)
    en = f"The column ends near {near} degrees, between the marks {between[0]} and {between[1]}."
    zh = f"红柱在{near}度附近，位于刻度{between[0]}和{between[1]}之间。"
    if degrees % 10 == 0:
        en, zh = f"The column ends at {degrees} degrees.", f"红柱正好在{degrees}度。"
    turns = draw.say(
        [
            ("What does the thermometer show?", en),
            ("Is it freezing?", "Yes, it is below zero." if degrees < 0 else "No, it is not below zero."),
        ],
        [("温度计显示多少？", zh), ("结冰了吗？", "是的，低于零度。" if degrees < 0 else "没有，不低于零度。")],
    )
    return Draft("strip", [Picture(board.done(), "flat:16")], turns)


def ribbon(draw: Draw) -> Draft:
    """Twelve coloured fields in a row, 12:1."""
    fields = [draw.rng.choice(COLOURS) for _ in range(12)]
    board = Board(draw, 1536, 128, 1.0, WHITE, smooth=1)
    for index, colour in enumerate(fields):
        board.rect(index * 128 + 4, 4, index * 128 + 124, 124, fill=NAMED[colour][1])
    named, k = [draw.say(c, NAMED[c][0]) for c in fields], draw.rng.randrange(12)
    count = fields.count(fields[k])
    turns = draw.say(
        [
            ("Name the colours from left to right.", ", ".join(named) + "."),
            (f"How many fields are {named[k]}?", f"{count} of 12."),
            (f"What colour is field {k + 1}?", f"It is {named[k]}."),
        ],
        [
            ("从左到右说出颜色。", "、".join(named) + "。"),
            (f"有几个{named[k]}的格子？", f"12个里有{count}个。"),
            (f"第{k + 1}格是什么颜色？", f"{named[k]}。"),
        ],
    )
    return Draft("strip", [Picture(board.done(), "flat:16")], turns)


def ladder(draw: Draw) -> Draft:
    """A bar of months stacked upwards, 200 x 2000."""
    values = [draw.rng.randrange(5, 60) for _ in range(8)]
    months = draw.say(*MONTHS)
    board = Board(draw, 100, 1000, 2.0, WHITE, smooth=1)
    for index, (month, value) in enumerate(zip(months, values, strict=True)):
        y = 10 + index * 124
        board.rect(8, y + 40, 8 + 84 * value / 60, y + 100, fill=NAMED["teal"][1])
        board.text(8, y + 12, f"{month}: {value}", 16, INK, "bold")
    best = max(values)
    at = listed([m for m, v in zip(months, values, strict=True) if v == best], draw.zh)
    text = "\n".join(f"{m}: {v}" for m, v in zip(months, values, strict=True))
    turns = draw.say(
        [
            (ask(draw, TRANSCRIBE), text),
            ("When was the value highest?", f"In {at}, at {best}."),
            ("What is the sum?", f"{' + '.join(map(str, values))} = {sum(values)}"),
        ],
        [
            (ask(draw, TRANSCRIBE), text),
            ("哪个月数值最高？", f"{at}，为{best}。"),
            ("总和是多少？", f"{' + '.join(map(str, values))} = {sum(values)}"),
        ],
    )
    return Draft("strip", [Picture(board.done(), "flat:16")], turns)


KINDS = {"icon": icon, "strip": strip}
