"""The engines that hold the model here: weights as they are meant, faulty files refused by name."""

import gc
import math
import weakref

import pytest
import torch
from chats import write_mixed
from safetensors.torch import load_file
from variants import AWQ_CONFIG, LAYERS, LINEAR, TINY, quantize, variant

from quantkit.calibration import load_conversations
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.quantize import quantize as quantize_checkpoint
from quantkit.recipe import QuantizeOptions
from quantkit.verify import VerifyOptions, forward, load_dequantized, load_transformers
from quantkit.verify.engines import local
from quantkit.verify.run import make_task
from quantkit.verify.task import NotRun, Observed, States, Target


def nothing(count: int) -> None:
    pass


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return variant(tmp_path_factory.mktemp("awq") / "awq", quantize, AWQ_CONFIG)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data = write_mixed(tmp_path_factory.mktemp("mixed"), 4)
    return make_task(load_conversations(data), open_checkpoint(TINY), VerifyOptions(max_new_tokens=3, generate=False))


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
    assert len(meant) == 3 * len(LAYERS)
    for name, weight in meant.items():
        assert torch.equal(loaded[name], weight), name


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
    with pytest.raises(NotRun, match="awq weights need the package gptqmodel; run 'pip install gptqmodel'"):
        load_transformers(quantized)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(QuantkitError, match="dtype 'int3' is unknown to verify: use bfloat16 or float32"):
        load_dequantized(TINY, "int3")


def test_a_run_frees_its_model_and_keeps_the_head(task, quantized, monkeypatch):
    alive = []

    def watched(*given):
        model = load_dequantized(*given)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setitem(local.LOADERS, "dequantized", watched)
    counted = []
    observed = local.run_local("dequantized", task, Target(quantized, open_checkpoint(quantized)), counted.append)
    gc.collect()
    assert [model() for model in alive] == [None]
    assert observed.head is not None and tuple(observed.head.shape) == (1024, 256)
    assert sum(counted) == len(task.samples) and observed.answers == [None] * 4
    assert all(isinstance(prediction, States) for prediction in observed.predictions)
    assert observed.kernel == "torch" and "model.merger" in observed.layers


@pytest.mark.parametrize("engine", ["dequantized", "transformers"])
def test_states_that_are_no_numbers_name_the_item(task, monkeypatch, engine):
    whole = forward.observe

    def broken(*given, **options):
        observed = whole(*given, **options)
        states = observed.predictions[2].states.clone()
        states[3, 4] = math.inf
        observed.predictions[2] = States(states)
        return observed

    monkeypatch.setattr(forward, "observe", broken)
    with pytest.raises(QuantkitError, match=f"hidden states of item '{task.samples[2].id}' hold NaN or Inf") as error:
        local.run_local(engine, task, Target(TINY, open_checkpoint(TINY)), nothing)
    assert not isinstance(error.value, NotRun)


def test_transformers_unpacks_compressed_tensors_before_we_call_its_parts(task, tmp_path):
    """It unpacks them when the whole model is first called; the pass calls what lies below the head."""
    folder = tmp_path / "packed"
    options = QuantizeOptions(method="rtn", method_format="compressed-tensors", solver="rtn", out=folder)
    quantize_checkpoint(options)
    found = {
        name: local.run_local(name, task, Target(folder, open_checkpoint(folder)), nothing)
        for name in ("dequantized", "transformers")
    }
    for ours, theirs in zip(*(observed.predictions for observed in found.values()), strict=True):
        torch.testing.assert_close(theirs.states, ours.states, rtol=1e-4, atol=1e-4)


def test_only_an_exact_engine_trusts_teacher_forcing(task, quantized, monkeypatch):
    """Kernels may serve one token at a time than many at once; their answers are really generated."""
    trusted = []

    def spy(model, task, tick, trust_teacher):
        trusted.append(trust_teacher)
        return Observed([None] * 4, [None] * 4)

    monkeypatch.setattr(forward, "observe", spy)
    for name in local.LOADERS:
        monkeypatch.setitem(local.LOADERS, name, lambda *given: torch.nn.Module())
    for name, folder in (("dequantized", quantized), ("transformers", quantized), ("transformers", TINY)):
        local.run_local(name, task, Target(folder, open_checkpoint(folder)), nothing)
    assert trusted == [True, False, False]
