"""Samples that run together are as if each ran alone: nothing leaks from row to row, padding counts nowhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import write_mixed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5

from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.model import build_map
from quantkit.statistics import MODALITIES, BlockStatistics, CalibrationPass, batches

LIMIT = 400
HUGE = 1e4


@pytest.fixture(scope="module")
def samples(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Text, one image, several and video, in both modes; the last is longer than LIMIT."""
    conversations = load_conversations(write_mixed(tmp_path_factory.mktemp("mixed")))
    options = PrepareOptions(samples=15, downsample_mode="both")
    found: list[Any] = prepare(conversations, load_processor(random_checkpoint), options)
    assert {sample.modality for sample in found} == {"text", "image", "images", "video"}
    assert {sample.downsample_mode for sample in found if sample.modality != "text"} == {"16x", "4x"}
    ids = torch.randint(10, 200, (1, LIMIT + 70), generator=torch.Generator().manual_seed(0))
    return [*found, _sample("long", {"input_ids": ids}, torch.zeros(LIMIT + 70, dtype=torch.bool))]


def _sample(name: str, inputs: dict[str, Tensor], vision: Tensor, mode: str = "16x") -> Any:
    return SimpleNamespace(
        id=name, inputs=inputs, input_ids=inputs["input_ids"], vision_mask=vision, downsample_mode=mode
    )


def _pass(folder: Path, samples: list[Any], batch_tokens: int = LIMIT) -> CalibrationPass:
    checkpoint = open_checkpoint(folder)
    return CalibrationPass(
        checkpoint, build_map(checkpoint.config), samples, dtype=torch.float32, batch_tokens=batch_tokens
    )


