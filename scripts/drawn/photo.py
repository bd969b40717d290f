"""A flat sheet as a camera sees it: on a table, a little turned, unevenly lit, with noise."""

import numpy as np
from PIL import Image

from drawn.base import Draw, Picture, octaves
from drawn.textures import picture

LARGEST = 1800  # pixels: with its margin a picture stays within 2000


def photographed(draw: Draw, sheet: Image.Image, quality: int = 82) -> Picture:
    """The sheet lying on wood or stone; the picture is a twelfth larger than the turned sheet."""
    rng = draw.noise()
    sheet.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    angle = draw.rng.choice((-1, 1)) * draw.rng.uniform(0.6, 2.2)
    turned = sheet.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    width, height = min(2000, round(turned.width * 1.08)), min(2000, round(turned.height * 1.08))
    table = picture(rng, draw.rng.choice((0, 2)), height, width)
    place = ((width - turned.width) // 2, (height - turned.height) // 2)
    shadow = Image.new("RGBA", turned.size, (20, 16, 12, 0))
    shadow.putalpha(turned.getchannel("A").point(lambda a: a * 110 // 255))
    table.paste(shadow, (place[0] + 6, place[1] + 8), shadow)
    table.paste(turned, place, turned)
    light = 0.82 + 0.22 * octaves(rng, height, width, (1, 1), 2)
    grain = rng.normal(0, 2.5, (height, width, 1))
    lit = np.asarray(table, dtype=np.float32) * light[..., None] + grain
    return Picture(Image.fromarray(np.clip(lit, 0, 255).round().astype(np.uint8)), f"jpeg:{quality}")
