"""Write the held-out test set of `tiny`, always the same for the same seed.

    python scripts/make_tiny_data.py --heldout quantkit/data/heldout [--calibration FOLDER]

A set is a folder with `manifest.jsonl` (one conversation a line) and `images/*.png`. With `--calibration` it also
writes the 160 conversations that `tiny_finish.py` took when `tiny` was made; a smaller draw of the same kinds is the
part "world" of the bundled set (`make_calibration.py`). Digits come from the set's own split, texts have to hash into
it, and the random streams differ; `tests/test_data_disjoint.py` proves the outcome.
"""

import argparse
import io
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tinyask
import tinytext
import tinyworld
from PIL import Image
from tinyask import Question, Scene

NOISY = 9000  # bytes: a PNG above this has a noisy background; nine of ten such are drawn anew, to keep the sets small
SQUARE = (tinyworld.SIDE, tinyworld.SIDE)
UNLEARNED = ("yesno", "same")  # asked in training, not learned well enough in an hour: in neither set
OTHER = ((112, 224), (224, 112), (168, 168), (90, 120), (150, 200), (130, 90), (120, 300))  # height, width


@dataclass(frozen=True)
class Want:
    """So many conversations of one task, on scenes from `make`."""

    task: str
    number: int
    make: Any  # random.Random -> Scene


def digit_scene(rng: random.Random) -> Scene:
    """A single handwritten digit."""
    return tinyworld.scene_single(rng, "digit")


def placed_scene(rng: random.Random) -> Scene:
    """A single thing clearly at one side."""
    while True:
        scene = tinyworld.scene_single(rng)
        if scene.frames[0][0].side != "middle":
            return scene


def counted_scene(rng: random.Random) -> Scene:
    """One, two or three things."""
    return rng.choice((tinyworld.scene_single, tinyworld.scene_pair, tinyworld.scene_trio))(rng)


def shape_scene(rng: random.Random) -> Scene:
    """A single shape."""
    return tinyworld.scene_single(rng, "shape")


def word_scene(rng: random.Random) -> Scene:
    """A single word."""
    return tinyworld.scene_single(rng, "word")


HELDOUT = (
    Want("digit", 150, digit_scene), Want("shape", 28, shape_scene), Want("colour", 24, tinyworld.scene_single),
    Want("word", 28, word_scene), Want("describe", 26, tinyworld.scene_single), Want("count", 18, counted_scene),
    Want("where", 14, placed_scene), Want("side", 26, tinyworld.scene_pair),
    Want("images", 28, tinyworld.scene_images), Want("video", 28, tinyworld.scene_video),
)  # fmt: skip
CALIBRATION = (
    Want("digit", 24, digit_scene), Want("shape", 8, shape_scene), Want("word", 8, word_scene),
    Want("describe", 10, tinyworld.scene_single), Want("count", 6, counted_scene), Want("where", 4, placed_scene),
    Want("side", 12, tinyworld.scene_pair),
    Want("images", 24, tinyworld.scene_images), Want("video", 24, tinyworld.scene_video),
)  # fmt: skip
WORLD = (
    Want("digit", 6, digit_scene), Want("shape", 2, shape_scene), Want("word", 3, word_scene),
    Want("describe", 3, tinyworld.scene_single), Want("count", 2, counted_scene), Want("where", 1, placed_scene),
    Want("side", 3, tinyworld.scene_pair),
    Want("images", 6, tinyworld.scene_images), Want("video", 6, tinyworld.scene_video),
)  # fmt: skip


