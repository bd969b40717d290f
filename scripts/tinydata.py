"""Streams of training samples for `tiny`: pictures with questions as token rows, and text rows.

A sample is a scene, its frames and the turns asked about it; `encode`
writes it exactly as the chat template does (`test_tiny.py` compares the two), with labels on the answers alone.
"""

import json
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import tinytext
import tinyworld
import torch
from tinyask import Question, Scene, questions
from tinytext import COLOURS, SHAPES, SIDES, WORDS
from torch import Tensor
from transformers import MiniCPMV4_6Processor, TokenizersBackend

NAMES = [str(d) for d in range(10)] + list(SHAPES) + list(WORDS)
HUES = list(COLOURS)
IGNORE = -100


@dataclass(frozen=True)
class Sample:
    """One conversation about one scene."""

    scene: Scene
    frames: tuple[np.ndarray, ...]  # each [height, width, 3] uint8
    turns: tuple[Question, ...]


@dataclass(frozen=True)
class Plan:
    """What a batch is made of."""

    samples: int
    turns: int  # at most so many questions a sample
    layouts: tuple[float, ...]  # weights of single, pair, trio, two pictures, clip
    chinese: float = 0.2
    kinds: tuple[float, ...] = tinyworld.KINDS  # weights of digit, shape and word in pictures of one thing
    sizes: tuple[tuple[int, int], ...] = ((tinyworld.SIDE, tinyworld.SIDE),)


WEIGHTS = {
    "digit": 3.0,
    "shape": 2.0,
    "word": 4.0,
    "describe": 2.5,
    "side": 3.0,
    "count": 0.4,
    "yesno": 0.05,
    "same": 0.05,
}


def pick_turns(scene: Scene, count: int, chinese: float, rng: random.Random) -> tuple[Question, ...]:
    """Up to `count` different questions about the scene, each in Chinese with the given probability."""
    asked, turns = questions(scene, rng), []
    while asked and len(turns) < count:
        language = "zh" if rng.random() < chinese else "en"
        fitting = [q for q in asked if q.language == language] or asked
        turn = rng.choices(fitting, [WEIGHTS.get(q.task, 1.5) for q in fitting])[0]
        turns.append(turn)
        asked.remove(turn)
    return tuple(turns)


def draw_samples(split: str, plan: Plan, rng: random.Random) -> list[Sample]:
    """A list of samples of one split."""
    bank, samples = tinyworld.digit_bank(split), []
    size = rng.choice(plan.sizes)  # one size a batch
    for _ in range(plan.samples):
        frames, scene = tinyworld.draw_scene(tinyworld.random_scene(rng, plan.layouts, plan.kinds), bank, rng, size)
        samples.append(Sample(scene, tuple(frames), pick_turns(scene, plan.turns, plan.chinese, rng)))
    return samples


