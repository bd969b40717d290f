"""Small conversations with pictures of noise, written where a test wants them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def user(*parts: dict | str) -> dict:
    return {"role": "user", "content": list(parts)}


def chat(*parts: dict, answer: str = "It is blue.") -> list[dict]:
    return [user(*parts), {"role": "assistant", "content": [text_part(answer)]}]


def image_part(name: str) -> dict:
    return {"type": "image", "image": name}


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_mixed(folder: Path, count: int = 48) -> Path:
    """`count` conversations in a folder with a manifest; of 48 are 24 text, 12 image, 6 images and 6 video."""
    for number in range(6):
        picture(folder / "images" / f"{number}.png", seed=number, size=(64 + 16 * (number % 2), 64))
    rows = []
    for number in range(count):
        modality = ("text", "image", "text", "images", "text", "image", "text", "video")[number % 8]
        pictures = {
            "text": [],
            "image": [image_part(f"images/{number % 6}.png")],
            "images": [image_part("images/0.png"), image_part("images/3.png")],
            "video": [{"type": "video", "video": ["images/0.png", "images/2.png", "images/4.png"]}],
        }[modality]
        messages = chat(*pictures, text_part(f"What is number {number}?"), answer=f"Number {number}.")
        rows.append({"id": f"m-{number:03}", "modality": modality, "language": "en", "messages": messages})
    write_rows(folder / "manifest.jsonl", rows)
    return folder
