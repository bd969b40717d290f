"""The bundled calibration set: as large, as mixed and as true as its README says; made again, it comes out the same."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quantkit.calibration import load_conversations
from quantkit.calibration.identity import identify

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "calibration"
LIMIT = 6_000_000  # bytes
KINDS = {
    "page", "table", "receipt", "chart", "screen", "diagram", "map", "sign", "icon", "strip", "formula", "handwriting",
    "texture", "scene", "several", "clip", "agent", "tools", "code", "maths", "text", "world",
}  # fmt: skip
SLICE = 448  # pixels: the side of the model's slices
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The manifest."""
    return read(FOLDER / "manifest.jsonl")


@pytest.fixture(scope="module")
def sizes(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Width and height of each picture by its path."""
    found = {}
    for name in {name for row in rows for name in pictures(row)}:
        with Image.open(FOLDER / name) as picture:
            picture.load()
            found[name] = picture.size
    return found


def read(file: Path) -> list[Row]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def pictures(row: Row) -> list[str]:
    """Every picture that a row names, frames included."""
    parts = [part for message in row["messages"] for part in message["content"] or []]
    named = [[part["image"]] if part["type"] == "image" else part.get("video", []) for part in parts]
    return [name for names in named for name in names]


def kind_of(row: Row) -> str:
    return row["id"].split("-")[0]


def share(rows: list[Row], key: str, value: str) -> float:
    return sum(row[key] == value for row in rows) / len(rows)


def texts(row: Row, role: str) -> list[str]:
    return [p["text"] for m in row["messages"] if m["role"] == role for p in m["content"] or [] if p["type"] == "text"]


def missing_answers(rows: list[Row]) -> list[str]:
    """Ids of rows that do not end in an answer, or leave a question without one."""
    wrong = []
    for row in rows:
        roles = [m["role"] for m in row["messages"] if m["role"] != "system"]
        asked = [b == "assistant" for a, b in pairwise(roles) if a in ("user", "tool") and b != "tool"]
        answers = texts(row, "assistant")
        if roles[-1] != "assistant" or not all(asked) or not answers or not all(a.strip() for a in answers):
            wrong.append(row["id"])
    return wrong


def test_the_folder_stays_within_six_megabytes() -> None:
    assert 3_000_000 < sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= LIMIT


def test_there_are_enough_conversations_of_each_sort(rows: list[Row]) -> None:
    assert len(rows) >= 128
    assert len({row["id"] for row in rows}) == len(rows)
    assert 0.3 <= share(rows, "language", "zh") <= 0.45
    for modality, low, high in (("image", 0.4, 0.5), ("images", 0.1, 0.15), ("video", 0.1, 0.15), ("text", 0.25, 0.35)):
        assert low <= share(rows, "modality", modality) <= high, modality
    kinds = Counter(map(kind_of, rows))
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 3 and 30 <= kinds["world"] <= 50
    both = {kind: {r["language"] for r in rows if kind_of(r) == kind} for kind in kinds}
    assert [kind for kind, found in both.items() if found != {"en", "zh"}] == []


def test_stated_language_modality_and_pictures_are_those_of_the_messages(rows: list[Row]) -> None:
    for row in rows:
        parts = [p["type"] for m in row["messages"] for p in m["content"] or []]
        expected = "video" if "video" in parts else ("text", "image", "images")[min(parts.count("image"), 2)]
        assert row["modality"] == expected, row["id"]
        said = "".join(texts(row, "user"))
        chinese = any("\u4e00" <= c <= "\u9fff" for c in said)
        if kind_of(row) not in ("world", "text"):  # a word may be asked for in the other language there
            assert chinese == (row["language"] == "zh"), row["id"]
        assert row["modality"] != "video" or 2 <= len(pictures(row)) <= 8


def test_every_answer_is_there(rows: list[Row]) -> None:
    assert missing_answers(rows) == []
    assert all("answer" not in row for row in rows)  # that key is for items that are scored
    multiple = [r for r in rows if r["modality"] != "text" and sum(m["role"] == "user" for m in r["messages"]) > 1]
    assert 0.18 <= len(multiple) / sum(r["modality"] != "text" for r in rows) <= 0.4
    lengths = sorted(len(answer) for row in rows for answer in texts(row, "assistant"))
    assert lengths[len(lengths) // 10] < 20 and lengths[-len(lengths) // 10] > 150


def test_a_missing_answer_is_found(rows: list[Row]) -> None:
    broken = {**rows[0], "messages": rows[0]["messages"][:-1]}
    assert missing_answers([broken]) == [rows[0]["id"]]


def test_every_picture_is_used_and_every_reference_is_there(rows: list[Row]) -> None:
    named = [name for row in rows for name in pictures(row)]
    there = [f"images/{file.name}" for file in (FOLDER / "images").iterdir()]
    assert sorted(named) == sorted(there)


def test_sizes_reach_from_icons_to_banners(sizes: dict[str, tuple[int, int]], rows: list[Row]) -> None:
    all_sizes = list(sizes.values())
    assert min(max(s) for s in all_sizes) == 64 and max(max(s) for s in all_sizes) == 2000
    assert {(2000, 200), (64, 1024), (200, 2000)} <= set(all_sizes)
    ratios = [w / h for w, h in all_sizes]
    assert max(ratios) >= 10 and min(ratios) <= 1 / 10
    assert any(w == h for w, h in all_sizes)
    single = [sizes[pictures(row)[0]] for row in rows if row["modality"] == "image"]
    assert 0.1 <= sum(1000 <= max(s) <= 2000 for s in single) / len(single) <= 0.35
    sliced = [s for s in single if math.ceil(s[0] * s[1] / SLICE**2) > 1]
    assert len(sliced) / len(single) >= 0.4
    assert {min(9, math.ceil(w * h / SLICE**2)) for w, h in sliced} >= {2, 3, 4, 5, 6, 9}


def test_tool_calls_name_declared_tools_and_fields(rows: list[Row]) -> None:
    parallel = turns = 0
    for row in rows:
        declared = {t["function"]["name"]: t["function"]["parameters"] for t in row.get("tools", [])}
        messages = row["messages"]
        for place, message in enumerate(messages):
            calls = message.get("tool_calls", [])
            parallel += len(calls) > 1
            assert [m["role"] for m in messages[place + 1 : place + 1 + len(calls)]] == ["tool"] * len(calls), row["id"]
            for call in (c["function"] for c in calls):
                schema = declared[call["name"]]
                assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"]), row["id"]
        turns += bool(declared) and sum(m["role"] == "user" for m in messages) > 1
    assert parallel >= 3 and turns >= 3


def test_the_python_in_answers_runs(rows: list[Row]) -> None:
    fences = [
        f
        for r in rows
        if kind_of(r) == "code"
        for a in texts(r, "assistant")
        for f in re.findall(r"```python\n(.*?)```", a, re.DOTALL)
    ]
    assert len(fences) >= 4
    for code in fences:
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"


def test_json_answers_parse_and_sums_are_right(rows: list[Row]) -> None:
    sums = 0
    for row in rows:
        for answer in texts(row, "assistant"):
            if answer.startswith("{"):
                json.loads(answer)
            for left, right in re.findall(r"((?:\d+(?:\.\d+)? \+ )+\d+(?:\.\d+)?) = (\d+(?:\.\d+)?)", answer):
                assert math.isclose(sum(map(float, left.split(" + "))), float(right), abs_tol=1e-6), (row["id"], left)
                sums += 1
    assert sums >= 10


def test_the_set_loads(rows: list[Row]) -> None:
    loaded = load_conversations("bundled")
    assert [c.id for c in loaded] == [row["id"] for row in rows]
    assert [c.modality for c in loaded] == [row["modality"] for row in rows]


def test_the_readme_counts_what_is_there(rows: list[Row], sizes: dict[str, tuple[int, int]]) -> None:
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn")
    from drawn import book

    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- counts -->\n")[1].split("\n<!-- /counts -->")[0]
    stated = {line.split("|")[1].strip(): [int(c) for c in line.split("|")[2:-1]] for line in table.splitlines()[2:]}
    for kind, figures in stated.items():
        own = [r for r in rows if kind in (kind_of(r), "all")]
        languages, modalities = Counter(r["language"] for r in own), Counter(r["modality"] for r in own)
        expected = [languages["en"], languages["zh"], *(modalities[m] for m in ("text", "image", "images", "video"))]
        assert figures == [*expected, sum(len(pictures(r)) for r in own)], kind
    assert set(stated) == {*map(kind_of, rows), "all"}
    assert book.sizes_table(list(sizes.values())) in text
    for link in re.findall(r"\]\(([^)]+\.jpg)\)", text):
        assert (FOLDER / link).is_file(), link
    for kind in stated:
        assert kind == "all" or f"\n| {kind} | " in text.split("<!-- counts -->")[0], f"{kind} is not explained"


def remade(kind: str, index: int, rows: list[Row], cjk: bool) -> None:
    """Make one conversation again: the same messages, and pixels that other versions of codec or font change little."""
    pytest.importorskip("sklearn", reason="the digits come from scikit-learn")
    pytest.importorskip("matplotlib", reason="Latin letters are drawn in matplotlib's DejaVu fonts")
    import make_calibration
    from drawn.base import Fonts, MissingFont
    from drawn.book import Book

    fonts = Fonts()
    if cjk:
        try:
            fonts.get(12, "regular", True)
        except MissingFont as error:
            pytest.skip(str(error))
    draft, draw = make_calibration.item(kind, index, 0, fonts)
    book = Book()
    book.add(f"{kind}-{index:03d}", draft, draw)
    row = next(r for r in rows if r["id"] == f"{kind}-{index:03d}")
    assert json.loads(json.dumps(book.rows[0])) == row
    for name, data in book.files.items():
        with Image.open(io.BytesIO(data)) as made, Image.open(FOLDER / name) as kept:
            assert made.size == kept.size
            gap = np.abs(np.asarray(made.convert("RGB"), dtype=float) - np.asarray(kept.convert("RGB"), dtype=float))
        assert gap.mean() < 1.0, name


@pytest.mark.parametrize(
    ("kind", "index"),
    [("texture", 3), ("icon", 1), ("formula", 0), ("scene", 5), ("clip", 3), ("maths", 2), ("code", 1)],
)
def test_an_item_made_again_is_the_same(kind: str, index: int, rows: list[Row]) -> None:
    chinese = next(r["language"] == "zh" for r in rows if r["id"] == f"{kind}-{index:03d}")
    remade(kind, index, rows, cjk=chinese and kind not in ("texture", "icon", "scene", "formula", "maths", "code"))


def test_a_chinese_page_made_again_is_the_same(rows: list[Row]) -> None:
    index = next(int(r["id"].split("-")[1]) for r in rows if kind_of(r) == "receipt" and r["language"] == "zh")
    remade("receipt", index, rows, cjk=True)


def test_nothing_is_shared_with_the_held_out_set() -> None:
    heldout = [identify(c) for c in load_conversations("heldout")]
    known = {mark for identity in heldout for mark in (identity.item, *identity.pictures)}
    found = [c.id for c in load_conversations("bundled") for i in [identify(c)] if known & {i.item, *i.pictures}]
    assert found == []


def test_photographs_name_licence_and_credit() -> None:
    photos = read(FOLDER / "photos" / "manifest.jsonl")
    assert 20 <= len(photos) <= 30 and len({row["id"] for row in photos}) == len(photos)
    assert missing_answers(photos) == []
    assert {row["language"] for row in photos} == {"en", "zh"}
    for row in photos:
        assert row["licence"] and row["credit"]
        assert re.fullmatch(r"(\S+: )?(CC0-1\.0|public domain)(; \S+: (CC0-1\.0|public domain))*", row["licence"])
        assert all(re.fullmatch(r"skimage:[a-z_]+\.(png|jpg)", name) for name in pictures(row))
        assert all(name.removeprefix("skimage:") in row["credit"] for name in pictures(row))


def test_photographs_are_in_the_installed_package() -> None:
    skimage = pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    folder = Path(skimage.__file__).parent / "data"
    names = {name.removeprefix("skimage:") for r in read(FOLDER / "photos" / "manifest.jsonl") for name in pictures(r)}
    assert len(names) >= 12
    assert [name for name in sorted(names) if not (folder / name).is_file()] == []
