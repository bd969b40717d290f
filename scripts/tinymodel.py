"""Fast training passes over the real MiniCPM-V 4.6 classes.

The library packs all pictures into one row and splits it again in every layer; for equal pictures on a CPU a plain
batch is several times faster. `vision` and `answer_loss` run the library's own modules that way; `test_tiny.py` holds
that they give what the library's forward gives. The position table (70 x 70) is trained as a bilinear interpolation
of a 14 x 14 grid, so that sizes that were never trained look familiar too.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

GRID = 14  # side of the learned position grid


def build(config: MiniCPMV4_6Config, seed: int) -> MiniCPMV4_6ForConditionalGeneration:
    """A fresh float32 model: fan-in initialisation, norm weights spread well away from their neutral value."""
    torch.manual_seed(seed)
    model = MiniCPMV4_6ForConditionalGeneration._from_config(config, dtype=torch.float32)
    depth = {"vision_tower": 10, "language_model": 2 * config.text_config.num_hidden_layers}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "position_embedding.weight")):
                parameter.normal_(std=0.05)
            elif parameter.ndim >= 2 and "conv1d" not in name:
                std = 0.7 / math.sqrt(parameter[0].numel())
                if name.endswith(("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")):
                    std /= math.sqrt(next(d for key, d in depth.items() if key in name))
                parameter.normal_(std=std)
            elif name.endswith("bias") and "dt_bias" not in name:
                parameter.zero_()
            elif name.endswith("A_log"):
                parameter.copy_(torch.linspace(math.log(0.02), math.log(0.3), len(parameter)))
            elif "norm" in name and name.endswith("weight"):
                spread(parameter, 1.0 if "vision" in name or "merger" in name or "linear_attn" in name else 0.0)
    return model


def spread(weight: Tensor, neutral: float) -> None:
    """Set a norm's weight to `neutral` plus 0.3 to 0.6 of a random sign."""
    sign = torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0)
    weight.copy_(neutral + sign * (0.3 + 0.3 * torch.rand_like(weight)))


class PositionGrid(nn.Module):
    """The learned 14 x 14 grid behind the 70 x 70 position table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, width, GRID, GRID) * 0.1)

    def table(self, side: int) -> Tensor:
        """The full table [side * side, width]."""
        full = F.interpolate(self.grid, size=(side, side), mode="bilinear", align_corners=True)
        return full[0].flatten(1).t()

    @torch.no_grad()
    def fit(self, table: Tensor) -> None:
        """Take the grid whose table is nearest to `table` (least squares)."""
        side = math.isqrt(len(table))
        lines = F.interpolate(torch.eye(GRID)[None], size=side, mode="linear", align_corners=True)[0]  # [GRID, side]
        back = torch.linalg.pinv(lines)
        self.grid.copy_(torch.einsum("rg,rcw,ch->wgh", back, table.float().view(side, side, -1), back)[None])


def take_vision(model: nn.Module, grid: PositionGrid, folder: Path) -> list[str]:
    """Copy the vision tower and mergers of a checkpoint of one file; the names that it has in another shape return."""
    own, other = dict(model.named_parameters()), []
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.startswith(("model.vision_tower.", "model.merger.")):
            continue
        if name.endswith("position_embedding.weight"):
            grid.fit(tensor)
        elif own[name].shape == tensor.shape:
            own[name].data.copy_(tensor)
        else:
            other.append(name)
    return other


def position_ids(height: int, width: int, side: int) -> Tensor:
    """The table rows of a height x width patch grid [height * width] (as the library's nearest-bucket rule)."""
    edges = torch.arange(1 / side, 1.0, 1 / side)
    rows = torch.bucketize(torch.arange(height) / height, edges, right=True)
    columns = torch.bucketize(torch.arange(width) / width, edges, right=True)
    return (rows[:, None] * side + columns).flatten()


def blocks(x: Tensor, height: int, width: int) -> Tensor:
    """Group [N, height * width, C] into 2 x 2 windows, row-major: [N, windows, 4, C]."""
    x = x.view(len(x), height // 2, 2, width // 2, 2, x.shape[-1]).transpose(2, 3)
    return x.reshape(len(x), -1, 4, x.shape[-1])


def merge_windows(module: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
    """The vision tower's window-attention merger on a batch: [N, height * width, C] -> [N, height * width / 4, C]."""
    windows = blocks(module.layer_norm1(x), height, width)
    count = windows.shape[1]
    attended, _ = module.self_attn(hidden_states=windows.flatten(0, 1), cu_seqlens=torch.tensor([0, 4]), max_seqlen=4)
    hidden = blocks(x, height, width) + attended.view(len(x), count, 4, -1)
    out = module.linear_2(module.act(module.linear_1(module.pre_norm(hidden.flatten(2)))))
    return out + hidden.mean(dim=2)


def vision(model: nn.Module, grid: PositionGrid | None, pictures: Tensor, mode: str) -> Tensor:
    """Merged visual tokens of equal pictures [N, 3, H, W] (normalised): [N, tokens, text width]; mode 16x or 4x."""
    tower, side = model.model.vision_tower, model.model.vision_tower.embeddings.num_patches_per_side
    patches = tower.embeddings.patch_embedding(pictures)
    height, width = patches.shape[-2:]
    table = tower.embeddings.position_embedding.weight if grid is None else grid.table(side)
    x = patches.flatten(2).transpose(1, 2) + table[position_ids(height, width, side)]
    for index, layer in enumerate(tower.encoder.layers):
        x = layer(x, None, cu_seqlens=torch.tensor([0, x.shape[1]]), max_seqlen=None)
        if mode == "16x" and index == tower.config.insert_layer_id:
            x = merge_windows(tower.vit_merger, x, height, width)
            height, width = height // 2, width // 2
    merger = model.model.merger.mlp[0]
    return merger(blocks(tower.post_layernorm(x), height, width).flatten(2).flatten(0, 1)).view(
        len(x), -1, merger.linear_2.out_features
    )


def answer_loss(
    model: nn.Module, ids: Tensor, labels: Tensor, tokens: Tensor | None, visual_id: tuple[int, int]
) -> Tensor:
    """Cross-entropy over the labelled positions of right-padded conversations.

    ids, labels: [B, T] int64 (labels -100 where nothing is asked; labels[t] is the token at t); tokens: the visual
    tokens of the whole batch in reading order [n, width]; visual_id: ids of the image and the video placeholder.
    """
    text = model.model.language_model
    embeds = text.embed_tokens(ids)
    if tokens is not None:
        mask = (ids == visual_id[0]) | (ids == visual_id[1])
        embeds = embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds.dtype))
    hidden = text(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
    asked = labels[:, 1:] != -100
    logits = F.linear(hidden[asked].float(), text.embed_tokens.weight)
    return F.cross_entropy(logits, labels[:, 1:][asked])


def answers_right(
    model: nn.Module, ids: Tensor, labels: Tensor, tokens: Tensor | None, visual_id: tuple[int, int]
) -> Tensor:
    """Whether every labelled token of a row is the model's first choice: [B] bool (arguments as `answer_loss`)."""
    text = model.model.language_model
    embeds = text.embed_tokens(ids)
    if tokens is not None:
        mask = (ids == visual_id[0]) | (ids == visual_id[1])
        embeds = embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds.dtype))
    hidden = text(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
    best = F.linear(hidden.float(), text.embed_tokens.weight.float()).argmax(-1)
    return ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(dim=1)
