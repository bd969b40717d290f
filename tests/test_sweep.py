"""Sweeps: what a file says, what is shared, what is kept; here and on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.errors import QuantkitError
from quantkit.sweep.plan import read_sweep

Run = Callable[..., tuple[int, str, str]]
GOOD = """\
model: tiny
samples: 4
variants:
  - method: [awq, gptq]
    group_size: [64, 128]
    keep: layers.0
  - method: gptq
    bits: [2, 3]
    seed: [0, 1]
  - method: rtn
  - method: gguf
    type: [Q4_K_M, Q2_K]
    calib: [bundled, [bundled, "photos,weight=2"]]
verify: {samples: 6, max_new_tokens: 2}
gates: {max_kl: 9}
"""


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_every_list_is_an_axis(write_yaml: Callable[[str], Path]) -> None:
    found = read_sweep(write_yaml(GOOD))
    assert [cell.name for cell in found.cells] == [
        "awq-g64", "awq-g128", "gptq-g64", "gptq-g128", "gptq-w2-s0", "gptq-w2-s1", "gptq-w3-s0", "gptq-w3-s1", "rtn",
        "gguf-Q4_K_M-calib-bundled", "gguf-Q4_K_M-calib-bundled+photos_weight_2", "gguf-Q2_K-calib-bundled",
        "gguf-Q2_K-calib-bundled+photos_weight_2",
    ]  # fmt: skip
    cells = {cell.name: cell for cell in found.cells}
    assert cells["awq-g64"].options.group_size == 64 and cells["awq-g64"].options.keep == ("layers.0",)
    assert cells["gptq-w3-s1"].options.samples == 4 and cells["gptq-w3-s1"].options.seed == 1
    assert cells["gguf-Q2_K-calib-bundled+photos_weight_2"].options.calib == ("bundled", "photos,weight=2")
    assert cells["gguf-Q2_K-calib-bundled+photos_weight_2"].axes["calib"] == "bundled + photos,weight=2"
    assert {"bits", "group_size", "seed", "keep"} <= cells["gptq-w3-s1"].axes.keys()
    assert "samples" not in cells["gptq-w3-s1"].axes and "bits" not in cells["gguf-Q2_K-calib-bundled"].axes
    assert found.model == "tiny" and found.verify.samples == 6 and found.gates == {"max_kl": 9.0}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("samples: 4", "sample: 4", 2, "sample: is no option of its methods; did you mean samples?"),
        ("samples: 4", "stats: x", 2, "stats: is the sweep's own business"),
        ("samples: 4", "method: awq", 2, "method: stands in variants"),
        ("samples: 4", "samples: [4, 8]", 2, "samples: write a whole number; found several values"),
        ("[awq, gptq]", "[awq, gpttq]", 4, "method: 'gpttq' is unknown; did you mean gptq?"),
        ("method: rtn", "bits: 4", 10, "method is missing"),
        ("group_size: [64, 128]", "group_sizes: [64, 128]", 5, "group_sizes: unknown; did you mean group_size?"),
        ("group_size: [64, 128]", "group_size: []", 5, "group_size: an empty list is no axis"),
        ("bits: [2, 3]", "bits: [2, x]", 8, "bits: write a whole number; found 'x'"),
        ("bits: [2, 3]", "type: [Q4_K_M]", 8, "type: is no option of gptq"),
        ("bits: [2, 3]", "damping: [2]", 8, "--damping 2.0: must lie between 0 and 1"),
        ("bits: [2, 3]", "out: x", 8, "out: is the sweep's own business"),
        ("{samples: 6", "{sample: 6", 14, "verify.sample: unknown; did you mean samples?"),
        ("max_new_tokens: 2}", "junit: x.xml}", 14, "verify: reports go to each variant's folder"),
        ("max_kl: 9", "max_kll: 9", 15, "gates.max_kll: unknown; did you mean max_kl?"),
        ("variants:", "variant:", 1, "variants: list grids"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_its_place(
    write_yaml: Callable[[str], Path], old: str, new: str, line: int, words: str
) -> None:
    path = write_yaml(GOOD.replace(old, new, 1))
    with pytest.raises(QuantkitError) as error:
        read_sweep(path)
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value), error.value


def test_the_sweep_that_comes_along_can_be_read() -> None:
    found = read_sweep(Path(__file__).parent.parent / "recipes" / "sweeps" / "evening.yaml")
    assert len(found.cells) == 14 and found.model == "openbmb/MiniCPM-V-4.6"


def test_the_same_variant_twice_is_refused(write_yaml: Callable[[str], Path]) -> None:
    with pytest.raises(QuantkitError, match="rtn and rtn-w4 are the same variant"):
        read_sweep(write_yaml("variants:\n  - method: rtn\n  - method: rtn\n    bits: [4]\n"))
    with pytest.raises(QuantkitError, match="a sweep is of one model"):
        read_sweep(write_yaml("variants:\n  - method: rtn\n  - method: awq\n    model: [a/b]\n"))


def test_a_pair_that_does_not_fit_is_told_before_anything_runs(write_yaml: Callable[[str], Path], run: Run) -> None:
    path = write_yaml("model: tiny\nvariants:\n  - method: gptq\n    bits: [3, 5]\n")
    code, _, errors = run("sweep", path, "--out", path.parent / "out")
    assert code == 2 and f"{path}: gptq-w5: --bits 5: GPTQ's layout holds 2, 3, 4 or 8 bits" in errors
    assert not (path.parent / "out").exists()


# ---- the run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(small_calibration: Path) -> str:
    return f"""\
