"""The side files of `tiny`: tokenizer, chat template, configurations and processors, all made from scratch.

The tokenizer is a byte-level BPE with NFC normalisation and the pre-tokenizer pattern of the Qwen3.5 family,
trained on the tiny world's own text; the shapes in `model_config` keep every rule of MiniCPM-V 4.6 (three Gated
DeltaNet layers to one of full attention, a feed-forward width of the vision tower that 32 does not divide, a
70 x 70 position table, tied embedding, an MTP layer named in the config without tensors).
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import tinyask
import tinytext
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoProcessor,
    AutoVideoProcessor,  # noqa: F401  (registers the video processor's module)
    GenerationConfig,
    MiniCPMV4_6Config,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    TokenizersBackend,
)
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

VOCABULARY = 1024  # rows of the embedding; special tokens take the last ids, as in the real one
NAMED = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *NAMED.values()]
VISIBLE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TEMPLATE = Path(__file__).with_name("tiny_chat_template.jinja")
RESOLUTION = 112  # pixels of one slice's side: 8 x 8 patches
SHAPES: dict[str, dict[str, Any]] = {  # the language models, as changes to the shapes in `model_config`
    "tiny": {},
    "wide": {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "linear_num_value_heads": 4},
    "deep": {"intermediate_size": 640, "num_hidden_layers": 8},
}


def corpus(seed: int, size: int = 6000) -> list[str]:
    """Training text for the tokenizer: plain texts, chats as JSON-like lines, every question and answer form."""
    rng = random.Random(seed)
    lines = [tinytext.plain(rng)[0] for _ in range(size)]
    for _ in range(size // 2):
        messages, tools, _ = tinytext.text_chat(rng)
        lines += [part["text"] for m in messages for part in m["content"] if isinstance(part, dict)]
        lines += [json.dumps(tools)] if tools and rng.random() < 0.1 else []
    lines += tinyask.phrases() * 60
    lines += ["system user assistant tool\n", "user\n", "assistant\n", "system\n"] * 3000
    return lines


def make_tokenizer(seed: int = 0) -> TokenizersBackend:
    """Train the tokenizer (about a second) and wrap it with the family's special tokens."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    size = VOCABULARY - len(SPECIAL) - len(VISIBLE)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(corpus(seed), trainer)
    if backend.get_vocab_size() != size:
        raise ValueError(f"the corpus gives {backend.get_vocab_size()} tokens instead of {size}: lengthen it")
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in VISIBLE])
    return TokenizersBackend(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None, bos_token=None,
        model_max_length=32768, padding_side="left", clean_up_tokenization_spaces=False,
        model_specific_special_tokens=NAMED, model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )  # fmt: skip


def make_processor(seed: int = 0) -> MiniCPMV4_6Processor:
    """The processor with slices of 112 pixels instead of 448; everything else as the real model has it."""
    pictures: dict[str, Any] = {"scale_resolution": RESOLUTION, "max_slice_nums": 9, "slice_mode": True,
                                "patch_size": 14, "use_image_id": True, "downsample_mode": "16x"}  # fmt: skip
    tokenizer = make_tokenizer(seed)
    return MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**pictures),
        video_processor=MiniCPMV4_6VideoProcessor(
            **{**pictures, "max_slice_nums": 1}, max_num_frames=8, stack_frames=1
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def model_config(tokenizer: TokenizersBackend, shape: str = "tiny") -> MiniCPMV4_6Config:
    """The configuration of one of SHAPES; `tiny` has 5.7 million parameters."""
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    stop = ids["<|im_end|>"]
    text: dict[str, Any] = {
        "model_type": "qwen3_5_text", "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "full_attention_interval": 4,
        "max_position_embeddings": 32768,
        "attn_output_gate": True, "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False,
        "mamba_ssm_dtype": "float32", "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "dtype": "bfloat16",
        "eos_token_id": stop, "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                            "mrope_interleaved": True, "mrope_section": [3, 3, 2]},
    } | SHAPES[shape]  # fmt: skip
    period = ["linear_attention"] * 3 + ["full_attention"]
    text["layer_types"] = period * (text["num_hidden_layers"] // len(period))
    vision = {
        "model_type": "minicpmv4_6_vision", "hidden_size": 128, "intermediate_size": 304, "num_hidden_layers": 5,
        "num_attention_heads": 4, "image_size": 980, "patch_size": 14, "insert_layer_id": 1, "dtype": "bfloat16",
    }  # fmt: skip
    return MiniCPMV4_6Config(
        text_config=text, vision_config=vision, insert_layer_id=1, image_size=RESOLUTION, merger_times=1,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=True,
        eos_token_id=[stop, ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"], dtype="bfloat16",
        architectures=["MiniCPMV4_6ForConditionalGeneration"],
    )  # fmt: skip


def write_side_files(folder: Path, seed: int = 0, shape: str = "tiny", base: Path | None = None) -> MiniCPMV4_6Config:
    """Write everything but the weights into `folder` and return the configuration.

    With `base`, a checkpoint, its tokenizer and processors are copied instead of made anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if base:
        for file in [*base.glob("*.json"), *base.glob("*.jinja")]:
            shutil.copyfile(file, folder / file.name)
        config = model_config(AutoProcessor.from_pretrained(folder).tokenizer, shape)
        config.save_pretrained(folder)
        return config
    processor = make_processor(seed)
    config = model_config(processor.tokenizer, shape)
    processor.save_pretrained(folder)
    # transformers 5 folds these two into processor_config.json; vLLM and older readers look for the files.
    for name, part in (("preprocessor", processor.image_processor), ("video_preprocessor", processor.video_processor)):
        data = json.loads(part.to_json_string()) | {"processor_class": "MiniCPMV4_6Processor"}
        (folder / f"{name}_config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    config.save_pretrained(folder)
    stops = [processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    GenerationConfig(eos_token_id=stops, pad_token_id=stops[1], do_sample=False).save_pretrained(folder)
    return config
