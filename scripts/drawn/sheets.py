"""Contact sheets of the set, for its README."""

import io
from pathlib import Path

from PIL import Image

from drawn.book import Row, kind_of, pictures_of

TILE = 120
PAPER = (236, 238, 242)


def thumbnail(data: bytes, side: int) -> Image.Image:
    """A picture no larger than `side`."""
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def sheet(names: list[list[str]], files: dict[str, bytes], columns: int) -> Image.Image:
    """Rows of pictures, each in the middle of its tile."""
    canvas = Image.new("RGB", (columns * TILE, len(names) * TILE), PAPER)
    for y, row in enumerate(names):
        for x, name in enumerate(row[:columns]):
            small = thumbnail(files[name], TILE - 10)
            canvas.paste(small, (x * TILE + (TILE - small.width) // 2, y * TILE + (TILE - small.height) // 2))
    return canvas


def write_sheets(rows: list[Row], files: dict[str, bytes], kinds: list[str], folder: Path) -> None:
    """Write `mix-pictures.jpg` (a line a kind), `mix-several.jpg` and `mix-clips.jpg` (a line a conversation)."""
    order = sorted(rows, key=lambda r: str(r["id"]))
    single = {kind: [r for r in order if kind_of(r) == kind and r["modality"] == "image"] for kind in kinds}
    lines = [[pictures_of([r])[0] for r in own] for own in single.values() if own]
    pairs = [pictures_of([r]) for r in order if r["modality"] == "images" and kind_of(r) != "world"][:8]
    both = [[*a[:4], *b[:4]] for a, b in zip(pairs[::2], pairs[1::2], strict=False)]
    clips = [pictures_of([r]) for r in order if r["modality"] == "video" and kind_of(r) != "world"][:8]
    for name, lists in (("pictures", lines), ("several", both), ("clips", clips)):
        sheet(lists, files, 8).save(folder / f"mix-{name}.jpg", "JPEG", quality=66, optimize=True)
