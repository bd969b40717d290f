"""Write the bundled calibration set: `calibration/manifest.jsonl`, pictures, contact sheets, the README's tables.

    python scripts/make_calibration.py [--out calibration] [--seed 0] [--cjk-font FILE]

Every picture is drawn here and every text comes from templates here; the same seed gives the same bytes with the same
versions of Python, Pillow, NumPy and the fonts. Needs scikit-learn (digits), matplotlib (its DejaVu fonts) and a font
for Chinese: Noto Sans CJK by fontconfig, or `--cjk-font`. The fonts are not part of the set.
"""

import argparse
import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import make_tiny_data
from drawn import (
    agent,
    charts,
    clips,
    code,
    diagrams,
    formulas,
    ink,
    maps,
    pages,
    scenes,
    screens,
    several,
    strips,
    text,
    textures,
    tools,
)
from drawn.base import Draft, Draw, Fonts
from drawn.book import Book, counts_table, make_item, sizes_table
from drawn.sheets import write_sheets
from PIL import Image

MAKERS: dict[str, Callable[[Draw], Draft]] = {}
for module in (
    pages,
    charts,
    screens,
    maps,
    strips,
    diagrams,
    formulas,
    ink,
    textures,
    scenes,
    several,
    clips,
    tools,
    code,
    text,
    agent,
):
    MAKERS |= module.KINDS
PLAN = {
    "page": 9,
    "table": 6,
    "receipt": 5,
    "chart": 11,
    "screen": 10,
    "diagram": 4,
    "map": 5,
    "sign": 5,
    "icon": 3,
    "strip": 6,
    "formula": 7,
    "handwriting": 7,
    "texture": 8,
    "scene": 10,
    "several": 24,
    "clip": 24,
    "agent": 5,
    "tools": 17,
    "code": 14,
    "maths": 12,
    "text": 20,
}
KINDS = [*PLAN, "world"]


def languages() -> dict[tuple[str, int], str]:
    """The language of each conversation: three of eight are Chinese, spread evenly over all kinds."""
    order = [(kind, index) for kind, number in PLAN.items() for index in range(number)]
    return {key: "zh" if place * 3 % 8 < 3 else "en" for place, key in enumerate(order)}


def item(kind: str, index: int, seed: int, fonts: Fonts) -> tuple[Draft, Draw]:
    """One conversation of the set, by its kind and number."""
    return make_item(kind, MAKERS[kind], index, languages()[kind, index], seed, fonts)


def make_book(seed: int, fonts: Fonts) -> Book:
    """The whole set in memory, in shuffled order."""
    book, world = Book(), make_tiny_data.world(seed)
    for kind, index in languages():
        draft, draw = item(kind, index, seed, fonts)
        book.add(f"{kind}-{index:03d}", draft, draw)
    book.rows += world.rows
    book.files |= world.files
    random.Random(seed).shuffle(book.rows)
    return book


def write_tables(book: Book, readme: Path) -> None:
    """Put the counts between the README's markers."""
    sizes = []
    for data in book.files.values():
        with Image.open(io.BytesIO(data)) as picture:
            sizes.append(picture.size)
    text = readme.read_text(encoding="utf-8")
    for mark, table in (("counts", counts_table(book.rows, KINDS)), ("sizes", sizes_table(sizes))):
        between = re.compile(f"<!-- {mark} -->.*?<!-- /{mark} -->", re.DOTALL)
        text = between.sub(f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->", text)
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    """Parse the command line and write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("calibration"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cjk-font", type=Path, help="a font file with Chinese glyphs")
    options = parser.parse_args()
    book = make_book(options.seed, Fonts(options.cjk_font))
    book.write(options.out)
    write_sheets(book.rows, book.files, KINDS, options.out)
    if (options.out / "README.md").is_file():
        write_tables(book, options.out / "README.md")
    print(f"{len(book.rows)} conversations, {len(book.files)} pictures, {sum(map(len, book.files.values())):,} bytes")


if __name__ == "__main__":
    main()
