"""Pictures of the tiny world: handwritten digits, coloured shapes and short words on plain canvases.

The digits are scikit-learn's `load_digits` (the test part of UCI's "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak, CC BY 4.0), 1,797 pictures of 8 x 8; here they are enlarged, turned a little and coloured. Each
belongs to one split by the hash of its pixels, so equal digits cannot sit in two splits.
"""

import hashlib
import math
import random
from dataclasses import replace
from functools import cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from tinyask import Scene, Thing
from tinytext import COLOURS, SHAPES, WORDS

SIDE = 112  # pixels of a canvas' side unless asked otherwise
SPLITS = ("train", "validation", "calibration", "heldout")


def digit_split(pixels: np.ndarray) -> str:
    """The split of one 8 x 8 digit (float64, 0 to 16), by the hash of its bytes."""
    bucket = hashlib.sha256(pixels.astype(np.uint8).tobytes()).digest()[0] % 20
    return "validation" if bucket == 0 else "calibration" if bucket == 1 else "heldout" if bucket < 6 else "train"


@cache
def digit_bank(split: str) -> dict[str, list[tuple[str, np.ndarray]]]:
    """The digits of one split: digit -> list of (source id, 8 x 8 uint8 of 0 to 255)."""
    data = load_digits()
    bank: dict[str, list[tuple[str, np.ndarray]]] = {str(d): [] for d in range(10)}
    for index, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        if digit_split(pixels) == split:
            bank[str(digit)].append((f"load_digits:{index}", np.minimum(pixels * 16, 255).astype(np.uint8)))
    return bank


