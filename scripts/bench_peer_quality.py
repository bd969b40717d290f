"""Quantizes the language model with a peer's GPTQ or auto-round and writes what it made of the weights, dense.

    python bench_peer_quality.py JOB.json RESULT.json

job: peer (gptqmodel, llmcompressor, auto-round), model (a folder), inputs (a torch file: the list of prepared model
inputs that quantkit calibrates on, each with its `inputs_embeds`), bits, group_size, symmetric, iterations
(auto-round's), out (a folder).

`out` is the source's checkpoint in float32 with the dequantized weights (code - zero) * scale under the source's names,
so `quantkit verify` measures every peer alike, whatever layout it writes. Zero points and scales are those the peer
would store, in its own precision. Everything but the language model's linears stays as it is; so do `in_proj_a` and
`in_proj_b`. Each peer runs with its defaults, in the dtype of the checkpoint.

gptqmodel takes whole samples, pictures included. The two others cannot (llm-compressor traces one path through the
model, with pictures or without, and needs a transformers that fails on slices of different sizes; auto-round fails on
the whole model), so they get the language model alone and each sample's `inputs_embeds`: what the whole model feeds
into it, the features of the pictures among them, which the writer of `inputs` has put beside the rest. That is the same
pass: positions are plain 0, 1, 2, ... in both. auto-round leaves out samples shorter than its `seqlen`, which is
therefore the shortest sample's length, and cannot batch samples of different lengths: it accumulates the gradients of
eight single ones where its default is one batch of eight.

Exit status 3: the peer is missing here, the last line on stderr says so.
"""

import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EXIT_MISSING = 3
KILO = 1 if sys.platform == "darwin" else 1024  # unit of the kernel's peak memory, in bytes

PREFIX = "model.language_model."
QUANTIZED = re.compile(
    re.escape(PREFIX) + r"layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_qkv|in_proj_z|out_proj)|mlp\.(gate|up|down)_proj)\.weight"
)
LEFT_ALONE = ("in_proj_a", "in_proj_b", "lm_head")
PACKAGES = {
    "gptqmodel": ("gptqmodel", "torch", "transformers"),
    "llmcompressor": ("llmcompressor", "compressed-tensors", "torch", "transformers"),
    "auto-round": ("auto-round", "torch", "transformers"),
}


@dataclass
class Outcome:
    """What a peer did: its tensors by the source's names, float32 where quantized; seconds by step; notes."""

    weights: dict[str, "Tensor"]
    kept: dict[str, "Tensor"]
    seconds: dict[str, float]
    calibrated_on: str
    options: dict[str, Any] = field(default_factory=dict)


def main(job_path: str, result_path: str) -> int:
    """Run the job and write its result; returns the exit status."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        import torch

        torch.manual_seed(0)
        outcome = PEERS[job["peer"]](job, torch.load(job["inputs"], weights_only=True))
    except ImportError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_MISSING
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KILO
    checked = write_dense(Path(job["model"]), Path(job["out"]), outcome, job["bits"], job["group_size"])
    result = {
        "seconds": outcome.seconds["quantize"],
        "steps": outcome.seconds,
        "peak": peak,
        "calibrated_on": outcome.calibrated_on,
        "options": outcome.options,
        "versions": {name: version(name) for name in PACKAGES[job["peer"]]},
        **checked,
    }
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")
    return 0


def with_gptqmodel(job: dict[str, Any], inputs: list[dict[str, "Tensor"]]) -> Outcome:
    """gptqmodel's GPTQ with its defaults (act_group_aware, no desc_act) on whole samples."""
    begun = time.perf_counter()
    from gptqmodel import GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.quantization.config import FORMAT, METHOD, QuantizeConfig

    config = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        sym=job["symmetric"],
        method=METHOD.GPTQ,
        format=FORMAT.GPTQ_V2,  # the first version cannot hold every zero point
        device="cpu",
        offload_to_disk=False,
    )
    model = GPTQModel.load(job["model"], config)
    model.prepare_dataset = lambda calibration_dataset, **_options: calibration_dataset
    loaded = time.perf_counter()
    model.quantize([without_embeddings(sample) for sample in inputs], batch_size=1)
    finished = time.perf_counter()
    packed = {name: module for name, module in model.model.named_modules() if isinstance(module, BaseQuantLinear)}
    return Outcome(
        weights={f"{name}.weight": unpack_gptqmodel(module) for name, module in packed.items()},
        kept={
            name: tensor for name, tensor in model.model.state_dict().items() if name.rpartition(".")[0] not in packed
        },
        seconds={"load": loaded - begun, "quantize": finished - loaded},
        calibrated_on=f"{describe(inputs)}, whole samples through the whole model",
        options={name: getattr(config, name) for name in ("damp_percent", "act_group_aware", "desc_act", "mse")},
    )