model: tiny
calib: {small_calibration}
samples: 4
no_cache: true
variants:
  - method: gptq
    solver: [rtn, gptq]
  - method: awq
    solver: rtn
  - method: rtn
    bits: [2, 4]
    method_format: gptq
  - method: gguf
    type: [Q4_K_M]
    solver: imatrix
    mmproj_type: f16
verify: {{samples: 6, max_new_tokens: 2}}
"""


@pytest.fixture(scope="module")
def finished(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was run from the command line."""
    from quantkit import cli

    folder = tmp_path_factory.mktemp("sweep")
    (folder / "s.yaml").write_text(small)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as on a cluster, where a task has one core
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["quantkit", "sweep", str(folder / "s.yaml"), "--out", str(folder / "out")])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    torch.set_num_threads(threads)
    assert stop.value.code == 0
    return folder


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")}


def test_all_variants_are_made_measured_and_shown(finished: Path) -> None:
    out = finished / "out"
    names = {"gptq-rtn", "gptq-gptq", "awq", "rtn-w2", "rtn-w4", "gguf-Q4_K_M"}
    assert {name: record["status"] for name, record in _records(out).items()} == dict.fromkeys(names, "done")
    for name in names:
        assert (out / "variants" / name / "report.html").is_file()
    assert {"sweep.html", "sweep.csv", "sweep.parquet", "sweep.tex", "plots"} <= {path.name for path in out.iterdir()}
    assert not (out / "statistics").exists()
    table = (out / "sweep.csv").read_text().splitlines()
    assert len(table) == 1 + len(names)
    # what the calibration pass took stands once: the cells read it
    assert all("statistics" in _records(out)[name]["seconds"] for name in ("gptq-rtn", "gptq-gptq", "awq"))


