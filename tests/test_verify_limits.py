"""What a figure may not be taken for: bounds, parts, few items, another model's pass, an engine that did not run."""

import math

import numpy as np
import pytest
import torch
from test_verify_gates import FULL, ran
from variants import TINY, variant

from quantkit.calibration import load_conversations
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.integrity import check
from quantkit.verify import Gate, VerifyOptions, reference, verify
from quantkit.verify.engines.server import _topk
from quantkit.verify.engines.server_http import Client
from quantkit.verify.gates import judge
from quantkit.verify.intervals import mean_interval
from quantkit.verify.metrics import TokenMetrics, summarize, topk_metrics
from quantkit.verify.run import make_task


def changed(**figures):
    return FULL.model_copy(update=figures)


def passed(gate: Gate, group) -> tuple[bool, str]:
    (result,) = judge([gate], [ran(group)])
    return result.passed, result.message


def test_a_lower_bound_of_the_kl_keeps_no_limit():
    loose = changed(answer=FULL.answer.model_copy(update={"coverage": 0.9}))
    for gate in (Gate("max_kl", 100), Gate("max_kl_p99", 100)):
        assert passed(gate, FULL)[0]
        assert passed(gate, loose) == (False, f"{gate.name} on all (dequantized): this engine's KL is a lower bound "
                                       "(90.0% of the probability mass was compared)")  # fmt: skip
    assert passed(Gate("min_top1", 0), loose)[0], "a share of equal choices is no bound"


def test_a_part_of_a_group_keeps_no_limit():
    good, message = passed(Gate("max_kl", 100), changed(ran=99))
    assert not good and "only 99 of 100 items could be run" in message


def test_few_items_keep_no_limit():
    assert passed(Gate("max_kl", 100), changed(items=5, ran=5))[0]
    good, message = passed(Gate("max_kl", 100), changed(items=4, ran=4))
    assert not good and "4 items are too few" in message


def test_students_interval_is_the_least_width():
    # sums 0, 0, 3 over 1, 1, 1 tokens: mean 1, standard error sqrt(6 / 2 / 3) = 1, t(2) = 4.303 (the expansion: 3.84)
    found = mean_interval(np.asarray([0.0, 0.0, 3.0]), np.ones(3))
    assert found.high == pytest.approx(1 + 3.84, abs=0.02) and found.low == pytest.approx(1 - 3.84, abs=0.02)
    wide = mean_interval(np.random.default_rng(0).lognormal(size=400), np.ones(400))
    assert wide.high - wide.low < 0.7, "many items: about what drawing again gives"


def metrics(count: int, told: float) -> TokenMetrics:
    nll = torch.full((count,), 2.0)
    return TokenMetrics(nll * 0, nll > 0, nll * 0 + 1, nll, torch.full((count,), told), nll * 0, nll * 0 + 1)


def test_figures_of_untold_tokens_are_unknown_not_perfect():
    owners = torch.arange(40)
    unknown = summarize(metrics(40, math.nan), owners)
    assert (unknown.perplexity_ratio, unknown.perplexity_candidate, unknown.rms_dp) == (None, None, None)
    known = summarize(metrics(40, 2.0), owners)
    assert known.perplexity_ratio.value == 1 and known.rms_dp == 0


def test_a_share_of_few_items_is_not_certain():
    few, many = (summarize(metrics(count, 2.0), torch.arange(count)).top1 for count in (8, 40))
    assert few.value == 1 and few.low < 0.7
    assert many.low == 1.0


def test_a_server_that_gives_no_top_tokens_gives_no_error():
    found = _topk([0, 1], [[], []], [math.nan, math.nan])
    result = topk_metrics(torch.zeros(2, 5), found.ids, found.logp, found.target_logp, torch.tensor([1, 2]))
    assert result.coverage.tolist() == [0, 0] and not result.agree.any()


def test_the_cache_is_keyed_by_every_byte(tmp_path):
    def negate_the_unsampled(tensors):
        """Every byte that the fingerprint does not look at."""
        name = "model.language_model.layers.0.mlp.down_proj.weight"
        flat = tensors[name].view(-1)
        step = flat.numel() // 15
        flat[step // 2 - 40 : step // 2 + 40] *= -1

    other = open_checkpoint(variant(tmp_path / "other", negate_the_unsampled))
    same = open_checkpoint(variant(tmp_path / "same"))
    assert other.fingerprint() == same.fingerprint(), "or this test shows nothing"
    task = make_task(load_conversations("heldout")[:2], same, VerifyOptions())
    keys = [reference.cache_key(one, task, "float32", "cpu", False) for one in (same, other)]
    assert keys[0] != keys[1]


def test_one_engine_that_fails_costs_the_others_nothing(tmp_path):
    def overflow(tensors):
        tensors["model.language_model.layers.1.mlp.down_proj.weight"].fill_(3e38)

    broken = variant(tmp_path / "broken", overflow)
    found = verify(TINY, broken, samples=4, generate=False, noise=False, engine=("dequantized", "sglang"))
    assert [result.status for result in found.engines] == ["not run", "not run"]
    assert "NaN or Inf" in found.engines[0].why and found.verdict.status == "fail"
    assert str(tmp_path) not in found.to_json()


def test_an_engine_that_could_run_no_item_did_not_run(monkeypatch):
    from quantkit.verify import ENGINES
    from quantkit.verify.task import Observed

    none = Observed([None] * 4, [None] * 4, left_out=dict.fromkeys(range(4), "prompt tokens differ"))
    monkeypatch.setitem(ENGINES, "vllm", lambda *given: none)
    found = verify(TINY, TINY, samples=4, generate=False, noise=False, engine="vllm")
    assert found.engines[0].status == "not run" and "prompt tokens differ" in found.engines[0].why
    assert "No fault found" not in found.verdict.headline


def test_a_key_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(QuantkitError) as error:
        Client("http://somebody:s3cret@localhost:1", None, 1.0)
    assert "--api-key" in str(error.value) and "s3cret" not in str(error.value)


@pytest.mark.parametrize("device", ["meta:x", "cuda:99", "tpuu"])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(QuantkitError, match=f"--device {device}") as error:
        VerifyOptions(device=device)
    assert "\n" not in str(error.value)


def test_fields_that_saving_a_processor_adds_are_no_fault(tmp_path):
    import json

    folder = variant(tmp_path / "saved")
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"is_local": True}))
    found = check(open_checkpoint(folder), open_checkpoint(TINY))
    assert found.ok and [one.where for one in found.findings] == ["tokenizer_config.json"]
    file.write_text(json.dumps(content | {"is_local": True, "add_bos_token": True}))
    assert not check(open_checkpoint(folder), open_checkpoint(TINY)).ok


def test_quantkit_verify_may_be_called_in_a_fresh_process():
    import subprocess
    import sys

    code = (
        "import quantkit\nassert callable(quantkit.verify)\n"
        "try:\n    quantkit.nothing\nexcept AttributeError:\n    print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"