def without_embeddings(sample: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The sample as the processor made it."""
    return {name: value for name, value in sample.items() if name != "inputs_embeds"}


def unpack_gptqmodel(module: Any) -> "Tensor":
    """(code - zero) * scale of one packed linear of gptqmodel, by its own unpacking: float32 [out, in]."""
    from gptqmodel.nn_modules.qlinear import PackableQuantLinear

    module.scales = module.scales.float()
    return PackableQuantLinear.dequantize_weight(module).detach().float().T.contiguous()


def with_llmcompressor(job: dict[str, Any], inputs: list[dict[str, "Tensor"]]) -> Outcome:
    """llm-compressor's GPTQ with its defaults (static activation order, 1 % dampening) on embeddings."""
    begun = time.perf_counter()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    model = language_model(job["model"])
    model.config.name_or_path = job["model"]  # looked at before anything is done
    samples = [{"inputs_embeds": sample["inputs_embeds"]} for sample in inputs]
    loaded = time.perf_counter()
    grid = QuantizationArgs(
        num_bits=job["bits"], symmetric=job["symmetric"], strategy="group", group_size=job["group_size"]
    )
    modifier = GPTQModifier(
        config_groups={"linears": QuantizationScheme(targets=["Linear"], weights=grid)},
        ignore=[f"re:.*{name}$" for name in LEFT_ALONE],
    )
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(job["model"]),
        recipe=modifier,
        dataset=DataLoader(samples, batch_size=None),  # type: ignore[arg-type]
        num_calibration_samples=len(samples),
        pipeline="sequential",
    )
    finished = time.perf_counter()
    done = {name: module for name, module in model.named_modules() if hasattr(module, "weight_scale")}
    return Outcome(
        weights={
            source_name(f"{name}.weight"): snap(module.weight, module.weight_scale, module.weight_zero_point)
            for name, module in done.items()
        },
        kept=kept_tensors(model, done),
        seconds={"load": loaded - begun, "quantize": finished - loaded},
        calibrated_on=f"{describe(inputs)}, embeddings through the language model alone",
        options={
            "dampening_frac": modifier.dampening_frac,
            "actorder": sorted({str(m.quantization_scheme.weights.actorder) for m in done.values()}),
            "observer": sorted({str(m.quantization_scheme.weights.observer) for m in done.values()}),
        },
    )


def with_auto_round(job: dict[str, Any], inputs: list[dict[str, "Tensor"]]) -> Outcome:
    """auto-round's sign rounding with its defaults but the number of iterations, on embeddings."""
    begun = time.perf_counter()
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    model = language_model(job["model"])
    samples = [{name: sample[name].clone() for name in ("input_ids", "inputs_embeds")} for sample in inputs]
    # auto-round wants token ids in every sample, adds a mask and hands all of it to the model
    model.register_forward_pre_hook(embeddings_alone, with_kwargs=True)
    loaded = time.perf_counter()
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        scheme="W4A16",
        bits=job["bits"],
        group_size=job["group_size"],
        sym=job["symmetric"],
        iters=job["iterations"],
        dataset=samples,
        nsamples=len(samples),
        seqlen=min(sample["input_ids"].shape[1] for sample in samples),
        batch_size=1,
        gradient_accumulate_steps=8,
        ignore_layers=",".join(LEFT_ALONE),
        enable_torch_compile=False,  # it would compile anew for every length of a sample
        device_map="cpu",
        seed=42,
    )
    quantized, _ = rounder.quantize()
    finished = time.perf_counter()
    done = {name: module for name, module in quantized.named_modules() if getattr(module, "scale", None) is not None}
    return Outcome(
        weights={
            source_name(f"{name}.weight"): snap(module.weight, module.scale, module.zp) for name, module in done.items()
        },
        kept=kept_tensors(quantized, done),
        seconds={"load": loaded - begun, "quantize": finished - loaded},
        calibrated_on=f"{describe(inputs)}, embeddings through the language model alone",
        options={"iterations": job["iterations"], "batch": 8},
    )


PEERS: dict[str, Callable[[dict[str, Any], list[dict[str, "Tensor"]]], Outcome]] = {
    "gptqmodel": with_gptqmodel,
    "llmcompressor": with_llmcompressor,
    "auto-round": with_auto_round,
}


