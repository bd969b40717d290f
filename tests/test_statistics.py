"""The pass against transformers itself, and what it counts against a naive float64 sum."""

from pathlib import Path

import pytest
import torch

from quantkit import stats_file
from quantkit.calibration import PrepareOptions, Sample, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.model import build_map
from quantkit.statistics import BATCH_TOKENS, CalibrationPass, batches


@pytest.fixture(scope="module")
def samples(random_checkpoint: Path, small_calibration: Path) -> list[Sample]:
    options = PrepareOptions(samples=6, downsample_mode="both")
    return prepare(load_conversations(small_calibration), load_processor(random_checkpoint), options)


def _pass(folder: Path, samples: list[Sample], **options) -> CalibrationPass:
    checkpoint = open_checkpoint(folder)
    return CalibrationPass(checkpoint, build_map(checkpoint.config), samples, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_streamed_pass_is_transformers_forward_bit_for_bit(
    random_checkpoint: Path, samples: list[Sample], dtype: torch.dtype
) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=dtype)
    hidden = _pass(random_checkpoint, samples, dtype=dtype, batch_tokens=1).final_hidden()
    for sample, found in zip(samples, hidden, strict=True):
        with torch.no_grad():
            output = model.model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False)
            assert torch.equal(model.model.language_model.norm(found), output.last_hidden_state)


def test_sums_agree_with_a_naive_float64_count(random_checkpoint: Path, samples: list[Sample]) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint, dtype=torch.float32)
    checked = {
        (0, "mixer_out"): "linear_attn.out_proj",
        (3, "mixer_in"): "self_attn.k_proj",
        (2, "mlp_out"): "mlp.down_proj",
    }
    rows: dict[tuple[int, str], list[torch.Tensor]] = {key: [] for key in checked}
    for (layer, _group), name in checked.items():
        module = model.model.language_model.layers[layer].get_submodule(name)
        module.register_forward_pre_hook(lambda _m, args, key=(layer, _group): rows[key].append(args[0][0].double()))
    with torch.no_grad():
        for sample in samples:
            model.model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False)
    vision = torch.cat([sample.vision_mask for sample in samples])
    assert vision.any() and not vision.all()
    blocks = list(_pass(random_checkpoint, samples, dtype=torch.float32))
    for (layer, group), found in rows.items():
        everything = torch.cat(found)
        statistics = blocks[layer].inputs[group]
        for modality, mask in (("text", ~vision), ("vision", vision)):
            part, naive = statistics.by_modality[modality], everything[mask]
            gram = naive.T @ naive
            assert (part.gram - gram).abs().max() < 1e-5 * gram.abs().max()
            assert torch.allclose(part.abs_sum, naive.abs().sum(0), rtol=1e-6)
            assert part.tokens == len(naive)
            assert part.abs_max == pytest.approx(float(naive.abs().max()), rel=1e-6)
        assert statistics.tokens == len(everything)
        assert torch.allclose(statistics.mean_abs.double(), everything.abs().mean(0), rtol=1e-5)
        assert torch.equal(statistics.gram, statistics.gram.T)


@pytest.mark.parametrize("batch_tokens", [1, BATCH_TOKENS])
def test_nan_activation_names_layer_and_sample(
    random_checkpoint: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    run = _pass(random_checkpoint, samples, dtype=torch.float32, batch_tokens=batch_tokens)
    blocks = iter(run)
    next(blocks)
    real = type(run.layers[1]).forward

    def poisoned(self, hidden_states, **kwargs):
        output = real(self, hidden_states, **kwargs)
        output[-1, 0, 0] = float("inf")
        return output

    monkeypatch.setattr(type(run.layers[1]), "forward", poisoned)
    last = samples[next(batches([sample.input_ids.shape[1] for sample in samples], batch_tokens))[-1]]
    with pytest.raises(QuantkitError, match=rf"layers\.1 is NaN or Inf for calibration sample {last.id};"):
        next(blocks)


def test_no_samples_is_an_error(random_checkpoint: Path) -> None:
    with pytest.raises(QuantkitError, match="no calibration samples"):
        _pass(random_checkpoint, [])


def test_statistics_on_disk_come_back_and_refuse_another_key(
    random_checkpoint: Path, samples: list[Sample], tmp_path: Path
) -> None:
    model_map = build_map(open_checkpoint(random_checkpoint).config)
    key = stats_file.Key("model", "data", "float32")
    run = _pass(random_checkpoint, samples, dtype=torch.float32)
    kept = list(stats_file.record(tmp_path / "stats", False, key, model_map, iter(run)))
    back = list(stats_file.read(tmp_path / "stats", key, model_map))
    for one, other in zip(kept, back, strict=True):
        for name, inputs in one.inputs.items():
            assert torch.equal(inputs.gram, other.inputs[name].gram)
            assert inputs.tokens == other.inputs[name].tokens
            assert torch.allclose(inputs.mean_abs, other.inputs[name].mean_abs, rtol=1e-6)
    for changed, word in (
        (stats_file.Key("x", "data", "float32"), "another model"),
        (stats_file.Key("model", "x", "float32"), "another calibration set"),
        (stats_file.Key("model", "data", "bfloat16"), "another dtype"),
    ):
        with pytest.raises(QuantkitError, match=word):
            next(stats_file.read(tmp_path / "stats", changed, model_map))
    with pytest.raises(QuantkitError, match="no statistics folder"):
        next(stats_file.read(tmp_path, key, model_map))
    weights = tmp_path / "stats/model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-9] + b"x" + good[-8:])
    with pytest.raises(QuantkitError, match=r"model\.safetensors"):
        next(stats_file.read(tmp_path / "stats", key, model_map))
    (tmp_path / "stats/SHA256SUMS").unlink()
    weights.write_bytes(good[:1000])
    with pytest.raises(QuantkitError, match="missing or damaged"):
        next(stats_file.read(tmp_path / "stats", key, model_map))
    (tmp_path / "stats/config.json").write_text("[]")
    with pytest.raises(QuantkitError, match="does not describe statistics"):
        next(stats_file.read(tmp_path / "stats", key, model_map))
