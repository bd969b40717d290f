"""Maps with streets, a river, places, a legend and a scale; signs; tiny icons; strips of extreme shape."""

import math

from drawn.base import INK, NAMED, WHITE, Board, Draft, Draw, Picture, blend, camera, listed, octaves
from drawn.words import DESCRIBE, SHOPS, STREETS, TOWNS, TRANSCRIBE, ask, pick, some

PLACES = (("School", "Library", "Hospital", "Market", "Museum"), ("学校", "图书馆", "医院", "市场", "博物馆"))
COLOURS = ("red", "blue", "green", "orange", "purple")
WAYS = {
    (1, 0): ("east", "东"),
    (-1, 0): ("west", "西"),
    (0, 1): ("south", "南"),
    (0, -1): ("north", "北"),
    (1, 1): ("south-east", "东南"),
    (1, -1): ("north-east", "东北"),
    (-1, 1): ("south-west", "西南"),
    (-1, -1): ("north-west", "西北"),
}
MAPS = ((600, 480, 1.0), (640, 520, 2.6), (420, 420, 0.8), (900, 420, 1.2), (480, 640, 1.4))


def town_map(draw: Draw) -> Draft:
    """A grid of streets with a river, a park and five places, one a block; north is up."""
    width, height, scale = MAPS[draw.index % len(MAPS)]
    board, inner = Board(draw, width, height, scale, (240, 236, 226)), width - 150.0
    down, across = some(draw, STREETS, 6)[:3], []
    across = [s for s in draw.rng.sample(draw.say(*STREETS), 7) if s not in down][:3]
    xs, ys = [inner * k / 4 + inner / 8 for k in range(4)], [height * k / 4 + height / 8 for k in range(4)]
    side = draw.rng.choice((0, 3))
    river = [(xs[side] + math.sin(i * 0.9 + draw.index) * 12, height * i / 11) for i in range(12)]
    board.line(river, (150, 196, 226), 22)
    rows_x, rows_y = [inner * k / 4 for k in range(1, 4)], [height * k / 4 for k in range(1, 4)]
    for x in rows_x:
        board.line([(x, 0), (x, height)], WHITE, 10)
    for y in rows_y:
        board.line([(0, y), (inner, y)], WHITE, 10)
    for x, name in zip(rows_x, down, strict=True):
        board.text(x, height - 6, name, board.fit(name, 12, inner / 4 - 8), INK, anchor="ms")
    for y, name in zip(rows_y, across, strict=True):
        x, anchor = (inner - 4, "rs") if side == 0 else (4, "ls")
        board.text(x, y - 7, name, board.fit(name, 12, inner / 4), INK, anchor=anchor)
    cells = [(c, r) for c in range(4) for r in range(4) if c != side]
    spots = draw.rng.sample(cells, 6)
    park = spots.pop()
    board.rect(
        xs[park[0]] - inner / 10,
        ys[park[1]] - height / 11,
        xs[park[0]] + inner / 10,
        ys[park[1]] + height / 11,
        fill=(190, 220, 170),
        round_=6,
    )
    names = some(draw, PLACES, 5)
    for spot, colour in zip(spots, COLOURS, strict=True):
        board.disc(xs[spot[0]], ys[spot[1]], 9, fill=NAMED[colour][1], edge=WHITE, line=2)
    unit = draw.rng.choice((100, 200, 250, 500))
    legend(draw, board, inner, names, unit)
    place = dict(zip(names, spots, strict=True))
    return Draft("map", [Picture(board.done(), "flat:40")], map_turns(draw, place, (down, across), side, unit))


def legend(draw: Draw, board: Board, left: float, names: list[str], unit: int) -> None:
    """The legend at the right: places, river, park, a scale of one block, north."""
    board.rect(left, 0, board.width, board.height, fill=WHITE)
    board.text(left + 14, 14, draw.say("Legend", "图例"), 15, INK, "bold")
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        board.disc(left + 24, 54 + 28 * index, 8, fill=NAMED[colour][1])
        board.text(left + 42, 54 + 28 * index, name, board.fit(name, 13, 100), INK, anchor="lm")
    y = 54 + 28 * 5
    board.rect(left + 14, y - 6, left + 34, y + 6, fill=(150, 196, 226))
    board.text(left + 42, y, draw.say("River", "河流"), 13, INK, anchor="lm")
    board.rect(left + 14, y + 22, left + 34, y + 34, fill=(190, 220, 170))
    board.text(left + 42, y + 28, draw.say("Park", "公园"), 13, INK, anchor="lm")
    board.line([(left + 20, y + 90), (left + 20 + min(110, left / 4), y + 90)], INK, 3)
    board.text(left + 20, y + 70, draw.say(f"{unit} m", f"{unit}米"), 12, INK)
    board.arrow(left + 124, 44, left + 124, 14, INK, 2)
    board.text(left + 124, 46, draw.say("N", "北"), 12, INK, "bold", "ma")


