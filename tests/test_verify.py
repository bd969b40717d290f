"""`verify` from end to end: an oracle with two plain models, faults that must show, what runs and what does not."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from chats import chat, text_part, write_mixed, write_rows
from variants import AWQ_CONFIG, LINEAR, TINY, quantize, state_answers, variant

import quantkit.verify
from quantkit.calibration import PrepareOptions, load_conversations, load_processor, prepare
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import awq
from quantkit.verify import ENGINES, Gate, Report, VerifyOptions, forward, load_dequantized, reference, run, to_table
from quantkit.verify.engines import local
from quantkit.verify.task import NotRun, Observed

FAST = {"noise": False, "generate": False}


def verify(*arguments, **options) -> Report:
    return quantkit.verify.verify(*arguments, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"), 16)


@pytest.fixture(scope="module")
def asked(data) -> Path:
    """The same, with the last assistant text stated as the answer."""
    return state_answers(data)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    return variant(tmp_path_factory.mktemp("awq") / "awq", quantize, AWQ_CONFIG)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where this module's runs keep the reference's pass: most of them need the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def report(asked, quantized, cache) -> Report:
    """A whole report on the quantized variant, both modes, with noise floor and answers."""
    return verify(TINY, quantized, asked, samples=8, max_new_tokens=4, downsample_mode="both", cache=cache)


# ---- figures ----


def test_identical_models_differ_in_nothing(asked):
    found = verify(TINY, TINY, asked, samples=8, dtype="bfloat16", max_new_tokens=8, noise=False)
    assert found.verdict.status == "measured" and not found.alarms and not found.integrity
    assert found.group().text.tokens > 200
    for group in found.engine().groups:
        for summary in (group.answer, group.prompt, group.text):
            assert (summary.kl_max, summary.kl_mean.high, summary.logit_rms, summary.rms_dp) == (0.0, 0.0, 0.0, 0.0)
            assert summary.top1.value == summary.top5 == 1.0
            assert summary.perplexity_reference == summary.perplexity_candidate
        assert group.generation.same.value == 1.0
    assert all(row.error < 1e-9 for row in found.engine().layers) and found.engine().layers


def test_metrics_agree_with_a_naive_pass(data, quantized):
    """The oracle: two models in memory, one item at a time, float64 on the very logits of `model.forward`."""
    found = verify(TINY, quantized, data, **FAST)
    reference, candidate = load_dequantized(TINY), load_dequantized(quantized)
    means, agree, lost = [], [], []
    for sample in prepare(load_conversations(data), load_processor(TINY), PrepareOptions()):
        with torch.inference_mode():
            kwargs = {**sample.inputs, "downsample_mode": sample.downsample_mode}
            p, q = (m(**kwargs).logits[0, :-1].double().log_softmax(-1) for m in (reference, candidate))
        scored = ~sample.vision_mask[1:]
        kl = (p.exp() * (p - q)).sum(-1)[scored]
        means.append(float(kl.mean()))
        agree.append((p.argmax(-1) == q.argmax(-1))[scored])
        targets = sample.input_ids[0, 1:, None]
        lost.append((p.gather(-1, targets) - q.gather(-1, targets))[:, 0][scored])
    figures = found.group().text
    assert [item.kl_mean for item in found.engine().items] == pytest.approx(means, rel=1e-3, abs=1e-7)
    assert figures.tokens == len(torch.cat(agree))
    assert figures.top1.value == pytest.approx(float(torch.cat(agree).double().mean()), abs=2 / figures.tokens)
    assert figures.perplexity_ratio.value == pytest.approx(float(torch.cat(lost).mean().exp()), rel=1e-4)
    assert figures.kl_mean.value > 1e-7


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


@pytest.fixture(scope="module")
def good(data, quantized, cache) -> Report:
    return verify(TINY, quantized, data, samples=8, cache=cache, **FAST)


@pytest.mark.parametrize("fault", [swap_rows, shift_zeros, swap_groups])
def test_a_planted_fault_shows_in_the_figures_and_in_its_layer(tmp_path, data, good, cache, fault):
    bad = verify(TINY, variant(tmp_path / "bad", fault, AWQ_CONFIG), data, samples=8, cache=cache, **FAST)
    assert bad.group().text.kl_mean.value > 1.5 * good.group().text.kl_mean.value > 0
    before, after = ({row.name: row.error for row in one.engine().layers} for one in (good, bad))
    worse = {name: after[name] - before[name] for name in after if ".layers.0." in name}
    assert max(worse, key=worse.get) == LINEAR, "the first linear that is worse is the damaged one"
    assert all(error == 0 for name, error in after.items() if "vision" in name or "merger" in name)
    assert bad.verdict.status == "fail", "integrity compares the weights as well"


def test_answers_are_the_same_with_and_without_the_short_cut(asked, quantized, monkeypatch):
    options = {"max_new_tokens": 8, "samples": 8, "noise": False}
    short = verify(TINY, quantized, asked, **options)
    monkeypatch.setattr(forward, "repeats_answer", lambda *arguments: False)
    whole = verify(TINY, quantized, asked, **options)
    for one, other in zip(short.engine().items, whole.engine().items, strict=True):
        assert (one.reference_text, one.candidate_text) == (other.reference_text, other.candidate_text)
        assert isinstance(one.candidate_text, str)


def test_the_same_call_gives_the_same_report(report, asked, quantized, cache, monkeypatch):
    """The second time from the cache, without a reference model: all figures to the last bit."""
    assert report.cache is not None and not report.cache.hit
    monkeypatch.setattr(reference, "load_dequantized", lambda *given: pytest.fail("the reference ran again"))
    again = verify(TINY, quantized, asked, samples=8, max_new_tokens=4, downsample_mode="both", cache=cache)
    assert again.cache is not None and again.cache.hit
    for part in ("engines", "noise_floor", "data", "verdict", "candidate", "options"):
        assert getattr(again, part) == getattr(report, part), part


# ---- the report ----


def test_the_report_is_complete(report, tmp_path, asked, cache):
    assert Report.load(report.save(tmp_path)) == report
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["schema_version"] == "2"
    assert written["candidate"]["quantization"]["quant_method"] == "awq"
    assert written["candidate"]["bits_per_quantized_weight"] == pytest.approx(4 + (16 + 4) / 64)
    assert written["candidate"]["bits_per_weight"] < written["reference"]["bits_per_weight"] == pytest.approx(16, 0.01)
    assert written["reference"]["fingerprint"] != written["candidate"]["fingerprint"]
    assert (written["data"]["available"], written["data"]["items"], written["data"]["answers"]) == (16, 8, 8)
    assert written["data"]["overlap"] == "unknown" and written["data"]["source"] == asked.name
    assert set(written["environment"]) >= {"torch", "transformers", "quantkit", "processor", "cores"}
    assert set(written["seconds"]) == {"integrity", "prepare", "reference", "dequantized"}
    assert {item["mode"] for item in written["engines"][0]["items"]} == {"16x", "4x"}
    rows = {(row["name"], row["positions"]) for row in written["noise_floor"]}
    assert rows == {(name, positions) for name in ("single", "bfloat16") for positions in ("answer", "text")}
    assert sum(map(sum, written["engines"][0]["histogram"]["counts"].values())) == report.group().text.tokens
    assert sum(bool(item["pictures"]) for item in written["engines"][0]["items"]) == 4, "text has no pictures"
    for place in (asked.parent, cache, TINY.parent):
        assert str(place) not in json.dumps(written), "no place of this machine"


def test_groups_and_the_table(report):
    groups = {(group.by, group.value): group.items for group in report.engine().groups}
    assert groups == {
        ("all", "all"): 8, ("modality", "text"): 4, ("modality", "image"): 2, ("modality", "images"): 1,
        ("modality", "video"): 1, ("mode", "16x"): 5, ("mode", "4x"): 3, ("language", "en"): 8,
    }  # fmt: skip
    cells = [[str(cell) for cell in column.cells] for column in to_table(report).columns]
    assert cells[0][:4] == ["text", "image", "images", "video"]
    assert cells[1][:4] == ["4", "2", "1", "1"]


def test_data_without_answers(quantized, tmp_path, data):
    shutil.copy(data / "images" / "0.png", tmp_path / "a.png")
    found = verify(TINY, quantized, tmp_path, noise=False, max_new_tokens=3)
    group = found.group("modality", "image")
    assert group.answer is None and group.accuracy is None and group.text.tokens == group.prompt.tokens
    assert found.engine().items[0].answer is None and found.engine().items[0].candidate_text is not None
    assert found.data is not None and found.data.answers == 0
    to_table(found)


def test_shortened_conversations_stay_in_step_with_their_samples(tmp_path):
    turns = [chat(text_part(f"Question {n}? " * 5), answer=f"Answer {n}.") for n in range(12)]
    rows = [
        {"id": "long", "messages": [message for turn in turns for message in turn]},
        {"id": "far too long", "messages": chat(text_part("word " * 900))},
        {"id": "short", "messages": chat(text_part("Hello?")), "answer": "It is blue."},
    ]
    conversations = load_conversations(write_rows(tmp_path / "rows.jsonl", rows))
    task = run.make_task(conversations, open_checkpoint(TINY), VerifyOptions(max_tokens=200))
    assert [sample.id for sample in task.samples] == [one.id for one in task.conversations] == ["long", "short"]
    assert 2 <= len(task.conversations[0].messages) < 24
    for conversation, sample, place in zip(task.conversations, task.samples, task.places, strict=True):
        words = conversation.messages[-1]["content"][0]["text"]
        assert task.decode(place.targets[place.answer].tolist()) == words
        assert sample.messages == conversation.messages


# ---- what runs, and what does not ----


def test_quick_runs_no_model_and_reads_no_data(quantized, monkeypatch):
    for module, name in ((local, "load_dequantized"), (reference, "load_dequantized"), (run, "load_conversations")):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail("quick checks the files only"))
    told = []
    found = verify(TINY, quantized, "nowhere", quick=True, progress=lambda *event: told.append(event))
    assert (found.data, found.engines, found.noise_floor, found.cache) == (None, [], [], None)
    assert found.checks and found.verdict.status == "measured"
    assert told == [("integrity", 0, 1), ("integrity", 1, 1)] and list(found.seconds) == ["integrity"]
    gated = verify(TINY, quantized, quick=True, gates=(Gate("max_kl", 1.0),))
    assert gated.verdict.status == "fail" and "quick runs no engine" in gated.gates[0].message


def test_a_gguf_file_has_no_folder_to_check(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = verify(TINY, tmp_path, quick=True)
    assert found.checks == [] and "Nothing was checked" in found.verdict.headline
    assert (found.candidate.bytes, found.candidate.name) == (4, tmp_path.name)
    beside = verify(TINY, tmp_path / "model.gguf", quick=True, mmproj=tmp_path / "model.gguf")
    assert beside.candidate.bytes == 4, "a file counts once"
    with pytest.raises(QuantkitError, match=r"none\.gguf: no such file"):
        verify(TINY, tmp_path / "none.gguf", quick=True)


def test_two_engines_at_once_and_one_that_is_not_there(asked, quantized, monkeypatch):
    def absent(task, target, tick):
        raise NotRun("engine 'vllm': no Python with vLLM")

    monkeypatch.setitem(ENGINES, "vllm", absent)
    monkeypatch.setitem(local.LOADERS, "transformers", load_dequantized)
    engines = ["dequantized", "transformers", "vllm"]
    found = verify(TINY, quantized, asked, engine=engines, samples=4, max_new_tokens=3, noise=False)
    assert [engine.status for engine in found.engines] == ["ran", "ran", "not run"]
    assert found.engines[0].groups == found.engines[1].groups
    assert found.engine("vllm").why == "engine 'vllm': no Python with vLLM" and not found.engine("vllm").groups
    assert found.verdict.lines == ["engine vllm not run: engine 'vllm': no Python with vLLM"]
    gate = Gate("max_kl", 100.0)
    alone = verify(TINY, quantized, asked, engine="vllm", samples=4, gates=(gate,), **FAST)
    assert alone.verdict.status == "fail" and not alone.gates[0].passed
    unasked = verify(TINY, quantized, asked, engine="vllm", samples=4, **FAST)
    assert (unasked.verdict.status, unasked.verdict.headline) == ("measured", "Nothing was measured: no engine ran")


def test_a_file_that_cannot_be_loaded_is_a_finding_and_keeps_no_gate(tmp_path, data):
    broken = variant(tmp_path / "broken", lambda t: (quantize(t), t.pop(f"{LINEAR}.qzeros")), AWQ_CONFIG)
    found = verify(TINY, broken, data, gates=(Gate("max_kl", 100.0),))
    assert found.verdict.status == "fail" and found.engines == []
    assert any(
        finding.check == "accounting" and LINEAR in finding.where + finding.message for finding in found.integrity
    )
    assert "the file's own faults come first" in found.gates[0].message


def test_progress_is_told_to_the_end(asked, quantized):
    told = []
    verify(TINY, quantized, asked, samples=4, max_new_tokens=2, progress=lambda *event: told.append(event))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["integrity", "reference", "dequantized"]
    for stage, total in (("integrity", 1), ("reference", 4 * 2 + 4), ("dequantized", 8)):
        done = [event[1:] for event in told if event[0] == stage]
        assert done[0] == (0, total) and done[-1] == (total, total) and done == sorted(done)


def test_an_item_that_an_engine_cannot_run_is_counted(asked, quantized, monkeypatch):
    whole = ENGINES["dequantized"]

    def most(task, target, tick):
        observed: Observed = whole(task, target, tick)
        observed.predictions[0] = observed.answers[0] = None
        observed.left_out = {0: "no video here"}
        return observed

    monkeypatch.setitem(ENGINES, "vllm", most)
    found = verify(TINY, quantized, asked, engine="vllm", samples=4, max_new_tokens=3, noise=False)
    assert found.engine().left_out == {"no video here": 1}
    assert found.group().generation.items == found.group().ran == 3
    assert found.verdict.lines == ["engine vllm left out 1 of 4 items"]
    monkeypatch.setitem(
        ENGINES, "vllm", lambda task, *rest: Observed([None] * 4, [None] * 4, left_out=dict.fromkeys(range(4), "full"))
    )
    nothing = verify(TINY, quantized, asked, engine="vllm", samples=4, **FAST)
    assert (nothing.engine().status, nothing.engine().why) == ("not run", "it could run no item: full")


def test_a_benchmark_by_name(asked, quantized, monkeypatch):
    asked_for = []

    def load(name, limit):
        asked_for.append((name, limit))
        return load_conversations(asked)[:limit]

    monkeypatch.setattr(run, "load_benchmark", load)
    monkeypatch.setattr("quantkit.verify.summary.aggregate", lambda name, scored: {f"{name} total": 100.0})
    place = f"mmbench={asked}"
    found = verify(TINY, quantized, place, samples=4, max_new_tokens=3, noise=False)
    assert asked_for == [(place, 4)]
    assert found.engine().benchmark == {"MMBench total": {"reference": 100.0, "candidate": 100.0}}
    assert found.data is not None and found.data.source == f"mmbench={asked.name}", "no place of this machine"


def test_the_documented_example(capsys):
    """As quantkit.verify's docstring has it, on a small model and few items."""
    found = quantkit.verify("tiny", str(TINY), engine="dequantized", samples=12, max_new_tokens=2, noise=False)
    assert found.verdict.headline == "No fault found; no gate was set"
    assert found.group().answer.kl_mean.value == 0.0
    assert {group.value for group in found.engine().groups if group.by == "modality"} >= {"text", "image"}


