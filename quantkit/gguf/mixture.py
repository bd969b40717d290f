"""Which type each tensor of a text file gets: what "Q4_K_M" means for arch `qwen35`.

A file type is a recipe: a default type, and exceptions by the tensor's role and its place among those of its kind. The
rules are those of llama.cpp's quantizer (https://github.com/ggml-org/llama.cpp, `src/llama-quant.cpp`), read down to
what arch `qwen35` meets, so that a file of ours and one of `llama-quantize` hold the same types. Tensors are counted in
llama.cpp's order (`names.llamacpp_order`). A type whose block does not divide a row gives way to a shorter block, then
to F16.

Mixture "quantkit", the default, differs in three ways:

* `ssm_alpha` and `ssm_beta` get Q8_0 or more: with one row a head they decide what the recurrence forgets and writes,
  and all together are a thousandth of a file. llama.cpp treats them as any other tensor;
* an override changes the tensors that it names and no other; llama.cpp leaves them out of its count, so that the types
  of later layers shift;
* an override holds in F32, F16 and BF16 files too, where llama.cpp passes over it.

In both, an override to a type that a tensor's rows cannot take is an error; llama.cpp falls back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from quantkit.errors import QuantkitError
from quantkit.formats.gguf.types import FILE_TYPES, TYPES
from quantkit.gguf.names import keeps_float32, llamacpp_order

Role = Literal["output", "embedding", "attn_v", "attn_output", "ffn_down", "other"]

MIXTURES = ("quantkit", "llama.cpp")
# a preset -> what it raises to Q8_0: Gated DeltaNet's projections, where this family loses most
PRESETS = {"linear-attention": ("ssm_out.weight", "attn_qkv.weight", "attn_gate.weight")}
_RAISED = ("ssm_alpha.weight", "ssm_beta.weight")
_FLOATS = ("F32", "F16", "BF16")

# part of a name -> role; those that share their inputs' values with attention's count together
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_output.weight", "attn_output"),
    ("ffn_down", "ffn_down"),
)
# a type whose block of 256 does not divide a row -> what takes its place
_SHORTER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


@dataclass(frozen=True)
class Mixture:
    """All that decides a file's types, besides names and shapes.

    file_type: a key of FILE_TYPES. layers: the file's block_count. gqa: query heads a KV head. has_imatrix: whether
    tensors are weighted by importance, which makes some exceptions unnecessary. preset: a key of PRESETS. overrides:
    pairs of pattern and type, a regular expression searched in the name; the first that matches wins. token_embedding,
    output: types of these two; where they are tied, the first wins.
    """

    file_type: str
    layers: int
    gqa: int
    has_imatrix: bool = False
    mixture: str = "quantkit"
    preset: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    token_embedding: str | None = None
    output: str | None = None


def tensor_types(tensors: Iterable[tuple[str, tuple[int, ...]]], mixture: Mixture) -> dict[str, str]:
    """The type of every tensor, by name, in llama.cpp's order.

    tensors: names and shapes (outermost axis first) of a text file.
    Raises QuantkitError for an unknown file type, mixture, preset or type, an override that matches nothing, and a
    type that was asked for and that a tensor's rows cannot take.
    """
    shapes = dict(sorted(tensors, key=lambda tensor: llamacpp_order(tensor[0])))
    _check(mixture, shapes)
    ours = mixture.mixture == "quantkit"
    raised = (_RAISED if ours else ()) + (PRESETS[mixture.preset] if mixture.preset else ())
    state = _State(mixture, shapes)
    types = {}
    for name, shape in shapes.items():
        if not is_quantizable(name, shape):
            types[name] = "F32"
            continue
        wanted = _asked_for(name, shape, mixture, state.tied)
        if wanted is None or ours:
            types[name] = shorter(state.choose(name), shape[-1])
        if wanted is not None:
            types[name] = wanted
        elif name.endswith(raised) and TYPES[types[name]].bits < TYPES["Q8_0"].bits:
            types[name] = shorter("Q8_0", shape[-1])
    return types


def parse_override(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` -> the pattern and the type's name; QuantkitError where that is not its form."""
    pattern, _, kind = text.rpartition("=")
    if not pattern:
        raise QuantkitError(f"--tensor-type {text!r}: write PATTERN=TYPE, such as ssm_out=Q8_0")
    return pattern, type_name(kind, "--tensor-type")


def type_name(text: str, option: str) -> str:
    """The name of a type, whatever its case; QuantkitError where quantkit writes no such type."""
    if text.upper() not in TYPES:
        raise QuantkitError(f"{option}: no type {text!r}; choose one of {', '.join(TYPES)}")
    return text.upper()


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a text file takes its mixture's type; all others stay F32."""
    first = next((place for place, length in enumerate(shape) if length > 1), len(shape))
    return not keeps_float32(name, shape[first:])  # one row counts as one axis


# ---- llama.cpp's rules ----------------------------------------------------------------------------------------------


