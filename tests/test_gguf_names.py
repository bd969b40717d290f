"""Names, shapes and values of GGUF tensors.

llama.cpp's own converter was run once on tiny and on a variant of it (more value heads than key heads, a head of its
own, attention at another place), in F32, F16, BF16 and Q8_0 and both downsample modes: names, shapes, types and bytes
of all tensors were equal. That llama.cpp runs them is shown in tests/test_gguf_runtime.py, tiny's values in
tests/test_gguf_quantize.py; kept here is what no bundled checkpoint has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.gguf.names import Heads, input_order, keeps_float32, text_tensors, vision_tensors, vision_type
from quantkit.tensorfile import TensorInfo

PREFIX = "model.language_model.layers."


class Headers(Checkpoint):
    """A checkpoint of which there are only config and headers."""

    def __init__(self, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.config = Path("folder"), config
        file = Path("folder/model.safetensors")
        self._tensors = {name: TensorInfo(name, "BF16", shape, file, 0, 0) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return open_checkpoint("tiny")


def altered(
    tiny: Checkpoint, shapes: dict[str, tuple[int, ...] | None], text: dict[str, Any] | None = None, **config: Any
) -> Checkpoint:
    """tiny with other tensors (None: without one) and other fields of config.json."""
    found = {name: tiny.shape(name) for name in tiny.tensor_names}
    wanted = {name: shape for name, shape in (found | shapes).items() if shape is not None}
    return Headers({**tiny.config, "text_config": {**tiny.config["text_config"], **(text or {})}, **config}, wanted)


def test_the_text_files_order_is_llamacpps(tiny: Checkpoint) -> None:
    names = [row.name for row in text_tensors(tiny)]
    assert names[:4] == ["output_norm.weight", "token_embd.weight", "blk.0.attn_gate.weight", "blk.0.attn_norm.weight"]
    assert names[-1] == "blk.3.post_attention_norm.weight"


# ---- value heads ----------------------------------------------------------------------------------------------------

HEADS = Heads(keys=2, values=6, key_dim=5, value_dim=3)


def place(channel: int) -> int:
    """Where channel `channel` of the file's value heads lies in the checkpoint: head v belongs to key v mod keys."""
    head, rest = divmod(channel, HEADS.value_dim)
    key, number = head % HEADS.keys, head // HEADS.keys
    return (key * (HEADS.values // HEADS.keys) + number) * HEADS.value_dim + rest


def test_value_heads_are_tiled(tiny: Checkpoint) -> None:
    transforms = {row.source.removeprefix(PREFIX + "0."): row.transform for row in text_tensors(tiny)}
    generator = torch.Generator().manual_seed(0)
    channels = [place(channel) for channel in range(18)]
    per_head = [place(3 * head) // 3 for head in range(6)]
    tail = [*range(20), *(20 + channel for channel in channels)]

    def check(name: str, shape: tuple[int, ...], expected: Any) -> None:
        tensor = torch.randn(shape, generator=generator)
        assert torch.equal(transforms[f"linear_attn.{name}"](tensor, HEADS), expected(tensor)), name

    check("in_proj_qkv.weight", (38, 4), lambda t: t[tail])
    check("in_proj_z.weight", (18, 4), lambda t: t[channels])
    check("in_proj_a.weight", (6, 4), lambda t: t[per_head])
    check("in_proj_b.weight", (6, 4), lambda t: t[per_head])
    check("A_log", (6,), lambda t: -t.exp()[per_head])
    check("dt_bias", (6,), lambda t: t[per_head])
    check("conv1d.weight", (38, 1, 4), lambda t: t[tail, 0])
    check("norm.weight", (3,), lambda t: t)
    check("out_proj.weight", (4, 18), lambda t: t[:, channels])


def test_what_is_measured_at_an_input_follows_its_columns(tiny: Checkpoint) -> None:
    transforms = {row.source: row.transform for row in text_tensors(tiny)}
    name = PREFIX + "0.linear_attn.out_proj.weight"
    weight, inputs = torch.randn(4, 18, dtype=torch.float64), torch.randn(7, 18, dtype=torch.float64)
    order = input_order(name, HEADS)
    assert order is not None and order.dtype == torch.int64
    converted = transforms[name](weight, HEADS)
    assert torch.equal(converted, weight[:, order])
    assert torch.allclose(inputs[:, order] @ converted.T, inputs @ weight.T)
    assert torch.equal(order, input_order(name.removesuffix(".weight"), HEADS))


def test_no_other_input_moves(tiny: Checkpoint) -> None:
    moved = [row.source for row in text_tensors(tiny) if input_order(row.source, HEADS) is not None]
    assert moved == [f"{PREFIX}{layer}.linear_attn.out_proj.weight" for layer in range(3)]
    assert not any(input_order(row.source, Heads.of(tiny.config)) is not None for row in text_tensors(tiny))


def test_heads_that_do_not_divide_are_named(tiny: Checkpoint) -> None:
    config = altered(tiny, {}, {"linear_num_value_heads": 3}).config
    with pytest.raises(
        QuantkitError, match=r"linear_num_value_heads \(3\) is no multiple of linear_num_key_heads \(2\)"
    ):
        Heads.of(config)


# ---- checkpoints of other forms -------------------------------------------------------------------------------------


def test_a_head_of_its_own(tiny: Checkpoint) -> None:
    untied = altered(tiny, {"lm_head.weight": (1024, 256)}, tie_word_embeddings=False)
    row = next(row for row in text_tensors(untied) if row.name == "output.weight")
    assert (row.source, row.shape) == ("lm_head.weight", (1024, 256))
    with pytest.raises(QuantkitError, match="has no tensor lm_head"):
        text_tensors(altered(tiny, {}, tie_word_embeddings=False))


def test_a_tied_head_that_is_stored_and_mtp_layers_are_left_out(tiny: Checkpoint) -> None:
    more = {"lm_head.weight": (1024, 256), "mtp.fc.weight": (256, 512), "mtp.layers.0.mlp.up_proj.weight": (512, 256)}
    assert text_tensors(altered(tiny, more)) == text_tensors(tiny)
    assert vision_tensors(altered(tiny, more)) == vision_tensors(tiny)


def test_attention_at_another_place(tiny: Checkpoint) -> None:
    shapes: dict[str, tuple[int, ...] | None] = {}
    for name in tiny.tensor_names:
        for layer, other in (("1", "3"), ("3", "1")):
            if name.startswith(f"{PREFIX}{layer}.") and ("self_attn" in name or "linear_attn" in name):
                shapes.setdefault(name, None)
                shapes[name.replace(f"layers.{layer}.", f"layers.{other}.")] = tiny.shape(name)
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    found = {row.name for row in text_tensors(altered(tiny, shapes, {"layer_types": kinds}))}
    assert "blk.1.attn_q.weight" in found and "blk.3.ssm_a" in found and "blk.1.ssm_a" not in found


@pytest.mark.parametrize("listed", [text_tensors, vision_tensors])
def test_what_does_not_belong_is_named(tiny: Checkpoint, listed: Any) -> None:
    def fails(match: str, shapes: dict[str, tuple[int, ...] | None], **config: Any) -> None:
        with pytest.raises(QuantkitError, match=match):
            listed(altered(tiny, shapes, **config))

    fails(r"model\.vision_tower\.vit_merger\.pre_norm\.bias", {"model.vision_tower.vit_merger.pre_norm.bias": None})
    fails(r"linear_attn\.A_log", {f"{PREFIX}2.linear_attn.A_log": None})
    fails(
        "tensor model.merger.mlp.1.linear_1.weight belongs to no part", {"model.merger.mlp.1.linear_1.weight": (2, 2)}
    )
    fails(r"layers\.4\.mlp\.up_proj\.weight belongs to no part", {f"{PREFIX}4.mlp.up_proj.weight": (512, 256)})
    fails(
        r"model\.safetensors: tensor .*up_proj\.weight has the shape \[500, 256\]; by config\.json it is \[512, 256\]",
        {f"{PREFIX}0.mlp.up_proj.weight": (500, 256)},
    )
    fails("embed_tokens.weight has the shape", {"model.language_model.embed_tokens.weight": (1000, 256)})
    fails("in_proj_b.weight has the shape", {f"{PREFIX}0.linear_attn.in_proj_b.weight": (3, 256)})
    fails("vision_config.num_hidden_layers in config.json is None", {}, vision_config={})


def test_a_mode_that_is_none_is_named(tiny: Checkpoint) -> None:
    assert len(vision_tensors(tiny)) - len(vision_tensors(tiny, "4x")) == 16
    with pytest.raises(QuantkitError, match="no downsample mode '8x'; choose 16x or 4x"):
        vision_tensors(tiny, "8x")


# ---- types ----------------------------------------------------------------------------------------------------------


def test_what_stays_float32(tiny: Checkpoint) -> None:
    kept = {row.name for row in text_tensors(tiny) if keeps_float32(row.name, row.shape)}
    assert {re.sub(r"blk\.\d\.|\.weight", "", name) for name in kept} == {
        "attn_norm", "post_attention_norm", "ssm_a", "ssm_dt.bias", "ssm_conv1d", "ssm_norm", "attn_q_norm",
        "attn_k_norm", "output_norm",
    }  # fmt: skip


# as llama.cpp's converter chose on tiny, whose feed-forward width of 304 no block of 32 divides
@pytest.mark.parametrize(
    ("file_type", "patches", "ffn_down", "others"),
    [("F32", "F32", "F32", "F32"), ("F16", "F16", "F16", "F16"), ("BF16", "F32", "BF16", "BF16"),
     ("Q8_0", "F32", "F16", "Q8_0")],
)  # fmt: skip
def test_types_of_an_mmproj_file(tiny: Checkpoint, file_type: str, patches: str, ffn_down: str, others: str) -> None:
    for row in vision_tensors(tiny):
        expected = others
        if len(row.shape) == 1 or row.name == "v.position_embd.weight":
            expected = "F32"
        elif row.name == "v.patch_embd.weight":
            expected = patches
        elif row.name.endswith(".ffn_down.weight"):
            expected = ffn_down
        assert vision_type(row.name, row.shape, file_type) == expected, row.name
    with pytest.raises(QuantkitError, match="an mmproj file cannot be Q4_K"):
        vision_type("mm.up.weight", (2, 2), "Q4_K")
