"""Handwriting: notes, lists, sums, Chinese characters, and digits of scikit-learn's `load_digits`."""

import numpy as np
import tinyworld
from PIL import Image

from drawn.base import Board, Colour, Draft, Draw, Picture, blend, octaves
from drawn.strokes import CHARACTERS, Hand
from drawn.words import DESCRIBE, TRANSCRIBE, ask

INKS: tuple[tuple[str, str, Colour], ...] = (
    ("blue", "蓝色", (32, 58, 140)),
    ("black", "黑色", (30, 30, 34)),
    ("green", "绿色", (30, 96, 70)),
)
BUY = ("milk", "eggs", "bread", "soap", "rice", "lemons", "tea", "nails", "string", "flour")
NOTES = (
    "call the garage today",
    "back at {n} please wait",
    "water the plants twice",
    "the key is under the pot",
    "meet me by the old mill",
    "train leaves at {n}",
)


def paper(draw: Draw, width: float, height: float, scale: float, ruled: str) -> Board:
    """A sheet with grain; "lines", "grid" or "plain"."""
    board = Board(draw, width, height, scale)
    grain = octaves(draw.noise(), round(height / 2), round(width / 2), (3, 4), 4)
    board.under(blend((236, 230, 214), (252, 249, 240), grain))
    if ruled != "plain":
        for k in range(1, int(height / 40) + 1):
            board.line([(0, k * 40), (width, k * 40)], (186, 204, 224), 1)
    if ruled == "grid":
        for k in range(1, int(width / 40) + 1):
            board.line([(k * 40, 0), (k * 40, height)], (186, 204, 224), 1)
    return board


def shopping(draw: Draw, hand: Hand) -> tuple[Board, str]:
    """A list of things to buy."""
    things = [f"{draw.rng.randrange(2, 13)} {name}" for name in draw.rng.sample(BUY, 5)]
    board = paper(draw, 340, 300, 1.5, "lines")
    for index, thing in enumerate(things):
        hand.write(board, 28, 78 + index * 40, thing, 14)
    return board, "\n".join(things)


def note(draw: Draw, hand: Hand) -> tuple[Board, str]:
    """A short note in one or two lines."""
    words = draw.rng.choice(NOTES).format(n=draw.rng.randrange(2, 12)).split()
    half = (len(words) + 1) // 2
    lines = [" ".join(words[:half]), " ".join(words[half:])]
    board = paper(draw, 460, 200, (1.0, 2.2)[draw.index % 2], "plain")
    for index, text in enumerate(lines):
        hand.write(board, 30, 80 + index * 70, text, 19)
    return board, "\n".join(lines)


def sums(draw: Draw, hand: Hand) -> tuple[Board, str]:
    """Three sums on squared paper."""
    lines = []
    for _ in range(3):
        a, b = draw.rng.randrange(10, 90), draw.rng.randrange(2, 10)
        lines.append(f"{a} + {b} = {a + b}" if draw.rng.random() < 0.5 else f"{a} - {b} = {a - b}")
    board = paper(draw, 400, 280, 1.2, "grid")
    for index, text in enumerate(lines):
        hand.write(board, 40, 75 + index * 80, text, 20)
    return board, "\n".join(lines)


def characters(draw: Draw, hand: Hand) -> tuple[Board, str]:
    """Chinese characters in two rows of four."""
    chosen = draw.rng.sample(list(CHARACTERS), 8)
    lines = ["".join(chosen[:4]), "".join(chosen[4:])]
    board = paper(draw, 440, 260, 1.3, "plain")
    for index, text in enumerate(lines):
        hand.write(board, 34, 112 + index * 112, text, 42)
    return board, "\n".join(lines)


def number(draw: Draw) -> tuple[Image.Image, str, list[str]]:
    """A row of digits written by people, from the calibration split of `load_digits`."""
    digits = [str(draw.rng.randrange(10)) for _ in range(draw.rng.randrange(4, 8))]
    bank, sources, tile = tinyworld.digit_bank("calibration"), [], 84
    canvas = np.full((120, tile * len(digits) + 36, 3), 246, dtype=np.float32)
    for index, digit in enumerate(digits):
        source, pixels = draw.rng.choice(bank[digit])
        sources.append(source)
        mask = tinyworld.digit_mask(pixels, 96, draw.rng)
        x = (18 + tile * index + tile / 2) / canvas.shape[1]
        tinyworld.paste(canvas, mask, (34.0, 36.0, 60.0), x, draw.rng.uniform(0.46, 0.54))
    return Image.fromarray(canvas.round().astype(np.uint8)), "".join(digits), list(dict.fromkeys(sources))


def handwriting(draw: Draw) -> Draft:
    """One handwritten sheet: characters, list, note, sums, or digits."""
    english, chinese, colour = draw.rng.choice(INKS)
    hand = Hand(draw.rng, colour, draw.rng.uniform(1.6, 2.6))
    kind = (draw.index + (1 if not draw.zh else 0)) % 5
    if kind == 4:
        image, text, sources = number(draw)
        turns = draw.say(
            [
                ("Read the number.", text),
                ("How many digits are there?", f"There are {len(text)}: {', '.join(text)}."),
                ("What is the sum of the digits?", f"{' + '.join(text)} = {sum(map(int, text))}"),
            ],
            [
                ("请读出这个数字。", text),
                ("一共有几个数字？", f"有{len(text)}个：{'、'.join(text)}。"),
                ("各位数字之和是多少？", f"{' + '.join(text)} = {sum(map(int, text))}"),
            ],
        )
        return Draft("digit", [Picture(image, "flat:24")], turns, sources=sources)
    if draw.zh:
        hand.pen *= 1.8
    board, text = characters(draw, hand) if draw.zh else (shopping, note, sums, note)[kind](draw, hand)
    lines = text.split("\n")
    turns = draw.say(
        [
            (ask(draw, TRANSCRIBE), text),
            ("What is in the last line?", lines[-1]),
            (
                ask(draw, DESCRIBE),
                f"Paper with {len(lines)} lines of {english} handwriting. The first line reads “{lines[0]}”.",
            ),
        ],
        [
            (ask(draw, TRANSCRIBE), text),
            ("最后一行写了什么？", lines[-1]),
            (ask(draw, DESCRIBE), f"纸上有{len(lines)}行{chinese}的手写字，第一行是“{lines[0]}”。"),
        ],
    )
    return Draft("handwriting", [Picture(board.done(), "webp:84")], turns)


KINDS = {"handwriting": handwriting}
