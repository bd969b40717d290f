"""The two engines that hold the model here.

`dequantized` puts our reading of the file into the reference architecture: it isolates the format from the kernels, and
needs no other package. `transformers` runs the real kernels through `from_pretrained`.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.formats import awq, bnb, compressed_tensors
from quantkit.integrity.subject import find_linears
from quantkit.integrity.unpack import dequantize_linear, readable
from quantkit.verify import forward
from quantkit.verify.task import NotRun, Observed, States, Target, Task, Tick

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KERNEL_PACKAGES = {"awq": "gptqmodel", "gptq": "gptqmodel", "bitsandbytes": "bitsandbytes"}


def load_dequantized(folder: str | Path | Checkpoint, dtype: str = "float32", device: str = "cpu") -> Any:
    """The reference architecture with the checkpoint's weights, dequantized where they are packed.

    Streams one tensor at a time into an uninitialized model of `dtype`, so it peaks at the model plus one tensor. Every
    parameter must be there once and in shape: `QuantkitError` names a tensor that is missing, unexpected or misshapen.
    """
    from transformers import AutoConfig, MiniCPMV4_6ForConditionalGeneration
    from transformers.initialization import no_init_weights

    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder)
    weights = _dequantizer(checkpoint)
    config = AutoConfig.from_pretrained(str(checkpoint.path), local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with no_init_weights():
        model = MiniCPMV4_6ForConditionalGeneration._from_config(config, dtype=_dtype(dtype))
    model.tie_weights()
    _fill(model, weights(checkpoint), checkpoint)
    return model.to(device).eval()


def load_transformers(folder: str | Path | Checkpoint, dtype: str = "float32", device: str = "cpu") -> Any:
    """The checkpoint as Transformers itself loads it, with the kernels that its quantization method brings."""
    from transformers import AutoModelForImageTextToText

    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder)
    package = KERNEL_PACKAGES.get(checkpoint.quantization_method or "")
    if package and importlib.util.find_spec(package) is None:
        raise NotRun(
            f"engine 'transformers': {checkpoint.quantization_method} weights need the package {package}; "
            f"run 'pip install {package}', or use the engine 'dequantized'"
        )
    # the kernels are chosen for a device; without kernels there is nothing to choose, and no need for accelerate
    place = {"device_map": device} if package else {}
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(checkpoint.path), dtype=_dtype(dtype), local_files_only=True, trust_remote_code=False, **place
        )
    except ImportError as error:  # a package that this quantization method needs
        raise NotRun(f"engine 'transformers': {' '.join(str(error).split())}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        raise QuantkitError(f"{checkpoint.path}: Transformers cannot load it ({first})") from error
    if package == bnb.NAME:
        _cast_plain(model, _dtype(dtype))
    if checkpoint.quantization_method == compressed_tensors.NAME:
        _unpack_now(model)
    return model.eval() if package else model.to(device).eval()


def _unpack_now(model: Any) -> None:
    """Transformers unpacks compressed-tensors when the whole model is first called; we call the part below the head."""
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)


def _cast_plain(model: Any, dtype: torch.dtype) -> None:
    """Give what is not quantized one dtype: of a bitsandbytes file Transformers converts biases, but no weight."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not _is_bitsandbytes(module):
                parameter.data = parameter.data.to(dtype)


LOADERS: dict[str, Callable[..., Any]] = {"dequantized": load_dequantized, "transformers": load_transformers}


def run_local(name: str, task: Task, target: Target, tick: Tick) -> Observed:
    """Load the candidate here, run it over every item and free it."""
    checkpoint = target.checkpoint
    if checkpoint is None:
        raise QuantkitError(f"{target.path}: no checkpoint folder")
    model = LOADERS[name](checkpoint, target.dtype, target.device)
    observed = forward.observe(model, task, tick, trust_teacher=name == "dequantized")
    observed.kernel = ", ".join(sorted(kernels(model))) or "torch"
    del model
    gc.collect()
    for states, sample in zip(observed.predictions, task.samples, strict=True):
        if isinstance(states, States) and not torch.isfinite(states.states).all():
            raise QuantkitError(f"{checkpoint.path}: the final hidden states of item '{sample.id}' hold NaN or Inf")
    return observed


def kernels(model: Any) -> set[str]:
    """Names of the classes that run quantized weights."""
    quantized = (module for module in model.modules() if hasattr(module, "qweight") or _is_bitsandbytes(module))
    return {type(module).__name__ for module in quantized}