def _assert_same(found: list[BlockStatistics], expected: list[BlockStatistics]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        for name, inputs in one.inputs.items():
            for modality in MODALITIES:
                mine, theirs = inputs.by_modality[modality], other.inputs[name].by_modality[modality]
                assert mine.tokens == theirs.tokens > 0
                assert (mine.gram - theirs.gram).abs().max() < 1e-5 * theirs.gram.abs().max()
                assert torch.allclose(mine.abs_sum, theirs.abs_sum, rtol=1e-5)
                assert mine.abs_max == pytest.approx(theirs.abs_max, rel=1e-5)


def _assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


@pytest.fixture(scope="module")
def alone(random_checkpoint: Path, samples: list[Any]) -> tuple[list[BlockStatistics], list[Tensor]]:
    """What the pass finds when each sample runs by itself."""
    statistics = list(_pass(random_checkpoint, samples, batch_tokens=1))
    return statistics, _pass(random_checkpoint, samples, batch_tokens=1).final_hidden()


def test_together_is_as_each_alone(
    random_checkpoint: Path, samples: list[Any], alone: tuple[list[BlockStatistics], list[Tensor]]
) -> None:
    groups = list(batches([len(sample.vision_mask) for sample in samples], LIMIT))
    assert len(groups) < len(samples) / 2 and groups[-1] == [len(samples) - 1]
    run = _pass(random_checkpoint, samples)
    _assert_same(list(run), alone[0])
    _assert_near(run.final_hidden(), alone[1])
    largest = max(part.abs_max for block in alone[0] for part in block.inputs.values())
    assert run.abs_max == pytest.approx(largest, rel=1e-5)


def test_each_sample_counts_once_whatever_its_place(random_checkpoint: Path, samples: list[Any]) -> None:
    shuffled = samples[::-1]
    hidden = _pass(random_checkpoint, samples).final_hidden()
    _assert_near(_pass(random_checkpoint, shuffled).final_hidden()[::-1], hidden)


@pytest.mark.parametrize(("where", "value"), [("before", HUGE), ("after", HUGE), ("after", float("nan"))])
def test_padding_reaches_nothing(
    random_checkpoint: Path,
    samples: list[Any],
    alone: tuple[list[BlockStatistics], list[Tensor]],
    where: str,
    value: float,
) -> None:
    """Padding is made huge at the input of every layer, or huge or NaN at its output."""
    run = _pass(random_checkpoint, samples)
    seen = []

    def spoil(hidden: Tensor, padding: Tensor) -> Tensor:
        seen.append(int(padding.sum()))
        return hidden.masked_fill(padding[..., None], value)

    def before(_layer: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (spoil(args[0], (args[0] == 0).all(-1)),)

    def after(_layer: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        return spoil(output, (args[0] == 0).all(-1))

    for layer in run.layers:
        if where == "before":
            layer.register_forward_pre_hook(before)
        else:
            layer.register_forward_hook(after)
    _assert_same(list(run), alone[0])
    groups = list(batches([len(sample.vision_mask) for sample in samples], LIMIT))
    lengths = [[len(samples[index].vision_mask) for index in group] for group in groups]
    expected = sum(max(group) * len(group) - sum(group) for group in lengths)
    assert expected > 0 and sum(seen) == expected * len(run.layers)  # zero before every block, and nothing else is


@contextmanager
def _recorded(run: CalibrationPass, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Tensor]]]:
    """What the convolution, the recurrence, full attention and each layer give, [B, T, ...] a batch."""
    seen: dict[str, list[Tensor]] = {"convolution": [], "recurrence": [], "attention": [], "layer": []}
    rule = modeling_qwen3_5.torch_chunk_gated_delta_rule

    def recording(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:
        seen["convolution"].append(torch.cat([query, key, value], dim=-1).flatten(2))
        output = rule(query, key, value, **kwargs)
        seen["recurrence"].append(output[0].flatten(2))
        return output

    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", recording)
        for layer in run.layers:
            layer.register_forward_hook(lambda _m, _a, output: seen["layer"].append(output.clone()))
            if hasattr(layer, "self_attn"):
                layer.self_attn.register_forward_hook(lambda _m, _a, output: seen["attention"].append(output[0]))
        yield seen


@pytest.mark.parametrize("place", range(4))
def test_no_sample_reaches_another(
    random_checkpoint: Path, samples: list[Any], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Four samples run together; one's content changes; the others keep theirs to the last stage of every layer."""
    chosen = sorted((s for s in samples if 0 < len(s.vision_mask) < 100), key=lambda s: len(s.vision_mask))
    chosen = chosen[:: len(chosen) // 4][:4]  # of unlike lengths
    lengths = [len(sample.vision_mask) for sample in chosen]
    changed = [*chosen]
    changed[place] = _other_content(chosen[place])
    pair = []
    for group in (chosen, changed):
        run = _pass(random_checkpoint, group)
        assert list(batches(lengths, LIMIT)) == [[0, 1, 2, 3]]
        with _recorded(run, monkeypatch) as seen:
            pair.append((run.final_hidden(), seen))
    (hidden, before), (hidden_changed, after) = pair
    assert before["convolution"] and before["attention"] and len(before["layer"]) == len(run.layers)
    for kind, stages in before.items():
        for stage, (one, other) in enumerate(zip(stages, after[kind], strict=True)):
            for row, length in enumerate(lengths):
                gap = float((one[row, :length] - other[row, :length]).abs().max())
                if row == place:
                    assert gap > 1e-3, f"{kind} {stage}: the change itself is not seen"
                else:
                    assert gap < 1e-6, f"{kind} {stage}: row {place} reaches row {row} ({gap})"
    for row in range(4):
        assert torch.equal(hidden[row], hidden_changed[row]) == (row != place)


def _other_content(sample: Any) -> Any:
    """The same sample with other words and other pixels."""
    inputs = dict(sample.inputs)
    ids = inputs["input_ids"].clone()
    words = torch.nonzero((ids[0] > 9) & ~sample.vision_mask)[:, 0]
    ids[0, words] = ids[0, words].flip(0)
    ids[0, -1] = ids[0, -1] + 1
    inputs["input_ids"] = ids
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = -inputs[name]
    return _sample(sample.id, inputs, sample.vision_mask, sample.downsample_mode)


@given(lengths=st.lists(st.integers(1, 90), max_size=40), most=st.integers(1, 200))
def test_batches_hold_every_sample_once_within_the_limit(lengths: list[int], most: int) -> None:
    groups = list(batches(lengths, most))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= most
