"""Types of a text file: exactly llama-quantize's in its own mixture; ours, presets and overrides on top of that.

EXPECTED was recorded from `llama-quantize --dry-run` (llama.cpp as vendored by llama-cpp-python 0.3.36) on files of
these shapes; all file types, with and without an importance matrix, F16 and BF16 sources, six shapes and four sets of
options were compared once, 1026 runs, without a difference.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import TYPES
from quantkit.gguf.mixture import Mixture, is_quantizable, parse_override, tensor_types

Shapes = list[tuple[str, tuple[int, ...]]]

# hidden, feed-forward, layers, query heads, KV heads, their width, linear key and value heads, their width, tied
SIZES = {
    "tiny": (256, 512, 4, 4, 2, 64, 2, 2, 128, True),
    "even24": (256, 768, 24, 8, 2, 64, 2, 4, 128, True),
    "odd24": (288, 96, 24, 8, 2, 32, 2, 4, 32, False),
    "wild7": (48, 80, 7, 3, 1, 32, 1, 2, 24, False),
}
# a default type, then what differs as name:type, of some layers only where these follow
EXPECTED = {
    "tiny": {
        "Q2_K": "Q2_K attn_output:Q3_K attn_qkv:Q3_K attn_v:Q3_K ffn_down:Q3_K token_embd:Q6_K",
        "Q3_K_M": "Q3_K attn_output:Q4_K attn_qkv:Q4_K:2 attn_qkv:Q5_K:0-1 attn_v:Q4_K ffn_down:Q4_K token_embd:Q6_K",
        "Q4_K_S": "Q4_K attn_qkv:Q5_K attn_v:Q5_K token_embd:Q6_K",
        "Q4_K_M": "Q4_K attn_qkv:Q6_K:2 attn_v:Q6_K ffn_down:Q6_K:2-3 token_embd:Q6_K",
        "IQ4_XS": "IQ4_XS token_embd:Q6_K",
    },
    "even24": {
        "F16": "F16",
        "Q4_0": "Q4_0 token_embd:Q6_K",
        "Q4_0 imatrix": "Q4_0 ffn_down:Q4_1:0-2 token_embd:Q6_K",
        "Q4_1": "Q4_1 token_embd:Q6_K",
        "Q8_0": "Q8_0",
        "Q5_0": "Q5_0 token_embd:Q6_K",
        "Q5_0 imatrix": "Q5_0 ffn_down:Q5_1:0-2 token_embd:Q6_K",
        "Q5_1": "Q5_1 token_embd:Q6_K",
        "Q2_K": "Q2_K attn_output:Q3_K attn_qkv:Q4_K attn_v:Q4_K ffn_down:Q3_K token_embd:Q6_K",
        "Q3_K_S": "Q3_K token_embd:Q6_K",
        "Q3_K_M": "Q3_K attn_output:Q4_K attn_qkv:Q4_K:2,4-6,8-10,12-14,16-18,20-22 attn_qkv:Q5_K:0-1 "
        "attn_v:Q4_K ffn_down:Q4_K:1-23 ffn_down:Q5_K:0 token_embd:Q6_K",
        "Q3_K_L": "Q3_K attn_output:Q5_K attn_qkv:Q5_K attn_v:Q5_K ffn_down:Q5_K token_embd:Q6_K",
        "Q4_K_S": "Q4_K attn_qkv:Q5_K:0-2 attn_v:Q5_K:3 ffn_down:Q5_K:0-2 token_embd:Q6_K",
        "Q4_K_M": "Q4_K attn_qkv:Q6_K:0-2,5,8,14,17,20-22 attn_v:Q6_K:11,23 ffn_down:Q6_K:0-2,5,8,11,14,17,20-23 "
        "token_embd:Q6_K",
        "Q5_K_S": "Q5_K token_embd:Q6_K",
        "Q5_K_M": "Q5_K attn_qkv:Q6_K:0-2,5,8,14,17,20-22 attn_v:Q6_K:11,23 ffn_down:Q6_K:0-2,5,8,11,14,17,20-23 "
        "token_embd:Q6_K",
        "Q6_K": "Q6_K",
        "IQ4_NL": "IQ4_NL attn_qkv:Q5_K attn_v:Q5_K ffn_down:Q5_K:0-2 token_embd:Q6_K",
        "IQ4_NL imatrix": "IQ4_NL attn_qkv:Q5_K attn_v:Q5_K token_embd:Q6_K",
        "IQ4_XS": "IQ4_XS attn_qkv:Q5_K attn_v:Q5_K ffn_down:Q5_K:0-2 token_embd:Q6_K",
        "IQ4_XS imatrix": "IQ4_XS attn_qkv:Q5_K attn_v:Q5_K token_embd:Q6_K",
    },
    "odd24": {
        "F16": "F16",
        "Q4_0": "Q4_0 output:Q8_0",
        "Q4_0 imatrix": "Q4_0 ffn_down:Q4_1:0-2 output:Q8_0",
        "Q4_1": "Q4_1 output:Q8_0",
        "Q8_0": "Q8_0",
        "Q5_0": "Q5_0 output:Q8_0",
        "Q5_0 imatrix": "Q5_0 ffn_down:Q5_1:0-2 output:Q8_0",
        "Q5_1": "Q5_1 output:Q8_0",
        "Q2_K": "Q4_0 attn_output:Q3_K attn_qkv:Q5_0 attn_v:Q5_0 output:Q8_0",
        "Q3_K_S": "Q4_0 attn_output:Q3_K output:Q8_0",
        "Q3_K_M": "Q4_0 attn_output:Q4_K attn_qkv:Q5_0:2,4-6,8-10,12-14,16-18,20-22 attn_qkv:Q5_1:0-1 "
        "attn_v:Q5_0 ffn_down:Q5_0:1-23 ffn_down:Q5_1:0 output:Q8_0",
        "Q3_K_L": "Q4_0 attn_output:Q5_K attn_qkv:Q5_1 attn_v:Q5_1 ffn_down:Q5_1 output:Q8_0",
        "Q4_K_S": "Q5_0 attn_output:Q4_K attn_qkv:Q5_1:0-2 attn_v:Q5_1:3 ffn_down:Q5_1:0-2 output:Q8_0",
        "Q4_K_M": "Q5_0 attn_output:Q4_K attn_qkv:Q8_0:0-2,5,8,14,17,20-22 attn_v:Q8_0:11,23 "
        "ffn_down:Q8_0:0-2,5,8,11,14,17,20-23 output:Q8_0",
        "Q5_K_S": "Q5_1 attn_output:Q5_K output:Q8_0",
        "Q5_K_M": "Q5_1 attn_output:Q5_K attn_qkv:Q8_0:0-2,5,8,14,17,20-22 attn_v:Q8_0:11,23 "
        "ffn_down:Q8_0:0-2,5,8,11,14,17,20-23 output:Q8_0",
        "Q6_K": "Q8_0 attn_output:Q6_K",
        "IQ4_NL": "IQ4_NL attn_qkv:Q5_1 attn_v:Q5_1 ffn_down:Q5_1:0-2 output:Q8_0",
        "IQ4_NL imatrix": "IQ4_NL attn_qkv:Q5_1 attn_v:Q5_1 output:Q8_0",
        "IQ4_XS": "IQ4_NL attn_output:IQ4_XS attn_qkv:Q5_1 attn_v:Q5_1 ffn_down:Q5_1:0-2 output:Q8_0",
        "IQ4_XS imatrix": "IQ4_NL attn_output:IQ4_XS attn_qkv:Q5_1 attn_v:Q5_1 output:Q8_0",
    },
    "wild7": {
        "Q5_1": "F16 attn_output:Q5_1",
        "Q2_K": "F16 attn_output:Q4_0",
        "Q4_K_M": "F16 attn_output:Q5_0",
        "IQ4_XS": "F16 attn_output:IQ4_NL",
    },
}  # fmt: skip


def shapes(name: str) -> Shapes:
    """All tensors of a text file of these sizes, every fourth layer with full attention."""
    hidden, inner, layers, heads, kv, dim, keys, values, width, tied = SIZES[name]
    found: Shapes = [("token_embd.weight", (64, hidden)), ("output_norm.weight", (hidden,))]
    found += [] if tied else [("output.weight", (64, hidden))]
    key, value = keys * width, values * width
    for layer in range(layers):
        sizes: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,), "post_attention_norm.weight": (hidden,), "ffn_gate.weight": (inner, hidden),
            "ffn_up.weight": (inner, hidden), "ffn_down.weight": (hidden, inner),
        }  # fmt: skip
        if (layer + 1) % 4:
            sizes |= {
                "attn_qkv.weight": (2 * key + value, hidden), "attn_gate.weight": (value, hidden),
                "ssm_alpha.weight": (values, hidden), "ssm_beta.weight": (values, hidden), "ssm_a": (values,),
                "ssm_dt.bias": (values,), "ssm_conv1d.weight": (2 * key + value, 4), "ssm_norm.weight": (width,),
                "ssm_out.weight": (hidden, value),
            }  # fmt: skip
        else:
            sizes |= {
                "attn_q.weight": (2 * heads * dim, hidden), "attn_k.weight": (kv * dim, hidden),
                "attn_v.weight": (kv * dim, hidden), "attn_output.weight": (hidden, heads * dim),
                "attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,),
            }  # fmt: skip
        found += [(f"blk.{layer}.{part}", shape) for part, shape in sizes.items()]
    return found


def mixture(name: str, file_type: str, kind: str = "llama.cpp") -> Mixture:
    """For a set of SIZES; file_type may be followed by "imatrix"."""
    _, _, layers, heads, kv, *_ = SIZES[name]
    file_type, _, imatrix = file_type.partition(" ")
    return Mixture(file_type, layers, heads // kv, bool(imatrix), kind)


def layers_of(text: str) -> set[int]:
    """ "0-2,5" -> {0, 1, 2, 5}."""
    ends = [part.partition("-") for part in text.split(",")]
    return {layer for first, _, last in ends for layer in range(int(first), int(last or first) + 1)}


def expected(name: str, file_type: str) -> dict[str, str]:
    default, *others = EXPECTED[name][file_type].split()
    types = {tensor: default if is_quantizable(tensor, shape) else "F32" for tensor, shape in shapes(name)}
    for part, kind, *layers in (other.split(":") for other in others):
        for tensor in types:
            place = tensor.split(".")
            if part in place and (not layers or int(place[1]) in layers_of(layers[0])):
                types[tensor] = kind
    return types


@pytest.mark.parametrize("name", SIZES)
def test_types_are_llama_quantizes(name: str) -> None:
    for file_type in EXPECTED[name]:
        assert tensor_types(shapes(name), mixture(name, file_type)) == expected(name, file_type), file_type


@pytest.mark.parametrize("name", SIZES)
def test_an_importance_matrix_changes_nothing_else(name: str) -> None:
    for file_type in EXPECTED[name]:
        if not file_type.endswith("imatrix") and f"{file_type} imatrix" not in EXPECTED[name]:
            plain, weighted = mixture(name, file_type), mixture(name, f"{file_type} imatrix")
            assert tensor_types(shapes(name), plain) == tensor_types(shapes(name), weighted)


def test_every_type_fits_its_rows() -> None:
    for name in SIZES:
        widths = {tensor: shape[-1] for tensor, shape in shapes(name)}
        for file_type in EXPECTED[name]:
            for kind in ("llama.cpp", "quantkit"):
                types = tensor_types(shapes(name), mixture(name, file_type, kind))
                assert all(TYPES[types[tensor]].fits(width) for tensor, width in widths.items())


def test_llamacpps_order_of_layers_counts() -> None:
    """Layer 10 comes after 9, and the order in which tensors are given does not matter."""
    backwards = list(reversed(shapes("even24")))
    types = tensor_types(backwards, mixture("even24", "Q4_K_M"))
    assert types == expected("even24", "Q4_K_M")
    assert list(types)[:3] == ["output_norm.weight", "token_embd.weight", "blk.0.attn_gate.weight"]
    assert list(types).index("blk.9.ffn_up.weight") < list(types).index("blk.10.attn_gate.weight")


def test_one_value_head_stays_float() -> None:
    """ggml counts [width, 1] as one axis."""
    assert not is_quantizable("blk.0.ssm_alpha.weight", (1, 256))
    assert is_quantizable("blk.0.ssm_alpha.weight", (2, 256))


# ---- ours -----------------------------------------------------------------------------------------------------------


def difference(first: dict[str, str], second: dict[str, str]) -> dict[str, set[str]]:
    """Part of a block -> its types in `second`, where they differ."""
    found: dict[str, set[str]] = {}
    for name, kind in second.items():
        if first[name] != kind:
            found.setdefault(name.split(".", 2)[-1], set()).add(kind)
    return found


@pytest.mark.parametrize("file_type", ["Q4_0", "Q2_K", "Q4_K_M imatrix", "Q6_K"])
def test_ours_keeps_the_recurrences_steering(file_type: str) -> None:
    theirs = expected("even24", file_type if file_type in EXPECTED["even24"] else file_type.split()[0])
    ours = tensor_types(shapes("even24"), mixture("even24", file_type, "quantkit"))
    assert difference(theirs, ours) == {"ssm_alpha.weight": {"Q8_0"}, "ssm_beta.weight": {"Q8_0"}}


@pytest.mark.parametrize("file_type", ["Q8_0", "F16", "BF16", "F32"])
def test_ours_lowers_nothing(file_type: str) -> None:
    theirs = tensor_types(shapes("even24"), mixture("even24", file_type))
    assert tensor_types(shapes("even24"), mixture("even24", file_type, "quantkit")) == theirs


def test_rows_that_q8_0_cannot_take_stay_f16() -> None:
    types = tensor_types(shapes("wild7"), mixture("wild7", "Q4_K_M", "quantkit"))
    assert types["blk.0.ssm_alpha.weight"] == "F16"


@pytest.mark.parametrize("kind", ["llama.cpp", "quantkit"])
def test_the_preset_raises_linear_attention(kind: str) -> None:
    plain = mixture("even24", "Q4_K_M", kind)
    found = difference(
        tensor_types(shapes("even24"), plain), tensor_types(shapes("even24"), replace(plain, preset="linear-attention"))
    )
    assert found == {"ssm_out.weight": {"Q8_0"}, "attn_qkv.weight": {"Q8_0"}, "attn_gate.weight": {"Q8_0"}}


# ---- what the user asks for -----------------------------------------------------------------------------------------


def test_overrides_change_what_they_name_and_the_first_wins() -> None:
    plain = mixture("even24", "Q4_K_M", "quantkit")
    chosen = replace(
        plain, overrides=((r"BLK\.[0-2]\.attn_qkv", "Q5_0"), ("ssm|qkv", "F16")), preset="linear-attention"
    )
    before, types = tensor_types(shapes("even24"), plain), tensor_types(shapes("even24"), chosen)
    assert types["blk.2.attn_qkv.weight"] == "Q5_0" and types["blk.4.attn_qkv.weight"] == "F16"
    assert types["blk.0.ssm_alpha.weight"] == types["blk.0.ssm_out.weight"] == "F16"
    assert types["blk.0.ssm_norm.weight"] == types["blk.0.ssm_conv1d.weight"] == "F32"
    assert types["blk.0.attn_gate.weight"] == "Q8_0"
    others = [name for name in types if "ssm" not in name and "qkv" not in name and "attn_gate" not in name]
    assert all(types[name] == before[name] for name in others)


def test_llamacpp_leaves_overridden_tensors_out_of_its_count() -> None:
    chosen = replace(mixture("even24", "Q4_K_M"), overrides=((r"blk\.[0-2]\.(ffn_down|attn_qkv)", "Q5_0"),))
    types = tensor_types(shapes("even24"), chosen)
    raised = [name for name, kind in types.items() if kind == "Q6_K" and "ffn_down" in name]
    # recorded from llama-quantize: three later each
    assert [int(name.split(".")[1]) for name in raised] == [3, 4, 5, 8, 11, 14, 17, 20, 23]


def test_overrides_hold_in_float_files_as_well_but_not_in_llamacpps() -> None:
    chosen = replace(mixture("even24", "F16", "quantkit"), overrides=(("ffn_up", "Q8_0"),))
    assert tensor_types(shapes("even24"), chosen)["blk.0.ffn_up.weight"] == "Q8_0"
    chosen = replace(chosen, mixture="llama.cpp")
    assert tensor_types(shapes("even24"), chosen)["blk.0.ffn_up.weight"] == "F16"


def test_embedding_and_output() -> None:
    tied = replace(mixture("even24", "Q4_K_M"), output="Q5_K")
    assert tensor_types(shapes("even24"), tied)["token_embd.weight"] == "Q5_K"
    both = replace(tied, token_embedding="Q8_0", overrides=(("token_embd", "Q4_0"),))
    assert tensor_types(shapes("even24"), both)["token_embd.weight"] == "Q8_0"
    untied = replace(mixture("odd24", "Q4_K_M"), output="Q4_0", token_embedding="Q8_0")
    types = tensor_types(shapes("odd24"), untied)
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q8_0", "Q4_0")
    types = tensor_types(shapes("odd24"), replace(untied, token_embedding=None))
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q5_0", "Q4_0")


def test_what_cannot_be_is_named() -> None:
    plain = mixture("odd24", "Q4_K_M", "quantkit")

    def fails(match: str, **changes: object) -> None:
        with pytest.raises(QuantkitError, match=match):
            tensor_types(shapes("odd24"), replace(plain, **changes))  # type: ignore[arg-type]

    fails("matches no tensor that is quantized; the nearest names are .*ssm_out", overrides=(("ssm_oud", "Q8_0"),))
    fails("matches no tensor that is quantized", overrides=(("attn_norm", "Q8_0"),))
    fails("no regular expression", overrides=(("(", "Q8_0"),))
    fails(
        r"--tensor-type ffn_down=Q4_K: tensor blk\.0\.ffn_down\.weight has rows of 96 values, and Q4_K blocks of 256; "
        "choose a type whose block divides them, such as Q5_0",
        overrides=(("ffn_down", "Q4_K"),),
    )
    fails("--token-embedding-type: tensor token_embd.weight has rows of 288", token_embedding="Q6_K")
    fails("--output-type: tensor output.weight", output="Q6_K")
    fails("file type 'Q4': choose one of", file_type="Q4")
    fails("--mixture 'mine': choose one of quantkit, llama.cpp", mixture="mine")
    fails("--preset 'x': choose one of linear-attention", preset="x")
    fails("no type 'Q9'", overrides=(("ffn", "Q9"),))


def test_overrides_are_read_as_written() -> None:
    assert parse_override("ffn_(?=up)=q8_0") == ("ffn_(?=up)", "Q8_0")
    for text in ("ffn_up", "=Q8_0"):
        with pytest.raises(QuantkitError, match="write PATTERN=TYPE"):
            parse_override(text)
    with pytest.raises(QuantkitError, match="no type 'IQ1_S'"):
        parse_override("ffn_up=IQ1_S")
