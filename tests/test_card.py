"""Model cards: what they claim is recorded, what they tick was run, what they show runs, names cannot break out."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import refused

from quantkit.card import gather, render
from quantkit.card.chinese import TEXTS as CHINESE
from quantkit.card.english import TEXTS as ENGLISH
from quantkit.card.evidence import KNOWN
from quantkit.card.files import card_state, write_cards
from quantkit.card.licence import find_licence, metadata
from quantkit.card.markup import code, fence
from quantkit.card.texts import LANGUAGES
from quantkit.errors import QuantkitError
from quantkit.verify.report import EngineResult, Report

Run = Callable[..., tuple[int, str, str]]
REPO = "someone/MiniCPM-V-4.6-AWQ"
BOTH: list[Any] = list(LANGUAGES)


@pytest.fixture
def variant(verified_awq: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified_awq, tmp_path / "tiny-AWQ"))


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quantkit.gguf.quantize import quantize_gguf
    from quantkit.recipe import GgufOptions

    folder = tmp_path_factory.mktemp("gguf") / "tiny-GGUF"
    quantize_gguf(GgufOptions(model="tiny", type=("Q4_K_M",), solver="rtn", out=folder))
    return folder


def blocks(card: str, language: str) -> list[str]:
    """The contents of a card's fenced blocks of a language, read as CommonMark does."""
    found, inside = [], None
    for line in card.splitlines():
        if inside is None:
            opening = re.fullmatch(r"(`{3,})(\w*)", line)
            if opening:
                inside, kind, lines = opening[1], opening[2], []
        elif re.fullmatch(rf"`{{{len(inside)},}}", line):
            found.append((kind, "\n".join(lines)))
            inside = None
        else:
            lines.append(line)
    assert inside is None, "a fence stays open"
    return [content for kind, content in found if kind == language]


def outside(card: str) -> str:
    """A card without its fenced blocks."""
    return re.sub(r"^(`{3,})\w*\n.*?^\1`*$", "", card, flags=re.DOTALL | re.MULTILINE)


def ticks(card: str) -> list[bool]:
    """Which lines of the list of runtimes are ticked."""
    return [mark == "x" for mark in re.findall(r"^- \[(x| )\] ", card, re.MULTILINE)]


def change(folder: Path, **more: Any) -> None:
    path = folder / "quantkit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def serve_check(
    folder: Path, runs: list[dict[str, Any]], fingerprint: str | None = None, name: str = "runtimes.json"
) -> None:
    """A runtimes.json as quantkit serve-check writes it."""
    known = fingerprint or gather(folder).variant.fingerprint
    content = {"format": 1, "fingerprint": known, "runs": runs}
    (folder / name).write_text(json.dumps(content))


RUN = {
    "runtime": "vllm", "version": "0.32.0", "device": "cpu", "date": "2026-11-27", "passed": True,
    "requests": [{"name": "tools", "status": "passed", "detail": ""}, {"name": "video", "status": "not shown"}],
}  # fmt: skip

# ---- the two languages --------------------------------------------------------------------------------------------


def test_both_languages_have_every_text() -> None:
    def places(text: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)

    assert list(ENGLISH) == list(CHINESE)
    for key, text in ENGLISH.items():
        # the Chinese of "3 of 4" needs the number twice
        assert set(places(text)) == set(places(CHINESE[key])), key
        assert not re.search(r"[\u3000-\u9fff\uff00-\uffef]", text.replace("中文", "")), key
    same = [key for key in ENGLISH if ENGLISH[key] == CHINESE[key]]
    assert set(same) == {"glance_size_alone", "ios", "android", "harmonyos"}


def test_both_cards_have_the_same_sections_tables_and_code(variant: Path) -> None:
    english, chinese = (render(gather(variant, repo=REPO), language) for language in BOTH)
    for pattern in (r"^#+ ", r"^\|", r"^- \[.\]", r"^```\w*$"):
        found = [re.findall(pattern, card, re.MULTILINE) for card in (english, chinese)]
        assert found[0] == found[1] and found[0], pattern
    numbers = [re.findall(r"\d[\d.,]*", "".join(re.findall(r"^\|.*$", card, re.M))) for card in (english, chinese)]
    assert numbers[0] == numbers[1]
    for language in ("bash", "yaml", "json", "python"):
        assert len(blocks(english, language)) == len(blocks(chinese, language)) > 0
    words = re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)|https?://\S+", "", outside(chinese))
    english_sentences = re.findall(r"(?:\b[a-z]{2,} ){4,}", words)
    assert not english_sentences, english_sentences


