"""Data sets that people calibrate with: where they are on the hub and which of their columns mean what.

Columns, configs and splits as their pages on the hub state them. Each default can be overridden in the source's name
(`HuggingFaceM4/the_cauldron,config=docvqa,limit=500`); `path=FOLDER` reads a local copy the same way. `limit` bounds
what is fetched: rows with pictures are some 0.1 to 1 MB each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quantkit.calibration.rows import RawRow

DOCUMENT = 2000  # characters that lines are joined to
_HEADING = re.compile(r"\s*=(?P<deeper> =)* [^=].* (= )*=\s*\Z")


@dataclass(frozen=True)
class Preset:
    """How one data set is read when nothing else is said."""

    name: str  # the short name
    id: str  # on the hub
    config: str | None
    split: str
    limit: int  # rows; documents, where lines are joined
    columns: dict[str, str] = field(default_factory=dict)  # field -> column
    joined: bool = False  # its rows are lines of text
    aliases: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()  # those known, for messages


CAULDRON = """
    ai2d aokvqa chart2text chartqa clevr clevr_math cocoqa datikz diagram_image_to_text docvqa dvqa figureqa finqa
    geomverse hateful_memes hitab iam iconqa infographic_vqa intergps localized_narratives mapqa mimic_cgd
    multihiertt nlvr2 ocrvqa okvqa plotqa raven rendered_text robut_sqa robut_wikisql robut_wtq scienceqa
    screen2words spot_the_diff st_vqa tabmwp tallyqa tat_qa textcaps textvqa tqa vistext visual7w visualmrc vqarad
    vqav2 vsr websight
"""
WIKITEXT = ("wikitext-2-raw-v1", "wikitext-103-raw-v1", "wikitext-2-v1", "wikitext-103-v1")

PRESETS = (
    # ds_name, image, question, chosen, rejected, origin_dataset, origin_split, idx, image_path
    Preset(
        "rlaif-v", "openbmb/RLAIF-V-Dataset", None, "train", 1000,
        {"image": "image", "question": "question", "answer": "chosen"},
    ),
    # image, caption (five), sentids, split, img_id, filename; the only split is called "test"
    Preset("flickr30k", "lmms-lab/flickr30k", None, "test", 1000, {"image": "image", "answer": "caption"}),
    # images, texts [{user, assistant, source}]
    Preset(
        "the_cauldron", "HuggingFaceM4/the_cauldron", "vqav2", "train", 1000,
        {"images": "images", "messages": "texts"}, aliases=("cauldron",), configs=tuple(CAULDRON.split()),
    ),
    # images, texts [{user, assistant}], source, ratings
    Preset(
        "finevision", "HuggingFaceM4/FineVision", "chartqa", "train", 1000,
        {"images": "images", "messages": "texts"}, configs=("ai2d_merged", "chartqa"),
    ),
    # text, meta
    Preset("pile-val", "mit-han-lab/pile-val-backup", None, "validation", 2000, {"text": "text"}, aliases=("pile",)),
    # text: one line of an article a row, many of them blank
    Preset(
        "wikitext", "Salesforce/wikitext", "wikitext-2-raw-v1", "train", 2000, {"text": "text"},
        joined=True, configs=WIKITEXT,
    ),
)  # fmt: skip


def preset_of(name: str) -> Preset | None:
    """The preset of a hub id or a short name, whatever its case."""
    lower = name.lower()
    return next((p for p in PRESETS if lower in (p.name, p.id.lower(), p.id.split("/")[1].lower(), *p.aliases)), None)


def preset_names() -> list[str]:
    """Every name that a preset goes by."""
    return [name for preset in PRESETS for name in (preset.name, preset.id, *preset.aliases)]


def join_lines(rows: Iterable[RawRow], column: str) -> Iterator[RawRow]:
    """Rows of single lines as documents: begun at each article's heading, and where one of `DOCUMENT` characters ends.

    A section's heading ends a document that is at least half as long; blank lines are dropped. A document is named by
    its first line. A row that holds no text passes through, to be refused as it is.
    """
    lines: list[str] = []
    first: RawRow | None = None
    size = 0
    for row in rows:
        line = row.value.get(column) if row.fault is None and isinstance(row.value, dict) else None
        if not isinstance(line, str):
            yield row
            continue
        if not line.strip():
            continue
        heading = _HEADING.match(line)
        ends = size >= DOCUMENT or (heading and (not heading["deeper"] or size >= DOCUMENT // 2))
        if first is not None and ends:
            yield RawRow(first.where, first.id, {column: "\n".join(lines)}, first.folder)
            lines, first, size = [], None, 0
        first = first or row
        lines.append(line.strip())
        size += len(line)
    if first is not None:
        yield RawRow(first.where, first.id, {column: "\n".join(lines)}, first.folder)
