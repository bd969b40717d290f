"""Every fold leaves the float model's logits where they were: per group, for every place of the architecture."""

from pathlib import Path

import pytest
import torch

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.fold import achievable_scale, expand, fold, pool
from quantkit.model import Feeder, build_map


def _logits(model, samples):
    with torch.no_grad():
        return [
            model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False).logits for sample in samples
        ]


@pytest.fixture(scope="module")
def loaded(random_checkpoint: Path, small_calibration: Path):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32)
    # random norm weights lie near the class's initial value; a wrong `1 + weight` must show
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and "norm" in name:
                parameter += torch.empty_like(parameter).uniform_(-0.5, 0.5, generator=generator)
    samples = prepare(
        load_conversations(small_calibration), load_processor(random_checkpoint), PrepareOptions(samples=4)
    )
    model_map = build_map(open_checkpoint(random_checkpoint).config)
    return model, samples, model_map, _logits(model, samples)


@pytest.mark.parametrize("group_name", ["mixer_in", "mixer_out", "mlp_in", "mlp_out"])
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fold_changes_no_logit(loaded, group_name: str, layer: int, dtype: torch.dtype) -> None:
    model, samples, model_map, before = loaded
    block = model_map.blocks[layer]
    group = next(group for group in block.groups if group.name == group_name)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {name.removeprefix(block.prefix): value for name, value in state.items() if name.startswith(block.prefix)}
    originals = {name: value.clone() for name, value in tensors.items()}
    scale = torch.empty(group.feeder.channels).uniform_(-3, 3, generator=torch.Generator().manual_seed(1)).exp()
    fold(tensors, group, scale, dtype)
    try:
        model.load_state_dict({block.prefix + name: value for name, value in tensors.items()}, strict=False)
        after = _logits(model, samples)
    finally:
        model.load_state_dict({block.prefix + name: value for name, value in originals.items()}, strict=False)
    largest = max(float(logits.abs().max()) for logits in before)
    worst = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    assert worst < 1e-4 * max(1.0, largest)
    changed = [name for name in tensors if not torch.equal(tensors[name], originals[name])]
    expected = {group.feeder.module, *group.linears, *group.passengers}
    assert {name.removesuffix(".weight") for name in changed} == expected


def test_norm_is_rounded_first_and_the_scale_is_what_it_then_is() -> None:
    feeder = Feeder("one_plus_weight", "norm", 4)
    weight = torch.tensor([0.5, -0.3, -1.0, 0.2])
    wanted = torch.tensor([20.0, 0.7, 3.0, 40.0])
    stored, exact = achievable_scale(wanted, feeder, weight, torch.bfloat16)
    assert torch.equal(stored, stored.bfloat16().float())
    assert torch.allclose((1 + weight) / exact, 1 + stored, rtol=1e-6, atol=0)
    assert exact[2] == 1 and stored[2] == -1  # a channel that is shut off stays as it is
    assert (exact[[0, 1, 3]] / wanted[[0, 1, 3]] - 1).abs().max() < 0.1


def test_shared_channels_pool_and_expand() -> None:
    feeder = Feeder("rows", "v", 2, (0, 1, 0, 1))
    values = torch.tensor([1.0, 2.0, 3.0, 8.0])
    assert pool(values, feeder, "mean").tolist() == [2.0, 5.0]
    assert pool(values, feeder, "amax").tolist() == [3.0, 8.0]
    assert expand(torch.tensor([7.0, 9.0]), feeder).tolist() == [7.0, 9.0, 7.0, 9.0]