# ---- metadata -----------------------------------------------------------------------------------------------------


def test_metadata(variant: Path) -> None:
    change(variant, source={"name": "openbmb/MiniCPM-V-4.6", "revision": "a" * 40, "fingerprint": "b" * 64})
    (variant / "LICENSE").write_text("                 Apache License\n           Version 2.0, January 2004\n")
    card = render(gather(variant, repo=REPO), "en")
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "base_model": "openbmb/MiniCPM-V-4.6",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
        "tags": ["quantkit", "minicpm-v", "multimodal", "awq", "4-bit"],
    }
    assert "[openbmb/MiniCPM-V-4.6](https://huggingface.co/openbmb/MiniCPM-V-4.6) (revision `aaaaaaaaaaaa`)" in card
    assert "quantkit verify openbmb/MiniCPM-V-4.6 someone/MiniCPM-V-4.6-AWQ" in card


def test_what_is_not_known_is_not_stated(variant: Path) -> None:
    found = yaml.safe_load(render(gather(variant), "en").split("---\n")[1])
    assert not {"license", "base_model", "base_model_relation"} & set(found), "tiny is on no hub and states no licence"
    stated = gather(variant, base_model="a/b", licence="mit")
    found = yaml.safe_load(render(stated, "zh").split("---\n")[1])
    assert (found["license"], found["base_model"]) == ("mit", "a/b")


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("LICENSE", "MIT License\n\nCopyright", "mit"),
        ("LICENSE.txt", "Apache License\nVersion 2.0", "apache-2.0"),
        ("LICENSE", "Model Licence of a company\nApache License Version 2.0 does not apply", None),
        ("README.md", "---\nlicense: gemma\n---\n", "gemma"),
        ("README.md", "---\nlicense: [a, b]\n---\n", None),
        ("README.md", "---\nlicense: 'x: y'\n---\n", None),
        ("README.md", "license: mit", None),
        ("README.md", "---\n{ broken\n---\n", None),
    ],
)
def test_licences(tmp_path: Path, name: str, content: str, licence: str | None) -> None:
    (tmp_path / name).write_text(content)
    assert find_licence(tmp_path) == licence


# ---- evidence -----------------------------------------------------------------------------------------------------


def test_only_what_was_run_is_ticked(variant: Path) -> None:
    card = render(gather(variant), "en")
    assert ticks(card) == [False] * len(KNOWN), "verify's engine dequantized is no runtime"
    report = Report.load(variant)
    report.engines.append(EngineResult(name="transformers", status="ran", groups=report.engines[0].groups))
    report.engines.append(EngineResult(name="sglang", status="not run", why="no server"))
    report.save(variant)
    failed = RUN | {"runtime": "transformers-serve", "passed": False}
    serve_check(variant, [RUN, failed, RUN | {"runtime": "another"}])
    card = render(gather(variant), "en")
    ticked = [name for name, tick in zip(KNOWN, ticks(card), strict=True) if tick]
    assert ticked == ["transformers", "vllm"]
    assert re.search(r"- \[x\] Transformers: transformers 5\S+, on cpu, \d+ items of the verification$", card, re.M)
    words = "0.32.0, on cpu, requests: tools passed, video not shown, on 2026-11-27"
    assert f"- [x] vLLM: {words}" in card and f"Run with these files: {words}." in card
    assert "- [ ] SGLang: not run" in card and "- [ ] transformers serve: not run" in card
    assert ticks(render(gather(variant), "zh")) == ticks(card)