def _is_bitsandbytes(module: torch.nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes.nn")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise QuantkitError(f"dtype '{name}' is unknown to verify: use {' or '.join(DTYPES)}")
    return DTYPES[name]


# ---- weights of each quantization method, as (parameter name, tensor [its shape]) -----------------------------------

Weights = Iterator[tuple[str, Tensor]]


def _plain(checkpoint: Checkpoint) -> Weights:
    for name in checkpoint.tensor_names:
        yield name, checkpoint.load(name, check_finite=True)


def _awq(checkpoint: Checkpoint) -> Weights:
    spec = awq.spec_of(checkpoint.config["quantization_config"])
    linears = awq.quantized_names(checkpoint.tensor_names)
    packed = {f"{linear}.{suffix}" for linear in linears for suffix in awq.SUFFIXES}
    for name in checkpoint.tensor_names:
        if name not in packed:
            yield name, checkpoint.load(name, check_finite=True)
    for linear in linears:
        qweight, qzeros, scales = (checkpoint.load(f"{linear}.{suffix}", check_finite=True) for suffix in awq.SUFFIXES)
        try:
            yield f"{linear}.weight", awq.unpack(qweight, qzeros, scales, spec.bits, spec.group_size).dequantize()
        except QuantkitError as error:
            raise QuantkitError(f"{checkpoint.path}: {linear}: {error}") from error


def _packed(checkpoint: Checkpoint) -> Weights:
    linears = [linear for linear in find_linears(checkpoint).values() if linear.packed]
    packed = {tensor for linear in linears for tensor in linear.tensors}
    for name in checkpoint.tensor_names:
        if name not in packed:
            yield name, checkpoint.load(name, check_finite=True)
    for linear in linears:
        if not readable(linear):
            raise QuantkitError(f"{checkpoint.path}: {linear.name}: its packed tensors do not belong together")
        try:
            yield f"{linear.name}.weight", dequantize_linear(checkpoint, linear)
        except QuantkitError as error:
            raise QuantkitError(f"{checkpoint.path}: {error}") from error


def _bitsandbytes(checkpoint: Checkpoint) -> Weights:
    linears = [linear for linear in find_linears(checkpoint).values() if linear.layout == bnb.NAME]
    packed = {tensor for linear in linears for tensor in linear.tensors}
    for name in checkpoint.tensor_names:
        if name not in packed:
            yield name, checkpoint.load(name, check_finite=True)

    def load(name: str) -> Tensor:
        return checkpoint.load(name, check_finite=True)

    for linear in linears:
        try:
            yield f"{linear.name}.weight", bnb.dequantize(load, linear.name, linear.tensors)
        except QuantkitError as error:
            raise QuantkitError(f"{checkpoint.path}: {error}") from error


DEQUANTIZERS: dict[str | None, Callable[[Checkpoint], Weights]] = {
    None: _plain, "awq": _awq, "gptq": _packed, "compressed-tensors": _packed,
    "bitsandbytes": _bitsandbytes,
}  # fmt: skip


def _dequantizer(checkpoint: Checkpoint) -> Callable[[Checkpoint], Weights]:
    method = checkpoint.quantization_method
    if method not in DEQUANTIZERS:
        known = ", ".join(name for name in DEQUANTIZERS if name)
        raise NotRun(f"{checkpoint.path}: engine 'dequantized' cannot read '{method}' weights; it reads {known}")
    if method == bnb.NAME and importlib.util.find_spec(bnb.NAME) is None:
        raise NotRun(
            "engine 'dequantized': bitsandbytes weights need the package bitsandbytes; run 'pip install bitsandbytes'"
        )
    return DEQUANTIZERS[method]


def _fill(model: torch.nn.Module, weights: Weights, checkpoint: Checkpoint) -> None:
    """Copy every weight into its parameter; raise unless each parameter is met exactly once."""
    parameters = dict(model.named_parameters())  # a tied head appears once, under the embedding's name
    tied = set(dict(model.named_parameters(remove_duplicate=False))) - set(parameters)
    missing = set(parameters)
    for name, tensor in weights:
        if name in tied:
            continue  # stored twice; the embedding's own entry counts
        if name not in missing:
            raise QuantkitError(f"{checkpoint.path}: unexpected tensor {name}: this architecture has no such parameter")
        if tensor.shape != parameters[name].shape:
            expected, found = list(parameters[name].shape), list(tensor.shape)
            raise QuantkitError(f"{checkpoint.path}: tensor {name} has shape {found}, the config asks for {expected}")
        parameters[name].data.copy_(tensor)
        missing.remove(name)
    if missing:
        raise QuantkitError(f"{checkpoint.path}: tensor {min(missing)} is missing ({len(missing)} in all)")