def pixels(frames: list[np.ndarray]) -> Tensor:
    """Equal frames as the processor normalises them: [N, 3, H, W] float32 in -1 to 1."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1.0)


def pieces(processor: MiniCPMV4_6Processor, samples: list[Sample], mode: str) -> tuple[list[Tensor], str]:
    """What the real processor makes of equal single pictures of any size: a batch [N, 3, H, W] an overview or slice,
    and the placeholders (the same for all, since the size is)."""
    images = [torch.from_numpy(s.frames[0]).permute(2, 0, 1) for s in samples]
    done = processor.image_processor(images, downsample_mode=mode, return_tensors="pt")
    divisor, first = (4 if mode == "4x" else 16), done["num_patches_per_image"][0]
    visual = processor.replace_image_token(done, image_idx=0, image_token_divisor=divisor)
    parts, sizes = [], done["target_sizes"][:first].tolist()
    rows = done["pixel_values"][0].view(3, 14, len(samples), -1, 14).permute(2, 3, 0, 1, 4)  # [N, patches, 3, 14, 14]
    start = 0
    for height, width in sizes:
        part = rows[:, start : start + height * width].reshape(len(samples), height, width, 3, 14, 14)
        parts.append(part.permute(0, 3, 1, 4, 2, 5).reshape(len(samples), 3, height * 14, width * 14))
        start += height * width
    return parts, f"<image_id>0</image_id>{visual}"


class Encoder:
    """Turns samples into token rows, with every piece of text tokenized once."""

    def __init__(self, tokenizer: TokenizersBackend) -> None:
        self.tokenizer = tokenizer
        self.piece = cache(lambda text: tuple(tokenizer(text)["input_ids"]))
        self.pad = tokenizer.pad_token_id

    def visual(self, modality: str, frames: int, tokens: int) -> str:
        """The placeholders of a conversation's pictures, each with `tokens` visual tokens."""
        pad = "<|video_pad|>" if modality == "video" else "<|image_pad|>"
        one = f"<image>{pad * tokens}</image>"
        if modality == "video":
            return f"<image_id>0</image_id>{one * frames}"
        return "".join(f"<image_id>{i}</image_id>{one}" for i in range(frames))

    def row(self, sample: Sample, tokens: int, visual: str | None = None) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation; `visual` replaces the placeholders of plain 112-pixel pictures."""
        ids: list[int] = []
        labels: list[int] = []
        for index, asked in enumerate(sample.turns):
            head = visual or self.visual(sample.scene.modality, len(sample.frames), tokens)
            head = head if index == 0 else ""
            prompt = [*self.piece("<|im_start|>user\n" + head), *self.piece(asked.text),
                      *self.piece("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")]  # fmt: skip
            answer = [*self.piece(asked.answer), *self.piece("<|im_end|>")]
            ids += prompt + answer + list(self.piece("\n"))
            labels += [IGNORE] * len(prompt) + answer + [IGNORE]
        return ids, labels

    def stack(self, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
        """Right-pad rows: ids and labels [B, T]."""
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORE)
        for i, (row, label) in enumerate(rows):
            ids[i, : len(row)], labels[i, : len(label)] = torch.tensor(row), torch.tensor(label)
        return ids, labels

    def text_row(self, rng: random.Random, split: str = "train", limit: int = 192) -> tuple[list[int], list[int]]:
        """A plain text or a chat of text alone from the split; everything but the tool declarations is asked."""
        while True:
            if rng.random() < 0.5:
                text = tinytext.plain(rng)[0]
                key, full = text, text + "<|endoftext|>"
            else:
                messages, tools, _ = tinytext.text_chat(rng)
                key = json.dumps(messages, ensure_ascii=False)
                full = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
            ids = self.tokenizer(full)["input_ids"]
            if tinytext.split_of(key) == split and len(ids) <= limit:
                return ids, list(ids)


TARGETS = {"name": (0, 32), "hue": (32, 40), "xy": (40, 42), "count": (42, 45)} | {
    f"{side}_{part}": (45 + 40 * i + 32 * j, 45 + 40 * i + 32 + 8 * j)
    for i, side in enumerate(SIDES) for j, part in enumerate(("name", "hue"))
} | {"there": (205, 253)}  # fmt: skip
WIDTH = 253  # outputs of the classification head used to warm the vision tower up


def targets(samples: list[Sample]) -> dict[str, Tensor]:
    """What the warm-up head should say of every frame (class indices, IGNORE where it does not apply)."""
    frames = [things for s in samples for things in s.scene.frames]
    wanted = {key: torch.full((len(frames),), IGNORE) for key in TARGETS if key not in ("xy", "there")}
    xy, there = torch.full((len(frames), 2), -1.0), torch.zeros(len(frames), 48)
    for i, things in enumerate(frames):
        wanted["count"][i] = len(things) - 1
        for thing in things:
            name, hue = NAMES.index(thing.name), HUES.index(thing.colour)
            if thing.kind == "shape":
                there[i, hue * 6 + SHAPES.index(thing.name)] = 1.0
            if len(things) == 1:
                wanted["name"][i], wanted["hue"][i] = name, hue
                xy[i] = torch.tensor([thing.x, thing.y])
            elif len(things) == 2:
                wanted[f"{thing.side}_name"][i], wanted[f"{thing.side}_hue"][i] = name, hue
    return wanted | {"xy": xy, "there": there}