def test_records_of_other_files_are_no_evidence(run: Run, variant: Path) -> None:
    serve_check(variant, [RUN], fingerprint="0" * 64)
    assert not any(ticks(render(gather(variant), "en")))
    config = json.loads((variant / "config.json").read_text())
    serve_check(variant, [RUN])
    (variant / "config.json").write_text(json.dumps(config | {"changed": 1}))
    facts = gather(variant)
    assert not facts.evidence.measured and not facts.evidence.runtimes
    card = render(facts, "en")
    assert not any(ticks(card)) and "Not measured: the folder has no report of these files." in card
    code, text, _ = run("card", variant)
    assert code == 0 and "not used, it is about other files" in text and "nothing was measured" in text


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{", '{"format": 2, "runs": []}', '{"format": 1}',
        '{"format": 1, "fingerprint": "F", "runs": [{"runtime": "vllm"}]}',
        '{"format": 1, "fingerprint": "F", "runs": [{"runtime": "vllm", "passed": 1}]}',
        '{"format": 1, "fingerprint": "F", "runs": [{"runtime": "vllm", "passed": true, "requests": [1]}]}',
        '{"format": 1, "fingerprint": "F", "runs": [{"runtime": "a", "passed": true, "requests": [{"status": "b"}]}]}',
    ],
)  # fmt: skip
def test_a_damaged_record_is_an_error(run: Run, variant: Path, content: str) -> None:
    text = content.replace('"F"', json.dumps(gather(variant).variant.fingerprint))
    (variant / "runtimes.json").write_text(text)
    refused(run("card", variant), "runtimes.json")