def test_the_reference_s_pass_and_the_engine_hold_one_model_at_a_time(data, quantized, monkeypatch):
    import gc
    import weakref

    alive, together = [], []

    def watched(*arguments):
        gc.collect()
        together.append(sum(model() is not None for model in alive))
        model = load_dequantized(*arguments)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(reference, "load_dequantized", watched)
    monkeypatch.setitem(local.LOADERS, "dequantized", watched)
    verify(TINY, quantized, data, samples=4, **FAST)
    assert together == [0, 0]


# ---- refusals ----


def test_other_models_are_refused(tmp_path, data):
    other = json.loads((TINY / "config.json").read_text())["text_config"]
    smaller = variant(tmp_path / "smaller", None, {"text_config": other | {"vocab_size": other["vocab_size"] // 2}})
    with pytest.raises(QuantkitError, match=r"text_config.vocab_size is \d+, the reference's is \d+"):
        verify(TINY, smaller, data)


@pytest.mark.parametrize("name", ["image_token_id", "video_token_id"])
def test_a_config_that_disagrees_with_its_tokenizer_is_refused(tmp_path, data, name):
    moved = variant(tmp_path / "moved", None, {name: 3})
    with pytest.raises(QuantkitError, match=rf"{name} is 3, its tokenizer's is \d+"):
        run.make_task(load_conversations(data), open_checkpoint(moved), VerifyOptions())
    with pytest.raises(QuantkitError, match=rf"{name} is 3, the reference's is \d+"):
        run._check_compatible(open_checkpoint(TINY), open_checkpoint(moved))


def test_an_overflow_names_the_item(data, quantized, monkeypatch):
    def loud(*given):
        model = load_dequantized(*given)
        model.get_submodule(LINEAR).weight.data.fill_(3e38)
        return model

    monkeypatch.setitem(local.LOADERS, "dequantized", loud)
    found = verify(TINY, quantized, data, samples=4, **FAST)
    assert (found.verdict.status, found.engine().status) == ("fail", "not run")
    (alarm,) = found.alarms
    assert re.search(r"final hidden states of item 'm-\d+' hold NaN or Inf", alarm.message)
    assert alarm.message == found.engine().why and str(quantized.parent) not in alarm.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "magic"}, "--engine magic: unknown"),
        ({"downsample_mode": "2x"}, "--downsample-mode '2x'"),
        ({"samples": 0}, "--samples 0: must be at least 1"),
        ({"max_tokens": 3}, "no calibration tokens"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(QuantkitError, match=message):
        verify(TINY, TINY, data, **options)


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QuantkitError, match="none' does not exist"):
        verify(TINY, TINY, tmp_path / "none")
