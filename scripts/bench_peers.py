"""gptqmodel's AWQ on a model of a few layers, timed a layer; `bench_quantize.py` starts it with a Python that has it.

    python bench_peers.py JOB.json RESULT.json

It gets the model inputs that quantkit prepared, in place of its own preparation (which cuts pictures into other
slices), so both see the same tokens. Its two callbacks tell when the first layer starts and when each ends; packing
overlaps the next layer, and what is left of it after the last is shared out evenly. Loading, capturing the first
layer's inputs and saving are not in a layer's seconds.

Exit status 3: gptqmodel is missing here, the last line on stderr says so.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

EXIT_MISSING = 3


class LayerClock:
    """Takes the time at gptqmodel's events: `started` the first layer's first pass, `ended` each layer's end."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.ended: dict[int, float] = {}

    def subset_event(self, **_event: Any) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            self.ended[layer_idx] = time.perf_counter()

    def seconds(self, finished: float) -> list[float]:
        """Seconds of each layer, the packing that ended at `finished` shared out. RuntimeError without events."""
        if self.started is None or not self.ended:
            raise RuntimeError("this gptqmodel reports no layers: its callbacks were not called")
        ends = [self.ended[layer] for layer in sorted(self.ended)]
        rest = max(finished - ends[-1], 0.0) / len(ends)
        return [end - start + rest for start, end in zip([self.started, *ends], ends, strict=False)]


def main(job_path: str, result_path: str) -> int:
    """Run the job (model, inputs, bits, group_size) and write its result; returns the exit status."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        result = quantize(job)
    except ImportError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_MISSING
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")
    return 0


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """Load, quantize and forget. Returns `layers`, seconds of each, and the steps around them."""
    begun = time.perf_counter()
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import FORMAT, METHOD, QuantizeConfig

    inputs = torch.load(job["inputs"], weights_only=True)
    config = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        sym=False,
        method=METHOD.AWQ,
        format=FORMAT.GEMM,
        device="cpu",
    )
    model = GPTQModel.load(job["model"], config)
    loaded = time.perf_counter()
    clock = LayerClock()
    model.layer_callback = model.subset_callback = clock
    model.prepare_dataset = lambda calibration_dataset, **_options: calibration_dataset
    model.quantize(inputs, batch_size=1)
    finished = time.perf_counter()
    layers = clock.seconds(finished)
    return {
        "layers": layers,
        "load_seconds": loaded - begun,
        "capture_seconds": finished - loaded - sum(layers),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("gptqmodel", "torch", "transformers")},
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
