"""Fine-tuning a variant: files for LLaMA-Factory and ms-swift, as text and on disk.

Options as the tools' own parsers take them (November 2026: LLaMA-Factory 0.9.5 with Transformers 5.7 and 5.19, ms-swift
4.6.0 with 5.19; both trained the tiny model on a CPU with these files), after the MiniCPM-V CookBook (template, model
type, DOWNSAMPLE_MODE) and ms-swift's `examples/train/qlora`. LLaMA-Factory 0.9.5 cannot train this model with quantized
weights, QLoRA's included: it casts what the projector gives as one tensor, and this model's gives a list. So its file
is for the source. Transformers 5.15 dropped `warmup_ratio`; a `warmup_steps` below one means the same in 5.7.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from quantkit.card.facts import Facts
from quantkit.card.markup import fence
from quantkit.card.section import base, source_name, state, title
from quantkit.card.texts import Texts
from quantkit.errors import QuantkitError

# layouts that ms-swift can train adapters on; the others are trained on their source
TRAINABLE = ("awq", "gptq", "bitsandbytes")
LLAMAFACTORY, SWIFT = "llamafactory_sft.yaml", "swift_sft.sh"
DATASET_INFO = Path("data", "dataset_info.json")
_DATA = "my_data"


def finetune_sections(facts: Facts, t: Texts) -> list[tuple[str, str]]:
    """Heading and Markdown of both tools' sections."""
    trainable = facts.variant.method in TRAINABLE
    intro = t("tune_intro") if trainable else t("tune_intro_base", base=base(facts))
    factory = [state(facts, "llama-factory", t), t("tune_intro_source", base=base(facts)), t("tune_install")]
    factory += [t("tune_llamafactory"), fence("yaml", llamafactory(facts)), t("tune_data")]
    factory += [fence("json", dataset_info()), t("tune_mode")]
    swift = [state(facts, "swift", t), intro, t("tune_swift"), fence("bash", swift_script(facts))]
    swift += [t("tune_kernel")] if facts.variant.method in ("awq", "gptq") else []
    return [
        (title("llama-factory", t), "\n\n".join(factory)),
        (title("swift", t), "\n\n".join(swift)),
    ]


def llamafactory(facts: Facts) -> str:
    """LLaMA-Factory's configuration as YAML."""
    import yaml

    sections: dict[str, dict[str, Any]] = {
        "model": {"model_name_or_path": source_name(facts)},
        "method": {
            "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32,
            "lora_target": "all", "freeze_vision_tower": True, "freeze_multi_modal_projector": True,
        },
        "dataset": {
            "dataset": _DATA, "dataset_dir": "data", "template": "minicpm_v_4_6", "cutoff_len": 4096,
            "overwrite_cache": True,
        },
        "output": {"output_dir": "saves/lora", "logging_steps": 10, "save_steps": 500, "report_to": "none"},
        "train": {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": 1e-4,
            "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "bf16": True,
        },
    }  # fmt: skip
    parts = [
        f"### {name}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}"
        for name, values in sections.items()
    ]
    return "\n".join(parts)


def dataset_info() -> str:
    """LLaMA-Factory's register of data sets, with one of chats with pictures."""
    content = {
        _DATA: {
            "file_name": f"{_DATA}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            },
        }
    }  # fmt: skip
    return json.dumps(content, indent=2) + "\n"


def swift_script(facts: Facts) -> str:
    """ms-swift's command as a script."""
    trainable = facts.variant.method in TRAINABLE
    options: dict[str, object] = {
        "model": facts.target if trainable else source_name(facts),
        "use_hf": "true",  # else it asks ModelScope
        "model_type": "minicpmv4_6",
        "template": "minicpmv4_6",
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "freeze_vit": "true",
        "lora_rank": 16,
        "lora_alpha": 32,
        "torch_dtype": "bfloat16",
        "dataset": f"data/{_DATA}.jsonl",
        "max_length": 4096,
        "packing": "false",
        "loss_scale": "ignore_empty_think",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "learning_rate": "1e-4",
        "num_train_epochs": 3,
        "warmup_ratio": 0.05,
        "logging_steps": 10,
        "save_steps": 500,
        "output_dir": "output",
    }
    if not trainable:
        options |= {
            "quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": "true",
            "bnb_4bit_compute_dtype": "bfloat16",
        }  # fmt: skip
    lines = [f"  --{name} {shlex.quote(str(value))}" for name, value in options.items()]
    command = " \\\n".join(["DOWNSAMPLE_MODE=16x swift sft", *lines])
    return f"#!/bin/sh\nset -eu\n{command}\n"


def write_configs(facts: Facts, folder: Path) -> list[Path]:
    """Write the files into a folder that does not hold them yet; return their paths."""
    contents = {
        folder / LLAMAFACTORY: llamafactory(facts),
        folder / DATASET_INFO: dataset_info(),
        folder / SWIFT: swift_script(facts),
    }
    there = next((path for path in contents if path.exists()), None)
    if there is not None:
        raise QuantkitError(f"--finetune-configs {there}: is there already; name another folder")
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise QuantkitError(f"--finetune-configs {folder}: cannot be written ({error.strerror})") from error
    return list(contents)