class SetWriter:
    """Collects conversations and pictures of one split and writes them."""

    def __init__(self, split: str, prefix: str, seed: int, chinese: float) -> None:
        self.split, self.prefix, self.chinese = split, prefix, chinese
        self.rng = random.Random(f"{split}-{seed}")
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def drawn(self, scene: Scene, size: tuple[int, int]) -> tuple[list[bytes], Scene]:
        """The scene as PNG files."""
        bank = tinyworld.digit_bank(self.split)
        while True:
            frames, made = tinyworld.draw_scene(scene, bank, self.rng, size)
            pictures = [png(frame) for frame in frames]
            if max(map(len, pictures)) * SQUARE[0] ** 2 < NOISY * size[0] * size[1] or self.rng.random() < 0.1:
                return pictures, made

    def add_scene(self, want: Want, turns: int, size: tuple[int, int]) -> None:
        """Draw a scene of the wanted kind that has a question of the task, and add the conversation."""
        while True:
            scene = want.make(self.rng)
            language = "zh" if self.rng.random() < self.chinese else "en"
            asked = tinyask.questions(scene, self.rng)
            fitting = [q for q in asked if q.task == want.task and q.language == language]
            if fitting:
                break
        first = self.rng.choice(fitting)
        more = [q for q in asked if q.task not in (first.task, *UNLEARNED)]
        questions = [first, *self.rng.sample(more, min(turns - 1, len(more)))]
        pictures, scene = self.drawn(scene, size)
        name = f"{self.prefix}-{len(self.rows) + 1:04d}"
        names = [f"images/{name}-{i}.png" for i in range(len(pictures))]
        self.files.update(zip(names, pictures, strict=True))
        if scene.modality == "video":
            parts: list[dict[str, Any]] = [{"type": "video", "video": names}]
        else:
            parts = [{"type": "image", "image": n} for n in names]
        self.add(
            name, scene.modality, first.language, messages_of(questions, parts), first.task, sources=list(scene.sources)
        )

    def add(
        self, name: str, modality: str, language: str, messages: list[dict[str, Any]], task: str, **more: Any
    ) -> None:
        """Add one row of the manifest."""
        row = {"id": name, "modality": modality, "language": language, "task": task, "messages": messages}
        if self.split == "heldout" and task != "story":  # a story has no one right end
            row["answer"] = messages[-1]["content"][0]["text"]
        self.rows.append(row | {key: value for key, value in more.items() if value})

    def add_text(self, kinds: tuple[str, ...]) -> None:
        """Add a conversation of text alone whose text belongs to the split."""
        seen = {json.dumps(r["messages"], ensure_ascii=False) for r in self.rows}
        while True:
            messages, tools, kind = tinytext.text_chat(self.rng)
            key = json.dumps(messages, ensure_ascii=False)
            if kind in kinds and tinytext.split_of(key) == self.split and key not in seen:
                break
        language = "zh" if any("\u4e00" <= c <= "\u9fff" for c in key) else "en"
        self.add(f"{self.prefix}-{len(self.rows) + 1:04d}", "text", language, messages, kind, tools=tools)

    def write(self, folder: Path) -> None:
        """Write manifest and pictures, replacing what was there (a README stays)."""
        shutil.rmtree(folder / "images", ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
        (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def png(frame: np.ndarray) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def messages_of(questions: list[Question], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """User and assistant turns; the pictures stand before the first question."""
    messages = []
    for index, asked in enumerate(questions):
        head = parts if index == 0 else []
        messages += [{"role": "user", "content": [*head, {"type": "text", "text": asked.text}]},
                     {"role": "assistant", "content": [{"type": "text", "text": asked.answer}]}]  # fmt: skip
    return messages


def heldout(seed: int) -> SetWriter:
    """370 questions about pictures and 40 texts."""
    made = SetWriter("heldout", "test", seed, chinese=0.2)
    for want in HELDOUT:
        for index in range(want.number):
            other = want.task in ("digit", "shape", "describe") and index % 12 == 11
            made.add_scene(want, 1, made.rng.choice(OTHER[:3]) if other else SQUARE)
    for _ in range(40):
        made.add_text(("fact", "story", "tool"))
    return made


def more_heldout(draws: int) -> SetWriter:
    """So many further draws of the held-out set in one: more pictures of the same kinds, none of them its own."""
    made = SetWriter("heldout", "more", 0, chinese=0.2)
    for seed in range(1, draws + 1):
        drawn = heldout(seed)
        for row in drawn.rows:
            text = json.dumps(row | {"id": f"{seed}-{row['id']}"}, ensure_ascii=False)
            made.rows.append(json.loads(text.replace('"images/', f'"images/{seed}-')))
        made.files |= {name.replace("images/", f"images/{seed}-"): data for name, data in drawn.files.items()}
    return made


def calibration(seed: int) -> SetWriter:
    """160 conversations, a quarter of them Chinese."""
    made = SetWriter("calibration", "cal", seed, chinese=0.25)
    fill(made, CALIBRATION, 40)
    random.Random(seed).shuffle(made.rows)
    return made


def world(seed: int) -> SetWriter:
    """40 conversations for the bundled set, three eighths of them Chinese."""
    made = SetWriter("calibration", "world", seed, chinese=0.375)
    fill(made, WORLD, 8)
    return made


def fill(made: SetWriter, wants: tuple[Want, ...], texts: int) -> None:
    """Add conversations of one to four questions; every fourth single picture is larger or not square."""
    for want in wants:
        for index in range(want.number):
            single = want.task not in ("images", "video")
            made.add_scene(want, 1 + index % 4, made.rng.choice(OTHER) if single and index % 4 == 3 else SQUARE)
    for index in range(texts):
        made.add_text(("tool",) if index % 3 == 0 else ("fact", "story"))


def main() -> None:
    """Parse the command line and write the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heldout", type=Path, default=Path("quantkit/data/heldout"))
    parser.add_argument("--calibration", type=Path, help="write the set that `tiny_finish.py` took here too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    heldout(options.seed).write(options.heldout)
    if options.calibration:
        calibration(options.seed).write(options.calibration)


if __name__ == "__main__":
    main()
