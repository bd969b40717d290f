"""Natural textures from fractal noise: wood, clouds, marble, grass, water, sand, brick, fabric."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from drawn.base import Draft, Draw, Picture, blend, octaves
from drawn.words import DESCRIBE, ask

SIZES = (
    (512, 512),
    (720, 1080),
    (900, 1200),
    (448, 448),
    (1200, 800),
    (256, 1024),
    (640, 640),
    (768, 600),
)  # height, width


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns as float32, in parts of the width."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return rows / width, columns / width


def wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Boards with grain along them."""
    y, _ = grid(height, width)
    grain = octaves(rng, height, width, (26, 2), 5)
    rings = 0.5 + 0.5 * np.sin((y * 14 + octaves(rng, height, width, (4, 1), 3) * 5) * 6.28)
    board = np.floor(y * 5)
    tone = (0.55 * grain + 0.35 * rings + 0.1 * ((board * 0.37) % 1)).astype(np.float32)
    tone[np.abs(y * 5 - np.round(y * 5)) < 0.012] = 0
    return blend((86, 52, 28), (198, 150, 96), tone)


def clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """White clouds on a blue sky."""
    noise = octaves(rng, height, width, (3, 4), 6)
    return blend((92, 146, 210), (252, 252, 252), np.clip((noise - 0.42) * 3, 0, 1))


def marble(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Pale stone with dark veins."""
    y, x = grid(height, width)
    veins = np.abs(np.sin((x * 2.2 + y * 1.4 + octaves(rng, height, width, (3, 3), 6) * 2.4) * 3.14))
    return blend(
        (84, 86, 92), (240, 238, 234), np.clip(veins * 2.2, 0, 1) * 0.85 + 0.15 * octaves(rng, height, width, (6, 6), 4)
    )


def grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A lawn: short upright strokes."""
    fine = octaves(rng, height, width, (height // 12, width // 3), 2)
    return blend((28, 70, 22), (136, 186, 74), 0.65 * fine + 0.35 * octaves(rng, height, width, (3, 3), 3))


def water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Waves with bright crests, finer towards the top."""
    y, _ = grid(height, width)
    depth = (y / float(y.max())) ** 0.6
    noise = octaves(rng, height, width, (26, 5), 4)
    crest = 0.5 + 0.5 * np.sin((depth * 22 + noise * 3.2) * 3.14)
    return blend((16, 66, 104), (168, 212, 228), np.clip(crest**3 * 0.8 + 0.2 * noise, 0, 1))


def sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ripples of sand with a grain."""
    y, x = grid(height, width)
    ripple = 0.5 + 0.5 * np.sin((y * 16 + x * 4 + octaves(rng, height, width, (3, 3), 3) * 4) * 3.14)
    grain = np.asarray(rng.normal(0, 0.07, (height, width)), dtype=np.float32)
    return blend((176, 138, 88), (238, 212, 162), np.clip(0.75 * ripple + 0.2 + grain, 0, 1))


def brick(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wall of red bricks, each row shifted by half a brick."""
    y, x = grid(height, width)
    course = np.floor(y * 12)
    shifted = x * 5 + 0.5 * (course % 2)
    tone = octaves(rng, height, width, (30, 30), 4)
    each = np.sin(np.floor(shifted) * 12.9 + course * 78.2) * 0.5 + 0.5
    wall = blend((122, 48, 36), (200, 104, 78), 0.5 * tone + 0.5 * each.astype(np.float32))
    mortar = (np.abs(y * 12 - np.round(y * 12)) < 0.06) | (np.abs(shifted - np.round(shifted)) < 0.025)
    wall[mortar] = blend((170, 164, 154), (206, 200, 190), tone)[mortar]
    return wall


def fabric(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Woven cloth in checks of red and cream."""
    y, x = grid(height, width)
    weave = 0.5 + 0.25 * np.sin(x * 380) + 0.25 * np.sin(y * 380)
    checks = ((np.floor(x * 7) % 2) + (np.floor(y * 7) % 2)) / 2
    shade = 0.85 * checks + 0.15 * octaves(rng, height, width, (4, 4), 3)
    return np.clip(
        blend((246, 238, 220), (176, 40, 46), shade.astype(np.float32)) * (0.82 + 0.18 * weave[..., None]), 0, 255
    ).astype(np.uint8)


Maker = Callable[[np.random.Generator, int, int], np.ndarray]
TEXTURES: tuple[tuple[Maker, str, str, str, str], ...] = (
    (
        wood,
        "wood",
        "木头",
        "Brown boards lie one below the other, with fine grain running from left to "
        "right and dark joints between them.",
        "棕色的木板一块块横着排列，细密的木纹从左到右延伸，木板之间有深色的缝隙。",
    ),
    (
        clouds,
        "clouds",
        "云",
        "Soft white clouds drift over a blue sky; their edges are blurred and no land is in view.",
        "蓝天上飘着柔软的白云，边缘模糊，看不到地面。",
    ),
    (
        marble,
        "marble",
        "大理石",
        "A polished pale stone is crossed by winding dark grey veins.",
        "浅色的石面上有弯曲的深灰色纹路，像抛光的大理石。",
    ),
    (
        grass,
        "grass",
        "草地",
        "A green lawn seen from above: short blades, with lighter and darker patches.",
        "从上方看到的绿色草地，草叶很短，颜色有深有浅。",
    ),
    (
        water,
        "water",
        "水面",
        "Bright crests of waves lie in rows on dark blue water, closer together towards the top.",
        "深蓝色的水面上有一排排明亮的波纹，越往上越密。",
    ),
    (
        sand,
        "sand",
        "沙子",
        "Yellow sand lies in ripples, with a fine grain all over.",
        "黄色的沙子形成一道道波纹，表面布满细小的颗粒。",
    ),
    (
        brick,
        "a brick wall",
        "砖墙",
        "Courses of red bricks with pale mortar; each course is shifted by half a brick.",
        "一层层红砖，灰缝颜色较浅，每一层错开半块砖。",
    ),
    (
        fabric,
        "checked cloth",
        "格子布",
        "Woven cloth with red and cream checks.",
        "红色和米色相间的格子布，能看到编织的纹理。",
    ),
)


def picture(rng: np.random.Generator, kind: int, height: int, width: int) -> Image.Image:
    """One texture."""
    return Image.fromarray(TEXTURES[kind][0](rng, height, width))


def texture(draw: Draw) -> Draft:
    """One texture and what it is."""
    kind = draw.index % len(TEXTURES)
    _, name, chinese, en, zh = TEXTURES[kind]
    height, width = SIZES[draw.index % len(SIZES)]
    image = picture(draw.noise(), kind, height, width)
    tall = "taller than it is wide" if height > width else "wider than it is tall" if width > height else "square"
    turns = draw.say(
        [
            ("What material or surface is this?", f"It looks like {name}."),
            (ask(draw, DESCRIBE), en),
            ("What shape is the picture?", f"It is {tall}."),
            ("Is there any text in it?", "No, there is no text."),
        ],
        [("这是什么材质或表面？", f"看起来是{chinese}。"), (ask(draw, DESCRIBE), zh), ("图里有文字吗？", "没有文字。")],
    )
    return Draft("texture", [Picture(image, draw.rng.choice(("jpeg:80", "webp:82")))], turns)


KINDS = {"texture": texture}
