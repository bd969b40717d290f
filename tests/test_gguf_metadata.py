"""Keys, kinds and values of both GGUF files: those that llama.cpp's converter wrote for tiny, and the departures."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats.gguf.container import Value
from quantkit.gguf.metadata import model_name, name_parts, size_label, text_metadata, title, vision_metadata
from quantkit.source import Source, tiny_folder

# As `convert_hf_to_gguf.py --no-nextn` of llama.cpp (vendored by llama-cpp-python 0.3.36) wrote them, kinds included.
TEXT = {
    "general.architecture": ("string", "qwen35"),
    "general.type": ("string", "model"),
    "general.name": ("string", "Tiny"),
    "general.size_label": ("string", "3.1M"),
    "general.file_type": ("uint32", 1),
    "general.quantization_version": ("uint32", 2),
    "qwen35.block_count": ("uint32", 4),
    "qwen35.context_length": ("uint32", 32768),
    "qwen35.embedding_length": ("uint32", 256),
    "qwen35.feed_forward_length": ("uint32", 512),
    "qwen35.attention.head_count": ("uint32", 4),
    "qwen35.attention.head_count_kv": ("uint32", 2),
    "qwen35.rope.dimension_sections": ("int32", [3, 3, 2, 0]),
    "qwen35.rope.freq_base": ("float32", 1e7),
    "qwen35.attention.layer_norm_rms_epsilon": ("float32", 1e-6),
    "qwen35.attention.key_length": ("uint32", 64),
    "qwen35.attention.value_length": ("uint32", 64),
    "qwen35.ssm.conv_kernel": ("uint32", 4),
    "qwen35.ssm.state_size": ("uint32", 128),
    "qwen35.ssm.group_count": ("uint32", 2),
    "qwen35.ssm.time_step_rank": ("uint32", 2),
    "qwen35.ssm.inner_size": ("uint32", 256),
    "qwen35.attention.recurrent_layers": ("bool", [True, True, True, False]),
    "qwen35.full_attention_interval": ("uint32", 4),
    "qwen35.rope.dimension_count": ("uint32", 16),
}
VISION = {
    "general.architecture": ("string", "clip"),
    "general.type": ("string", "mmproj"),
    "general.name": ("string", "Tiny"),
    "general.size_label": ("string", "2.7M"),
    "general.file_type": ("uint32", 7),
    "general.quantization_version": ("uint32", 2),
    "clip.has_vision_encoder": ("bool", True),
    "clip.vision.projection_dim": ("uint32", 256),
    "clip.vision.image_size": ("uint32", 112),
    "clip.vision.patch_size": ("uint32", 14),
    "clip.vision.embedding_length": ("uint32", 128),
    "clip.vision.feed_forward_length": ("uint32", 304),
    "clip.vision.block_count": ("uint32", 5),
    "clip.vision.attention.head_count": ("uint32", 4),
    "clip.vision.image_mean": ("float32", [0.5, 0.5, 0.5]),
    "clip.vision.image_std": ("float32", [0.5, 0.5, 0.5]),
    "clip.projector_type": ("string", "minicpmv4_6"),
    "clip.vision.projector.scale_factor": ("uint32", 4),
    "clip.vision.wa_layer_indexes": ("int32", [1]),
    "clip.use_gelu": ("bool", True),
    "clip.vision.attention.layer_norm_epsilon": ("float32", 1e-6),
}
CARD = """---
license: apache-2.0
license_link: LICENSE
language:
- en
- no
tags: [vision, minicpm-v]
pipeline_tag: image-text-to-text
base_model:
- openbmb/MiniCPM-V-4.6
- https://huggingface.co/Qwen/Qwen3.5-0.8B
---
# A card
"""


def kinds(metadata: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """What a file holds: kind (of an array, its items') and value."""
    return {key: (Value.of(value).kind, Value.of(value).value) for key, value in metadata.items()}


def folder(tmp_path: Path, name: str = "model", config: dict[str, Any] | None = None, **text: Any) -> Path:
    """A copy of tiny with other fields in config.json and its text_config."""
    path = tmp_path / name
    shutil.copytree(tiny_folder(), path)
    whole = json.loads((path / "config.json").read_text())
    whole |= config or {}
    whole["text_config"] |= text
    (path / "config.json").write_text(json.dumps(whole))
    return path


def opened(path: Path, name: str | None = None) -> Checkpoint:
    return Checkpoint(Source(name or path.name, path))


def test_the_text_files_keys_are_the_converters() -> None:
    assert kinds(text_metadata(open_checkpoint("tiny"), "F16", 3_083_846)) == TEXT


@pytest.mark.parametrize(("mode", "factor"), [("16x", 4), ("4x", 2)])
def test_the_mmproj_files_keys_are_the_converters(mode: str, factor: int) -> None:
    expected = VISION | {"clip.vision.projector.scale_factor": ("uint32", factor)}
    assert kinds(vision_metadata(open_checkpoint("tiny"), "Q8_0", 2_680_310, mode)) == expected


def test_an_announced_mtp_layer_is_not_announced_again() -> None:
    checkpoint = open_checkpoint("tiny")
    assert checkpoint.config["text_config"]["mtp_num_hidden_layers"] == 1
    metadata = text_metadata(checkpoint, "F16", 1)
    assert metadata["qwen35.block_count"] == 4 and not any("nextn" in key for key in metadata)


# ---- general --------------------------------------------------------------------------------------------------------


def test_a_cards_head_is_taken_over(tmp_path: Path) -> None:
    path = folder(tmp_path, "Tiny-V-4.6-Instruct")
    (path / "README.md").write_text(CARD)
    found = {
        key.removeprefix("general."): value
        for key, value in text_metadata(opened(path), "Q4_K_M", 3_640_000_000).items()
        if key.startswith("general.")
    }
    # as the converter wrote them
    assert found == {
        "architecture": "qwen35", "type": "model", "name": "Tiny V 4.6 Instruct", "basename": "Tiny-V-4.6",
        "finetune": "Instruct", "size_label": "3.6B", "license": "apache-2.0", "license.link": "LICENSE",
        "base_model.count": 2, "base_model.0.name": "MiniCPM V 4.6", "base_model.0.version": "4.6",
        "base_model.0.organization": "Openbmb", "base_model.0.repo_url": "https://huggingface.co/openbmb/MiniCPM-V-4.6",
        "base_model.1.name": "Qwen3.5 0.8B", "base_model.1.organization": "Qwen",
        "base_model.1.repo_url": "https://huggingface.co/Qwen/Qwen3.5-0.8B",
        "tags": ["vision", "minicpm-v", "image-text-to-text"], "languages": ["en", "no"],
        "file_type": 15, "quantization_version": 2,
    }  # fmt: skip


def test_a_head_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(QuantkitError, match=r"README\.md: its head is no valid YAML .*; mend or remove it"):
        text_metadata(opened(path), "F16", 1)
    (path / "README.md").write_text("---\nlicense: no end\n")
    assert "general.license" not in text_metadata(opened(path), "F16", 1)


def test_the_name_is_the_models_not_the_caches(tmp_path: Path) -> None:
    place = tmp_path / "models--openbmb--MiniCPM-V-4.6" / "snapshots"
    place.mkdir(parents=True)
    snapshot = folder(place, "0123abc")
    for checkpoint in (opened(snapshot), opened(snapshot, "openbmb/MiniCPM-V-4.6")):
        metadata = text_metadata(checkpoint, "F16", 1)
        assert metadata["general.name"] == "MiniCPM V 4.6" and metadata["general.version"] == "4.6"
        assert metadata["general.source.repo_url"] == "https://huggingface.co/openbmb/MiniCPM-V-4.6"
        assert model_name(checkpoint) == "MiniCPM-V-4.6"
    assert "general.source.repo_url" not in text_metadata(open_checkpoint("tiny"), "F16", 1)


def test_names_are_read_as_the_gguf_package_reads_them() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the package gguf, whose metadata.py reads names by the convention")
    words = ["MiniCPM", "V", "4.6", "v1.0", "Qwen3.5", "0.8B", "instruct", "Chat", "tiny", "f16", "Q4_K", "my", "8x7B"]
    rng = random.Random(0)
    for _ in range(3000):
        name = "-".join(rng.choices(words, k=rng.randint(1, 5)))
        _, _, basename, finetune, version, _ = gguf.Metadata.get_model_id_components(name, 0)
        theirs = {"basename": basename, "finetune": finetune, "version": version}
        assert name_parts(name) == {key: value for key, value in theirs.items() if value}, name
        assert title(name) == gguf.Metadata.id_to_title(name)
        count = int(10 ** rng.uniform(2, 13))
        assert size_label(count) == gguf.size_label(count, 0, 0, 0)


def test_sampling(tmp_path: Path) -> None:
    path = folder(tmp_path)
    recommended = {"top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.05, "do_sample": True}

    def sampling(settings: dict[str, Any]) -> dict[str, Any]:
        (path / "generation_config.json").write_text(json.dumps(settings))
        found = kinds(text_metadata(opened(path), "F16", 1))
        return {key.removeprefix("general.sampling."): value for key, value in found.items() if ".sampling." in key}

    # as the converter wrote them
    assert sampling(recommended) == {
        "top_k": ("int32", 20), "top_p": ("float32", 0.8), "temp": ("float32", 0.7), "penalty_repeat": ("float32", 1.05)
    }  # fmt: skip
    assert sampling(recommended | {"do_sample": False}) == {}
    assert not any("sampling" in key for key in vision_metadata(opened(path), "F16", 1))
    with pytest.raises(QuantkitError, match=r"generation_config\.json: top_k is '20', not a number"):
        sampling({"top_k": "20"})


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_yarn(tmp_path: Path) -> None:
    rope = json.loads((tiny_folder() / "config.json").read_text())["text_config"]["rope_parameters"]
    yarn = rope | {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 16384, "beta_fast": 30.0}
    metadata = kinds(text_metadata(opened(folder(tmp_path, rope_parameters=yarn)), "F16", 1))
    # as the converter wrote them
    assert {key: value for key, value in metadata.items() if ".scaling." in key} == {
        "qwen35.rope.scaling.type": ("string", "yarn"), "qwen35.rope.scaling.factor": ("float32", 2.0),
        "qwen35.rope.scaling.original_context_length": ("uint32", 16384),
        "qwen35.rope.scaling.yarn_beta_fast": ("float32", 30.0),
    }  # fmt: skip


def test_other_forms_of_the_config(tmp_path: Path) -> None:
    kinds_of_layer = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    rope = {"rope_theta": 1e6, "partial_rotary_factor": 0.5}
    path = folder(
        tmp_path, layer_types=kinds_of_layer, full_attention_interval=None, linear_num_value_heads=6,
        rope_parameters=None, rope_scaling={**rope, "mrope_section": [6, 5, 5]},
    )  # fmt: skip
    metadata = text_metadata(opened(path), "F16", 1)
    assert metadata["qwen35.attention.recurrent_layers"] == [True, False, True, True]
    assert metadata["qwen35.full_attention_interval"] == 4
    assert (metadata["qwen35.ssm.time_step_rank"], metadata["qwen35.ssm.inner_size"]) == (6, 768)
    assert metadata["qwen35.rope.dimension_count"] == 32 and metadata["qwen35.rope.freq_base"] == 1e6


def test_the_processors_settings(tmp_path: Path) -> None:
    path = folder(tmp_path)
    nested = json.loads((path / "processor_config.json").read_text())
    nested["image_processor"] |= {"scale_resolution": 448, "image_std": [0.1, 0.2, 0.3]}
    (path / "processor_config.json").write_text(json.dumps(nested))
    metadata = vision_metadata(opened(path), "F16", 1)
    assert metadata["clip.vision.image_size"] == 448 and metadata["clip.vision.image_std"] == [0.1, 0.2, 0.3]
    nested["image_processor"]["image_mean"] = 0.5
    (path / "processor_config.json").write_text(json.dumps(nested))
    with pytest.raises(QuantkitError, match=r"/processor_config\.json: image_processor\.image_mean is 0\.5, not three"):
        vision_metadata(opened(path), "F16", 1)
    (path / "processor_config.json").unlink()
    assert vision_metadata(opened(path), "F16", 1)["clip.vision.image_size"] == 112
    (path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5]}')
    with pytest.raises(QuantkitError, match=r"preprocessor_config\.json: image_mean is \[0\.5, 0\.5\], not three"):
        vision_metadata(opened(path), "F16", 1)


ROPE = {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [3, 3, 2]}


@pytest.mark.parametrize(
    ("match", "fields"),
    [
        (
            r"text_config\.hidden_act in config\.json is 'gelu'; llama\.cpp runs this model only with",
            {"hidden_act": "gelu"},
        ),
        (r"text_config\.attn_output_gate .* is False", {"attn_output_gate": False}),
        (r"text_config\.linear_value_head_dim .* is 64; .* only with 128", {"linear_value_head_dim": 64}),
        (r"text_config\.rms_norm_eps in config\.json is None, not a number", {"rms_norm_eps": None}),
        (r"text_config\.max_position_embeddings .* is 0, not a whole number", {"max_position_embeddings": 0}),
        (r"text_config\.rope_parameters is missing", {"rope_parameters": None}),
        (r"rope_parameters\.rope_type is 'longrope'", {"rope_parameters": ROPE | {"rope_type": "longrope"}}),
        (r"rope_parameters\.factor in config\.json is None", {"rope_parameters": ROPE | {"rope_type": "yarn"}}),
        (r"mrope_section \[11, 11, 10\] splits 32 pairs, but 8", {"rope_parameters": ROPE | {"mrope_section": None}}),
    ],
)
def test_text_that_llamacpp_cannot_follow_is_named(match: str, fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(QuantkitError, match=match):
        text_metadata(opened(folder(tmp_path, **fields)), "F16", 1)


@pytest.mark.parametrize(
    ("match", "config", "vision"),
    [
        ("merger_times in config.json is 2", {"merger_times": 2}, {}),
        (r"merge_kernel_size in config.json is \[4, 4\]", {"merge_kernel_size": [4, 4]}, {}),
        ("insert_layer_id 5 in config.json is beyond", {"insert_layer_id": 5}, {}),
        (r"vision_config\.window_kernel_size", {}, {"window_kernel_size": [4, 4]}),
        (r"vision_config\.hidden_act in config.json is 'gelu'", {}, {"hidden_act": "gelu"}),
        ("is not 70; llama.cpp knows only a table of 70 x 70", {}, {"image_size": 448}),
        ("would then swap", {}, {"intermediate_size": 128}),
    ],
)
def test_vision_that_llamacpp_cannot_follow_is_named(
    match: str, config: dict[str, Any], vision: dict[str, Any], tmp_path: Path
) -> None:
    whole = json.loads((tiny_folder() / "config.json").read_text())
    path = folder(tmp_path, config={**config, "vision_config": whole["vision_config"] | vision})
    with pytest.raises(QuantkitError, match=match):
        vision_metadata(opened(path), "F16", 1)
