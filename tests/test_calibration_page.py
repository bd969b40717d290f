"""The page of a calibration mix: structure, escaping, bounds, and a browser's view of it."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import chat, image_part, picture, text_part, user, write_mixed, write_rows
from PIL import Image
from test_report_pages import CHROMIUM, EVIL, Page, _chromium, _probe

from quantkit.calibration import Mix, PrepareOptions, build
from quantkit.calibration.describe import Description, describe
from quantkit.calibration.looks import SIDE, TEXT, THUMBNAILS, Look, looks
from quantkit.calibration.sources import parse_sources
from quantkit.report.calibration import KINDS, calibration_page, write_calibration

SECTIONS = ["figures", "mix", "pictures", "texts", "conversations", "settings"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("page")
    mixed = write_mixed(folder / "mixed", 16)
    for number in range(7):
        picture(folder / f"{number}.png", seed=number, size=(400 + 16 * number, 80))
    rows = [
        {"id": "evil", "messages": chat(text_part("<script>alert(1)</script> & \"'"), answer="<img src=x onerror=y>")},
        {"id": "seven", "messages": chat(*(image_part(f"{n}.png") for n in range(7)), text_part("Which?"))},
        {"id": "long", "messages": chat(text_part("word " * 400), answer="w" * 700), "language": "zh"},
        {"id": "open", "messages": [user("No answer yet.")]},
        {"id": "turns", "messages": [*chat(text_part("One?"), answer="1."), *chat(text_part("Two?"), answer="2.")]},
        {"id": "both", "messages": chat({"type": "video", "video": ["0.png"] * 9}, image_part("1.png"))},
    ]
    return [str(mixed), str(write_rows(folder / "rows.jsonl", rows))]


@pytest.fixture(scope="module")
def mix(sources: list[str], random_checkpoint: Path) -> Mix:
    return build(sources, random_checkpoint, PrepareOptions(downsample_mode="both"))


@pytest.fixture(scope="module")
def shown(mix: Mix, sources: list[str]) -> list[Look]:
    return list(looks(mix, parse_sources(sources)))


@pytest.fixture(scope="module")
def page(mix: Mix, shown: list[Look]) -> str:
    return calibration_page(describe(mix), shown, {"samples": 128, "quantkit": "9"}, "mixed, rows.jsonl")


def _of(shown: list[Look], name: str) -> Look:
    return next(look for look in shown if look.id == name)


def test_looks(mix: Mix, shown: list[Look]) -> None:
    assert [look.id for look in shown] == [sample.id for sample in mix.samples]
    seven, both, long = (_of(shown, name) for name in ("seven", "both", "long"))
    assert len(seven.thumbnails) == THUMBNAILS and seven.more == 3
    assert [one.frame for one in both.thumbnails] == [True, True, True, False] and both.more == 6  # room for the image
    assert len(long.question) <= TEXT and long.question.endswith("…") and long.answer.endswith("…")
    assert _of(shown, "open").answer == "" and _of(shown, "turns").turns == 2
    assert (_of(shown, "turns").question, _of(shown, "turns").answer) == ("One?", "1.")
    assert (seven.thumbnails[1].width, seven.thumbnails[1].height) == (416, 80)
    for look in shown:
        for one in look.thumbnails:
            small = Image.open(io.BytesIO(base64.b64decode(one.uri.partition(",")[2])))
            assert small.format == "JPEG" and max(small.size) <= SIDE
        sample = next(sample for sample in mix.samples if sample.id == look.id)
        assert look.tokens == sample.input_ids.shape[1] and look.vision_tokens == int(sample.vision_mask.sum())


def test_a_page_is_well_formed_and_self_contained(page: str) -> None:
    found = Page(page)
    assert [a["id"] for a in found.all("section")] == SECTIONS
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style"
            if name in ("src", "href"):
                assert value and value.startswith(("#", "data:image/jpeg;base64,"))
                assert not value.startswith("#") or value[1:] in ids
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(found.all("caption")) == len(found.all("table")) > 0
    assert all(a.get("alt") for a in found.all("img"))
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy


def test_conversations_are_text_whatever_they_hold(page: str) -> None:
    found = Page(page)
    assert len(found.all("script")) == 1 and len(found.all("article")) == 22
    words = found.words()
    assert "<script>alert(1)</script> & \"'" in words and "<img src=x onerror=y>" in words
    assert "+ 3" in words and "400 × 80" in words and "no answer" in words and "2 turns" in words


def test_every_foreign_text_is_escaped(mix: Mix, shown: list[Look]) -> None:
    found = describe(mix)

    def named(entry: Any) -> Any:
        return replace(entry, source=EVIL + entry.source)

    evil = replace(
        found, sources=[named(one) for one in found.sources], groups=[named(one) for one in found.groups],
        languages=[replace(one, label=EVIL) for one in found.languages], overlap=[EVIL],
    )  # fmt: skip
    looks_ = [
        replace(look, id=EVIL, source=EVIL + look.source, language=EVIL, question=EVIL, answer=EVIL, mode=EVIL)
        for look in shown
    ]
    looks_[0] = replace(looks_[0], thumbnails=[replace(shown[1].thumbnails[0], uri='x" onerror="alert(1)')])
    text = calibration_page(evil, looks_, {EVIL: EVIL, "quantkit": EVIL}, EVIL)
    plain = Page(text)
    assert len(plain.all("script")) == 1 and "\u202e" not in text.split("<title>")[0]
    assert not any(name.startswith("on") for _, attributes in plain.elements for name in attributes)
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in plain.all("img"))
    assert "\x00" not in text and "\x1b" not in text and "Shares 1 items" in plain.words()
    text.encode()


def test_figures_stand_on_the_page(mix: Mix, page: str) -> None:
    found, words = describe(mix), Page(page).words()
    for value in (found.total.tokens, found.total.vision_tokens, found.total.answer_tokens):
        assert f"{value:,}".replace(",", " ") in words
    assert found.fingerprint in words and f"{found.pictures.sliced} of {found.pictures.images} images" in words
    assert "mixed: 16 of 16 rows, weight 1" in words and "wider than 4:1" in words
    assert "All 22 conversations" in words and "Shares" not in words


def test_many_conversations_are_sampled_evenly_and_counted(mix: Mix, sources: list[str], tmp_path: Path) -> None:
    few = list(looks(mix, parse_sources(sources), most=5))
    order = [sample.id for sample in mix.samples]
    assert [order.index(look.id) for look in few] == [0, 4, 8, 13, 17]
    path = write_calibration(describe(mix), few, tmp_path / "new/mix.html", {}, "few")
    assert "5 conversations" in path.read_text() and "17 more are not shown" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["mix.html"]


def test_a_page_of_many_is_bounded(mix: Mix, shown: list[Look]) -> None:
    """As many as are ever shown, each with four thumbnails of noise, which compresses worst."""
    seven = _of(shown, "seven")
    noise = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 90).convert("RGB").save(noise, "JPEG", quality=70)
    uri = "data:image/jpeg;base64," + base64.b64encode(noise.getvalue()).decode()
    worst = replace(seven, thumbnails=[replace(one, uri=uri) for one in seven.thumbnails], question="q" * TEXT)
    assert len(calibration_page(describe(mix), [worst] * 240, {}, "many")) < 16_000_000


def test_text_alone_has_no_section_of_pictures(random_checkpoint: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [{"messages": chat(text_part("What?"))}])
    mix = build([str(path)], random_checkpoint, PrepareOptions())
    found = Page(calibration_page(describe(mix), list(looks(mix, parse_sources([str(path)]))), {}, "text"))
    assert [a["id"] for a in found.all("section")] == [name for name in SECTIONS if name != "pictures"]
    assert not found.all("fieldset") and "None" not in found.words()


# ---- a browser

BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")


def _long(found: Description, shown: list[Look]) -> str:
    word = "w" * 400
    groups = [replace(one, source=word) for one in found.groups]
    entry = replace(found, sources=[replace(found.sources[0], source=word)], groups=groups, overlap=[word])
    cards = [replace(look, id=word, source=word, question=word, answer=word, language=word) for look in shown]
    return calibration_page(entry, [*cards, shown[0]], {word: word}, word)


@BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["plain", "long"])
def test_nothing_overflows_in_a_browser(
    page: str, mix: Mix, shown: list[Look], tmp_path: Path, name: str, width: int
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page if name == "plain" else _long(describe(mix), shown), encoding="utf-8")
    found = _probe(path, width, tmp_path)
    assert found["inner"] == width and found["scroll"] <= found["inner"], found
    assert found["outside"] == []
    assert found["shown"] == path.read_text(encoding="utf-8").count("<svg") // 2


@BROWSER
@pytest.mark.slow
def test_the_filter_hides_the_others(page: str, shown: list[Look], tmp_path: Path) -> None:
    probe = """<script>
      const choose = (name, text) => [...document.querySelectorAll(`input[name=${name}]`)]
        .find((input) => input.parentNode.textContent === text).checked = true;
      const seen = () => [...document.querySelectorAll("article")].filter((e) => e.getBoundingClientRect().height)
        .map((e) => e.querySelector("h3").textContent);
      const found = [seen()];
      choose("modality", "several images"); found.push(seen());
      choose("source", "rows.jsonl"); found.push(seen());
      choose("modality", "all"); choose("language", "zh"); found.push(seen());
      choose("language", "all"); choose("source", "all");
      for (const input of document.querySelectorAll("input[class]")) {  // each by itself
        input.checked = true; found.push([input.name, input.parentNode.textContent, seen().length]);
        choose(input.name, "all");
      }
      document.title = JSON.stringify(found);
    </script>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "p.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    dumped = _chromium("--dump-dom", "--virtual-time-budget=2000", f"file://{tmp_path}/p.html")
    title = re.search(r"<title>(.*?)</title>", dumped, re.S)
    assert title is not None
    everything, several, of_rows, chinese, *single = json.loads(html.unescape(title[1]))
    assert everything == [look.id for look in shown]
    assert several == [look.id for look in shown if look.modality == "images"] and len(several) > 1
    assert of_rows == ["seven"] and chinese == ["long"]
    assert len(single) == 4 + 2 + 2 + 2
    for name, label, count in single:
        values = [KINDS.get(value, value) for value in (getattr(look, name) for look in shown)]
        assert count == values.count(label) > 0, (name, label)


@BROWSER
@pytest.mark.slow
def test_print(page: str, tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text(page, encoding="utf-8")
    _chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'p.pdf'}", f"file://{tmp_path}/p.html")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "p.pdf").read_bytes())) <= 8
