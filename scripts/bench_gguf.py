"""GGUF against llama.cpp's own tools: time and memory, and what quantization costs on the held-out set; from one run.

    python scripts/bench_gguf.py cost --model DIR --tools BIN --converter SOURCE [--type Q4_K_M] [--repeat 3]
    python scripts/bench_gguf.py quality --tools BIN [--model tiny] [--type Q4_K_M Q3_K_M] [--seeds 0 1] [--draws 6]
        [--json OUT]

BIN: a folder with llama-quantize and llama-imatrix; SOURCE: llama.cpp's source, for its converter (both are in the
source package of llama-cpp-python: cmake -B build, then the targets llama-quantize and llama-imatrix).

cost: `quantkit gguf --solver rtn` (text model and F16 mmproj), against the converter (BF16 text model, F16 mmproj) and
llama-quantize after it; by turns, each in a process of its own. The converter's tokenizer hash is set aside, since it
knows no tokenizer of ours.

quality: mean KL of what each file stands for to the BF16 model, by `quantkit verify` in float32 on the bundled held-out
items, or with --draws N on N further draws of them (370 pictures' questions each): a picture's answer is a handful of
tokens, most of them certain, so that of 370 items a few decide the mean. llama-imatrix sees as many tokens of the
bundled set's texts as quantkit's pass sees of texts, images and video.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_quality import judge
from make_tiny_data import more_heldout
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from quantkit.calibration import build_from
from quantkit.checkpoint import open_checkpoint
from quantkit.formats.gguf.blocks import unpack
from quantkit.formats.gguf.reader import GgufFile
from quantkit.gguf.names import Heads, convolution, decay, plus_one, text_tensors
from quantkit.gguf.quantize import quantize_gguf
from quantkit.recipe import GgufOptions
from quantkit.verify.report import environment

_CONVERT = (
    "import sys; sys.path[:0] = [sys.argv[1] + '/gguf-py', sys.argv[1]]; del sys.argv[1]\n"
    "import conversion.base as base; base.TextModel.get_vocab_base_pre = lambda self, tokens: 'qwen35'\n"
    "import convert_hf_to_gguf; convert_hf_to_gguf.main()"
)
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# ---- cost -----------------------------------------------------------------------------------------------------------


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Wall and processor seconds, and peak resident bytes of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("ab") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with status {status}; see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "processor": processor, "peak": usage.ru_maxrss * 1024}


def cost(arguments: argparse.Namespace) -> None:
    """By turns: ours, then theirs."""
    rows: dict[str, list[dict[str, float]]] = {"quantkit gguf": [], "converter": [], "llama-quantize": []}
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        log, source = folder / "log", str(open_checkpoint(arguments.model).path)
        ours = [sys.executable, "-m", "quantkit", "gguf", "--model", source, "--solver", "rtn",
                "--type", arguments.type[0], "--out", str(folder / "ours")]  # fmt: skip
        convert = [sys.executable, "-c", _CONVERT, str(arguments.converter), source]
        text, mmproj = str(folder / "text.gguf"), str(folder / "mmproj.gguf")
        quantize = [str(arguments.tools / "llama-quantize"), text, str(folder / "theirs.gguf"), arguments.type[0],
                    str(os.cpu_count())]  # fmt: skip
        for _ in range(arguments.repeat):
            shutil.rmtree(folder / "ours", ignore_errors=True)
            rows["quantkit gguf"].append(timed(ours, log))
            first = timed([*convert, "--outtype", "bf16", "--outfile", text, "--no-nextn"], log)
            second = timed([*convert, "--mmproj", "--outtype", "f16", "--outfile", mmproj], log)
            joined = {kind: first[kind] + second[kind] for kind in ("wall", "processor")}
            rows["converter"].append(joined | {"peak": max(first["peak"], second["peak"])})
            rows["llama-quantize"].append(timed(quantize, log))
        sizes = [next((folder / "ours").glob(f"*{arguments.type[0]}.gguf")), folder / "theirs.gguf"]
        print("bytes:", ", ".join(f"{path.name} {path.stat().st_size}" for path in sizes))
    table = Table(title=f"{arguments.model}, {arguments.type[0]}, median of {arguments.repeat}")
    for heading in ("", "wall s", "processor s", "peak GB"):
        table.add_column(heading, justify="right")
    middle = {
        what: {kind: statistics.median(row[kind] for row in found) for kind in ("wall", "processor", "peak")}
        for what, found in rows.items()
    }
    for what, found in middle.items():
        table.add_row(what, f"{found['wall']:.1f}", f"{found['processor']:.1f}", f"{found['peak'] / 1e9:.2f}")
    Console(width=100).print(table)
    for kind in ("wall", "processor"):
        theirs = middle["converter"][kind] + middle["llama-quantize"][kind]
        print(f"{kind}: {middle['quantkit gguf'][kind] / theirs:.2f} times the converter and llama-quantize")


# ---- quality --------------------------------------------------------------------------------------------------------


def back(path: Path, model: str, out: Path) -> Path:
    """A checkpoint in float32 of what a text file stands for."""
    checkpoint, file = open_checkpoint(model), GgufFile(path)
    heads = Heads.of(checkpoint.config)
    shutil.copytree(checkpoint.path, out)
    tensors = {name: tensor.float() for name, tensor in load_file(out / "model.safetensors").items()}
    for row in text_tensors(checkpoint):
        info = file.tensors[row.name]
        if row.transform in (decay, convolution):
            continue  # never quantized nor scaled
        raw = torch.from_numpy(file.raw(row.name).copy())
        if info.type.name in _FLOATS:
            value = raw.view(_FLOATS[info.type.name]).float()
        else:
            value = unpack(raw.view(-1, info.type.row_bytes(info.shape[-1])), info.type.name).dequantize()
        if row.transform is plus_one:
            tensors[row.source] = value.reshape(tensors[row.source].shape) - 1
            continue
        shape = tensors[row.source].shape
        places = row.transform(torch.arange(shape.numel(), dtype=torch.float64).view(shape), heads).long()
        tensors[row.source] = torch.empty(shape.numel()).scatter_(0, places.flatten(), value.flatten()).view(shape)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "SHA256SUMS").unlink(missing_ok=True)
    config = json.loads((out / "config.json").read_text()) | {"dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config))
    return out


def texts(model: str, path: Path, seed: int) -> None:
    """The conversations of the bundled set that hold no picture, as the model is given them; in the set's order for
    seed 0, else in one that the seed shuffles: where chunks begin is llama-imatrix's share of chance."""
    from transformers import AutoTokenizer

    checkpoint = open_checkpoint(model)
    samples = build_from(GgufOptions(model=model, samples=100_000, no_cache=True), checkpoint.path).samples
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    found = [tokenizer.decode(sample.input_ids[0]) for sample in samples if "pixel_values" not in sample.inputs]
    if seed:
        random.Random(seed).shuffle(found)
    path.write_text("\n".join(found * 2), encoding="utf-8")