def test_a_variant_of_a_sweep_has_the_bytes_of_the_command_alone(finished: Path, small: str, run: Run) -> None:
    from quantkit.reproduce import differences

    calib = small.splitlines()[1].removeprefix("calib: ")
    alone = finished / "alone"
    given = ["--calib", calib, "--samples", 4, "--no-cache", "--solver", "gptq"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code, _, errors = run("gptq", "--model", "tiny", "--out", alone, *given)
    torch.set_num_threads(threads)
    assert code == 0, errors
    assert set(differences(finished / "out" / "variants" / "gptq-gptq", alone).values()) == {"same"}


def test_finished_cells_are_kept_and_others_redone(finished: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("variants/*/quantkit.json")}
    (out / "cells" / "awq.json").unlink()  # killed before its record
    broken = out / "cells" / "rtn-w2.json"
    broken.write_text(broken.read_text().replace('"variant": "', '"variant": "other'))
    code, output, errors = run("sweep", finished / "s.yaml", "--out", out, "--dry-run")
    assert code == 0 and "to do: 2 variants" in output and output.count("│ finished") == 4, output + errors
    code, output, errors = run("sweep", finished / "s.yaml", "--out", out)
    assert code == 0 and "4 of 6 variants are finished already" in output, errors
    moved = {path.parent.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert moved == {"awq", "rtn-w2"}


def test_what_is_only_measured_otherwise_is_not_made_again(
    write_yaml: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gate, another number of items: the variant stays, its report is new."""
    from quantkit.sweep import work

    text = "model: tiny\nvariants:\n  - method: rtn\n    bits: [3, 4]\n    method_format: gptq\n"
    path = write_yaml(text + "verify: {samples: 4, max_new_tokens: 2}\n")
    out = path.parent / "out"
    assert run("sweep", path, "--out", out)[0] == 0
    before = {name: one["seconds"] for name, one in _records(out).items()}
    monkeypatch.setattr(work, "quantize", lambda *given: pytest.fail("made again"))
    path.write_text(text + "verify: {samples: 5, max_new_tokens: 2}\ngates: {max_kl: 0}\n")
    code, output, errors = run("sweep", path, "--out", out, "--dry-run")
    assert code == 0 and "to do: 2 variants" in output and "0.0 MB of disk" in output, output + errors
    code, output, errors = run("sweep", path, "--out", out)
    assert code == 3 and "2 of 2 variants are there already, and only measured again" in output, errors
    report = json.loads((out / "variants" / "rtn-w3" / "report.json").read_text())
    assert report["data"]["items"] == 5 and report["verdict"]["status"] == "fail"
    after = {name: one["seconds"] for name, one in _records(out).items()}
    for name, one in before.items():
        assert one | {"verify": 0} == after[name] | {"verify": 0}, "what making it took is kept"
    assert "finished" in run("sweep", path, "--out", out, "--dry-run")[1]


@pytest.mark.parametrize("where", ["_quantize", "_verify"])
def test_what_was_killed_in_the_middle_is_done_again(
    write_yaml: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A second sweep dies over other options, the third has the first one's: nothing is taken for its own."""
    from quantkit.sweep import work

    text = "model: tiny\nvariants:\n  - method: rtn\n    bits: [3]\n    method_format: gptq\n"
    path = write_yaml(text + "verify: {samples: 4, max_new_tokens: 2}\n")
    out = path.parent / "out"
    assert run("sweep", path, "--out", out)[0] == 0
    if where == "_quantize":
        other = text + "    group_size: 64\nverify: {samples: 4, max_new_tokens: 2}\n"
    else:
        other = text + "verify: {samples: 5, max_new_tokens: 2}\n"
    real = getattr(work, where)

    def dies(*given: Any) -> None:
        real(*given)
        raise KeyboardInterrupt  # files are there, the record is not

    monkeypatch.setattr(work, where, dies)
    first = path.read_text()
    path.write_text(other)
    assert run("sweep", path, "--out", out)[0] == 130
    monkeypatch.setattr(work, where, real)
    path.write_text(first)
    assert "to do: 1 variants" in run("sweep", path, "--out", out, "--dry-run")[1]
    assert run("sweep", path, "--out", out)[0] == 0
    variant = out / "variants" / "rtn-w3"
    assert json.loads((variant / "quantkit.json").read_text())["recipe"]["group_size"] == 128
    assert json.loads((variant / "report.json").read_text())["data"]["items"] == 4


def test_a_log_names_each_variant_as_it_is_finished(write_yaml: Callable[[str], Path], run: Run) -> None:
    text = "model: tiny\nvariants:\n  - method: rtn\n    bits: [3, 4]\n    method_format: gptq\n"
    path = write_yaml(text + "verify: {quick: true}\n")
    _, output, errors = run("sweep", path, "--out", path.parent / "out")
    assert "1 of 2: rtn-w3: done\n2 of 2: rtn-w4: done\n" in errors and "also holds" not in output
    path.write_text(text.replace("[3, 4]", "[3, 2]") + "verify: {quick: true}\n")
    _, output, errors = run("sweep", path, "--out", path.parent / "out")
    assert "1 of 1: rtn-w2: done" in errors and "also holds rtn-w4, of which" in output


def test_data_that_is_not_there_is_told_before_anything_runs(write_yaml: Callable[[str], Path], run: Run) -> None:
    path = write_yaml("model: tiny\nvariants:\n  - method: [awq, gptq]\n    calib: [bundled, nothing.jsonl]\n")
    code, _, errors = run("sweep", path, "--out", path.parent / "out", "--dry-run")
    assert code == 2 and "nothing.jsonl" in errors and not (path.parent / "out").exists()


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(
    write_yaml: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.sweep import work

    real = work.quantize

    def sometimes(options: Any, progress: Any) -> Any:
        if options.bits == 2:
            raise QuantkitError("layer 3: something is wrong")
        return real(options, progress)

    monkeypatch.setattr(work, "quantize", sometimes)
    text = "model: tiny\nvariants:\n  - method: rtn\n    bits: [2, 4]\n    method_format: gptq\nverify: {quick: true}\n"
    path = write_yaml(text)
    out = path.parent / "out"
    code, output, errors = run("sweep", path, "--out", out)
    assert code == 3 and "rtn-w2: layer 3: something is wrong" in output + errors
    assert {name: one["status"] for name, one in _records(out).items()} == {"rtn-w2": "failed", "rtn-w4": "done"}
    monkeypatch.setattr(work, "quantize", real)
    code, output, errors = run("sweep", path, "--out", out)
    assert _records(out)["rtn-w2"]["status"] == "done", errors


def test_cells_that_need_the_same_pass_share_it(
    write_yaml: Callable[[str], Path], small_calibration: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit import gather

    made: list[int] = []

    class Counted(gather.CalibrationPass):
        def __init__(self, *given: Any, **options: Any) -> None:
            made.append(1)
            super().__init__(*given, **options)

    monkeypatch.setattr(gather, "CalibrationPass", Counted)
    path = write_yaml(
        f"model: tiny\ncalib: {small_calibration}\nsamples: 4\nno_cache: true\nsolver: rtn\nvariants:\n"
        "  - method: [gptq, awq]\n  - method: gptq\n    seed: [1]\nverify: {quick: true}\n"
    )
    code, _, errors = run("sweep", path, "--out", path.parent / "out")
    assert code == 0, errors
    assert len(made) == 2  # one for both of seed 0, the other cell's own
    assert len(json.loads((path.parent / "out" / "passes.json").read_text())) == 1


def test_a_pass_that_fails_fails_the_cells_that_need_it(
    write_yaml: Callable[[str], Path], small: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.sweep import local

    def broken(*_: Any) -> float:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(local, "gather_statistics", broken)
    path = write_yaml(small.replace("{samples: 6, max_new_tokens: 2}", "{quick: true}"))
    out = path.parent / "out"
    code, output, errors = run("sweep", path, "--out", out)
    assert code == 3 and "gptq-gptq: " in output + errors and "CUDA out of memory" in output + errors
    states = {name: one["status"] for name, one in _records(out).items()}
    assert states.pop("rtn-w2") == states.pop("rtn-w4") == "done"
    assert set(states.values()) == {"failed"}


def test_changed_data_of_the_same_name_is_not_taken_for_finished(
    finished: Path, small: str, small_calibration: Path, run: Run
) -> None:
    manifest = small_calibration / "manifest.jsonl"
    before = manifest.stat()
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        code, output, errors = run("sweep", finished / "s.yaml", "--out", finished / "out", "--dry-run")
    finally:
        os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert code == 0 and "to do: 4 variants" in output, errors  # those that look at data
    code, output, errors = run("sweep", finished / "s.yaml", "--out", finished / "out", "--dry-run")
    assert code == 0 and "to do: 0 variants" in output, errors


def test_two_sweeps_do_not_work_in_one_folder(finished: Path, run: Run) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (finished / "out" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, _, errors = run("sweep", finished / "s.yaml", "--out", finished / "out")
    assert code == 2 and "another sweep is at work in it" in errors


def test_an_interrupted_sweep_says_what_it_keeps(
    write_yaml: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.sweep import work

    real, done = work.quantize, []

    def stops(options: Any, progress: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(options)
        return real(options, progress)

    monkeypatch.setattr(work, "quantize", stops)
    text = "model: tiny\nvariants:\n  - method: rtn\n    bits: [3, 4]\n    method_format: gptq\nverify: {quick: true}\n"
    path = write_yaml(text)
    out = path.parent / "out"
    code, _, errors = run("sweep", path, "--out", out)
    assert code == 130 and "keeps what is finished" in errors and "nothing was written" not in errors
    assert [name for name, one in _records(out).items() if one["status"] == "done"] == ["rtn-w3"]
    monkeypatch.setattr(work, "quantize", real)
    code, output, errors = run("sweep", path, "--out", out)
    assert code == 0 and "1 of 2 variants are finished already" in output, errors


def test_a_folder_of_something_else_is_left_alone(finished: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    code, _, errors = run("sweep", finished / "s.yaml", "--out", tmp_path)
    assert code == 2 and "holds something else" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- on a cluster ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of a real Ray cluster on this machine, one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def _workers(word: str) -> list[int]:
    """Processes that Ray calls after a task whose name holds ``word``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and word.encode() in title:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_two_nodes_do_a_sweep_although_a_worker_is_killed(
    cluster: Any, small: str, write_yaml: Callable[[str], Path], run: Run, finished: Path
) -> None:
    from quantkit.reproduce import differences

    killed: list[int] = []

    def kill() -> None:
        """The first worker that is at work on a cell."""
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for pid in _workers("gptq"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.05)

    path = write_yaml(small)
    out = path.parent / "out"
    killer = threading.Thread(target=kill)
    killer.start()
    code, output, errors = run("sweep", path, "--out", out, "--ray", cluster.address)
    killer.join()
    assert killed, "no worker was seen at work"
    assert code == 0, errors + output
    records = _records(out)
    assert len(records) == 6 and all(record["status"] == "done" for record in records.values())
    for name in records:  # the same bytes as on one machine; reports hold timings
        found = differences(finished / "out" / "variants" / name, out / "variants" / name)
        other = {file: state for file, state in found.items() if state != "same" and not file.startswith("report")}
        assert found and not other, name
    hidden = [one for one in (out / "variants").iterdir() if one.name.startswith(".")]
    assert not hidden, "remains of the killed worker"


def test_what_no_node_has_is_one_line(cluster: Any, write_yaml: Callable[[str], Path], small: str, run: Run) -> None:
    """Ray itself would wait for such a node without a word."""
    path = write_yaml(small)
    given = ["sweep", path, "--out", path.parent / "out", "--ray", cluster.address]
    code, _, errors = run(*given, "--cpus", 3)
    assert code == 2 and "--cpus 3: the largest node of" in errors and "has 1; ask for fewer" in errors
    path.write_text("device: cuda\n" + small)
    code, _, errors = run(*given)
    assert code == 2 and "a variant wants device cuda; no node has a GPU beside 1 cores" in errors
    path.write_text("device: cuda:1\n" + small)
    code, _, errors = run(*given)
    assert code == 2 and "device: a cluster hands its GPUs out itself; write cuda" in errors


def test_a_cluster_that_is_not_there_is_one_line(write_yaml: Callable[[str], Path], small: str, run: Run) -> None:
    pytest.importorskip("ray")
    path = write_yaml(small)
    code, _, errors = run("sweep", path, "--out", path.parent / "out", "--ray", "127.0.0.1:1")
    assert code == 2 and "--ray 127.0.0.1:1: no cluster to be reached" in errors