def digit_mask(pixels: np.ndarray, size: int, rng: random.Random) -> Image.Image:
    """A digit enlarged to `size` pixels, turned up to 10 degrees, a little stretched and sheared: an L mask."""
    big = Image.fromarray(pixels).resize((size * 2, size * 2), Image.Resampling.BICUBIC)
    angle = math.radians(rng.uniform(-10, 10))
    stretch_x, stretch_y, shear = rng.uniform(0.9, 1.2), rng.uniform(0.9, 1.15), rng.uniform(-0.12, 0.12)
    cos, sin, half = math.cos(angle), math.sin(angle), size
    matrix = np.array([[cos * stretch_x, (-sin + shear) * stretch_x], [sin * stretch_y, cos * stretch_y]])
    shift = np.array([half, half]) - matrix @ np.array([half, half])
    coefficients = (matrix[0, 0], matrix[0, 1], shift[0], matrix[1, 0], matrix[1, 1], shift[1])
    big = big.transform(big.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    sharpness = rng.uniform(1.0, 2.2)
    big = big.point(lambda v: max(0, min(255, int((v - 128) * sharpness + 140))))
    return big.resize((size, size), Image.Resampling.BOX)


def polygon(points: list[tuple[float, float]], size: int, angle: float) -> Image.Image:
    """A filled polygon; points in [-1, 1], turned by `angle` radians, drawn at twice the size for smooth edges."""
    mask = Image.new("L", (size * 2, size * 2), 0)
    cos, sin = math.cos(angle), math.sin(angle)
    turned = [(size + size * (x * cos - y * sin), size + size * (x * sin + y * cos)) for x, y in points]
    ImageDraw.Draw(mask).polygon(turned, fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def shape_mask(name: str, size: int, rng: random.Random) -> Image.Image:
    """One of the six shapes as an L mask of `size` pixels."""
    if name in ("circle", "ring"):
        mask = Image.new("L", (size * 2, size * 2), 0)
        draw = ImageDraw.Draw(mask)
        draw.ellipse((2, 2, size * 2 - 3, size * 2 - 3), fill=255)
        if name == "ring":
            inner = int(size * rng.uniform(0.4, 0.5))
            draw.ellipse((inner, inner, size * 2 - 1 - inner, size * 2 - 1 - inner), fill=0)
        return mask.resize((size, size), Image.Resampling.BOX)
    angle = math.radians(rng.uniform(-12, 12))
    if name == "square":
        corners = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    elif name == "triangle":
        corners = [(0.0, -0.95), (0.9, 0.75), (-0.9, 0.75)]
    elif name == "star":
        corners = [
            ((1.0, 0.42)[i % 2] * math.sin(i * math.pi / 5), -(1.0, 0.42)[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    else:
        w = rng.uniform(0.26, 0.34)
        corners = [(-w, -0.95), (w, -0.95), (w, -w), (0.95, -w), (0.95, w), (w, w), (w, 0.95), (-w, 0.95), (-w, w),
                   (-0.95, w), (-0.95, -w), (-w, -w)]  # fmt: skip
    return polygon(corners, size, angle)


@cache
def word_sprite(word: str, points: int) -> Image.Image:
    """A word in PIL's own font at `points`, cropped: an L mask."""
    font = ImageFont.load_default(size=points)
    left, top, right, bottom = font.getbbox(word)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4), 0)
    ImageDraw.Draw(mask).text((2 - left, 2 - top), word, fill=255, font=font, stroke_width=1, stroke_fill=255)
    return mask


def background(height: int, width: int, avoid: set[str], rng: random.Random) -> np.ndarray:
    """A plain, shaded or noisy canvas [height, width, 3] (float32, 0 to 255) that none of the colours melts into."""
    noise = np.random.default_rng(rng.getrandbits(32))
    for _ in range(50):
        base = np.array([rng.uniform(20, 235)] * 3) + np.array([rng.uniform(-18, 18) for _ in range(3)])
        if all(np.abs(np.array(COLOURS[c]) - base).sum() > 190 for c in avoid):
            break
    canvas = np.broadcast_to(base.astype(np.float32), (height, width, 3)).copy()
    style = rng.randrange(3)
    if style == 1:
        dx, dy = rng.uniform(-22, 22), rng.uniform(-22, 22)
        canvas += (np.linspace(-dx, dx, width)[None, :, None] + np.linspace(-dy, dy, height)[:, None, None]).astype(
            np.float32
        )
    elif style == 2:
        canvas += noise.normal(0, rng.uniform(2, 12), (height, width, 1)).astype(np.float32)
    return canvas


def mask_of(thing: Thing, pixels: np.ndarray | None, side: int, rng: random.Random) -> Image.Image:
    """The L mask of one thing on a canvas whose shorter side is `side` pixels."""
    size = max(10, round(thing.size * side))
    if thing.kind == "digit":
        assert pixels is not None
        return digit_mask(pixels, size, rng)
    if thing.kind == "shape":
        return shape_mask(thing.name, size, rng)
    return word_sprite(thing.name, max(10, round(size * 0.5)))


def paste(canvas: np.ndarray, mask: Image.Image, colour: tuple[float, ...], x: float, y: float) -> None:
    """Blend `colour` into the canvas through the mask, centred at (x, y) in parts of the canvas, kept inside it."""
    height, width = canvas.shape[:2]
    mask = mask.crop((0, 0, min(mask.width, width), min(mask.height, height)))
    left = min(max(round(x * width - mask.width / 2), 0), width - mask.width)
    top = min(max(round(y * height - mask.height / 2), 0), height - mask.height)
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255
    part = canvas[top : top + mask.height, left : left + mask.width]
    part += alpha * (np.array(colour, dtype=np.float32) - part)


def tint(colour: str, rng: random.Random) -> tuple[float, ...]:
    """The colour with a little variation."""
    return tuple(min(255.0, max(0.0, c + rng.uniform(-14, 14))) for c in COLOURS[colour])


def draw_scene(scene: Scene, bank: dict[str, list[tuple[str, np.ndarray]]], rng: random.Random,
               size: tuple[int, int] = (SIDE, SIDE)) -> tuple[list[np.ndarray], Scene]:  # fmt: skip
    """Draw every frame ([height, width, 3] uint8) and return the scene with the ids of the digits it used.

    The frames of a clip share background, handwriting and orientation; two pictures share nothing.
    """
    height, width = size
    frames, sources = [], []
    look, canvas = rng.getrandbits(32), None
    glyphs: dict[str, tuple[str, np.ndarray]] = {}
    for things in scene.frames:
        if canvas is None or scene.modality == "images":
            canvas = background(height, width, {t.colour for f in scene.frames for t in f}, rng)
            look = rng.getrandbits(32)
        picture = canvas.copy()
        for index, thing in enumerate(things):
            pixels, hand = None, random.Random(look + index)
            if thing.kind == "digit":
                if scene.modality != "video" or thing.name not in glyphs:
                    glyphs[thing.name] = rng.choice(bank[thing.name])
                source, pixels = glyphs[thing.name]
                sources.append(source)
            paste(picture, mask_of(thing, pixels, min(height, width), hand), tint(thing.colour, hand), thing.x, thing.y)
        frames.append(np.clip(picture, 0, 255).round().astype(np.uint8))
    return frames, replace(scene, sources=tuple(dict.fromkeys(sources)))


def random_thing(rng: random.Random, kind: str, x: float, y: float, size: float, side: str = "middle",
                 colours: tuple[str, ...] = tuple(COLOURS)) -> Thing:  # fmt: skip
    """A thing of the kind with a random name and colour."""
    name = {"digit": str(rng.randrange(10)), "shape": rng.choice(SHAPES), "word": rng.choice(WORDS)}[kind]
    return Thing(kind, name, rng.choice(colours), x, y, size, side)


KINDS = (0.5, 0.26, 0.24)  # weights of digit, shape and word in pictures of one thing


SMALLEST = {"digit": 0.42, "word": 0.52, "shape": 0.0}  # below it patches of 14 pixels do not resolve the strokes
STRETCH = {"digit": 1.22, "word": 1.2, "shape": 1.0}  # ink fills only a part of a digit's and a word's mask


def size_for(kind: str, rng: random.Random, small: float, large: float) -> float:
    """A size between the two, but not below what stays readable."""
    return rng.uniform(max(small, SMALLEST[kind]), max(large, SMALLEST[kind] + 0.06)) * STRETCH[kind]


def jitter(rng: random.Random, centre: float, spread: float) -> float:
    """`centre` plus or minus `spread`."""
    return centre + rng.uniform(-spread, spread)


CENTRES = {"left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76), "middle": (0.5, 0.5)}


def scene_single(rng: random.Random, kind: str | None = None, kinds: tuple[float, ...] = KINDS) -> Scene:
    """One large thing near the middle, or a smaller one clearly at one side."""
    kind = kind or rng.choices(("digit", "shape", "word"), kinds)[0]
    if rng.random() < 0.7:
        thing = random_thing(rng, kind, jitter(rng, 0.5, 0.1), jitter(rng, 0.5, 0.1), size_for(kind, rng, 0.38, 0.72))
    else:
        side = rng.choice(("left", "right", "top", "bottom"))
        x, y = CENTRES[side]
        thing = random_thing(
            rng, kind, jitter(rng, x, 0.04), jitter(rng, y, 0.04), size_for(kind, rng, 0.32, 0.42), side
        )
    return Scene("single", "image", ((thing,),))


def scene_pair(rng: random.Random) -> Scene:
    """Two different things, side by side or one above the other."""
    sides = rng.choice((("left", "right"), ("top", "bottom")))
    things: list[Thing] = []
    for side in sides:
        x, y = CENTRES[side]
        kind = rng.choices(("digit", "shape"), (0.45, 0.55))[0]
        free = tuple(c for c in COLOURS if not things or c != things[0].colour)
        things.append(
            random_thing(
                rng, kind, jitter(rng, x, 0.03), jitter(rng, y, 0.03), size_for(kind, rng, 0.34, 0.44), side, free
            )
        )
    return Scene("pair", "image", (tuple(things),))


def scene_trio(rng: random.Random) -> Scene:
    """Three shapes in three corners."""
    corners = rng.sample([(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)], 3)
    things = tuple(
        random_thing(rng, "shape", jitter(rng, x, 0.03), jitter(rng, y, 0.03), rng.uniform(0.3, 0.42))
        for x, y in corners
    )
    return Scene("trio", "image", (things,))


def scene_images(rng: random.Random) -> Scene:
    """Two pictures with one thing each: a digit and a shape, or two shapes that are the same half of the time."""

    def one(kind: str, name: str | None = None) -> Thing:
        thing = random_thing(rng, kind, jitter(rng, 0.5, 0.08), jitter(rng, 0.5, 0.08), size_for(kind, rng, 0.4, 0.7))
        return replace(thing, name=name or thing.name)

    if rng.random() < 0.5:
        kinds = ["digit", "shape"] if rng.random() < 0.5 else ["shape", "digit"]
        return Scene("two_pictures", "images", ((one(kinds[0]),), (one(kinds[1]),)))
    first = one("shape")
    second = one("shape", first.name if rng.random() < 0.5 else rng.choice([s for s in SHAPES if s != first.name]))
    return Scene("same", "images", ((first,), (second,)))


def scene_video(rng: random.Random) -> Scene:
    """Two to four frames: a shape that moves, or a digit that changes once."""
    length = rng.randrange(2, 5)
    if rng.random() < 0.5:
        motion = rng.choice(("left", "right", "up", "down"))
        thing = random_thing(rng, "shape", 0.5, 0.5, rng.uniform(0.34, 0.44))
        other = jitter(rng, 0.5, 0.1)
        steps = [0.22 + 0.56 * i / (length - 1) for i in range(length)]
        if motion in ("left", "up"):
            steps.reverse()
        frames = [
            (replace(thing, x=s, y=other) if motion in ("left", "right") else replace(thing, x=other, y=s),)
            for s in steps
        ]
        return Scene("moving", "video", tuple(frames), motion)
    first = random_thing(rng, "digit", jitter(rng, 0.5, 0.06), jitter(rng, 0.5, 0.06), rng.uniform(0.55, 0.85))
    last = replace(first, name=rng.choice([str(d) for d in range(10) if str(d) != first.name]))
    turn = rng.randrange(1, length)
    return Scene("changing", "video", tuple((first,) if i < turn else (last,) for i in range(length)))


def random_scene(rng: random.Random, layouts: tuple[float, ...], kinds: tuple[float, ...] = KINDS) -> Scene:
    """A scene of any layout, by the weights of single, pair, trio, two pictures and clip."""
    makers = (partial(scene_single, kinds=kinds), scene_pair, scene_trio, scene_images, scene_video)
    return rng.choices(makers, layouts)[0](rng)
