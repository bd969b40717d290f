"""Engines: ways to run the candidate. Each takes (task, target, tick) and gives `Observed`, or raises `NotRun`.

dequantized   our reading of the weights in the reference architecture: isolates the format from the kernels
transformers  the real kernels, through `from_pretrained`
vllm          vLLM on this machine (in another Python, if need be), or a running server by URL
llama.cpp     GGUF files through xllamacpp, or a running llama-server by URL
sglang, ollama   running servers by URL
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from quantkit.errors import QuantkitError
from quantkit.verify.task import NotRun, Observed, Target, Task, Tick

Engine = Callable[[Task, Target, Tick], Observed]


def _local(name: str, task: Task, target: Target, tick: Tick) -> Observed:
    from quantkit.verify.engines.local import run_local

    return run_local(name, task, target, tick)


def _vllm(task: Task, target: Target, tick: Tick) -> Observed:
    if target.url:
        return _server("vllm", task, target, tick)
    from quantkit.verify.engines.vllm import run_vllm

    return run_vllm(task, target, tick)


def _llamacpp(task: Task, target: Target, tick: Tick) -> Observed:
    from quantkit.verify.engines.llamacpp import ask_server, run_llamacpp

    if target.url:
        return ask_server(task, target.url, tick, api_key=target.api_key, timeout=target.timeout)
    return run_llamacpp(task, target, tick)


def _server(flavor: str, task: Task, target: Target, tick: Tick) -> Observed:
    from quantkit.verify.engines.server import run_server

    return run_server(task, target, tick, flavor)


ENGINES: dict[str, Engine] = {
    "dequantized": partial(_local, "dequantized"),
    "transformers": partial(_local, "transformers"),
    "vllm": _vllm,
    "llama.cpp": _llamacpp,
    "sglang": partial(_server, "sglang"),
    "ollama": partial(_server, "ollama"),
}
EXACT = ("dequantized", "transformers")  # give whole distributions and the layers' outputs


def run_engine(name: str, task: Task, target: Target, tick: Tick) -> Observed:
    """Run one engine over the task's items; raises `NotRun` with the reason where it cannot be had."""
    if name not in ENGINES:
        raise QuantkitError(f"--engine {name}: unknown; known are {', '.join(ENGINES)}")
    if name in EXACT and target.checkpoint is None:
        raise NotRun(f"engine '{name}' reads a folder with config.json and safetensors; {target.path.name} is none")
    if name == "llama.cpp" and target.checkpoint is not None and not target.url:
        raise NotRun(f"engine 'llama.cpp' reads GGUF files; {target.path.name} holds safetensors")
    return ENGINES[name](task, target, tick)