class _State:
    """llama.cpp's choice for one tensor after another: which of its role each one is, and of how many."""

    def __init__(self, mixture: Mixture, names: Iterable[str]) -> None:
        self.mixture = mixture
        roles = [_role(name) for name in names]
        self.tied = "output" not in roles
        self.count = {"attn_v": roles.count("attn_v"), "ffn_down": mixture.layers}
        self.seen = {"attn_v": 0, "ffn_down": 0}

    def choose(self, name: str) -> str:
        """The type by the rules alone, whether or not its block divides the tensor's rows."""
        role, file_type = _role(name), self.mixture.file_type
        default = _default(file_type)
        if default in _FLOATS:
            return default
        if role == "output" or (role == "embedding" and self.tied):
            return default if default == "Q8_0" else "Q6_K"
        if role == "attn_output":
            return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, default)
        if role not in self.seen:
            return default
        place, self.seen[role] = self.seen[role], self.seen[role] + 1
        rule = _attn_v if role == "attn_v" else _ffn_down
        return rule(self.mixture, place, self.count[role]) or default


def _role(name: str) -> Role:
    if name == "output.weight":
        return "output"
    if name == "token_embd.weight":
        return "embedding"
    return next((role for part, role in _ROLES if part in name), "other")


def _default(file_type: str) -> str:
    """ "Q4_K_M" -> "Q4_K"."""
    return file_type if file_type in TYPES else file_type[:-2]


def _more_bits(place: int, count: int) -> bool:
    """The first and the last eighth, and every third between."""
    return place < count // 8 or place >= 7 * count // 8 or (place - count // 8) % 3 == 2


def _attn_v(mixture: Mixture, place: int, count: int) -> str | None:
    """Attention's values, and linear attention's joint projection: small for what they carry."""
    kind = mixture.file_type
    if kind == "Q2_K":
        return "Q4_K" if mixture.gqa >= 4 else "Q3_K"
    if kind == "Q3_K_M":
        return "Q5_K" if place < 2 else "Q4_K"
    if kind == "Q3_K_L" or (kind in ("IQ4_NL", "IQ4_XS") and mixture.gqa >= 4) or (kind == "Q4_K_S" and place < 4):
        return "Q5_K"
    if kind in ("Q4_K_M", "Q5_K_M") and _more_bits(place, count):
        return "Q6_K"
    return None


def _ffn_down(mixture: Mixture, place: int, count: int) -> str | None:
    kind, first = mixture.file_type, place < count // 8
    if kind in ("Q2_K", "Q3_K_L"):
        return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}[kind]
    if kind == "Q3_K_M":
        return "Q5_K" if place < count // 16 else "Q4_K"
    if kind in ("Q4_K_M", "Q5_K_M") and _more_bits(place, count):
        return "Q6_K"
    if first and (kind == "Q4_K_S" or (kind in ("IQ4_NL", "IQ4_XS") and not mixture.has_imatrix)):
        return "Q5_K"
    if first and kind in ("Q4_0", "Q5_0") and mixture.has_imatrix:
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[kind]
    return None


def shorter(kind: str, width: int) -> str:
    """The type itself, or what takes its place where its block does not divide `width`."""
    if not TYPES[kind].fits(width):
        kind = _SHORTER.get(kind, kind)
    return kind if TYPES[kind].fits(width) else "F16"


# ---- what the user asked for ----------------------------------------------------------------------------------------


def _asked_for(name: str, shape: tuple[int, ...], mixture: Mixture, tied: bool) -> str | None:
    """The type that an option names for this tensor, or None."""
    role = _role(name)
    option, kind = "", None
    floats = _default(mixture.file_type) in _FLOATS and mixture.mixture == "llama.cpp"
    if role == "embedding" and mixture.token_embedding is not None:
        option, kind = "--token-embedding-type", mixture.token_embedding
    elif role == "output" and mixture.output is not None:
        option, kind = "--output-type", mixture.output
    elif not floats:
        option, kind = next(
            ((f"--tensor-type {p}={k}", k) for p, k in mixture.overrides if _matches(p, name)), (option, kind)
        )
        if kind is None and role == "embedding" and tied and mixture.output is not None:
            option, kind = "--output-type", mixture.output
    if kind is not None and not TYPES[kind].fits(shape[-1]):
        raise QuantkitError(
            f"{option}: tensor {name} has rows of {shape[-1]} values, and {kind} blocks of {TYPES[kind].block}; choose "
            f"a type whose block divides them, such as {shorter(kind, shape[-1])}"
        )
    return kind


def _matches(pattern: str, name: str) -> bool:
    return re.search(pattern, name, re.IGNORECASE) is not None


def _check(mixture: Mixture, shapes: dict[str, tuple[int, ...]]) -> None:
    for option, value, known in (
        ("file type", mixture.file_type, FILE_TYPES),
        ("--mixture", mixture.mixture, MIXTURES),
        ("--preset", mixture.preset, (None, *PRESETS)),
    ):
        if value not in known:
            raise QuantkitError(f"{option} {value!r}: choose one of {', '.join(name for name in known if name)}")
    for kind in (mixture.token_embedding, mixture.output, *(kind for _, kind in mixture.overrides)):
        if kind is not None and kind not in TYPES:
            raise QuantkitError(f"no type {kind!r}; choose one of {', '.join(TYPES)}")
    for pattern, _ in mixture.overrides:
        _check_pattern(pattern, [name for name, shape in shapes.items() if is_quantizable(name, shape)])


def _check_pattern(pattern: str, names: Sequence[str]) -> None:
    try:
        found = any(_matches(pattern, name) for name in names)
    except re.error as error:
        raise QuantkitError(f"--tensor-type {pattern!r}: no regular expression ({error})") from error
    if not found:
        close = get_close_matches(pattern, names, n=3, cutoff=0) or list(names[:3])
        raise QuantkitError(
            f"--tensor-type {pattern!r} matches no tensor that is quantized; the nearest names are {', '.join(close)}"
        )
