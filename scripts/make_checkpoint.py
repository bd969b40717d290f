"""Write a MiniCPM-V 4.6 checkpoint with random weights: the published shapes (`--size full`) or the smallest (`small`).

    python scripts/make_checkpoint.py --size full --out /data/random-full        # 1,300,428,016 parameters, 2.6 GB

It is for figures that do not depend on what a model has learned (time, memory, file sizes) and for tests. Scales are
such that activations stay of order one; norm weights lie off their neutral value, so that a wrong fold is seen. Tensors
are made one after the other, each from its own generator (seed and name), and go straight to the file. The config says
`mtp_num_hidden_layers: 1` and there is no such tensor, as published. Tokenizer and processor are the bundled tiny
checkpoint's: its ids are below the published vocabulary's size.
"""

import argparse
import hashlib
import json
import logging
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.output import MAX_SHARD_BYTES, ShardWriter, atomic_output

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

TEXT = {
    "full": {
        "vocab_size": 248094,
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "max_position_embeddings": 262144,
        "mrope_section": [11, 11, 10],
    },
    "small": {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "max_position_embeddings": 32768,
        "mrope_section": [3, 3, 2],
    },
}
VISION = {
    "full": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    "small": {"hidden_size": 128, "intermediate_size": 304, "num_hidden_layers": 5, "num_attention_heads": 4},
}
# where the window merger sits; side of the position table in pixels (70 patches of 14); the processor's resolution
INSERT_LAYER = {"full": 6, "small": 1}
IMAGE_SIZE = 980
PROCESSOR = {
    "full": {"scale_resolution": 448, "patch_size": 14, "max_slice_nums": 9},
    "small": {},
}


def build_config(
    size: str, tokens: Mapping[str, Any], layers: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> MiniCPMV4_6Config:
    """Return the config of a size, with the token ids of `tokens` and, if given, another number of text layers."""
    text: dict[str, Any] = dict(TEXT[size])
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": text.pop("mrope_section"),
    }
    if layers is not None:
        text["num_hidden_layers"] = layers
    text |= {
        "model_type": "qwen3_5_text",
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "full_attention_interval": 4,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
        "mtp_num_hidden_layers": 1,
        "eos_token_id": tokens["eos_token_id"],
        "pad_token_id": tokens["pad_token_id"],
        "dtype": dtype,
    }
    vision = dict(VISION[size], patch_size=14, image_size=IMAGE_SIZE, dtype=dtype)
    return MiniCPMV4_6Config(
        text_config=text,
        vision_config=vision,
        insert_layer_id=INSERT_LAYER[size],
        image_size=PROCESSOR[size].get("scale_resolution", 112),
        tie_word_embeddings=True,
        architectures=["MiniCPMV4_6ForConditionalGeneration"],
        dtype=dtype,
        **tokens,
    )


def token_ids(folder: Path) -> dict[str, int]:
    """Return the ids that a config names, as the tokenizer of a folder has them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ("image_token_id", "video_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def parameter_shapes(config: MiniCPMV4_6Config) -> dict[str, tuple[int, ...]]:
    """Return every stored tensor's shape, from the real class without any memory; the tied head is not stored."""
    with torch.device("meta"):
        model = MiniCPMV4_6ForConditionalGeneration(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, depth: int) -> Tensor:
    """Return one weight, a function of seed and name alone. depth: residual branches that add up in its tower."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
    )
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(0.01, 16, generator=generator).log_().to(dtype)
    mean, deviation = _mean_and_deviation(name, shape, depth)
    tensor = torch.empty(math.prod(shape), dtype=dtype)
    for part in tensor.split(1 << 24):  # normal numbers are made in float32, a piece at a time
        part.copy_(torch.empty(part.shape).normal_(mean, deviation, generator=generator))
    return tensor.view(shape)


def _mean_and_deviation(name: str, shape: tuple[int, ...], depth: int) -> tuple[float, float]:
    if name.endswith("dt_bias"):
        return 1.0, 0.1
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) == 1:  # norms: those of the text model multiply by 1 + weight, all others by weight
        text_norm = "language_model" in name and "linear_attn" not in name
        return (0.2, 0.15) if text_norm else (1.0, 0.15)
    if name.endswith(("embed_tokens.weight", "position_embedding.weight")):
        return 0.0, 0.02
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    branch_end = name.endswith(
        ("out_proj.weight", "o_proj.weight", "down_proj.weight", "fc2.weight", "linear_2.weight")
    )
    return 0.0, deviation / math.sqrt(depth) if branch_end and ".layers." in name else deviation


def copy_side_files(source: Checkpoint, folder: Path, settings: Mapping[str, int]) -> None:
    """Copy tokenizer and processor files, with the processor's `settings` changed wherever a file states them."""
    for path in source.copy_side_files(folder):
        if settings and path.name.endswith("processor_config.json"):
            _write_json(path, _replaced(json.loads(path.read_text(encoding="utf-8")), settings))


def _replaced(value: Any, settings: Mapping[str, int]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: settings.get(key, _replaced(inner, settings)) for key, inner in value.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_checkpoint(
    size: str,
    out: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    layers: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    side_files: str = "tiny",
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write the checkpoint; return its parameters and tensors. side_files: whose tokenizer and processor to take."""
    source = open_checkpoint(side_files)
    with atomic_output(out, overwrite=overwrite, source=source.path) as folder:
        config = build_config(size, token_ids(source.path), layers, dtype)
        shapes = parameter_shapes(config)
        copy_side_files(source, folder, PROCESSOR[size])
        config.save_pretrained(folder)
        with ShardWriter(folder, {name: (dtype, shape) for name, shape in shapes.items()}, max_shard_bytes) as writer:
            for name, shape in shapes.items():
                tower: Any = config.vision_config if "vision_tower" in name else config.text_config
                writer.add(name, random_tensor(name, shape, dtype, seed, 2 * tower.num_hidden_layers))
            writer.finish()
    return sum(math.prod(shape) for shape in shapes.values()), len(shapes)


def published_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint of the published shapes, its data a hole in the file: enough to plan from. ``folder``: a new one."""
    source = open_checkpoint("tiny")
    config = build_config("full", token_ids(source.path))
    folder.mkdir()
    copy_side_files(source, folder, PROCESSOR["full"])
    config.save_pretrained(folder)
    header, end = {}, 0
    for name, shape in parameter_shapes(config).items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return open_checkpoint(folder, verify_checksums=False)


def main() -> None:
    """Parse the command line, write, and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=sorted(TEXT), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--layers", type=int, help="another number of layers of the language model")
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES)
    parser.add_argument("--side-files", default="tiny", help="the checkpoint whose tokenizer and processor to copy")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.WARNING)
    options["dtype"] = DTYPES[options["dtype"]]
    size, out = options.pop("size"), options.pop("out")
    try:
        parameters, tensors = make_checkpoint(size, out, **options)
    except QuantkitError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{out}: {parameters:,} parameters in {tensors} tensors")


if __name__ == "__main__":
    main()
