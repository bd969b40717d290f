"""Function-preserving channel rescalings that give `tiny` the activation outliers of large models.

A trained toy has none, and without them an activation-aware method has nothing to do. Four places, each a pair of a
producer and every consumer of its channels: multiply a channel of the one by s, divide the columns of the others:

    input_layernorm, post_attention_layernorm (1 + weight)  ->  q/k/v; in_proj_qkv/z/a/b; gate/up
    v_proj rows                                             ->  o_proj columns of all query heads of the KV head
    up_proj rows                                            ->  down_proj columns
    linear_attn.norm (weight, shared by the heads)          ->  out_proj columns of every head

s is a power of two, so BF16 linears keep their mantissas; where a norm's `1 + weight` is stored, s is corrected for
the rounding of `weight` to BF16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HIGHEST = 45.0  # a rescaled channel's mean |x| over the median channel's stays below this
FACTORS = (32.0, 16.0, 8.0, 4.0, 2.0)
COUNTS = {"norm": 4, "v": 2, "up": 6, "gated": 2}  # channels rescaled: of 256, of each KV head's 64, of 512, of 128


@dataclass(frozen=True)
class Place:
    """One pair: a module whose input shows the channels, and how to rescale one channel by s."""

    name: str
    watch: str  # the consumer whose input is measured
    kind: str
    width: int
    scale: Callable[[int, float], None]  # (channel, s)


def scale_norm(norm: nn.Module, consumers: list[nn.Linear], channel: int, s: float) -> None:
    """Multiply `1 + weight` of a channel by (nearly) s and divide the consumers' columns by exactly what came out."""
    before = 1.0 + norm.weight[channel].item()
    norm.weight[channel] = torch.tensor(before * s - 1.0).bfloat16().float()
    exact = (1.0 + norm.weight[channel].item()) / before
    for linear in consumers:
        linear.weight[:, channel] /= exact


def scale_rows(producer: Tensor, consumer: Tensor, rows: list[int], columns: list[int], s: float) -> None:
    """Multiply rows (or entries) of the producer and divide columns of the consumer."""
    producer[rows] *= s
    consumer[:, columns] /= s


def places(model: nn.Module) -> Iterator[Place]:
    """Every pair of the language model."""
    text, config = model.model.language_model, model.config.text_config
    head, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for index, layer in enumerate(text.layers):
        path = f"model.language_model.layers.{index}"
        mlp = layer.mlp
        if layer.block_type == "full_attention":
            attention = layer.self_attn
            readers, first = [attention.q_proj, attention.k_proj, attention.v_proj], f"{path}.self_attn.q_proj"

            def scale_v(channel: int, s: float, a: nn.Module = attention) -> None:
                kv, dim = divmod(channel, head)
                columns = [(kv * group + i) * head + dim for i in range(group)]
                scale_rows(a.v_proj.weight, a.o_proj.weight, [channel], columns, s)

            yield Place(
                f"{path}.self_attn.v_proj", f"{path}.self_attn.o_proj", "v", head * config.num_key_value_heads, scale_v
            )
        else:
            mixer = layer.linear_attn
            readers = [mixer.in_proj_qkv, mixer.in_proj_z, mixer.in_proj_a, mixer.in_proj_b]
            first, size = f"{path}.linear_attn.in_proj_qkv", mixer.head_v_dim

            def scale_gated(channel: int, s: float, m: nn.Module = mixer, size: int = size) -> None:
                columns = [h * size + channel for h in range(m.num_v_heads)]
                scale_rows(m.norm.weight, m.out_proj.weight, [channel], columns, s)

            yield Place(f"{path}.linear_attn.norm", f"{path}.linear_attn.out_proj", "gated", size, scale_gated)

        def scale_input(
            channel: int, s: float, n: nn.Module = layer.input_layernorm, r: list[nn.Linear] = readers
        ) -> None:
            scale_norm(n, r, channel, s)

        def scale_post(
            channel: int, s: float, n: nn.Module = layer.post_attention_layernorm, m: nn.Module = mlp
        ) -> None:
            scale_norm(n, [m.gate_proj, m.up_proj], channel, s)

        def scale_up(channel: int, s: float, m: nn.Module = mlp) -> None:
            scale_rows(m.up_proj.weight, m.down_proj.weight, [channel], [channel], s)

        yield Place(f"{path}.input_layernorm", first, "norm", config.hidden_size, scale_input)
        yield Place(f"{path}.post_attention_layernorm", f"{path}.mlp.gate_proj", "norm", config.hidden_size, scale_post)
        yield Place(f"{path}.mlp.up_proj", f"{path}.mlp.down_proj", "up", config.intermediate_size, scale_up)


@contextmanager
def watched(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Sum |x| a channel of the named linears' inputs over all forward passes inside (float64)."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().double().abs().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, torch.zeros_like(x)) + x

        return add

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def channel_means(place: Place, sums: Tensor, model: nn.Module) -> Tensor:
    """Mean |x| of the producer's channels: columns that share a producer are pooled."""
    if place.kind == "gated":
        return sums.view(-1, place.width).mean(0)
    if place.kind == "v":
        config = model.config.text_config
        return sums.view(config.num_key_value_heads, -1, config.head_dim).mean(1).flatten()
    return sums


@torch.no_grad()
def inject(model: nn.Module, passes: Callable[[], None], seed: int) -> list[dict[str, float | str]]:
    """Rescale channels at every place and return a table: channels, factors and max / median before and after.

    `passes` runs the model over calibration data; it is called twice. The hidden channels are the same in all layers,
    as the outliers of large models are.
    """
    generator = torch.Generator().manual_seed(seed)
    found = list(places(model))
    shared = torch.randperm(model.config.text_config.hidden_size, generator=generator)[: COUNTS["norm"]].tolist()
    with watched(model, [p.watch for p in found]) as before:
        passes()
    rows: list[dict[str, float | str]] = []
    for place in found:
        means = channel_means(place, before[place.watch], model)
        channels = (
            shared
            if place.kind == "norm"
            else torch.randperm(place.width, generator=generator)[: COUNTS[place.kind]].tolist()
        )
        factors = []
        for channel in channels:
            ratio = (means[channel] / means.median()).item()
            s = next((f for f in FACTORS if f * ratio <= HIGHEST), 1.0)
            place.scale(channel, s)
            factors.append(s)
        shown = " ".join(f"{f:.0f}" for f in sorted(factors))
        rows.append({"place": place.name, "channels": len(channels), "factors": shown,
                     "before": ratio_of(means)})  # fmt: skip
    with watched(model, [p.watch for p in found]) as after:
        passes()
    for row, place in zip(rows, found, strict=True):
        row["after"] = ratio_of(channel_means(place, after[place.watch], model))
    return rows


def ratio_of(means: Tensor) -> float:
    """Largest over median channel."""
    return (means.max() / means.median()).item()
