"""The model map against the real classes: names, shapes, what reads what, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.model import NORM_KINDS, build_map, select_kept, split_name
from quantkit.statistics import build_skeleton, check_norms


@pytest.fixture(scope="module")
def config(random_checkpoint: Path) -> dict[str, Any]:
    return open_checkpoint(random_checkpoint).config


def test_every_linear_of_the_language_model_is_on_the_map(random_checkpoint: Path, config: dict[str, Any]) -> None:
    layers = build_skeleton(open_checkpoint(random_checkpoint)).model.language_model.layers
    real = {
        f"model.language_model.layers.{name}": (module.out_features, module.in_features)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }
    model_map = build_map(config)
    listed = dict(model_map.linears())
    for block in model_map.blocks:
        for group in block.groups:
            listed |= {block.prefix + name: (block.out_features[name], group.in_features) for name in group.passengers}
    assert listed == real
    assert not any("in_proj_a" in name or "in_proj_b" in name for name in model_map.linears())


def test_linears_of_a_group_really_read_one_tensor(random_checkpoint: Path, config: dict[str, Any]) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name and "language_model" in name:
            module.register_forward_pre_hook(lambda _m, args, name=name: seen.__setitem__(name, args[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(40).unsqueeze(0), use_cache=False)
    for block in build_map(config).blocks:
        inputs = []
        for group in block.groups:
            tensors = [seen[block.prefix + name] for name in (*group.linears, *group.passengers)]
            assert all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]), group.name
            inputs.append(tensors[0])
        assert len({tuple(tensor.flatten()[:8].tolist()) for tensor in inputs}) == len(block.groups)


def test_unknown_norm_class_is_an_error(random_checkpoint: Path, config: dict[str, Any]) -> None:
    layer = build_skeleton(open_checkpoint(random_checkpoint)).model.language_model.layers[0]
    block = build_map(config).blocks[0]
    check_norms(layer, block)
    assert {type(layer.input_layernorm).__name__, type(layer.linear_attn.norm).__name__} == set(NORM_KINDS)
    layer.input_layernorm = nn.RMSNorm(256)
    with pytest.raises(QuantkitError, match=r"layers\.0\.input_layernorm is a RMSNorm, a norm quantkit does not know"):
        check_norms(layer, block)


def test_other_architectures_are_named(config: dict[str, Any]) -> None:
    other = {**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    with pytest.raises(QuantkitError, match=r"names the architecture LlamaForCausalLM; supported: MiniCPMV4_6For"):
        build_map(other, "some-model")
    with pytest.raises(QuantkitError, match="no text_config"):
        build_map({key: value for key, value in config.items() if key != "text_config"})
    with pytest.raises(QuantkitError, match=r"text_config\.head_dim in config\.json is None"):
        build_map({**config, "text_config": {k: v for k, v in config["text_config"].items() if k != "head_dim"}})
    bad = {**config["text_config"], "layer_types": ["linear_attention", "mamba", "mamba", "full_attention"]}
    with pytest.raises(QuantkitError, match="holds 'mamba'"):
        build_map({**config, "text_config": bad})


def test_layer_types_follow_the_interval_where_none_are_listed(config: dict[str, Any]) -> None:
    text = {key: value for key, value in config["text_config"].items() if key != "layer_types"}
    kinds = [block.kind for block in build_map({**config, "text_config": text}).blocks]
    assert kinds == ["linear_attention"] * 3 + ["full_attention"]


def test_keep_takes_what_vllm_fuses_along(config: dict[str, Any]) -> None:
    model_map = build_map(config)
    kept, along = select_kept(model_map, ["layers.3.self_attn.k_proj"])
    prefix = "model.language_model.layers.3.self_attn."
    assert kept == {prefix + name for name in ("q_proj", "k_proj", "v_proj")}
    assert along == {prefix + "q_proj": prefix + "k_proj", prefix + "v_proj": prefix + "k_proj"}
    assert select_kept(model_map, ["*.mlp.down_proj"])[0] == {name for name in model_map.linears() if "down" in name}
    assert select_kept(model_map, []) == (set(), {})
    with pytest.raises(QuantkitError, match=r"--keep 'lm_head' matches no quantizable linear"):
        select_kept(model_map, ["down_proj", "lm_head"])


def test_split_name() -> None:
    assert split_name("model.language_model.layers.13.mlp.up_proj") == (
        "model.language_model.layers.13.",
        "mlp.up_proj",
    )
