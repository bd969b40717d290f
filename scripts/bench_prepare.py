"""What preparing calibration data costs beyond the processor's own work on the same items.

    python scripts/bench_prepare.py [--model tiny] [--samples 64] [--rounds 3] [--json OUT]

Bare: `processor.apply_chat_template` on the conversations as inference would send them (pictures by path, which it
decodes), nothing kept. Quantkit: `build` on the same conversations, from reading the rows to the samples on disk:
choice, checks, decoding, prompt lengths, hashes against the evaluation set, the cache. Both in one process by turns,
imports not counted; a second run from the cache beside them. Both with all cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from quantkit.calibration import MixOptions, PrepareOptions, build, load_conversations, load_processor
from quantkit.checkpoint import open_checkpoint
from quantkit.verify.report import environment


def bare(messages: list[tuple[list[dict[str, Any]], Any]], processor: Any, mode: str) -> float:
    """Seconds of the processor alone over conversations with their tools."""
    clock = time.perf_counter()
    for chat, tools in messages:
        processor.apply_chat_template(
            chat,
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,
            processor_kwargs={"downsample_mode": mode, "do_sample_frames": False},
        )
    return time.perf_counter() - clock


def as_inference(conversation: Any) -> tuple[list[dict[str, Any]], Any]:
    """The messages with pictures by path, and frames of a clip as pictures of a list."""

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] == "image":
            return {"type": "image", "path": one["image"]}
        return {"type": "video", "path": one["video"]} if one["type"] == "video" else dict(one)

    return [{**one, "content": [part(p) for p in one["content"]]} for one in conversation.messages], conversation.tools


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--source", default="bundled")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--mode", default="16x")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("quantkit").setLevel(logging.ERROR)
    folder = open_checkpoint(arguments.model).path
    processor = load_processor(folder)
    options = PrepareOptions(samples=arguments.samples, max_tokens=32768, downsample_mode=arguments.mode)
    known = {one.id: one for one in load_conversations(arguments.source)}
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        chosen = build([arguments.source], folder, options, MixOptions()).samples
        messages = [as_inference(known[sample.id]) for sample in chosen]
        for number in range(arguments.rounds):
            how = MixOptions(cache=Path(cache) / str(number))
            row = {"bare": bare(messages, processor, arguments.mode)}
            for name in ("build", "from the cache"):
                clock = time.perf_counter()
                mix = build([arguments.source], folder, options, how)
                row[name] = time.perf_counter() - clock
                assert mix.cached == (name != "build") and len(mix.samples) == len(messages)
            rows.append(row)
    ratio = statistics.median(row["build"] / row["bare"] for row in rows)
    tokens = sum(sample.input_ids.numel() for sample in chosen)
    table = Table(title=f"{arguments.source}: {len(chosen)} conversations, {tokens} tokens, {arguments.mode}")
    for name in ("bare", "build", "from the cache"):
        table.add_column(f"{name}, s", justify="right")
    for row in rows:
        table.add_row(*(f"{seconds:.2f}" for seconds in row.values()))
    console = Console(width=120)
    console.print(table)
    console.print(f"build / bare, median: {ratio:.2f}")
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")
    if arguments.json:
        result = {"rows": rows, "ratio": ratio, "samples": len(chosen), "tokens": tokens}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
