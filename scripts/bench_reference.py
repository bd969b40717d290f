"""What `bench_quantize.py` compares with, each step in a process of its own.

    python bench_reference.py forward JOB.json RESULT.json    # one plain bfloat16 forward pass over the samples
    python bench_reference.py cut JOB.json RESULT.json        # the same model with one layer of each kind, for a peer

forward: transformers' own class on the very tensors that `quantkit awq` calibrates on, one sample at a time, the head's
logits included. Only the calls of the model count: preparing the samples, loading, and a first pass that warms up do
not. It also leaves some of the samples in a file, since a peer's Python has no quantkit to prepare them with.

cut: the model's own tensors, without all text layers but the first of each kind, renumbered. A peer that takes a minute
a layer is measured on these, and each kind's seconds count as often as the whole model has layers of it.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import QuantkitError

EXIT_REFUSED = 2


def main(arguments: Sequence[str]) -> int:
    """Run one step; returns the exit status, 2 with one line on stderr where the input is at fault."""
    step, job_path, result_path = arguments
    steps: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"forward": forward, "cut": cut}
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        result = steps[step](job)
    except QuantkitError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")
    return 0


def forward(job: dict[str, Any]) -> dict[str, Any]:
    """Time the pass. job: model, calib, samples, seed, peer_samples, peer_inputs (a file to write, or null).

    Returns seconds and tokens by sample, in order; `peer`: the places of those that went into the file.
    """
    import torch

    from quantkit.calibration import build_from
    from quantkit.checkpoint import open_checkpoint
    from quantkit.model import build_map
    from quantkit.recipe import CalibrationOptions

    checkpoint = open_checkpoint(job["model"])
    options = CalibrationOptions(
        model=job["model"], calib=(job["calib"],), samples=job["samples"], seed=job["seed"], no_cache=True
    )
    mix = build_from(options, checkpoint.path)
    samples = mix.samples
    places = spread(len(samples), job["peer_samples"])
    if job["peer_inputs"]:
        plain = [{name: value.clone() for name, value in samples[place].inputs.items()} for place in places]
        torch.save(plain, job["peer_inputs"])
    started = time.perf_counter()
    model = load_model(checkpoint.path)
    load_seconds = time.perf_counter() - started
    kinds = [block.kind for block in build_map(checkpoint.config).blocks]
    return {
        "seconds": time_passes(model, samples),
        "tokens": [sample.input_ids.numel() for sample in samples],
        "modalities": [sample.modality for sample in samples],
        "fingerprint": mix.fingerprint,
        "peer": places,
        "load_seconds": load_seconds,
        "parameters": checkpoint.num_parameters(),
        "layers": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "quantkit": __version__,
        },
    }


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` places (all, if there are not as many), evenly spaced in range(count)."""
    wanted = min(count, wanted)
    return [place * count // wanted for place in range(wanted)]


def load_model(folder: Path) -> Any:
    """The checkpoint as a user of transformers loads it, in bfloat16."""
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()


def time_passes(model: Any, samples: Sequence[Any]) -> list[float]:
    """Seconds of the forward pass of every sample, one by one, after one uncounted pass of the first."""
    import torch

    seconds = []
    with torch.inference_mode():
        for number, sample in enumerate([samples[0], *samples]):
            started = time.perf_counter()
            logits = model(**sample.inputs, downsample_mode=sample.downsample_mode, use_cache=False).logits
            ended = time.perf_counter()
            if logits.shape[1] != sample.input_ids.shape[1]:
                raise AssertionError("the forward pass left out logits: it is not the plain one")
            if number:
                seconds.append(ended - started)
    return seconds


def cut(job: dict[str, Any]) -> dict[str, Any]:
    """Write the model with the first text layer of each kind. job: model, out. Returns the kinds in their order."""
    from quantkit.checkpoint import open_checkpoint
    from quantkit.model import LAYERS_PREFIX, build_map
    from quantkit.output import ShardWriter, atomic_output

    checkpoint = open_checkpoint(job["model"])
    first = {block.kind: block for block in reversed(build_map(checkpoint.config).blocks)}
    kept = sorted(first.values(), key=lambda block: block.index)
    renamed = {}
    for name in checkpoint.tensor_names:
        if not name.startswith(LAYERS_PREFIX):
            renamed[name] = name
        for number, block in enumerate(kept):
            if name.startswith(block.prefix):
                renamed[name] = f"{LAYERS_PREFIX}{number}.{name.removeprefix(block.prefix)}"
    kinds = [block.kind for block in kept]
    config = json.loads(json.dumps(checkpoint.config))
    config["text_config"] |= {"num_hidden_layers": len(kept), "layer_types": kinds}
    with atomic_output(job["out"], source=checkpoint.path) as folder:
        checkpoint.copy_side_files(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        specs = {new: (checkpoint.dtype(old), checkpoint.shape(old)) for old, new in renamed.items()}
        with ShardWriter(folder, specs) as writer:
            for old, new in renamed.items():
                writer.add(new, checkpoint.load(old))
            writer.finish()
    return {"kinds": kinds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
