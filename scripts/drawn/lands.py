"""Landscapes and night skies, drawn from a list of what is in them: a comparison or a clip changes one thing."""

from dataclasses import dataclass

import numpy as np

from drawn.base import NAMED, WHITE, Board, Colour, Draft, Draw, Picture, blend, listed, mix, octaves
from drawn.words import DESCRIBE, ask

NUMBERS = (
    ("no", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    ("零", "一", "两", "三", "四", "五", "六", "七", "八"),
)
SIZES = (
    (480, 320, 1.7),
    (480, 360, 2.5),
    (360, 480, 1.3),
    (480, 480, 1.5),
    (640, 300, 2.6),
    (400, 300, 0.8),
    (480, 320, 3.4),
    (300, 520, 1.9),
)
COLOURS = ("red", "blue", "green", "orange", "purple", "teal")


def many(draw: Draw, number: int, noun: tuple[str, str], classifier: str = "个") -> str:
    """ "three trees" or "三棵树"."""
    word = draw.say(*NUMBERS)[number]
    return draw.say(f"{word} {noun[0]}{'' if number == 1 else 's'}", f"{word}{classifier}{noun[1]}")


@dataclass(frozen=True)
class Land:
    """A landscape: where the sun stands, what the season is, trees and houses by their places (0 to 1)."""

    sun: float
    season: str  # summer, autumn, winter
    trees: tuple[float, ...]
    houses: tuple[tuple[float, str], ...]
    lake: bool
    seed: int
    birds: int = 0
    sky: float = 0.0  # 0 day, 1 night


GREENS: dict[str, tuple[Colour, Colour, Colour]] = {  # meadow, crown of a tree, mountain
    "summer": ((112, 158, 78), (52, 110, 56), (104, 124, 132)),
    "autumn": ((170, 150, 84), (196, 104, 40), (122, 116, 112)),
    "winter": ((232, 238, 244), (150, 164, 170), (176, 188, 204)),
}


def draw_land(draw: Draw, land: Land, width: float, height: float, scale: float) -> Board:
    """Draw a landscape."""
    board, rng = Board(draw, width, height, scale), np.random.default_rng(land.seed)
    top, low = (mix((96, 152, 214), (10, 14, 40), land.sky), mix((206, 226, 240), (50, 54, 92), land.sky))
    ramp = np.linspace(0, 1, 96, dtype=np.float32)[:, None].repeat(128, 1)
    sky = blend(top, low, ramp).astype(np.float32)
    cover = np.clip((octaves(rng, 96, 128, (4, 3), 5) - 0.55) * 2.5, 0, 1)[..., None] * (1 - land.sky)
    board.under((sky + cover * (252 - sky)).astype(np.uint8))
    shine = mix((255, 226, 120), (240, 240, 220), land.sky)
    board.disc(width * land.sun, height * 0.16, min(width, height) * 0.06, fill=shine)
    meadow, crown, stone = (mix(c, (10, 12, 30), land.sky * 0.6) for c in GREENS[land.season])
    for layer in range(2):
        ridge = octaves(rng, 1, 24, (1, 4 + 3 * layer), 3)[0]
        base, rise = height * (0.56 + 0.06 * layer), height * (0.3 - 0.12 * layer)
        points = [(width * i / 23, base - rise * float(v)) for i, v in enumerate(ridge)]
        board.shape([(0, height), *points, (width, height)], mix(stone, meadow, 0.3 * layer))
    board.shape(
        [(0, height), (0, height * 0.6), (width * 0.5, height * 0.56), (width, height * 0.6), (width, height)], meadow
    )
    if land.lake:
        board.disc(
            width * 0.5,
            height * 0.9,
            width * 0.42,
            height * 0.1,
            fill=mix((120, 170, 204), (20, 26, 60), land.sky * 0.7),
        )
    for x, colour in land.houses:
        house(board, width * x, height * 0.68, min(width, height) * 0.11, NAMED[colour][1], land.sky > 0.5)
    for x in land.trees:
        size = min(width, height) * 0.13
        board.rect(
            width * x - size * 0.08,
            height * 0.68,
            width * x + size * 0.08,
            height * 0.68 + size * 0.5,
            fill=(92, 66, 44),
        )
        board.disc(width * x, height * 0.68 - size * 0.25, size * 0.42, size * 0.55, fill=crown)
        board.disc(
            width * x - size * 0.12, height * 0.68 - size * 0.35, size * 0.2, size * 0.3, fill=mix(crown, WHITE, 0.15)
        )
    for k in range(land.birds):
        x, y = width * (0.35 + 0.1 * k), height * (0.26 + 0.03 * (k % 2))
        board.line([(x - 7, y - 4), (x, y), (x + 7, y - 4)], (40, 44, 52), 1.4)
    return board


def house(board: Board, x: float, y: float, size: float, roof: Colour, lit: bool) -> None:
    """A small house with a coloured roof, standing on (x, y + size)."""
    board.rect(x - size * 0.6, y, x + size * 0.6, y + size * 0.8, fill=(236, 226, 208))
    board.shape([(x - size * 0.75, y), (x, y - size * 0.6), (x + size * 0.75, y)], roof)
    board.rect(x - size * 0.12, y + size * 0.35, x + size * 0.12, y + size * 0.8, fill=(110, 78, 52))
    for side in (-0.38, 0.38):
        window = (250, 214, 110) if lit else (150, 186, 210)
        board.rect(x + size * (side - 0.12), y + size * 0.2, x + size * (side + 0.12), y + size * 0.45, fill=window)


def some_land(draw: Draw) -> Land:
    """A random landscape; nothing stands in front of anything else."""
    places = [0.08, 0.2, 0.32, 0.44, 0.56, 0.68, 0.8, 0.92]
    draw.rng.shuffle(places)
    houses, trees = draw.rng.randrange(1, 4), draw.rng.randrange(2, 6)
    roofs = draw.rng.sample(COLOURS[:4], houses)
    return Land(
        draw.rng.choice((0.15, 0.85)),
        draw.rng.choice(tuple(GREENS)),
        tuple(sorted(places[3 : 3 + trees])),
        tuple(sorted(zip(places[:houses], roofs, strict=True))),
        draw.rng.random() < 0.5,
        draw.rng.getrandbits(30),
        draw.rng.choice((0, 0, 3)),
    )


def land_words(draw: Draw, land: Land) -> str:
    """A description of a landscape."""
    season = draw.say(
        {"summer": "in summer", "autumn": "in autumn", "winter": "under snow"},
        {"summer": "夏天的", "autumn": "秋天的", "winter": "积雪的"},
    )[land.season]
    side = draw.say("left" if land.sun < 0.5 else "right", "左" if land.sun < 0.5 else "右")
    roofs = listed([draw.say(c, NAMED[c][0]) for _, c in land.houses], draw.zh)
    trees, homes = (
        many(draw, len(land.trees), ("tree", "树"), "棵"),
        many(draw, len(land.houses), ("house", "房子"), "座"),
    )
    en = f"A landscape {season}: mountains at the back, a meadow with {trees} and {homes} (roof colour: {roofs}). "
    en += f"The sun stands at the upper {side}."
    en += " A lake lies in the foreground." if land.lake else ""
    en += f" {NUMBERS[0][land.birds].capitalize()} birds fly in the sky." if land.birds else ""
    zh = f"{season}风景：远处是山，草地上有{trees}和{homes}（屋顶是{roofs}）。太阳在{side}上方。"
    zh += "前面有一个湖。" if land.lake else ""
    zh += f"天上飞着{NUMBERS[1][land.birds]}只鸟。" if land.birds else ""
    return draw.say(en, zh)


def landscape(draw: Draw) -> Draft:
    """A landscape and questions about it."""
    land = some_land(draw)
    board = draw_land(draw, land, *SIZES[draw.index % len(SIZES)])
    roof = land.houses[0][1]
    turns = draw.say(
        [
            (ask(draw, DESCRIBE), land_words(draw, land)),
            ("How many trees are there?", f"There are {len(land.trees)} trees."),
            ("What colour is the roof of the house furthest to the left?", f"It is {roof}."),
            (
                "Is there water in the picture?",
                "Yes, a lake in the foreground." if land.lake else "No, there is no water.",
            ),
            (
                "Which season is it?",
                {
                    "summer": "Summer: the meadow and the trees are green.",
                    "autumn": "Autumn: the trees are orange.",
                    "winter": "Winter: everything is white.",
                }[land.season],
            ),
        ],
        [
            (ask(draw, DESCRIBE), land_words(draw, land)),
            ("有几棵树？", f"有{NUMBERS[1][len(land.trees)]}棵树。"),
            ("最左边的房子屋顶是什么颜色？", f"{NAMED[roof][0]}。"),
            ("图里有水吗？", "有，前面有一个湖。" if land.lake else "没有。"),
            (
                "这是什么季节？",
                {
                    "summer": "夏天，草地和树都是绿的。",
                    "autumn": "秋天，树叶是橙色的。",
                    "winter": "冬天，到处是白色。",
                }[land.season],
            ),
        ],
    )
    return Draft("scene", [Picture(board.done())], turns)


def night(draw: Draw) -> Draft:
    """Stars, a moon and the outline of hills."""
    width, height, scale = SIZES[draw.index % len(SIZES)]
    board, rng = Board(draw, width, height, scale), draw.noise()
    glow = octaves(rng, 96, 128, (3, 4), 4) * np.linspace(0.2, 1, 96, dtype=np.float32)[:, None]
    board.under(blend((8, 10, 30), (64, 62, 120), glow))
    for _ in range(140):
        x, y, size = draw.rng.uniform(0, width), draw.rng.uniform(0, height * 0.75), draw.rng.choice((0.6, 0.8, 1.2))
        board.disc(x, y, size, fill=(236, 236, 250))
    full, left = draw.rng.random() < 0.5, draw.rng.random() < 0.5
    x, radius = width * (0.22 if left else 0.78), min(width, height) * 0.1
    board.disc(x, height * 0.22, radius, fill=(244, 240, 214))
    if not full:
        board.disc(x + radius * 0.5, height * 0.2, radius * 0.92, fill=(24, 26, 58))
    ridge = octaves(rng, 1, 24, (1, 5), 3)[0]
    points = [(width * i / 23, height * (0.86 - 0.14 * float(v))) for i, v in enumerate(ridge)]
    board.shape([(0, height), *points, (width, height)], (6, 8, 16))
    side = draw.say("left" if left else "right", "左" if left else "右")
    phase = draw.say("full moon" if full else "crescent moon", "满月" if full else "弯月")
    turns = draw.say(
        [
            (
                ask(draw, DESCRIBE),
                f"A night sky with many small stars and a {phase} at the upper {side}. Dark hills line the bottom.",
            ),
            ("Which phase is the moon in?", f"It is a {phase}."),
            ("Where is the moon?", f"At the upper {side}."),
        ],
        [
            (ask(draw, DESCRIBE), f"夜空中有许多小星星，{side}上方是一轮{phase}，下面是黑色的山丘。"),
            ("月亮是什么形状？", f"{phase}。"),
            ("月亮在哪里？", f"在{side}上方。"),
        ],
    )
    return Draft("scene", [Picture(board.done())], turns)
