"""Small checkpoints and data that the tests share. Everything is made here; nothing is fetched."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reference passes are kept among the tests' own files, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; returns exit code, output and error output."""

    from quantkit import cli

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantkit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a text to a file of the test's own."""

    def made(text: str) -> Path:
        (tmp_path / "given.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "given.yaml"

    return made


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of tiny's shapes with random weights, and tiny's own tokenizer and processor."""
    from make_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("random") / "model"
    make_checkpoint("small", folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def verified_awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-AWQ, calibrated on little, verified on few items with a gate that it keeps. Copy it before you change it."""
    import quantkit
    from quantkit.quantize import quantize
    from quantkit.recipe import QuantizeOptions
    from quantkit.report import write_html, write_markdown
    from quantkit.verify import Gate

    folder = tmp_path_factory.mktemp("verified") / "tiny-AWQ"
    quantize(QuantizeOptions(method="awq", model="tiny", samples=8, out=folder))
    report = quantkit.verify("tiny", folder, samples=8, seed=3, max_new_tokens=8, gates=(Gate("max_kl", 0.5),))
    report.save(folder)
    write_markdown(report, folder / "report.md")
    write_html(report, folder / "report.html")
    return folder


@pytest.fixture(scope="session")
def other_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: two value heads a key head, its own output head, rows of 288 and 544, no multiples of 256."""
    import make_checkpoint

    build = make_checkpoint.build_config

    def changed(*arguments: Any) -> Any:
        config = build(*arguments)
        text = config.text_config
        text.hidden_size, text.intermediate_size, text.linear_num_value_heads = 288, 544, 4
        config.tie_word_embeddings = text.tie_word_embeddings = False
        return config

    folder = tmp_path_factory.mktemp("other") / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_checkpoint, "build_config", changed)
        make_checkpoint.make_checkpoint("small", folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def small_calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations: pictures of noise, square and wide, two at once, and plain text."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("calibration")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    lines = []
    for number in range(12):
        pictures = (1, 2, 0)[number % 3]
        parts = []
        for picture in range(pictures):
            name = f"images/{number}-{picture}.png"
            size = (112, 112 + 56 * (number % 2), 3)
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
            parts.append({"type": "image", "image": name})
        words = " ".join(f"word{value}" for value in random.integers(0, 99, 12))
        question = {"role": "user", "content": [*parts, {"type": "text", "text": f"What is {words}?"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"It is {words[::-1]}."}]}
        modality = ("image", "images", "text")[number % 3]
        lines.append({"id": f"c{number}", "modality": modality, "language": "en", "messages": [question, answer]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
