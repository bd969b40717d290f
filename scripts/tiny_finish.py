"""Turn a training checkpoint into the bundled `tiny`: position table, outliers, BF16, side files, figures.

    python scripts/tiny_finish.py --weights build/tiny/chat.pt --out quantkit/data/tiny --figures build/figures.json

The library's own processor and model answer the held-out questions (greedy) before and after; nothing of the
training's shortcuts is used here. Prints the tables that `quantkit/data/tiny/README.md` shows.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import tinymodel
import tinyoutliers
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The conversations of a bundled set, with pictures opened."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for message in row["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    part["image"] = Image.open(folder / part["image"]).convert("RGB")
                elif part["type"] == "video":
                    part["video"] = np.stack([np.asarray(Image.open(folder / f).convert("RGB")) for f in part["video"]])
    return rows


def inputs_of(
    processor: Any, row: dict[str, Any], messages: list[dict[str, Any]], prompt: bool, mode: str
) -> dict[str, Tensor]:
    """What the model takes for (a part of) a row, from the library's processor."""
    videos = (
        {"videos_kwargs": {"do_sample_frames": False, "downsample_mode": mode}} if row["modality"] == "video" else {}
    )
    batch = processor.apply_chat_template(
        messages, tools=row.get("tools"), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=prompt, processor_kwargs={"images_kwargs": {"downsample_mode": mode}, **videos},
    )  # fmt: skip
    return {key: value for key, value in batch.items() if key != "mm_token_type_ids"}


@torch.no_grad()
def logits_of(model: Any, processor: Any, rows: list[dict[str, Any]]) -> list[Tensor]:
    """Teacher-forced logits of every row, 16x."""
    return [model(**inputs_of(processor, row, row["messages"], False, "16x")).logits.float() for row in rows]


@torch.no_grad()
def answers(model: Any, processor: Any, rows: list[dict[str, Any]], mode: str) -> list[str]:
    """Greedy answers to the last question of every row."""
    said = []
    for row in rows:
        inputs = inputs_of(processor, row, row["messages"][:-1], True, mode)
        out = model.generate(**inputs, downsample_mode=mode, max_new_tokens=24, do_sample=False)
        said.append(processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return said


def score(rows: list[dict[str, Any]], said: list[str]) -> dict[str, list[int]]:
    """Right and asked, by task, language and in all."""
    marks: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row, answer in zip(rows, said, strict=True):
        for key in (row["task"], f"language {row['language']}", "all"):
            marks[key][0] += answer == row.get("answer")
            marks[key][1] += 1
    return dict(marks)


def load_trained(weights: Path, side: Path) -> Any:
    """The library's model in float32 with the trained weights and the whole position table."""
    shutil.copytree(weights.parent / "side", side, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(side)
    state = torch.load(weights, map_location="cpu")
    model = tinymodel.build(config, 0)
    grid = tinymodel.PositionGrid(config.vision_config.hidden_size)
    grid.load_state_dict({"grid": state["grid.grid"]})
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight.copy_(grid.table(embeddings.num_patches_per_side))
    return model.eval()


def main() -> None:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("quantkit/data/tiny"))
    parser.add_argument("--heldout", type=Path, default=Path("quantkit/data/heldout"))
    parser.add_argument(
        "--calibration", type=Path, required=True, help="what `make_tiny_data.py --calibration DIR` writes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the channels that become outliers")
    parser.add_argument("--figures", type=Path, default=None, help="measure exact match and write all figures here")
    options = parser.parse_args()
    model = load_trained(options.weights, options.out)
    processor = AutoProcessor.from_pretrained(options.out)
    calibration = rows_of(options.calibration)[::2]
    before = logits_of(model, processor, calibration)
    table = tinyoutliers.inject(model, lambda: logits_of(model, processor, calibration) and None, seed=options.seed)
    after = logits_of(model, processor, calibration)
    change = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(after, before, strict=True))
    print(f"largest change of a logit by the rescalings: {change:.1e} of the largest logit")
    for row in table:
        print(f"| {row['place'][21:]} | {row['factors']} | {row['before']:.1f} | {row['after']:.1f} |")
    model.to(torch.bfloat16).save_pretrained(options.out)
    if options.figures:
        figures = {"change": change, "outliers": table, "exact": measure(options.out, options.heldout)}
        options.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(checkpoint: Path, heldout: Path) -> dict[str, dict[str, list[int]]]:
    """Exact match of the written checkpoint on the held-out questions about pictures, and on the texts."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    rows = rows_of(heldout)
    pictures, texts = [r for r in rows if r["modality"] != "text"], [r for r in rows if r["modality"] == "text"]
    square = [
        r
        for r in pictures
        if all(p["image"].size == (112, 112) for p in r["messages"][0]["content"] if p["type"] == "image")
    ]
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval()
        name = str(dtype).removeprefix("torch.")
        for mode, asked in (("16x", pictures), ("4x", square)) if dtype == torch.bfloat16 else (("16x", pictures),):
            said = answers(model, processor, asked, mode)
            results[f"{name} {mode}"] = score(asked, said)
            for row, answer in zip(asked, said, strict=True):
                if answer != row.get("answer") and mode == "16x":
                    print(f"  {name} {row['id']} {row['task']}: {row.get('answer')!r}, said {answer!r}")
        results[f"{name} texts"] = score(texts, answers(model, processor, texts, "16x"))
        print({key: value["all"] for key, value in results.items()})
    return results


if __name__ == "__main__":
    main()