def test_figures_are_the_reports(variant: Path) -> None:
    report = Report.load(variant)
    card = render(gather(variant), "en")
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    group = report.group("modality", "image")
    assert group is not None and group.answer is not None
    row = next(line for line in rows if line.startswith("| one picture |"))
    kl = group.answer.kl_mean
    shown = [float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", row.split("|")[3])]
    assert shown == pytest.approx([kl.value, kl.low, kl.high], rel=0.01, abs=1e-9)
    assert any(line.startswith("| `max_kl` | all | 0.5 |") and line.endswith("| yes |") for line in rows)
    sizes = {cells[1].strip(): cells for line in rows if len(cells := line.split("|")) == 8}
    assert sizes["vision tower"][4:6] == [" 2.9 MB ", " 2.9 MB "] and sizes["vision tower"][6].strip() == "16.00"
    assert sizes["quantized linears"][4:6] == [" 5.6 MB ", " 1.5 MB "]
    assert sizes["**all**"][4].strip() == "11.5 MB", "the source's own size"


def test_the_command_that_repeats_a_measurement_does(run: Run, variant: Path) -> None:
    card = render(gather(variant), "en")
    line = next(text for text in blocks(card, "bash") if text.startswith("quantkit verify"))
    words = shlex.split(line)
    assert words[:4] == ["quantkit", "verify", "tiny", "tiny-AWQ"]
    code, _, err = run("verify", "tiny", variant, *words[4:], "--report", variant / "again.json")
    assert code == 0, err
    before, after = Report.load(variant), Report.load(variant / "again.json")
    assert before.options == after.options and before.engines == after.engines and before.gates == after.gates


# ---- what can be run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", BOTH)
def test_code_compiles_and_configurations_parse(variant: Path, gguf_folder: Path, language: Any) -> None:
    for folder in (variant, gguf_folder):
        card = render(gather(folder, repo=REPO), language)
        for block in blocks(card, "python"):
            compile(block, "card", "exec")
        for block in blocks(card, "json"):
            json.loads(block)
        for block in blocks(card, "yaml"):
            assert yaml.safe_load(block)["template"] == "minicpm_v_4_6"
        for block in blocks(card, "bash"):
            for line in shlex.split(block, comments=True):
                if line.startswith("{"):
                    assert json.loads(line)["messages"]


def test_the_python_of_the_card_runs(variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Picture, two pictures, a video, and 4x, as a reader would copy them."""
    pytest.importorskip("gptqmodel")
    av = pytest.importorskip("av")
    import numpy as np
    from PIL import Image

    _decode_with_av(monkeypatch)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("page.png", "before.png", "after.png"):
        Image.fromarray(random.integers(0, 256, (112, 224, 3), dtype=np.uint8)).save(name)
    with av.open("clip.mp4", "w") as clip:
        stream = clip.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 112
        for number in range(12):
            picture = np.full((112, 112, 3), 20 * number, dtype=np.uint8)
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        clip.mux(stream.encode())
    asked = []
    names: dict[str, Any] = {"print": asked.append}
    code_blocks = [block for block in blocks(render(gather(variant), "zh"), "python") if "openai" not in block]
    assert len(code_blocks) == 4
    for block in code_blocks:
        exec(block.replace("max_new_tokens=256", "max_new_tokens=4"), names)
    assert len(asked) == 4 and all(isinstance(answer, str) for answer in asked)


def _decode_with_av(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchcodec, which the card asks for, Transformers' own PyAV reader decodes the clip."""
    from transformers import video_processing_utils as utils

    if not utils.is_torchcodec_usable(decode="video"):
        load = utils.load_video
        monkeypatch.setattr(utils, "is_torchcodec_usable", lambda **_: True)
        monkeypatch.setattr(utils, "load_video", lambda path, backend, **more: load(path, backend="pyav", **more))


def test_finetune_configs(run: Run, variant: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    code, text, _ = run("card", variant, "--repo", REPO, "--finetune-configs", folder)
    assert code == 0 and str(folder / "swift_sft.sh") in text
    config = yaml.safe_load((folder / "llamafactory_sft.yaml").read_text())
    assert config["model_name_or_path"] != REPO and config["finetuning_type"] == "lora"
    assert "quantization_bit" not in config, "LLaMA-Factory 0.9.5 stops at quantized weights of this model"
    assert 0 < config["warmup_steps"] < 1 and "warmup_ratio" not in config, "Transformers 5.15 dropped the latter"
    data = json.loads((folder / "data/dataset_info.json").read_text())
    assert list(data) == [config["dataset"]]
    script = (folder / "swift_sft.sh").read_text()
    assert shlex.split(script.replace("\\\n", " "))[4:8] == ["swift", "sft", "--model", REPO]
    assert "--use_hf true" in script, "ms-swift asks ModelScope otherwise"
    refused(run("card", variant, "--finetune-configs", folder), "is there already")


def test_finetuning_of_what_cannot_be_trained_is_of_its_source(gguf_folder: Path) -> None:
    card = render(gather(gguf_folder, base_model="openbmb/MiniCPM-V-4.6"), "en")
    config = yaml.safe_load(blocks(card, "yaml")[0])
    assert config["model_name_or_path"] == "openbmb/MiniCPM-V-4.6"
    assert "--model openbmb/MiniCPM-V-4.6" in card and "--quant_method bnb" in card


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def test_a_card_of_gguf_files(gguf_folder: Path) -> None:
    card = render(gather(gguf_folder, repo="someone/tiny-GGUF"), "en")
    found = yaml.safe_load(card.split("---\n")[1])
    assert found["library_name"] == "gguf" and found["tags"][-2:] == ["llama.cpp", "gguf"]
    for line in (
        "llama-server -m tiny-GGUF/tiny-Q4_K_M.gguf --mmproj tiny-GGUF/mmproj-tiny-F16.gguf --port 8080 -c 8192",
        "llama-cli -m tiny-GGUF/tiny-Q4_K_M.gguf --mmproj tiny-GGUF/mmproj-tiny-F16.gguf --image page.png",
        "ollama create tiny-gguf -f tiny-GGUF/Modelfile",
        "hf download someone/tiny-GGUF --local-dir tiny-GGUF",
    ):
        assert line in card, line
    assert "Memory at 4096 positions" in card and "This repository holds GGUF files" in card


def test_llama_cpp_is_asked_without_thinking(gguf_folder: Path) -> None:
    """As serve-check asks: llama.cpp turns thinking on where the chat template knows it, whatever its default."""
    from quantkit.serve.requests import REQUESTS

    words = [shlex.split(block) for block in blocks(render(gather(gguf_folder), "en"), "bash")]
    (curl,) = (found for found in words if found[0] == "curl")
    (cli,) = (found for found in words if found[0] == "llama-cli")
    name = "chat_template_kwargs"
    assert json.loads(curl[-1])[name] == REQUESTS[0].body("m")[name] == {"enable_thinking": False}
    assert cli[-3:] == ["--single-turn", "--reasoning", "off"]


@pytest.mark.parametrize("language", BOTH)
def test_files_without_eyes_are_shown_no_picture(gguf_folder: Path, tmp_path: Path, language: Any) -> None:
    """llama.cpp refuses a picture where there is no vision file."""
    shutil.copytree(gguf_folder, tmp_path / "blind", ignore=shutil.ignore_patterns("mmproj*"))
    card = render(gather(tmp_path / "blind"), language)
    shown = "".join(block for block in blocks(card, "bash") if re.search("llama-|curl|ollama", block))
    assert "llama-cli -m blind/tiny-Q4_K_M.gguf -p" in shown and "ollama run blind" in shown
    assert "page.png" not in shown and "image" not in shown and "mmproj" not in shown


def test_a_server_check_of_one_gguf_file(gguf_folder: Path, tmp_path: Path) -> None:
    """serve-check names its record after the file; its fingerprint is verify's, of the text and the vision file."""
    from quantkit.verify.reference import target_fingerprint
    from quantkit.verify.task import Target

    folder = Path(shutil.copytree(gguf_folder, tmp_path / "tiny-GGUF"))
    text = folder / "tiny-Q4_K_M.gguf"
    found = target_fingerprint(Target(path=text))
    assert found == target_fingerprint(Target(path=text, mmproj=folder / "mmproj-tiny-F16.gguf"))
    serve_check(folder, [RUN | {"runtime": "llama-server"}], found, "tiny-Q4_K_M.runtimes.json")
    serve_check(folder, [RUN], "0" * 64)
    facts = gather(folder)
    assert [path.name for path in facts.evidence.runtimes] == ["tiny-Q4_K_M.runtimes.json"]
    assert "- [x] llama.cpp: llama-server: 0.32.0, on cpu" in render(facts, "en") and not facts.evidence.runs["vllm"]


# ---- other layouts ------------------------------------------------------------------------------------------------


def test_cards_of_other_layouts(tmp_path: Path) -> None:
    """What a layout's readers cannot do is said, and what is trained is what can be."""
    from quantkit.bnb import quantize_bnb
    from quantkit.quantize import quantize
    from quantkit.recipe import BnbOptions, QuantizeOptions

    places = {name: tmp_path / name for name in ("gptq", "compressed-tensors", "bitsandbytes")}
    made: dict[str, Any] = {"method": "rtn", "model": "tiny", "bits": 3}
    quantize(QuantizeOptions(**made, method_format="gptq", out=places["gptq"]))
    quantize(
        QuantizeOptions(**made, method_format="compressed-tensors", symmetric=False, out=places["compressed-tensors"])
    )
    quantize_bnb(BnbOptions(model="tiny", type="nf4", out=places["bitsandbytes"]))
    cards = {name: render(gather(folder, repo=f"a/{name}"), "en") for name, folder in places.items()}
    for name, words in {
        "gptq": ("vLLM 0.32 does not read this layout: of GPTQ it knows 4 and 8 bits", "3 bit, group 128"),
        "compressed-tensors": ("Transformers does not load compressed-tensors files with zero points",),
        "bitsandbytes": ("Leave `dtype` out", "pip install", " bitsandbytes accelerate"),
    }.items():
        card = cards[name]
        assert yaml.safe_load(card.split("---\n")[1])["tags"][3] == name
        assert all(word in card for word in words), name
        trained = yaml.safe_load(blocks(card, "yaml")[0])
        assert trained["model_name_or_path"] == "tiny" and "quantization_bit" not in trained
        assert f"--model {'tiny' if name == 'compressed-tensors' else f'a/{name}'} " in card
        assert ("--quant_method bnb" in card) == (name == "compressed-tensors")
        assert ("auto_trainable" in card) == (name == "gptq")


# ---- names --------------------------------------------------------------------------------------------------------

HOSTILE = "a`b|c<script>alert(1)</script>](javascript:x)\"'$(touch x)\n# Heading\n```\n--- \\"


def test_names_cannot_break_out(variant: Path, tmp_path: Path) -> None:
    """A folder, a source, sources of calibration, requests, devices and versions of any text."""
    folder = variant.rename(tmp_path / HOSTILE.replace("/", "_"))
    change(
        folder, source={"name": HOSTILE, "revision": None, "fingerprint": None}, quantkit=HOSTILE,
        options={"solver": HOSTILE}, calibration={"fingerprint": HOSTILE, "sources": [{"source": HOSTILE}]},
        recipe={"method": HOSTILE}, seconds={HOSTILE: HOSTILE}, threads=HOSTILE, versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    report = Report.load(folder)
    report.reference.name = report.data.source = HOSTILE  # type: ignore[union-attr]
    report.environment["processor"] = HOSTILE
    report.save(folder)
    request = {"name": HOSTILE, "status": "passed"}
    serve_check(folder, [RUN | {"version": HOSTILE, "device": HOSTILE, "date": HOSTILE, "requests": [request]}])
    facts = gather(folder)
    headings = {}
    for language in BOTH:
        card = render(facts, language)
        yaml.safe_load(card.split("---\n")[1])
        prose = outside(card)
        assert "<script" not in re.sub(r"`+[^`\n]*`+", "", prose).replace("&lt;script", "")
        assert not re.search(r"^# Heading", prose, re.MULTILINE)
        assert not re.search(r"(?<!\\)\]\(javascript", prose)
        widths = [re.findall(r"(?<!\\)\|", row) for row in prose.splitlines() if row.startswith("|")]
        assert all(len(row) >= 3 for row in widths)
        headings[language] = len(re.findall(r"^#+ ", prose, re.MULTILINE))
        for block in blocks(card, "python"):
            compile(block, "card", "exec")
        for block in blocks(card, "bash"):
            # in what a shell would expand there is nothing of the name: it is within single quotes throughout
            bare = re.sub(r"'[^']*'|\"'\"", "", block)
            assert "$(" not in bare and "<script" not in bare, bare
            assert shlex.split(block)
        for block in blocks(card, "yaml"):
            yaml.safe_load(block)
    assert headings["en"] == headings["zh"]
    plain = render(gather(folder, repo=REPO), "en")
    assert len(re.findall(r"^#+ ", outside(plain), re.MULTILINE)) == headings["en"]


@pytest.mark.parametrize("name", ["a`b", "``", "` `", "x", "`x`", "a\nb", ""])
def test_code_spans(name: str) -> None:
    """As CommonMark reads them: fences of one length, one space stripped from both ends where both have one."""
    span = code(name)
    ticks = re.match("`+", span)
    assert ticks and span.endswith(ticks[0])
    inside = span[len(ticks[0]) : -len(ticks[0])]
    assert not re.search(rf"(?<!`){ticks[0]}(?!`)", inside)
    if inside.startswith(" ") and inside.endswith(" ") and inside.strip():
        inside = inside[1:-1]
    assert inside == (" ".join(name.split()) or " ")


def test_fences_are_longer_than_what_is_in_them() -> None:
    content = "text\n````\nmore"
    assert blocks(fence("text", content), "text") == [content]


# ---- files --------------------------------------------------------------------------------------------------------


def test_cards_on_disk(run: Run, variant: Path) -> None:
    code, text, _ = run("card", variant, "--repo", REPO)
    assert code == 0 and "give --base-model" in text and "give --license" in text
    paths = [variant / name for name in LANGUAGES.values()]
    assert [card_state(path) for path in paths] == ["generated", "generated"]
    assert run("card", variant)[0] == 0, "one that is as generated is replaced"
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as git may check it out
        assert card_state(path) == "generated"
    paths[1].write_text(paths[1].read_text() + "\nmore\n")
    assert card_state(paths[1]) == "foreign" and card_state(variant / "nothing.md") == "absent"
    with pytest.raises(QuantkitError, match=r"README_zh\.md: was not written by quantkit"):
        write_cards(gather(variant))
    before = paths[0].read_bytes()
    assert paths[0].read_bytes() == before
    assert metadata(paths[0])["pipeline_tag"] == "image-text-to-text"


def test_refuses_what_is_no_variant(run: Run, variant: Path, tmp_path: Path) -> None:
    from quantkit.source import tiny_folder

    refused(run("card", tmp_path / "nothing"), "no such folder")
    refused(run("card", variant / "config.json"), "a file; give the folder")
    refused(run("card", tiny_folder()), "is not quantized")
    (variant / "quantkit.json").write_text("{")
    refused(run("card", variant), "quantkit.json: no valid JSON")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "mmproj-x.gguf").write_bytes(b"GGUF")
    refused(run("card", empty), "holds no text model")