def run_tool(*command: Any) -> None:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{command[0]}: {found.stderr[-400:]}")


def quality(arguments: argparse.Namespace) -> None:
    """Every type, ours by each solver, theirs with and without their matrix."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        if arguments.draws:
            more_heldout(arguments.draws).write(folder / "heldout")
        for seed in arguments.seeds:
            for solver in arguments.solvers:
                out = folder / f"{solver}-{seed}"
                given = {"scales": False} if solver == "refine, no scales" else {}
                options = GgufOptions(model=arguments.model, out=out, type=tuple(arguments.type), seed=seed,
                                      solver=solver.split(",")[0], mmproj_type="none", no_cache=True,
                                      name="model", **given)  # fmt: skip
                outcome = quantize_gguf(options)
                for kind in arguments.type:
                    add(rows, arguments, folder, out / f"model-{kind}.gguf", f"quantkit {solver}", kind, seed)
            if arguments.tools is not None:
                tokens = outcome.data.tokens if outcome.data else 32_768
                peers(rows, arguments, folder, tokens, seed)
    show(rows, arguments)


def peers(rows: list[dict[str, Any]], arguments: argparse.Namespace, folder: Path, tokens: int, seed: int) -> None:
    """llama-quantize with llama-imatrix; without it, where no seed enters, once."""
    start = folder / f"start-{seed}"
    quantize_gguf(GgufOptions(model=arguments.model, out=start, type=("F32",), mmproj_type="none", name="model"))
    texts(arguments.model, folder / "texts.txt", seed)
    matrix = folder / "imatrix.gguf"
    command = ["-m", start / "model-F32.gguf", "-f", folder / "texts.txt", "-o", matrix, "--parse-special", "-c", 512]
    run_tool(arguments.tools / "llama-imatrix", *command, "--chunks", tokens // 512, "--no-ppl")
    for kind in arguments.type:
        ways = {"llama-quantize, text imatrix": ["--imatrix", matrix], "llama-quantize": []}
        for label, given in list(ways.items())[: 2 if seed == arguments.seeds[0] else 1]:
            path = folder / "theirs.gguf"
            run_tool(arguments.tools / "llama-quantize", *given, start / "model-F32.gguf", path, kind)
            add(rows, arguments, folder, path, label, kind, seed)


def add(
    rows: list[dict[str, Any]],
    arguments: argparse.Namespace,
    folder: Path,
    path: Path,
    label: str,
    kind: str,
    seed: int,
) -> None:
    """Measure one file."""
    data = folder / "heldout" if arguments.draws else None
    found = judge(arguments.model, back(path, arguments.model, folder / "back"), data)
    shutil.rmtree(folder / "back")
    rows.append({"method": label, "type": kind, "seed": seed, "bytes": path.stat().st_size} | found)
    pictures = [one for name, one in found["by_modality"].items() if name != "text"]
    tokens = sum(one["tokens"] for one in pictures)
    rows[-1]["kl_pictures"] = sum(one["kl_mean"]["value"] * one["tokens"] for one in pictures) / tokens
    print(f"{kind} {label} {seed}: answers {found['kl_answer']:.5f} text {found['kl_text']:.5f}", flush=True)
    if arguments.json:
        content = {"rows": rows, "environment": environment()}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Means over seeds, and what they are times llama-quantize's with its matrix."""
    table = Table(title=f"{arguments.model}: mean KL, 1e-3 nats (times llama-quantize with a text imatrix)")
    for heading in ("type", "method", "bytes", "answers", "answers to pictures", "all text"):
        table.add_column(heading, justify="left" if heading in ("type", "method") else "right")
    kinds = ("kl_answer", "kl_pictures", "kl_text")
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        same = [one for one in rows if (one["type"], one["method"]) == (row["type"], row["method"])]
        means[row["type"], row["method"]] = {kind: statistics.mean(one[kind] for one in same) for kind in kinds} | {
            "bytes": row["bytes"]
        }
    for (kind, method), found in means.items():
        peer = means.get((kind, "llama-quantize, text imatrix"))
        cells = [f"{1e3 * found[one]:.3f}" + (f" ({found[one] / peer[one]:.2f})" if peer else "") for one in kinds]
        table.add_row(kind, method, str(int(found["bytes"])), *cells)
    console = Console(width=130)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in environment().items()), style="dim")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "quality"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--type", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--tools", type=Path, help="folder with llama-quantize and llama-imatrix")
    parser.add_argument("--converter", type=Path, help="llama.cpp's source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--solvers", nargs="+", default=["rtn", "imatrix", "refine", "refine, no scales"])
    parser.add_argument("--draws", type=int, default=0, help="further draws of the held-out set, in place of it")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where files are put meanwhile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "cost" and (arguments.tools is None or arguments.converter is None):
        parser.error("cost needs --tools and --converter")
    (cost if arguments.what == "cost" else quality)(arguments)


if __name__ == "__main__":
    main()
