"""The random checkpoints: published shapes to the last parameter, and loadable by the library's Auto classes."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_checkpoint.py"
SPECIAL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
TOKENS = {"image_token_id": 300, "video_token_id": 301, "eos_token_id": 302, "pad_token_id": 303}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to take side files from: a byte tokenizer without merges, and this family's processor."""
    folder = tmp_path_factory.mktemp("donor")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL.values(), "<|im_end|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "processor_class": "MiniCPMV4_6Processor",
        "model_specific_special_tokens": SPECIAL,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        **SPECIAL,
    }
    image = {"image_processor_type": "MiniCPMV4_6ImageProcessor", "scale_resolution": 112, "max_slice_nums": 4}
    video = {"video_processor_type": "MiniCPMV4_6VideoProcessor", "scale_resolution": 112, "max_slice_nums": 4}
    processor = {"processor_class": "MiniCPMV4_6Processor", "image_processor": image, "video_processor": video}
    files = {
        "tokenizer_config.json": settings,
        "preprocessor_config.json": {"processor_class": "MiniCPMV4_6Processor", **image},
        "video_preprocessor_config.json": {"processor_class": "MiniCPMV4_6Processor", **video},
        "processor_config.json": processor,
        "config.json": {"model_type": "minicpmv4_6"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(
        (8 + 64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(72) + bytes(4)
    )
    return folder


@pytest.fixture(scope="module")
def small(script: ModuleType, donor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "small"
    assert script.make_checkpoint("small", out, side_files=str(donor)) == (5_764_156, 162)
    return out


def test_full_has_the_published_shapes(script: ModuleType) -> None:
    config = script.build_config("full", TOKENS)
    shapes = script.parameter_shapes(config)
    assert len(shapes) == 779
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_300_428_016
    assert shapes["model.language_model.embed_tokens.weight"] == (248094, 1024)
    assert shapes["model.language_model.layers.3.self_attn.q_proj.weight"] == (2 * 8 * 256, 1024)
    assert shapes["model.language_model.layers.3.self_attn.v_proj.weight"] == (2 * 256, 1024)
    assert shapes["model.language_model.layers.0.linear_attn.in_proj_qkv.weight"] == (3 * 16 * 128, 1024)
    assert shapes["model.language_model.layers.23.mlp.down_proj.weight"] == (1024, 3584)
    assert shapes["model.vision_tower.encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["model.vision_tower.embeddings.position_embedding.weight"] == (70 * 70, 1152)
    assert shapes["model.vision_tower.embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert "lm_head.weight" not in shapes
    assert not any("mtp" in name for name in shapes)
    saved = json.loads(config.to_json_string(use_diff=False))
    assert saved["text_config"]["mtp_num_hidden_layers"] == 1
    assert saved["text_config"]["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 6
    assert saved["tie_word_embeddings"] is True
    assert saved["architectures"] == ["MiniCPMV4_6ForConditionalGeneration"]


def test_fewer_layers(script: ModuleType) -> None:
    shapes = script.parameter_shapes(script.build_config("full", TOKENS, layers=2))
    layers = {name.split(".")[3] for name in shapes if name.startswith("model.language_model.layers.")}
    assert layers == {"0", "1"}


def test_scales_of_full(script: ModuleType) -> None:
    """Linears keep their input's scale, residual branches add up to it, norms lie off their neutral value."""
    text, vision = "model.language_model.layers.0.", "model.vision_tower.encoder.layers.0."
    expected = {
        text + "mlp.gate_proj.weight": ((3584, 1024), 0.0, 1 / 32),
        text + "mlp.down_proj.weight": ((1024, 3584), 0.0, 1 / math.sqrt(3584 * 48)),
        text + "input_layernorm.weight": ((1024,), 0.2, 0.15),
        text + "linear_attn.norm.weight": ((128,), 1.0, 0.15),
        vision + "layer_norm1.weight": ((1152,), 1.0, 0.15),
        vision + "mlp.fc1.bias": ((4304,), 0.0, 0.02),
        "model.vision_tower.vit_merger.linear_1.weight": ((500, 4608), 0.0, 1 / math.sqrt(4608)),
    }
    for name, (shape, mean, deviation) in expected.items():
        tensor = script.random_tensor(name, shape, torch.bfloat16, 0, 48).float()
        error = 5 * deviation / math.sqrt(tensor.numel())
        assert tensor.mean().item() == pytest.approx(mean, abs=error + 1e-3)
        assert tensor.std().item() == pytest.approx(deviation, rel=0.2 if tensor.numel() < 1000 else 0.05)
    decay = script.random_tensor(text + "linear_attn.A_log", (16,), torch.float32, 0, 48).exp()
    assert decay.min() >= 0.01
    assert decay.max() <= 16


def test_a_tensor_longer_than_a_piece(script: ModuleType) -> None:
    tensor = script.random_tensor("model.x.weight", (17, 1 << 20), torch.bfloat16, 0, 1)
    assert tensor[-1].float().std().item() == pytest.approx(tensor[0].float().std().item(), rel=0.05)
    assert not torch.equal(tensor[-1], tensor[0])


def test_auto_classes_load_it_and_it_computes(small: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(small, dtype=torch.float32)
    assert type(model).__name__ == "MiniCPMV4_6ForConditionalGeneration"
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    stored = open_checkpoint(small)
    state = dict(model.named_parameters())
    assert sorted(state) == sorted(stored.tensor_names)
    assert all(torch.equal(state[name], stored.load(name, torch.float32)) for name in state)
    processor = AutoProcessor.from_pretrained(small)
    picture = Image.effect_noise((112, 84), 50).convert("RGB")
    inputs = processor(images=[picture], text=["<|image_pad|> what?"], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() > 0
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    assert logits.isfinite().all()
    assert 0.05 < logits.std() < 20


def test_config_of_small(small: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert config["vision_config"]["image_size"] == 980
    assert config["dtype"] == "bfloat16"
    assert config["image_token_id"] == 256
    assert config["eos_token_id"] == config["text_config"]["eos_token_id"] == 264


def test_processor_at_the_published_scale(script: ModuleType, donor: Path, tmp_path: Path) -> None:
    source = open_checkpoint(donor)
    script.copy_side_files(source, tmp_path, script.PROCESSOR["full"])
    read = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*processor_config.json")}
    for found in (
        read["preprocessor_config.json"],
        read["video_preprocessor_config.json"],
        read["processor_config.json"]["image_processor"],
        read["processor_config.json"]["video_processor"],
    ):
        assert (found["scale_resolution"], found["max_slice_nums"]) == (448, 9)
    assert (tmp_path / "tokenizer.json").read_bytes() == (donor / "tokenizer.json").read_bytes()


def test_same_seed_same_bytes(script: ModuleType, donor: Path, small: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        script.make_checkpoint("small", tmp_path / name, side_files=str(donor), seed=seed)
    content = (small / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == content
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != content


def test_command_line(
    script: ModuleType, donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = f"--size small --dtype fp32 --max-shard-bytes 5000000 --layers 1 --seed 7 --side-files {donor} --out {out}"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words.split()])
    script.main()
    checkpoint = open_checkpoint(out)
    expected = f"{out}: {checkpoint.num_parameters():,} parameters in {len(checkpoint.tensor_names)} tensors\n"
    assert capsys.readouterr().out == expected
    assert {checkpoint.dtype(name) for name in checkpoint.tensor_names} == {"F32"}
    assert len(list(out.glob("model-*.safetensors"))) > 1
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    message = f"error: {out}: is there already; add --overwrite to replace it, or choose another --out\n"
    assert capsys.readouterr().err == message


def test_target_is_checked_before_any_work(script: ModuleType, donor: Path, small: Path) -> None:
    with pytest.raises(QuantkitError, match="is there already"):
        script.make_checkpoint("small", small, side_files=str(donor))
    with pytest.raises(QuantkitError, match="is the source itself"):
        script.make_checkpoint("small", donor, side_files=str(donor), overwrite=True)
