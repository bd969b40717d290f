"""Scenes drawn from a list of what is in them: a landscape, a night sky, a still life, a street, a room.

Each is a frozen specification and a function that draws it, so that comparisons and clips can change one thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drawn.base import (
    INK,
    NAMED,
    WHITE,
    Board,
    Colour,
    Draft,
    Draw,
    Picture,
    article,
    blend,
    camera,
    listed,
    mix,
    octaves,
)
from drawn.lands import COLOURS, NUMBERS, SIZES, landscape, many, night
from drawn.words import DESCRIBE, ask

FRUIT = {"apple": ("苹果", "red"), "orange": ("橙子", "orange"), "plum": ("李子", "purple"), "lime": ("青柠", "green")}


def ball(board: Board, x: float, y: float, radius: float, colour: Colour) -> None:
    """A shaded ball with its shadow and a highlight."""
    board.disc(x + radius * 0.25, y + radius * 0.95, radius * 1.05, radius * 0.22, fill=(96, 70, 50))
    for step in range(24):
        part = step / 23
        shade = mix(mix(colour, (20, 10, 10), 0.5), mix(colour, WHITE, 0.35), part)
        board.disc(x - radius * 0.3 * part, y - radius * 0.3 * part, radius * (1 - 0.9 * part), fill=shade)


def still_life(draw: Draw) -> Draft:
    """Fruit in a row on a wooden table before a wall."""
    width, height, scale = SIZES[draw.index % len(SIZES)]
    board, rng = Board(draw, width, height, scale), draw.noise()
    wall = blend((150, 158, 164), (206, 206, 198), octaves(rng, 120, 128, (2, 3), 4))
    wall[74:] = blend((112, 72, 42), (176, 124, 76), octaves(rng, 46, 128, (24, 2), 4))
    board.under(wall)
    row = [draw.rng.choice(list(FRUIT)) for _ in range(draw.rng.randrange(3, 6))]
    radius = min(width / (2.5 * len(row)), height * 0.2)
    for k, name in enumerate(row):
        x = width * (k + 0.5) / len(row)
        ball(board, x, height * 0.66, radius, NAMED[FRUIT[name][1]][1])
        board.line(
            [(x - radius * 0.05, height * 0.66 - radius * 0.9), (x + radius * 0.1, height * 0.66 - radius * 1.15)],
            (70, 50, 30),
            radius * 0.08,
        )
    named = [draw.say(n, FRUIT[n][0]) for n in row]
    counts = {n: named.count(n) for n in dict.fromkeys(named)}
    en_counts = listed([f"{c} {n}{'s' if c > 1 else ''}" for n, c in counts.items()], False)
    zh_counts = listed([f"{c}个{n}" for n, c in counts.items()], True)
    turns = draw.say(
        [
            (
                ask(draw, DESCRIBE),
                f"A still life: {len(row)} round fruits lie in a row on a wooden table before a "
                "grey wall. By their colour they are, "
                f"from left to right: {', '.join(named)}. Light falls from the upper left.",
            ),
            (
                "How many of each fruit are there? Apples are red, oranges orange, plums purple, limes green.",
                f"There are {en_counts}.",
            ),
            (
                "Which fruit is at the far right?",
                f"By its colour, {'an' if named[-1][0] in 'ao' else 'a'} {named[-1]}.",
            ),
        ],
        [
            (
                ask(draw, DESCRIBE),
                f"一幅静物：灰墙前的木桌上，{len(row)}个圆形水果排成一排，从颜色看，"
                f"从左到右依次是{'、'.join(named)}。光从左上方照来。",
            ),
            ("每种水果有几个？红的是苹果，橙的是橙子，紫的是李子，绿的是青柠。", f"有{zh_counts}。"),
            ("最右边是什么水果？", f"从颜色看是{named[-1]}。"),
        ],
    )
    return Draft("scene", [Picture(board.done())], turns)


@dataclass(frozen=True)
class Street:
    """A street: colours of the houses, where the car is (0 to 1) and its colour, the traffic light."""

    houses: tuple[str, ...]
    car: float
    paint: str
    light: str = "green"


def draw_street(draw: Draw, street: Street, width: float, height: float, scale: float) -> Board:
    """Draw a street."""
    board = Board(draw, width, height, scale)
    sky = octaves(np.random.default_rng(len(street.houses)), 90, 120, (4, 3), 5)
    board.under(blend((126, 172, 222), (244, 247, 250), np.clip((sky - 0.35) * 2, 0, 1)))
    step = width / len(street.houses)
    for k, colour in enumerate(street.houses):
        top, paint = height * (0.2 + 0.07 * ((k * 5) % 3)), mix(NAMED[colour][1], (230, 220, 205), 0.35)
        board.rect(k * step, top, (k + 1) * step, height * 0.7, fill=paint)
        board.rect(k * step, top, (k + 1) * step, top + height * 0.03, fill=mix(paint, INK, 0.4))
        for i in range(2):
            for j in range(2):
                x, y = k * step + step * (0.2 + 0.4 * i), top + height * (0.08 + 0.14 * j)
                board.rect(x, y, x + step * 0.2, y + height * 0.08, fill=(214, 230, 240), edge=WHITE, line=1.2)
        board.rect(
            k * step + step * 0.42, height * 0.56, k * step + step * 0.58, height * 0.7, fill=mix(paint, INK, 0.6)
        )
    board.rect(0, height * 0.7, width, height * 0.76, fill=(196, 192, 186))
    board.rect(0, height * 0.76, width, height, fill=(84, 88, 94))
    for k in range(8):
        board.rect(width * (k + 0.2) / 8, height * 0.87, width * (k + 0.7) / 8, height * 0.885, fill=(236, 234, 220))
    x, y, size = width * street.car, height * 0.8, min(width, height) * 0.1
    board.rect(
        x - size * 0.6,
        y - size * 0.55,
        x + size * 0.55,
        y + size * 0.1,
        fill=mix(NAMED[street.paint][1], INK, 0.25),
        round_=size * 0.25,
    )
    board.rect(
        x - size * 1.1, y - size * 0.1, x + size * 1.1, y + size * 0.4, fill=NAMED[street.paint][1], round_=size * 0.15
    )
    for side in (-0.65, 0.65):
        board.disc(x + size * side, y + size * 0.4, size * 0.23, fill=INK)
        board.disc(x + size * side, y + size * 0.4, size * 0.1, fill=(170, 174, 180))
    pole, unit = width * 0.95, height * 0.035
    board.rect(pole - 2, height * 0.4, pole + 2, height * 0.76, fill=INK)
    board.rect(pole - unit, height * 0.4 - unit * 5, pole + unit, height * 0.4 + unit, fill=INK, round_=3)
    for k, (name, colour) in enumerate((("red", (230, 50, 46)), ("yellow", (250, 206, 60)), ("green", (70, 200, 100)))):
        board.disc(
            pole,
            height * 0.4 - unit * (4 - 2 * k),
            unit * 0.8,
            fill=colour if name == street.light else mix(colour, INK, 0.8),
        )
    return board


def street_scene(draw: Draw) -> Draft:
    """A street and questions about it."""
    street = Street(
        tuple(draw.rng.choice(COLOURS) for _ in range(draw.rng.randrange(3, 6))),
        draw.rng.choice((0.2, 0.5, 0.72)),
        draw.rng.choice(("red", "blue", "orange")),
        draw.rng.choice(("red", "green")),
    )
    board = draw_street(draw, street, *SIZES[draw.index % len(SIZES)])
    houses = [draw.say(c, NAMED[c][0]) for c in street.houses]
    paint, light = (
        draw.say(street.paint, NAMED[street.paint][0]),
        draw.say(street.light, "红灯" if street.light == "red" else "绿灯"),
    )
    turns = draw.say(
        [
            (
                ask(draw, DESCRIBE),
                f"A street with {NUMBERS[0][len(houses)]} houses in a row; from left to right "
                f"they are {listed(houses, False)}. {article(paint).capitalize()} "
                f"car stands on the road, and the traffic light at the right is {light}.",
            ),
            ("What does the traffic light show?", f"It is {light}."),
            ("What colour is the car?", f"It is {paint}."),
            ("May cars go now?", "Yes, the light is green." if light == "green" else "No, the light is red."),
        ],
        [
            (
                ask(draw, DESCRIBE),
                f"街边有一排房子，共{NUMBERS[1][len(houses)]}座，从左到右是{'、'.join(houses)}。"
                f"路上有一辆{paint}的汽车，右边的信号灯是{light}。",
            ),
            ("信号灯显示什么？", f"{light}。"),
            ("汽车是什么颜色？", f"{paint}。"),
        ],
    )
    return Draft("scene", [Picture(board.done())], turns)


def room(draw: Draw) -> Draft:
    """A room: a window, a lamp, a table, pictures on the wall."""
    width, height, scale = SIZES[draw.index % len(SIZES)]
    board, rng = Board(draw, width, height, scale), draw.noise()
    wall, sofa, shade = draw.rng.sample(COLOURS, 3)
    frames, lit = draw.rng.randrange(1, 4), draw.rng.random() < 0.5
    base = mix(NAMED[wall][1], WHITE, 0.7)
    back = blend(mix(base, INK, 0.12), base, octaves(rng, 120, 128, (2, 3), 3))
    back[86:] = blend((120, 84, 54), (172, 128, 84), octaves(rng, 34, 128, (20, 2), 4))
    board.under(back)
    board.rect(width * 0.06, height * 0.12, width * 0.3, height * 0.48, fill=(176, 212, 238), edge=WHITE, line=4)
    board.line([(width * 0.18, height * 0.12), (width * 0.18, height * 0.48)], WHITE, 3)
    for k in range(frames):
        x = width * (0.4 + 0.19 * k)
        board.rect(
            x,
            height * 0.14,
            x + width * 0.13,
            height * 0.32,
            fill=mix(NAMED[COLOURS[k]][1], WHITE, 0.3),
            edge=(92, 64, 40),
            line=3,
        )
    colour = NAMED[sofa][1]
    board.rect(width * 0.2, height * 0.55, width * 0.7, height * 0.8, fill=mix(colour, INK, 0.15), round_=10)
    board.rect(width * 0.16, height * 0.66, width * 0.74, height * 0.88, fill=colour, round_=10)
    board.rect(width * 0.845, height * 0.5, width * 0.855, height * 0.9, fill=INK)
    lamp = (255, 232, 150) if lit else mix(NAMED[shade][1], WHITE, 0.3)
    board.shape(
        [
            (width * 0.8, height * 0.52),
            (width * 0.82, height * 0.38),
            (width * 0.88, height * 0.38),
            (width * 0.9, height * 0.52),
        ],
        lamp,
    )
    names = [draw.say(c, NAMED[c][0]) for c in (wall, sofa)]
    turns = draw.say(
        [
            (
                ask(draw, DESCRIBE),
                f"A room with a pale {names[0]} wall, a window on the left, "
                f"{many(draw, frames, ('picture', ''))} on the wall, {article(names[1])} "
                f"sofa and a floor lamp on the right, which is {'lit' if lit else 'off'}. The floor is of wood.",
            ),
            ("How many pictures hang on the wall?", f"{frames}."),
            ("Is the lamp on?", "Yes, it glows yellow." if lit else "No."),
            ("What colour is the sofa?", f"It is {names[1]}."),
        ],
        [
            (
                ask(draw, DESCRIBE),
                f"一个房间：浅{names[0]}的墙，左边有窗户，墙上挂着{NUMBERS[1][frames]}幅画，"
                f"有一张{names[1]}的沙发，右边的落地灯{'亮着' if lit else '没有亮'}，"
                "地板是木头的。",
            ),
            ("墙上挂着几幅画？", f"{NUMBERS[1][frames]}幅。"),
            ("灯亮着吗？", "亮着，发出黄色的光。" if lit else "没有亮。"),
            ("沙发是什么颜色？", f"{names[1]}。"),
        ],
    )
    return Draft("scene", [Picture(board.done())], turns)


def scene(draw: Draw) -> Draft:
    """One of the five in turn, as if photographed."""
    draft = (landscape, night, still_life, street_scene, room)[draw.index % 5](draw)
    codec = ("jpeg:80", "webp:82")[draw.index % 2]
    draft.pictures = [Picture(camera(draw, picture.image), codec) for picture in draft.pictures]
    return draft


KINDS = {"scene": scene}