def language_model(folder: str) -> Any:
    """The language model with its head, as a model of its own."""
    import torch
    from transformers import AutoModelForImageTextToText, Qwen3_5ForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    text = whole.config.text_config
    text.dtype, text.tie_word_embeddings = whole.dtype, whole.config.tie_word_embeddings
    with torch.device("meta"):
        model = Qwen3_5ForCausalLM(text)
    model.model, model.lm_head = whole.model.language_model, whole.lm_head
    return model.eval()


def embeddings_alone(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Drops token ids where embeddings are given, and the mask: auto-round hands the first layer's to every layer, but
    those of the two kinds of layers differ. None means causal to both."""
    return args, {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}


def source_name(name: str) -> str:
    """The source's name of a tensor of the language model alone."""
    return PREFIX + name.removeprefix("model.") if name.startswith("model.") else name


def kept_tensors(model: Any, done: dict[str, Any]) -> dict[str, "Tensor"]:
    """All tensors of the language model that were not quantized, by the source's names."""
    tensors = model.state_dict().items()
    return {source_name(name): tensor for name, tensor in tensors if name.rpartition(".")[0] not in done}


def snap(weight: "Tensor", scale: "Tensor", zero: Any) -> "Tensor":
    """The grid's points that dequantized weights in the model's dtype stand for, float32 [out, in].

    scale, zero: [out, groups]; zero may be one number. ValueError where a weight is off its grid.
    """
    import torch

    scale = scale.detach().float()  # [out, groups]
    zero = torch.as_tensor(zero if zero is not None else 0).float().expand_as(scale).unsqueeze(-1)
    groups = weight.detach().float().reshape(*scale.shape, -1)  # [out, groups, group_size]
    scale = scale.unsqueeze(-1)
    steps = groups / scale
    codes = (steps + zero).round()
    off = (codes - zero - steps).abs().max().item()
    if off > 0.25:
        raise ValueError(
            f"a weight lies {off:.2f} steps off its grid: its scale and zero are not those it was made with"
        )
    return ((codes - zero) * scale).reshape(weight.shape)


def describe(inputs: list[dict[str, "Tensor"]]) -> str:
    """Samples and tokens."""
    pictures = sum(any(name.startswith("pixel_values") for name in sample) for sample in inputs)
    tokens = sum(sample["input_ids"].numel() for sample in inputs)
    return f"{len(inputs)} samples ({pictures} with pictures), {tokens} tokens"


def write_dense(source: Path, out: Path, outcome: Outcome, bits: int, group_size: int) -> dict[str, Any]:
    """Write the checkpoint, checking every tensor on the way; returns what was found of them.

    ValueError: another set of linears than expected, one left as it was, or one with too many values in a group.
    """
    from safetensors.torch import save_file

    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    quantized: list[str] = []
    changed: list[str] = []
    error = norm = 0.0
    for shard, tensors in read_shards(source):
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            tensors[name] = before = tensor.float()
            if QUANTIZED.fullmatch(name):
                tensors[name] = after = outcome.weights.pop(name).reshape(before.shape)
                check_grid(name, before, after, bits, group_size)
                error += (after - before).square().sum().item()
                norm += before.square().sum().item()
                quantized.append(name)
            elif name in outcome.kept and not outcome.kept[name].is_meta:
                tensors[name] = after = outcome.kept[name].detach().float().reshape(before.shape).contiguous()
                if not after.equal(before):
                    changed.append(name)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / shard, {"format": "pt"})
    if outcome.weights:
        raise ValueError(f"the peer also quantized {', '.join(outcome.weights)}")
    index = out / "model.safetensors.index.json"
    if index.is_file():
        listing = json.loads(index.read_text(encoding="utf-8"))
        listing.pop("metadata", None)
        index.write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return {"linears": len(quantized), "changed": changed, "weight_error": error / norm}


def read_shards(folder: Path) -> Iterator[tuple[str, dict[str, "Tensor"]]]:
    """Each weight file of a checkpoint with its tensors, one file in memory at a time."""
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        yield path.name, load_file(path)


def check_grid(name: str, before: "Tensor", after: "Tensor", bits: int, group_size: int) -> None:
    """ValueError where a weight is not a grid's, or is the very one it was."""
    if after.equal(before):
        raise ValueError(f"{name} is as it was before")
    groups = after.reshape(-1, group_size if group_size > 0 else after.shape[1])
    values = (groups.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1).max().item() + 1
    if values > 2**bits:
        raise ValueError(f"{name} has {values} values in a group of {group_size}: more than {bits} bits tell apart")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
