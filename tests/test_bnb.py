"""`quantkit bnb` against bitsandbytes and Transformers themselves: what is stored, that it loads, runs and trains.

The kernels round more than the weights: on CPUs with AVX512-BF16 the 4-bit ones turn scales into bfloat16, everywhere
they multiply in the file's compute dtype, and LLM.int8() rounds its inputs to 8 bits. So weights are compared bit for
bit, and logits within what that rounding costs on this small random model.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from quantkit.bnb import plan_bnb, quantize_bnb
from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import bnb
from quantkit.integrity import check
from quantkit.integrity.subject import find_linears
from quantkit.model import build_map
from quantkit.recipe import BnbOptions
from quantkit.reproduce import differences
from quantkit.source import tiny_folder
from quantkit.verify import load_dequantized, load_transformers

pytest.importorskip("bitsandbytes")
import bitsandbytes

# source, options
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nf4": ("random", {"type": "nf4"}),
    "fp4": ("random", {"type": "fp4"}),
    "int8": ("random", {"type": "int8"}),
    "nf4, single": ("random", {"type": "nf4", "double_quant": False, "compute_dtype": "float32"}),
    "nf4 of tiny": ("tiny", {"type": "nf4"}),
}
SKIPPED = [
    "model.vision_tower.vit_merger", "model.vision_tower", "model.merger", "vpm", "vit_merger", "resampler",
    "in_proj_a", "in_proj_b", "lm_head", "in_proj_ba",
]  # fmt: skip
LAYERS = "model.language_model.layers."
# relative distance of the kernels' logits; measured 0.018 to 0.022, and 0.028 in 8 bits; bfloat16 alone costs 0.021
LOGITS = {"nf4": 0.035, "fp4": 0.035, "int8": 0.05}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sources(random_checkpoint: Path) -> dict[str, Path]:
    return {"random": random_checkpoint, "tiny": tiny_folder()}


@pytest.fixture(scope="module")
def variant(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Source and folder of a variant by name, quantized once."""
    root = tmp_path_factory.mktemp("bnb")

    def make(name: str) -> tuple[Path, Path]:
        source, options = VARIANTS[name]
        out = root / name.replace(" ", "_").replace(",", "")
        if not out.exists():
            quantize_bnb(BnbOptions(model=str(sources[source]), out=out, **options))
        return sources[source], out

    return make