def map_turns(draw: Draw, place: dict[str, tuple[int, int]], streets: tuple, side: int, unit: int) -> list:
    """What one can ask about a map."""
    names, (down, across) = list(place), streets
    first, second = draw.rng.sample(names, 2)
    (c0, r0), (c1, r1) = place[first], place[second]
    way = WAYS[((c1 > c0) - (c1 < c0), (r1 > r0) - (r1 < r0))][draw.zh]
    bank = draw.say("west" if side == 0 else "east", "西" if side == 0 else "东")
    north = min(r for _, r in place.values())
    top = listed([n for n, (_, r) in place.items() if r == north], draw.zh)
    colours = [draw.say(c, NAMED[c][0]) for c in COLOURS]
    key = "\n".join(f"- {c}: {n}" for c, n in zip(colours, names, strict=True))
    en = [
        (f"In which direction from the {first.lower()} does the {second.lower()} lie?", f"To the {way}."),
        ("List the legend's coloured dots.", key),
        ("Which streets run from west to east, from the top down?", listed(across, False) + "."),
        ("Where does the river flow?", f"Along the {bank} side, from the top edge to the bottom edge."),
        ("Which places lie furthest north?", f"{top}."),
        (
            ask(draw, DESCRIBE),
            f"A town map with three streets each way. {listed(down, False)} run north to "
            f"south, {listed(across, False)} "
            f"west to east. A river flows along the {bank} side, a green park fills part of "
            "one block, and five coloured dots mark places. The "
            f"legend at the right has a scale bar of {unit} m.",
        ),
    ]
    zh = [
        (f"{second}在{first}的哪个方向？", f"在{way}边。" if len(way) == 1 else f"在{way}方向。"),
        ("列出图例中的彩色圆点。", key),
        ("从上到下，哪些街道是东西走向？", listed(across, True) + "。"),
        ("河流在哪里？", f"沿着{bank}侧，从上边流到下边。"),
        ("哪些地点最靠北？", f"{top}。"),
        (
            ask(draw, DESCRIBE),
            f"这是一张城镇地图，纵横各三条街道。{listed(down, True)}为南北走向，"
            f"{listed(across, True)}为东西走向。{bank}侧有一条河，"
            f"某个街区里有一块绿色的公园，五个彩色圆点标出地点。右边是图例，比例尺为{unit}米。",
        ),
    ]
    return draw.say(en, zh)


def sign(draw: Draw) -> Draft:
    """A speed limit, a warning, a shop's sign, a signpost or a stop sign before a cloudy sky."""
    width, scale = 400, (0.6, 1.2, 2.0, 0.4, 1.6)[draw.index % 5]
    board, rng = Board(draw, width, 400, scale), draw.noise()
    low, high = draw.rng.choice(
        (((112, 160, 214), (240, 244, 248)), ((170, 176, 184), (224, 226, 230)), ((206, 176, 150), (250, 236, 208)))
    )
    ground = blend(low, high, octaves(rng, 160, 160, (4, 3), 5))
    ground[136:] = blend((62, 88, 44), (142, 156, 92), octaves(rng, 24, 160, (8, 50), 3))
    board.under(ground)
    board.rect(194, 200, 206, 380, fill=(110, 114, 120))
    kind = draw.index % 5
    text, en, zh = (speed, warning, shop, posts, forbidden)[kind](draw, board)
    turns = draw.say(
        [
            ("What does the sign mean?", en),
            (ask(draw, TRANSCRIBE), text),
            (ask(draw, DESCRIBE), f"A sign on a grey post beside a strip of grass. {en}"),
        ],
        [
            ("这个标志是什么意思？", zh),
            (ask(draw, TRANSCRIBE), text),
            (ask(draw, DESCRIBE), f"草地旁的灰色柱子上有一块牌子。{zh}"),
        ],
    )
    if kind == 4:
        turns = [turns[0], turns[2]]
    return Draft("sign", [Picture(camera(draw, board.done(), 3.0), "jpeg:82")], turns)


