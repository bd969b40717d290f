"""Verification: metrics against a float64 oracle, passes against plain transformers, faults that must show."""

import gc
import json
import math
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from chats import write_mixed
from safetensors.torch import load_file, save_file

import quantkit
from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.calibration.prepare import Sample
from quantkit.errors import QuantkitError
from quantkit.formats import awq
from quantkit.grid import GridSpec, full_range, grid_of, round_to_grid
from quantkit.verify import ENGINES, Report, forward, load_dequantized, load_transformers, run, to_table, verify
from quantkit.verify.metrics import TokenMetrics, exact_match, quantile, summarize, token_metrics

TINY = Path(quantkit.__file__).parent / "data" / "tiny"
SPEC = GridSpec(bits=4, group_size=64)
LINEAR = "model.language_model.layers.0.mlp.down_proj"


def variant(folder: Path, change=None, config: dict | None = None) -> Path:
    """A copy of tiny, its tensors passed through `change(dict)`, its config updated."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("SHA256SUMS", "README*"))
    tensors = load_file(folder / "model.safetensors")
    if change:
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def quantize(tensors: dict) -> dict:
    """Round every language-model MLP to nearest, in place of its weight; returns what the integers stand for."""
    meant = {}
    for name in [n for n in tensors if ".language_model.layers." in n and ".mlp." in n]:
        linear = name.removesuffix(".weight")
        weight = tensors.pop(name).float()
        packed = round_to_grid(weight, *grid_of(full_range(weight, SPEC), SPEC), SPEC)
        meant[name] = packed.dequantize()
        tensors.update(awq.pack(linear, packed))
    return meant


AWQ_CONFIG = {"quantization_config": awq.quantization_config(SPEC, ["in_proj_a"])}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"), 16)


@pytest.fixture(scope="module")
def asked(data) -> Path:
    """The same, with the last assistant text stated as the answer."""
    folder = data.parent / "asked"
    shutil.copytree(data, folder)
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    rows = [row | {"answer": row["messages"][-1]["content"][0]["text"]} for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    return variant(tmp_path_factory.mktemp("awq") / "awq", quantize, AWQ_CONFIG)


@pytest.fixture(scope="module")
def samples(data) -> list[Sample]:
    return prepare(load_conversations(data), load_processor(TINY), PrepareOptions(downsample_mode="both"))


@pytest.fixture(scope="module")
def model():
    return load_dequantized(TINY)


# ---- metrics ----


def test_kl_by_hand():
    reference, candidate = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    metrics = token_metrics(reference, candidate, torch.tensor([1]))
    assert float(metrics.kl) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert float(token_metrics(candidate, reference, torch.tensor([1])).kl) == pytest.approx(0.1308120, abs=1e-6)
    assert float(metrics.nll_reference) == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics.nll_candidate) == pytest.approx(-math.log(0.75), abs=1e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_token_metrics_against_a_naive_float64_oracle(scale):
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(23, 57)) * scale
    candidate = reference + generator.normal(size=(23, 57)) * 0.3
    targets = generator.integers(0, 57, 23)
    metrics = token_metrics(
        *(torch.tensor(x, dtype=torch.float32) for x in (reference, candidate)), torch.tensor(targets)
    )
    for row in range(23):
        p, q = (np.exp(x[row] - x[row].max()) for x in (reference, candidate))
        p, q = p / p.sum(), q / q.sum()
        kl = sum(float(a) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
        assert float(metrics.kl[row]) == pytest.approx(kl, abs=2e-6 * scale + 1e-6)
        assert bool(metrics.agree[row]) == (reference[row].argmax() == candidate[row].argmax())
        assert float(metrics.nll_reference[row]) == pytest.approx(-math.log(p[targets[row]]), rel=1e-5, abs=1e-5)
        assert float(metrics.nll_candidate[row]) == pytest.approx(-math.log(q[targets[row]]), rel=1e-5, abs=1e-5)


def test_bfloat16_logits_are_compared_in_float32():
    reference = torch.randn(9, 300, generator=torch.manual_seed(0)).to(torch.bfloat16)
    candidate = reference + torch.tensor(0.0625, dtype=torch.bfloat16) * (torch.arange(300) % 2)
    targets = torch.zeros(9, dtype=torch.long)
    expected = token_metrics(reference.double(), candidate.double(), targets)
    torch.testing.assert_close(
        token_metrics(reference, candidate, targets).kl.double(), expected.kl, atol=1e-6, rtol=1e-4
    )


def test_extreme_logits_give_no_nan():
    reference = torch.tensor([[0.0, -math.inf, -500.0], [0.0, 0.0, -math.inf]])
    candidate = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, -math.inf, 0.0]])
    kl = token_metrics(reference, candidate, torch.tensor([0, 0])).kl
    assert float(kl[0]) == 0.0
    assert math.isinf(float(kl[1]))


def test_summary_by_hand():
    kl = torch.tensor([0.0, 0.1, 0.2, 0.3, 4.4])
    nll = torch.tensor([math.log(2.0)] * 5)
    summary = summarize(TokenMetrics(kl, torch.tensor([True, True, True, False, False]), nll, 2 * nll))
    assert summary["tokens"] == 5
    assert summary["kl_mean"] == pytest.approx(1.0)
    assert summary["kl_p50"] == pytest.approx(0.2)
    assert summary["kl_p99"] == pytest.approx(float(np.quantile(kl.numpy(), 0.99)))
    assert summary["kl_max"] == pytest.approx(4.4)
    assert summary["top1_agreement"] == pytest.approx(0.6)
    assert (summary["perplexity_reference"], summary["perplexity_candidate"]) == pytest.approx((2.0, 4.0))
    assert math.isfinite(summarize(TokenMetrics(kl, kl > 0, nll, 4000 * nll))["perplexity_candidate"])
    assert summarize(TokenMetrics(kl[:0], kl[:0] > 0, kl[:0], kl[:0])) is None


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_quantile_equals_numpys(count):
    values = torch.rand(count, generator=torch.manual_seed(count))
    for q in (0.0, 0.5, 0.9, 0.99, 1.0):
        assert quantile(values, q) == pytest.approx(float(np.quantile(values.numpy(), q)), abs=1e-6)


def test_exact_match_ignores_outer_white_space_only():
    assert exact_match(" Red.\n", "Red.")
    assert not exact_match("red.", "Red.")
    assert not exact_match("Red .", "Red.")


# ---- passes ----


def hand_made(ids: list[int], prompt: int, vision: list[int]) -> Sample:
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[vision] = True
    return Sample("x", "image", "en", "16x", {"input_ids": torch.tensor([ids])}, prompt, mask)


def test_scored_positions_by_hand():
    #                  0  1   2   3  4  5 | 6  7   8  9    (50: placeholder, 9: stop)
    sample = hand_made([1, 50, 50, 2, 9, 3, 4, 5, 9, 7], prompt=6, vision=[1, 2])
    place = forward.scored(sample, {9})
    assert place.positions.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert place.targets.tolist() == [2, 9, 3, 4, 5, 9, 7]
    assert place.answer.tolist() == [False, False, False, True, True, True, False]
    unanswered = forward.scored(hand_made([1, 2, 9], prompt=3, vision=[]), {9})
    assert not unanswered.answer.any()
    endless = forward.scored(hand_made([9, 2, 3, 4], prompt=2, vision=[]), {9})
    assert endless.answer.tolist() == [False, True, True]


def test_batches_hold_every_sample_once(samples):
    lengths = [sample.input_ids.shape[1] * 20 for sample in samples]
    found = list(forward.batches(samples, lengths))
    assert sorted(index for batch in found for index in batch) == list(range(len(samples)))
    assert any(len(batch) > 1 for batch in found)
    for batch in found:
        assert len({samples[i].downsample_mode for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= forward.BATCH_TOKENS


def test_batched_states_give_the_logits_of_single_plain_passes(model, samples):
    places = [forward.scored(sample, set()) for sample in samples]
    counted = []
    states = forward.hidden_states(model, samples, places, counted.append)
    assert sum(counted) == len(samples)
    for sample, place, state in zip(samples, places, states, strict=True):
        with torch.inference_mode():
            logits = model(**sample.inputs, downsample_mode=sample.downsample_mode).logits[0]
            ours = run._logits(state, model.lm_head.weight, rows=100)
        torch.testing.assert_close(ours, logits[place.positions], atol=2e-4, rtol=1e-4)


def test_batched_greedy_answers_equal_single_generation(model, samples):
    stop_ids, limit = {model.config.text_config.eos_token_id}, 6
    answers = forward.greedy(model, samples, limit, stop_ids, model.config.pad_token_id, lambda count: None)
    for sample, answer in zip(samples[::3], answers[::3], strict=True):
        inputs = {**sample.inputs, "input_ids": sample.input_ids[:, : sample.prompt_length]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        output = model.generate(
            **inputs,
            downsample_mode=sample.downsample_mode,
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=[*stop_ids],
        )[0, sample.prompt_length :].tolist()
        assert answer == [token for token in output if token not in stop_ids]


def test_repeats_answer_asks_for_every_token_and_the_stop(model):
    head = model.lm_head.weight.detach()
    targets = (head / head.norm(dim=1, keepdim=True)) @ head.T
    tokens = [t for t in range(len(head)) if int(targets[t].argmax()) == t][:4]
    state = torch.stack([head[token] / head[token].norm() for token in tokens])
    place = forward.Scored(torch.arange(4), torch.tensor(tokens), torch.tensor([False, True, True, True]))
    assert forward.repeats_answer(model, state, place, {tokens[-1]})
    assert not forward.repeats_answer(model, state, place, {tokens[0]}), "no stop token at the end"
    assert not forward.repeats_answer(model, state[[0, 2, 1, 3]], place, {tokens[-1]})
    assert forward.repeats_answer(model, state[[1, 1, 2, 3]], place, {tokens[-1]}), "only the answer counts"
    none = forward.Scored(place.positions, place.targets, torch.zeros(4, dtype=torch.bool))
    assert not forward.repeats_answer(model, state, none, {tokens[-1]})


# ---- engines ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unquantized_folder_loads_as_transformers_loads_it(dtype):
    ours, theirs = load_dequantized(TINY, dtype), load_transformers(TINY, dtype)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    for name, buffer in theirs.named_buffers():
        assert torch.equal(dict(ours.named_buffers())[name], buffer), name
    assert ours.lm_head.weight.data_ptr() == ours.get_input_embeddings().weight.data_ptr()
    assert not ours.training


def test_awq_weights_are_the_ones_that_the_integers_stand_for(quantized):
    meant = quantize(load_file(TINY / "model.safetensors"))
    loaded = dict(load_dequantized(quantized).named_parameters())
    assert len(meant) == 3 * loaded_layers()
    for name, weight in meant.items():
        assert torch.equal(loaded[name], weight), name


def loaded_layers() -> int:
    return json.loads((TINY / "config.json").read_text())["text_config"]["num_hidden_layers"]


def pop(name):
    return lambda tensors: tensors.pop(name)


FAULTY = {
    "missing": (lambda t: t.pop(f"{LINEAR}.weight"), {}, f"tensor {LINEAR}.weight is missing"),
    "unexpected": (lambda t: t.update({"model.extra.weight": torch.ones(2)}), {}, "model.extra.weight"),
    "shape": (lambda t: t.update({f"{LINEAR}.weight": torch.ones(2, 3)}), {}, f"{LINEAR}.weight has shape"),
    "no zeros": (lambda t: (quantize(t), t.pop(f"{LINEAR}.qzeros")), AWQ_CONFIG, f"{LINEAR}.qzeros"),
    "scales": (
        lambda t: (quantize(t), t.update({f"{LINEAR}.scales": t[f"{LINEAR}.scales"][:-1]})),
        AWQ_CONFIG,
        f"{LINEAR}: qweight",
    ),
    "not a number": (
        lambda t: (quantize(t), t[f"{LINEAR}.scales"].view(-1)[3:4].fill_(math.nan)),
        AWQ_CONFIG,
        f"{LINEAR}.scales",
    ),
    "method": (quantize, {"quantization_config": {"quant_method": "magic"}}, "cannot read 'magic' weights"),
}


@pytest.mark.parametrize(("change", "config", "message"), FAULTY.values(), ids=FAULTY)
def test_a_faulty_checkpoint_is_refused_by_name(tmp_path, change, config, message):
    with pytest.raises(QuantkitError) as error:
        load_dequantized(variant(tmp_path / "faulty", change, config))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_kernel_package_is_named(quantized, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(QuantkitError, match="awq weights need the package gptqmodel; run 'pip install gptqmodel'"):
        load_transformers(quantized)


# ---- verify ----


def test_identical_models_differ_in_nothing(asked):
    report = verify(TINY, TINY, asked, dtype="bfloat16", max_new_tokens=8)
    assert report.metrics["all"]["text"]["tokens"] > 200
    for positions in report.metrics.values():
        for summary in positions.values():
            assert summary["kl_max"] == 0.0
            assert summary["top1_agreement"] == 1.0
            assert summary["perplexity_reference"] == summary["perplexity_candidate"]
    assert [report.accuracy[m]["same_text"] for m in ("text", "image", "images", "video", "all")] == [1.0] * 5


def test_metrics_agree_with_a_naive_pass(data, quantized):
    """The oracle: two models in memory, one item at a time, float64 on the very logits of `model.forward`."""
    report = verify(TINY, quantized, data, generate=False)
    reference, candidate = load_dequantized(TINY), load_dequantized(quantized)
    means, count = [], 0
    for sample in prepare(load_conversations(data), load_processor(TINY), PrepareOptions()):
        with torch.inference_mode():
            kwargs = {**sample.inputs, "downsample_mode": sample.downsample_mode}
            p, q = (m(**kwargs).logits[0, :-1].double().log_softmax(-1) for m in (reference, candidate))
        kl = (p.exp() * (p - q)).sum(-1)[~sample.vision_mask[1:]]
        means.append(float(kl.mean()))
        count += kl.numel()
    assert [item["kl_mean"] for item in report.items] == pytest.approx(means, rel=1e-3, abs=1e-7)
    assert report.metrics["all"]["text"]["tokens"] == count
    assert report.metrics["all"]["text"]["kl_mean"] > 1e-7


def swap_rows(tensors):
    quantize(tensors)
    words = tensors[f"{LINEAR}.qweight"].view(torch.uint8).clone()  # two outputs that share a byte: nibbles swapped
    tensors[f"{LINEAR}.qweight"] = ((words << 4) | (words >> 4)).view(torch.int32)


def shift_zeros(tensors):
    quantize(tensors)
    zeros = awq.unpack_words(tensors[f"{LINEAR}.qzeros"])
    tensors[f"{LINEAR}.qzeros"] = awq.pack_words(torch.where(zeros < 15, zeros + 1, zeros - 1))


def swap_groups(tensors):
    quantize(tensors)
    tensors[f"{LINEAR}.scales"] = tensors[f"{LINEAR}.scales"].flip(0)


@pytest.mark.parametrize("fault", [swap_rows, shift_zeros, swap_groups])
def test_a_planted_fault_shows(tmp_path, data, quantized, fault):
    options = {"samples": 8, "generate": False}
    good = verify(TINY, quantized, data, **options).metrics["all"]["text"]["kl_mean"]
    bad = verify(TINY, variant(tmp_path / "bad", fault, AWQ_CONFIG), data, **options).metrics["all"]["text"]["kl_mean"]
    assert bad > 1.5 * good > 0


def test_answers_are_the_same_with_and_without_the_short_cut(asked, quantized, monkeypatch):
    options = {"max_new_tokens": 8, "samples": 12}
    short = verify(TINY, quantized, asked, **options)
    monkeypatch.setattr(forward, "repeats_answer", lambda *arguments: False)
    whole = verify(TINY, quantized, asked, **options)
    for key in ("reference", "candidate"):
        assert [item[key] for item in short.items] == [item[key] for item in whole.items]
        assert all(isinstance(item[key], str) for item in whole.items)


def test_exact_match_counts_by_modality(asked, monkeypatch):
    """Half the answers of one model are made right by hand; the table must say so."""
    right = {}

    def some_answers(model, task, states, chosen, engine, tick):
        seen = right.setdefault("passes", 0)
        right["passes"] += 1
        return [f"  {a}\n" if i % 2 == 0 or seen else "wrong" for i, a in enumerate(task.answers)]

    monkeypatch.setattr(run, "_answers", some_answers)
    report = verify(TINY, TINY, asked)
    assert report.accuracy["all"] == {"items": 16, "reference": 0.5, "candidate": 1.0, "same_text": 0.5}
    assert report.accuracy["text"]["items"] == 8
    assert report.accuracy["text"]["reference"] == 1.0  # every second row is text


def test_the_two_models_are_never_in_memory_together(data, quantized, monkeypatch):
    alive = []

    def watched(*arguments):
        gc.collect()
        assert not [reference for reference in alive if reference() is not None]
        model = load_dequantized(*arguments)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setitem(ENGINES, "dequantized", watched)
    verify(TINY, quantized, data, samples=4)
    assert len(alive) == 2


def test_progress_is_told_to_the_end(asked, quantized):
    told = []
    verify(TINY, quantized, asked, samples=8, max_new_tokens=4, progress=lambda *event: told.append(event))
    assert told[0] == ("reference", 0, 16)
    assert ("reference", 16, 16) in told
    assert told[-1] == ("candidate", 16, 16)


def test_report_is_complete_json_and_a_table(tmp_path, asked, quantized):
    report = verify(TINY, quantized, asked, samples=8, max_new_tokens=4, downsample_mode="both")
    assert isinstance(report, Report)
    path = report.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"] == [path.name]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_dict()))
    assert written["schema"] == "1"
    assert written["candidate"]["quantization"]["quant_method"] == "awq"
    assert written["reference"]["fingerprint"] != written["candidate"]["fingerprint"]
    assert written["options"]["dtype"] == "float32"
    assert (written["data"]["available"], written["data"]["items"], written["data"]["answers"]) == (16, 8, 8)
    assert set(written["environment"]) >= {"torch", "transformers", "quantkit", "processor", "cores"}
    assert {item["downsample_mode"] for item in written["items"]} == {"16x", "4x"}
    rows = report.rows()
    assert [row["modality"] for row in rows] == ["text", "image", "images", "video", "all"]
    assert [row["items"] for row in rows] == [4, 2, 1, 1, 8]
    assert {row["positions"] for row in rows} == {"answer"}
    assert rows[-1]["kl_mean"] == written["metrics"]["all"]["answer"]["kl_mean"]
    cells = [list(column.cells) for column in to_table(report).columns]
    assert cells[0] == ["text", "image", "images", "video", "all"]
    assert cells[3][-1] == (
        f"{rows[-1]['kl_mean']:.4f}" if rows[-1]["kl_mean"] >= 1e-4 else f"{rows[-1]['kl_mean']:.1e}"
    )


def test_the_same_call_gives_the_same_report(asked, quantized):
    first, second = (verify(TINY, quantized, asked, samples=6, max_new_tokens=4) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.items == second.items
    assert first.data == second.data


def test_data_without_answers(data, quantized, tmp_path):
    report = verify(TINY, quantized, data, samples=8)
    assert report.accuracy == {}
    assert report.rows()[-1]["accuracy_reference"] is None
    assert list(to_table(report).columns[8].cells)[-1] == "- → -"
    shutil.copy(data / "images" / "0.png", tmp_path / "a.png")
    pictures = verify(TINY, quantized, tmp_path)
    assert pictures.metrics["image"]["answer"] is None
    assert pictures.rows()[0]["positions"] == "text"


def test_other_models_are_refused(tmp_path, data):
    other = json.loads((TINY / "config.json").read_text())["text_config"]
    smaller = variant(tmp_path / "smaller", None, {"text_config": other | {"vocab_size": other["vocab_size"] // 2}})
    with pytest.raises(QuantkitError, match=r"text_config.vocab_size is \d+, the reference's is \d+"):
        verify(TINY, smaller, data)


@pytest.mark.parametrize("name", ["image_token_id", "video_token_id"])
def test_a_config_that_disagrees_with_its_tokenizer_is_refused(tmp_path, data, name):
    moved = variant(tmp_path / "moved", None, {name: 3})
    with pytest.raises(QuantkitError, match=rf"{name} is 3, its tokenizer's is \d+"):
        verify(moved, moved, data)
    with pytest.raises(QuantkitError, match=rf"{name} is 3, the reference's is \d+"):
        verify(TINY, moved, data)


def test_an_overflow_names_the_item(tmp_path, data):
    def blow_up(tensors):
        tensors[f"{LINEAR}.weight"].fill_(3e38)

    with pytest.raises(QuantkitError, match=r"final hidden states of item 'm-\d+' hold NaN or Inf"):
        verify(TINY, variant(tmp_path / "loud", blow_up), data, generate=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "magic"}, "engine 'magic' is unknown"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"downsample_mode": "2x"}, "downsample mode '2x'"),
        ({"max_tokens": 3}, "no calibration tokens"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(QuantkitError, match=message):
        verify(TINY, TINY, data, **options)