def quantized_modules(model: Any) -> dict[str, Any]:
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def distance(found: Tensor, expected: Tensor) -> float:
    """Size of the difference relative to what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


@torch.inference_mode()
def logits(model: Any, folder: Path, data: Path) -> Tensor:
    """Float32 logits of two questions with pictures and one without, [tokens, vocabulary]."""
    rows = []
    for sample in prepare(load_conversations(data)[:3], load_processor(folder), PrepareOptions()):
        rows.append(model(**sample.inputs, downsample_mode=sample.downsample_mode).logits[0].float())
    return torch.cat(rows)


# ---- what is stored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_and_the_config_are_what_transformers_itself_writes(
    name: str, variant: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, folder = variant(name)
    options = VARIANTS[name][1]
    if options["type"] == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIPPED)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options["type"],
            bnb_4bit_use_double_quant=options.get("double_quant", True),
            bnb_4bit_compute_dtype=getattr(torch, options.get("compute_dtype", "bfloat16")),
            llm_int8_skip_modules=SKIPPED,
        )
    theirs = AutoModelForImageTextToText.from_pretrained(source, quantization_config=config)
    theirs.save_pretrained(tmp_path / "theirs")
    expected, found = load_file(tmp_path / "theirs/model.safetensors"), load_file(folder / "model.safetensors")
    assert set(found) == set(expected)
    for tensor in expected:
        assert found[tensor].dtype == expected[tensor].dtype and found[tensor].shape == expected[tensor].shape, tensor
        assert torch.equal(_bytes(found[tensor]), _bytes(expected[tensor])), tensor
    written = json.loads((tmp_path / "theirs/config.json").read_text())
    ours = json.loads((folder / "config.json").read_text())
    assert ours["quantization_config"] == written["quantization_config"]
    assert ours["dtype"] == written["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["nf4", "int8", "nf4 of tiny"])
def test_what_stays_is_the_sources(name: str, variant: Callable[[str], tuple[Path, Path]]) -> None:
    source, folder = variant(name)
    before, after = open_checkpoint(source), open_checkpoint(folder)
    linears = {f"{linear}.weight" for linear in build_map(before.config).linears()}
    assert "lm_head.weight" not in after and before.config["tie_word_embeddings"]
    for tensor in set(before.tensor_names) - linears:
        assert torch.equal(after.load(tensor), before.load(tensor)), tensor
    config = {key: value for key, value in after.config.items() if key != "quantization_config"}
    assert config == {**before.config, "dtype": "bfloat16"}
    assert {"tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in before.side_files()
    }
    for path in before.side_files():
        assert (folder / path.relative_to(before.path)).read_bytes() == path.read_bytes()
    made = json.loads((folder / "quantkit.json").read_text())
    assert made["source"]["fingerprint"] == before.fingerprint()
    assert made["recipe"]["type"] == VARIANTS[name][1]["type"] and "model" not in made["recipe"]
    assert made["versions"]["bitsandbytes"] == bitsandbytes.__version__ and len(made["layers"]) == 25


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_two_runs_give_the_same_bytes(name: str, variant: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    source, folder = variant(name)
    quantize_bnb(BnbOptions(model=str(source), out=tmp_path / "x", **VARIANTS[name][1]))
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "x").iterdir()}
    assert set(differences(folder, tmp_path / "x").values()) == {"same"}


def test_kept_layers_stay_and_are_named(random_checkpoint: Path, tmp_path: Path) -> None:
    keep = ("layers.3.self_attn.k_proj", "layers.0.*down_proj")
    quantize_bnb(BnbOptions(model=str(random_checkpoint), out=tmp_path / "x", keep=keep, max_shard_size="2MB"))
    kept = {f"{LAYERS}3.self_attn.{name}_proj" for name in "qkv"} | {f"{LAYERS}0.mlp.down_proj"}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "x")
    modules = quantized_modules(model)
    assert len(modules) == 25 - len(kept) and not kept & set(modules)
    before, after = open_checkpoint(random_checkpoint), open_checkpoint(tmp_path / "x")
    assert len(list((tmp_path / "x").glob("model-*.safetensors"))) > 2
    for name in kept:
        assert torch.equal(after.load(f"{name}.weight"), before.load(f"{name}.weight"))
    outcome = check(after, before)
    assert outcome.ok, outcome.errors
    assert all("not checked" in finding.message for finding in outcome.findings), outcome.findings


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(dtype: str, random_checkpoint: Path, tmp_path: Path) -> None:
    quantize_bnb(BnbOptions(model=str(random_checkpoint), out=tmp_path / "x", dtype=dtype))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "x")
    assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    module = next(iter(quantized_modules(model).values()))
    assert module.weight.quant_state.dtype == getattr(torch, dtype)
    assert open_checkpoint(tmp_path / "x").config["dtype"] == dtype


# ---- it loads and runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_loads_without_arguments_and_exactly_the_mapped_linears_are_quantized(
    name: str, variant: Callable[[str], tuple[Path, Path]]
) -> None:
    source, folder = variant(name)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    modules = quantized_modules(model)
    assert set(modules) == set(build_map(open_checkpoint(source).config).linears()) and len(modules) == 25
    assert model.lm_head.weight is model.get_input_embeddings().weight
    kind = {"int8": torch.int8}.get(VARIANTS[name][1]["type"], torch.uint8)
    for parameter, value in model.named_parameters():
        expected = kind if parameter.removesuffix(".weight") in modules else torch.bfloat16
        assert value.dtype == expected, parameter


@pytest.mark.parametrize("name", VARIANTS)
def test_our_reading_is_the_librarys(name: str, variant: Callable[[str], tuple[Path, Path]]) -> None:
    """Every weight of the dequantized engine is bit for bit what Transformers' own `dequantize` makes of the file."""
    _, folder = variant(name)
    theirs = AutoModelForImageTextToText.from_pretrained(folder).dequantize(dtype=torch.float32)
    expected = dict(theirs.named_parameters())
    for parameter, value in load_dequantized(folder).named_parameters():
        assert torch.equal(value, expected[parameter]), parameter


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_the_kernels(name: str, variant: Callable[[str], tuple[Path, Path]], small_calibration: Path) -> None:
    source, folder = variant(name)
    kind = VARIANTS[name][1]["type"]
    found = logits(load_transformers(folder, "float32"), folder, small_calibration)
    ours = load_dequantized(folder, "float32")
    if kind == "int8":
        for module in quantized_modules(AutoModelForImageTextToText.from_pretrained(folder)):
            ours.get_submodule(module).register_forward_pre_hook(_rounded_inputs)
    expected = logits(ours, folder, small_calibration)
    assert distance(found, expected) < LOGITS[kind]
    plain = distance(logits(load_dequantized(source), folder, small_calibration), expected)
    assert plain > LOGITS[kind]  # the comparison sees quantization itself