def speed(draw: Draw, board: Board) -> tuple[str, str, str]:
    """A round sign with a red rim and a number."""
    limit = draw.rng.choice((20, 30, 40, 50, 60, 80, 100))
    board.disc(200, 150, 110, fill=(206, 40, 40))
    board.disc(200, 150, 84, fill=WHITE)
    board.text(200, 152, str(limit), 84 if limit < 100 else 66, INK, "bold", "mm")
    return (
        str(limit),
        f"It is a speed limit of {limit}: do not drive faster than {limit} km/h.",
        f"限速{limit}，车速不得超过每小时{limit}公里。",
    )


def warning(draw: Draw, board: Board) -> tuple[str, str, str]:
    """A yellow triangle with an exclamation mark over a plate that says what it warns of."""
    english, chinese = draw.rng.choice(
        (
            ("Wet floor", "小心地滑"),
            ("Falling rocks", "注意落石"),
            ("Mind the step", "小心台阶"),
            ("High voltage", "高压危险"),
        )
    )
    board.shape([(200, 30), (320, 230), (80, 230)], INK)
    board.shape([(200, 56), (298, 220), (102, 220)], (250, 206, 50))
    board.rect(193, 100, 207, 170, fill=INK, round_=5)
    board.disc(200, 192, 9, fill=INK)
    text = draw.say(english, chinese)
    board.rect(100, 246, 300, 296, fill=WHITE, edge=INK, line=3)
    board.text(200, 271, text, board.fit(text, 28, 184, "bold"), INK, "bold", "mm")
    return text, f"It is a warning: {english.lower()}. Take care here.", f"这是警告标志：{chinese}，请注意安全。"


def shop(draw: Draw, board: Board) -> tuple[str, str, str]:
    """A shop's board with its hours."""
    name, colour = str(pick(draw, SHOPS)), draw.rng.choice(COLOURS)
    first, last = draw.rng.randrange(7, 11), draw.rng.randrange(17, 23)
    board.rect(30, 60, 370, 250, fill=NAMED[colour][1], edge=WHITE, line=5, round_=14)
    board.text(200, 125, name, board.fit(name, 46, 310, "bold"), WHITE, "bold", "mm")
    hours = draw.say(f"open {first}:00 - {last}:00", f"营业时间 {first}:00 - {last}:00")
    board.text(200, 200, hours, board.fit(hours, 26, 300), WHITE, anchor="mm")
    return (
        f"{name}\n{hours}",
        f"It is the {colour} sign of {name}, which is open from {first}:00 to {last}:00.",
        f"这是{name}的{NAMED[colour][0]}招牌，营业时间是{first}点到{last}点。",
    )


def posts(draw: Draw, board: Board) -> tuple[str, str, str]:
    """Two arrows with towns and distances."""
    towns, far = some(draw, TOWNS, 2), draw.rng.sample(range(2, 60), 2)
    board.rect(194, 40, 206, 380, fill=(110, 114, 120))
    board.shape([(40, 95), (80, 60), (330, 60), (330, 130), (80, 130)], (30, 110, 70))
    board.shape([(360, 205), (320, 170), (70, 170), (70, 240), (320, 240)], (30, 110, 70))
    labels = [f"{t} {d} km" for t, d in zip(towns, far, strict=True)]
    for x, y, label in ((205, 95, labels[0]), (195, 205, labels[1])):
        board.text(x, y, label, board.fit(label, 28, 215, "bold"), WHITE, "bold", "mm")
    return (
        "\n".join(labels),
        f"To the left it is {far[0]} km to {towns[0]}, to the right {far[1]} km to {towns[1]}.",
        f"向左到{towns[0]}有{far[0]}公里，向右到{towns[1]}有{far[1]}公里。",
    )


def forbidden(draw: Draw, board: Board) -> tuple[str, str, str]:
    """A red disc with a white bar: no entry."""
    board.disc(200, 150, 110, fill=(206, 40, 40), edge=WHITE, line=6)
    board.rect(125, 130, 275, 170, fill=WHITE, round_=4)
    return "", "A red disc with a white bar: no entry for vehicles.", "红色圆盘加白色横条：禁止车辆驶入。"


KINDS = {"map": town_map, "sign": sign}
