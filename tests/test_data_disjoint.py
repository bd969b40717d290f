"""Held-out and calibration set and the training data of `tiny` share no digit, no picture and no conversation."""

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import make_tiny_data
import numpy as np
import pytest
import tinydata
import tinytext
import tinyworld
from PIL import Image

ROOT = Path(__file__).parents[1]

SETS = {"heldout": ROOT / "quantkit" / "data" / "heldout", "calibration": ROOT / "calibration"}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    """The manifests' rows, with the hash of each picture's pixels instead of its path."""
    return {name: read(folder) for name, folder in SETS.items()}


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 over a picture's shape and pixels [height, width, 3] uint8."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def read(folder: Path) -> list[Row]:
    """Rows of a manifest; a picture's path becomes the hash of its pixels."""

    def opened(name: str) -> str:
        with Image.open(folder / name) as picture:
            return pixel_hash(np.asarray(picture.convert("RGB")))

    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in lines:
        for part in parts(row):
            if part["type"] == "image":
                part["image"] = opened(part["image"])
            elif part["type"] == "video":
                part["video"] = [opened(name) for name in part["video"]]
    return lines


def parts(row: Row) -> list[dict[str, Any]]:
    """All content parts of a row."""
    return [p for m in row["messages"] if isinstance(m["content"], list) for p in m["content"]]


def fingerprints(row: Row) -> set[str]:
    """What must not occur twice: the digits' ids, the pictures' hashes, the whole conversation."""
    pictures = [p["image"] for p in parts(row) if p["type"] == "image"]
    pictures += [name for p in parts(row) if p["type"] == "video" for name in p["video"]]
    whole = json.dumps(row["messages"], ensure_ascii=False)
    return {*row.get("sources", []), *pictures, whole}


def shared(first: list[Row], second: list[Row]) -> list[tuple[str, str]]:
    """Pairs of ids that share a fingerprint."""
    owner = {mark: row["id"] for row in first for mark in fingerprints(row)}
    return [(owner[mark], row["id"]) for row in second for mark in fingerprints(row) if mark in owner]


def strays(split: str, lines: list[Row]) -> list[str]:
    """Ids of rows whose digits or texts belong to another split, or that name no digit though they show one."""
    own = {source for bank in tinyworld.digit_bank(split).values() for source, _ in bank}
    wrong = [r["id"] for r in lines if not set(r.get("sources", [])) <= own]
    wrong += [r["id"] for r in lines if r["task"] == "digit" and not r.get("sources")]
    texts = [r for r in lines if r["modality"] == "text"]
    return wrong + [r["id"] for r in texts if tinytext.split_of(json.dumps(r["messages"], ensure_ascii=False)) != split]


def test_the_splits_part_all_digits_by_their_pixels() -> None:
    pixels, ids = {}, {}
    for split in tinyworld.SPLITS:
        found = [(source, image.tobytes()) for bank in tinyworld.digit_bank(split).values() for source, image in bank]
        ids[split], pixels[split] = {source for source, _ in found}, {image for _, image in found}
    assert sum(map(len, ids.values())) == 1797
    assert all(len(bank) >= 3 for split in tinyworld.SPLITS for bank in tinyworld.digit_bank(split).values())
    for first in tinyworld.SPLITS:
        for second in tinyworld.SPLITS:
            if first != second:
                assert not ids[first] & ids[second]
                assert not pixels[first] & pixels[second]


def test_every_row_comes_from_its_own_split(rows: dict[str, list[Row]]) -> None:
    assert {name: strays(name, lines) for name, lines in rows.items()} == {"heldout": [], "calibration": []}


def test_the_rules_have_something_to_judge(rows: dict[str, list[Row]]) -> None:
    """The calibration set holds more than the tiny world; its texts and digits are still judged, all of them."""
    for lines in rows.values():
        assert sum(row["modality"] == "text" for row in lines) >= 40
        assert sum(row["task"] == "digit" for row in lines) >= 6
    named = {row["id"] for row in rows["calibration"] if row.get("sources")}
    assert {name.split("-")[0] for name in named} == {"world", "handwriting"}


def test_heldout_and_calibration_share_nothing(rows: dict[str, list[Row]]) -> None:
    assert shared(rows["heldout"], rows["calibration"]) == []


def test_no_training_sample_is_held_out(rows: dict[str, list[Row]]) -> None:
    drawn = tinydata.draw_samples("train", tinydata.Plan(200, 2, (0.5, 0.2, 0.1, 0.1, 0.1)), random.Random(0))
    own = {source for bank in tinyworld.digit_bank("train").values() for source, _ in bank}
    assert all(set(sample.scene.sources) <= own for sample in drawn)
    taken = set().union(*(fingerprints(row) for lines in rows.values() for row in lines))
    assert not {source for sample in drawn for source in sample.scene.sources} & taken
    assert not {pixel_hash(frame) for sample in drawn for frame in sample.frames} & taken


def test_further_draws_are_held_out_too(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    """What `bench_gguf.py --draws` measures on: nothing that was calibrated on, and no picture of the set itself."""
    made = make_tiny_data.more_heldout(2)
    made.write(tmp_path)
    more = read(tmp_path)
    assert len(more) == 820 == len({row["id"] for row in more})
    found = set().union(*map(fingerprints, more))
    assert not found & set().union(*map(fingerprints, rows["calibration"]))
    pictures = {name for row in more for part in parts(row) for name in pictures_of(part)}
    known = {name for row in rows["heldout"] for part in parts(row) for name in pictures_of(part)}
    assert len(pictures) > 800 and not pictures & known


def pictures_of(part: dict[str, Any]) -> list[str]:
    """A part's pictures, as `read` has them."""
    return part["video"] if part["type"] == "video" else [part["image"]] if part["type"] == "image" else []


def test_no_picture_or_text_stands_twice_in_a_set(rows: dict[str, list[Row]]) -> None:
    for lines in rows.values():
        wholes = [json.dumps(row["messages"], ensure_ascii=False) for row in lines]
        assert len(set(wholes)) == len(wholes)


def test_a_planted_overlap_is_found(rows: dict[str, list[Row]]) -> None:
    stolen = copy.deepcopy(next(row for row in rows["heldout"] if row["task"] == "digit"))
    stolen["id"] = "planted"
    assert strays("calibration", [*rows["calibration"], stolen]) == ["planted"]
    found = shared(rows["heldout"], [*rows["calibration"], stolen])
    assert {second for _, second in found} == {"planted"}
    text = copy.deepcopy(next(row for row in rows["heldout"] if row["modality"] == "text"))
    assert strays("calibration", [text]) == [text["id"]]