def _rounded_inputs(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What LLM.int8() multiplies with: rows in 8 bits, except columns with a value of 6 or more."""
    flat = inputs[0].reshape(-1, inputs[0].shape[-1]).half()
    codes, scale, outliers = bitsandbytes.functional.int8_vectorwise_quant(flat.clone(), threshold=6.0)
    rounded = codes.float() * scale.unsqueeze(1) / 127
    if outliers is not None:
        rounded[:, outliers] = flat[:, outliers].float()
    return (rounded.view(inputs[0].shape),)


def test_bfloat16_as_a_user_loads_it(variant: Callable[[str], tuple[Path, Path]], small_calibration: Path) -> None:
    _, folder = variant("nf4 of tiny")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    exact = logits(load_dequantized(folder), folder, small_calibration)
    noise = distance(logits(load_dequantized(folder, "bfloat16"), folder, small_calibration), exact)
    assert distance(logits(model, folder, small_calibration), exact) < 2.5 * noise


@pytest.mark.parametrize("block_size", [32, 128, 256])
def test_other_block_sizes(block_size: int, random_checkpoint: Path, small_calibration: Path, tmp_path: Path) -> None:
    quantize_bnb(BnbOptions(model=str(random_checkpoint), out=tmp_path / "x", block_size=block_size))
    linears = [linear for linear in find_linears(open_checkpoint(tmp_path / "x")).values() if linear.packed]
    assert {(linear.bits, linear.group_size) for linear in linears} == {(4, block_size)}
    found = logits(load_transformers(tmp_path / "x"), tmp_path / "x", small_calibration)
    assert distance(found, logits(load_dequantized(tmp_path / "x"), tmp_path / "x", small_calibration)) < LOGITS["nf4"]


# ---- verify reads it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_integrity_finds_no_fault(name: str, variant: Callable[[str], tuple[Path, Path]]) -> None:
    source, folder = variant(name)
    reference, candidate = open_checkpoint(source), open_checkpoint(folder)
    packed = {linear.name: linear for linear in find_linears(candidate).values() if linear.packed}
    assert {one: (linear.out_features, linear.in_features) for one, linear in packed.items()} == build_map(
        reference.config
    ).linears()
    shape = (8, -1) if VARIANTS[name][1]["type"] == "int8" else (4, 64)
    assert {(linear.bits, linear.group_size) for linear in packed.values()} == {shape}
    assert {linear.layout for linear in packed.values()} == {"bitsandbytes"}
    for against in (None, reference):
        outcome = check(candidate, against)
        assert outcome.ok, outcome.errors
        assert all("not checked" in finding.message for finding in outcome.findings), outcome.findings
    named = {tensor for linear in packed.values() for tensor in linear.tensors}
    weights = {f"{linear}.weight" for linear in packed}
    assert set(candidate.tensor_names) - named == set(reference.tensor_names) - weights


def test_the_command_and_verify(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("bnb", "--out", tmp_path / "x", "--type", "int8")
    assert code == 0 and "quantkit verify tiny" in out
    code, out, err = run("verify", "tiny", tmp_path / "x", "--quick")
    assert code == 0 and "error:" not in out + err


def test_dry_run_writes_nothing_and_knows_the_size(
    run: Run, variant: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, folder = variant("nf4")
    code, out, _ = run("bnb", "--model", source, "--out", tmp_path / "x", "--dry-run")
    assert code == 0 and "what nf4 would quantize" in out and list(tmp_path.iterdir()) == []
    planned = plan_bnb(open_checkpoint(source), BnbOptions(model=str(source))).bytes_after
    assert abs(planned - open_checkpoint(folder).total_bytes) < 25 * 4


# ---- QLoRA --------------------------------------------------------------------------------------------------------


def test_a_qlora_adapter_trains_on_it(variant: Callable[[str], tuple[Path, Path]]) -> None:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    _, folder = variant("nf4 of tiny")
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(folder)
    codes = {name: module.weight.data.clone() for name, module in quantized_modules(base).items()}
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    names = "q_proj|k_proj|v_proj|o_proj|in_proj_qkv|out_proj"
    targets = rf".*language_model\.layers\..*\.({names})"
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 10  # three layers with two, one with four
    question = {"role": "user", "content": [{"type": "text", "text": "What colour is the sky?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "The sky is green."}]}
    inputs = load_processor(folder).apply_chat_template(
        [question, answer], tokenize=True, return_dict=True, return_tensors="pt"
    )
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == 20 and all(".lora_" in name for name in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model.train()
    losses = []
    for step in range(5):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        gradients = {name for name, value in model.named_parameters() if value.grad is not None}
        assert gradients == set(trained)
        assert all(torch.isfinite(value.grad).all() for value in trained.values())
        if step == 0:  # B starts at zero, so A has no gradient yet
            assert all(trained[name].grad.abs().max() > 0 for name in trained if ".lora_B." in name)
        optimizer.step()
    assert losses[-1] < losses[1] < losses[0], losses
    for name, module in quantized_modules(model.get_base_model()).items():
        assert torch.equal(module.weight.data, codes[name.replace(".base_layer", "")])


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "int4"], "--type 'int4': use nf4 or fp4 or int8"),
        (["--block-size", "48"], "--block-size 48: use 32, 64, 128, 256 or 512"),
        (["--block-size", "512"], "--block-size 512 does not divide the 256 input channels of"),
        (["--type", "int8", "--block-size", "128"], "--block-size: is for nf4 and fp4"),
        (["--type", "int8", "--no-double-quant"], "--no-double-quant: is for nf4 and fp4"),
        (["--compute-dtype", "int8"], "--compute-dtype 'int8': use bfloat16 or float16 or float32"),
        (["--keep", "nothing_like_it"], "matches no quantizable linear"),
        (["--keep", "*"], "no linear is left to quantize"),
        (["--device", "cuda:99"], "--device cuda:99: torch cannot use it here"),
        (["--max-shard-size", "5"], "--max-shard-size '5': write it as 5GB or 500MB"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    code, out, err = run("bnb", "--out", tmp_path / "x", *arguments)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, out + err
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_one_line_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: Callable[[str], tuple[Path, Path]]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    code, _, err = run("bnb", "--out", tmp_path / "x")
    assert code == 2 and "pip install 'quantkit[bnb]'" in err and len(err.strip().splitlines()) == 1
    with pytest.raises(QuantkitError, match="pip install bitsandbytes"):
        load_dequantized(variant("nf4")[1])


def test_a_quantized_source_is_refused(run: Run, tmp_path: Path, variant: Callable[[str], tuple[Path, Path]]) -> None:
    code, _, err = run("bnb", "--model", variant("nf4")[1], "--out", tmp_path / "x")
    assert code == 2 and "already quantized (bitsandbytes)" in err and list(tmp_path.iterdir()) == []


def _changed(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    shutil.copytree(source, folder)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_values_that_overflow_are_named(random_checkpoint: Path, tmp_path: Path) -> None:
    linear = f"{LAYERS}1.mlp.up_proj"

    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors[f"{linear}.weight"][0, 0] = 1e5

    large = _changed(random_checkpoint, tmp_path / "large", enlarge)
    with pytest.raises(QuantkitError, match=f"{linear}: its values overflow float16, which int8 needs; keep it"):
        quantize_bnb(BnbOptions(model=str(large), out=tmp_path / "x", type="int8"))
    with pytest.raises(QuantkitError, match=f"{linear}.weight: its values overflow float16; use --dtype"):
        quantize_bnb(BnbOptions(model=str(large), out=tmp_path / "x", dtype="float16"))
    assert {path.name for path in tmp_path.iterdir()} == {"large"}

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[f"{linear}.weight"][3, 5] = float("nan")

    spoilt = _changed(random_checkpoint, tmp_path / "spoilt", spoil)
    with pytest.raises(QuantkitError, match=f"{linear}.weight holds NaN"):
        quantize_bnb(BnbOptions(model=str(spoilt), out=tmp_path / "x"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_zeros_stay_zeros(kind: str) -> None:
    weight = torch.randn(64, 128).bfloat16()
    weight[5], weight[9, :64] = 0, 0
    packed = bnb.pack("x", weight, bnb.BnbSpec(kind))
    back = bnb.dequantize(lambda name: packed[name], "x", list(packed))
    assert back.isfinite().all() and back[5].abs().max() < 0.02 and back[9, :64].abs().max() < 0.02


@pytest.mark.parametrize(
    ("part", "words"),
    [("weight", "do not belong together"), ("weight.absmax", "do not belong together"),
     ("weight.nested_absmax", "do not belong together"), ("weight.quant_map", "do not belong together"),
     ("weight.quant_state.bitsandbytes__nf4", "no shape and block size")],
)  # fmt: skip
def test_tensors_that_do_not_belong_together_are_refused(part: str, words: str) -> None:
    """bitsandbytes' kernels would read past the end."""
    packed = bnb.pack("x", torch.randn(64, 256).bfloat16(), bnb.BnbSpec())
    packed[f"x.{part}"] = packed[f"x.{part}"][:-1]
    with pytest.raises(QuantkitError, match=words):
        bnb.dequantize(lambda name: packed[name], "x", list(packed))
    rows = bnb.pack("x", torch.randn(64, 256).bfloat16(), bnb.BnbSpec("int8"))
    rows["x.SCB"] = rows["x.SCB"][:-1]
    with pytest.raises(QuantkitError, match="do not belong together"):
        bnb.dequantize(lambda name: rows[name], "x", list(rows))


def test_outputs_that_a_kernel_cannot_take_are_named() -> None:
    bnb.check_linear("x", 40, 64, bnb.BnbSpec("int8"))
    with pytest.raises(QuantkitError, match="x: 40 outputs are no multiple of 32; keep it with --keep x"):
        bnb.check_linear("x", 40, 64, bnb.BnbSpec())
