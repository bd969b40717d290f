"""Nothing half-written ever stands under the target's name, and shards are what safetensors itself would write."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from checkpoints import some_tensors, write_checkpoint, write_side_files
from processes import heed_signals
from safetensors import safe_open
from safetensors.torch import save_file

from quantkit import output
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.output import ShardWriter, atomic_output, check_target, require_free_space

# A run that writes 20 files, says so, and then waits inside the block (argument "wait") or ends it.
RUN = """
import sys, time
from quantkit.output import atomic_output
target, text, wait = sys.argv[1:]
with atomic_output(target, overwrite=True) as folder:
    (folder / "config.json").write_text(text)
    for number in range(20):
        (folder / f"{number}.txt").write_text(text * 1000)
    print("written", flush=True)
    if wait == "wait":
        time.sleep(60)
"""


def start(target: Path, text: str, wait: str) -> "subprocess.Popen[str]":
    """Start RUN and return once it has written everything."""
    command = [sys.executable, "-c", RUN, str(target), text, wait]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def model(folder: Path, text: str = "old") -> Path:
    """A folder that --overwrite accepts."""
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


def hidden(target: Path) -> list[str]:
    """What lies beside the target under its hidden names."""
    return sorted(entry.name for entry in target.parent.iterdir() if entry.name.startswith(f".{target.name}."))


def write(target: Path, text: str = "new", overwrite: bool = False) -> None:
    with atomic_output(target, overwrite=overwrite) as folder:
        (folder / "config.json").write_text(text)


def leftover(target: Path, kind: str, **changed: str) -> Path:
    """A folder as a run that ended would have left it; `changed` replaces parts of its owner."""
    names = ("host", "boot", "pid", "start")
    owner = dict(zip(names, output._owner().split("-"), strict=True)) | changed
    folder = target.parent / f".{target.name}.{kind}-{'-'.join(owner[name] for name in names)}-99"
    return model(folder, kind)


# ---- the usual way ------------------------------------------------------------------------------------------------


def test_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with atomic_output(target) as folder:
        assert folder.parent == target.parent
        (folder / "sub").mkdir()
        (folder / "sub" / "x.txt").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "x.txt").read_text() == "x"
    assert hidden(target) == []


@pytest.mark.parametrize("with_exchange", [True, False])
def test_overwrite_replaces_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_exchange: bool) -> None:
    if not with_exchange:
        monkeypatch.setattr(output, "_renameat2", lambda *_: False)
    target = model(tmp_path / "out")
    (target / "stale.txt").touch()
    with atomic_output(target, overwrite=True) as folder:
        (folder / "config.json").write_text("new")
        assert (target / "config.json").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_text() == "new"
    assert hidden(target) == []


def test_exchange_is_one_step_here(tmp_path: Path) -> None:
    """On Linux no instant without a target is left: the call that swaps two folders works."""
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    one, two = model(tmp_path / "one", "1"), model(tmp_path / "two", "2")
    assert output._renameat2(one, two, output._RENAME_EXCHANGE)
    assert ((one / "config.json").read_text(), (two / "config.json").read_text()) == ("2", "1")


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, put = os.fsync, output._put_in_place
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(output, "_put_in_place", lambda *call: (events.append("put"), put(*call)))
    with atomic_output(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).touch()
        expected = {str(path) for path in (folder, folder / "a", folder / "sub", folder / "sub/b")}
    assert set(events[: events.index("put")]) == expected
    assert events[-1] == str(tmp_path)


# ---- refused before any work --------------------------------------------------------------------------------------


def refused(target: Path, overwrite: bool = False, source: Path | None = None) -> str:
    """The message with which both entry points refuse a target; nothing is left and no work is done."""
    with pytest.raises(QuantkitError) as early:
        check_target(target, overwrite, source)
    with pytest.raises(QuantkitError) as late, atomic_output(target, overwrite, source):
        pytest.fail("work began")
    assert str(early.value) == str(late.value)
    assert "\n" not in str(early.value)
    return str(early.value)


def test_existing_target(tmp_path: Path) -> None:
    target = model(tmp_path / "out")
    assert refused(target) == f"{target}: is there already; add --overwrite to replace it, or choose another --out"
    assert (target / "config.json").read_text() == "old"
    assert check_target(target, overwrite=True) == target


def test_target_is_a_file_or_lies_in_one(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert "out: a file;" in refused(tmp_path / "out", overwrite=True)
    assert f"{tmp_path / 'out'} is not a folder" in refused(tmp_path / "out" / "x" / "y")


def test_target_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(model(tmp_path / "real"))
    assert "out: a link;" in refused(tmp_path / "out", overwrite=True)


def test_overwrite_deletes_no_folder_of_another_kind(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    assert check_target(target, overwrite=True) == target, "an empty folder may be replaced"
    (target / "chapter.txt").touch()
    assert "thesis: holds no model, so --overwrite will not delete it" in refused(target, overwrite=True)
    assert (target / "chapter.txt").exists()


def test_target_and_source(tmp_path: Path) -> None:
    source = model(tmp_path / "models" / "m") if (tmp_path / "models").mkdir() is None else tmp_path
    assert "is the source itself" in refused(source, True, source)
    assert "is the source itself" in refused(tmp_path / "models" / "x" / ".." / "m", True, source)
    assert "holds the source" in refused(tmp_path / "models", True, source)
    assert "lies in the source folder" in refused(source / "out", True, source)
    (tmp_path / "link").symlink_to(source)
    assert "is the source itself" in refused(source, True, tmp_path / "link")
    assert check_target(tmp_path / "models" / "m-awq", True, source)


def test_parent_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:  # root may write anywhere
                os.setuid(65534)
            check_target(tmp_path / "x" / "out")
        except QuantkitError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    tmp_path.chmod(0o755)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert f"{tmp_path}/x/out: cannot write into /" in pipe.read()


def test_free_space(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(QuantkitError, match=r"out: 1000000000\.00 GB needed, .* free on its disk; free some space"):
        require_free_space(tmp_path / "out", 10**18)


# ---- interrupted --------------------------------------------------------------------------------------------------


def write_and_raise(path: Path, overwrite: bool, error: BaseException) -> None:
    with atomic_output(path, overwrite=overwrite) as folder:
        (folder / "config.json").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(errno.EACCES, "x")])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    target = model(tmp_path / "out")
    for path, overwrite in ((target, True), (tmp_path / "fresh", False)):
        with pytest.raises(type(error)) as caught:
            write_and_raise(path, overwrite, error)
        assert caught.value is error
    assert (target / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)]
)
def test_signals_clean_up(tmp_path: Path, number: signal.Signals, status: int) -> None:
    target = model(tmp_path / "out")
    process = start(target, "new", "wait")
    assert len(hidden(target)) == 1
    process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == status, complaint
    assert hidden(target) == []
    assert (target / "config.json").read_text() == "old"


def test_signal_handlers_are_the_callers_again(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with atomic_output(tmp_path / "out"):
            assert signal.getsignal(signal.SIGTERM) not in (before, signal.SIG_DFL)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "who ignores a signal keeps ignoring it (nohup)"
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, hangup)


def test_works_in_a_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=write, args=(tmp_path / "out",))
    thread.start()
    thread.join()
    assert (tmp_path / "out" / "config.json").read_text() == "new"


def test_sigkill_leaves_the_old_one_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    target = model(tmp_path / "out")
    process = start(target, "new", "wait")
    process.kill()
    process.communicate(timeout=20)
    assert (target / "config.json").read_text() == "old"
    assert len(hidden(target)) == 1
    check_target(target, overwrite=True)
    assert hidden(target) == []


def run_and_die(target: Path, text: str, step: int) -> bool:
    """Overwrite the target in a child that is killed before its `step`-th call to the system; False if it survives."""
    child = os.fork()
    if child == 0:
        try:
            left = [step]

            def count(event: str, arguments: object) -> None:
                if event.startswith(("os.", "open", "shutil.", "ctypes.")):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            with atomic_output(target, overwrite=True) as folder:
                fill_with(folder, text)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def fill_with(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "a", "b"):
        (folder / name).write_text(text)


@pytest.mark.parametrize("with_exchange", [True, False])
def test_sigkill_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_exchange: bool) -> None:
    """Whenever it is killed, the old or the new folder is there, whole (without exchange: after the next run began)."""
    if not with_exchange:
        monkeypatch.setattr(output, "_renameat2", lambda *_: False)
    seen, target = [], tmp_path / "out"
    for step in range(1, 1000):
        shutil.rmtree(target, ignore_errors=True)
        fill_with(target, "old")
        killed = run_and_die(target, "new", step)
        assert target.exists() or not with_exchange
        check_target(target, overwrite=True)
        assert hidden(target) == []
        assert sorted(os.listdir(target)) == ["a", "b", "config.json"]
        found = {path.read_text() for path in target.iterdir()}
        assert found in ({"old"}, {"new"})
        seen.append(found.pop())
        if not killed:
            break
    assert seen.index("new") > 10, "killed while it wrote"
    assert seen[seen.index("new") :] == ["new"] * seen.count("new"), "after the swap it is always the new one"
    assert seen.count("new") > 3, "killed while it deleted the old one"


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """Without the exchange there is an instant without a target: the next run puts the old folder back."""
    target = model(tmp_path / "out")
    code = (
        "import os, sys; from pathlib import Path; from quantkit import output\n"
        "output._renameat2 = lambda *_: False\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, new: os._exit(9) if '.partial-' in self.name else rename(self, new)\n"
        "with output.atomic_output(sys.argv[1], overwrite=True): pass"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == 9
    assert not target.exists()
    assert len(hidden(target)) == 2
    with pytest.raises(QuantkitError, match="is there already"):
        check_target(target)
    assert (target / "config.json").read_text() == "old"
    assert hidden(target) == []


def test_second_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = model(tmp_path / "out")
    rename = Path.rename

    def fail_once(self: Path, new: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, new)

    monkeypatch.setattr(output, "_renameat2", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(KeyboardInterrupt):
        write(target, overwrite=True)
    assert (target / "config.json").read_text() == "old"
    assert hidden(target) == []


@pytest.mark.parametrize("with_exchange", [True, False])
def test_target_appears_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_exchange: bool) -> None:
    if not with_exchange:
        monkeypatch.setattr(output, "_renameat2", lambda *_: False)
    target = tmp_path / "out"
    block = atomic_output(target)
    block.__enter__()
    model(target, "theirs")
    with pytest.raises(QuantkitError, match="out: appeared while this run worked"):
        block.__exit__(None, None, None)
    assert (target / "config.json").read_text() == "theirs"
    assert hidden(target) == []


# ---- what dead runs left ------------------------------------------------------------------------------------------


def test_a_living_run_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = start(target, "new", "wait")
    mine = leftover(target, "partial")
    write(target)
    assert len(hidden(target)) == 2
    process.kill()
    process.communicate(timeout=20)
    check_target(target, overwrite=True)
    assert hidden(target) == [mine.name]


@pytest.mark.parametrize("changed", [{"pid": "4194305"}, {"boot": "00000000"}, {"start": "1"}])
def test_dead_runs_are_cleaned_up(tmp_path: Path, changed: dict[str, str]) -> None:
    """The process is gone, or it was before a reboot, or its pid now belongs to a process that started later."""
    target = tmp_path / "out"
    leftover(target, "partial", **changed)
    (tmp_path / ".out.partial-notes").mkdir()
    write(target)
    assert hidden(target) == [".out.partial-notes"]


def test_dead_runs_for_another_target_are_left_to_it(tmp_path: Path) -> None:
    other = leftover(tmp_path / "outer", "partial", boot="00000000")
    alike = leftover(tmp_path / "o-t", "partial", boot="00000000")
    for name in ("out", "o.t"):
        write(tmp_path / name)
    assert other.exists()
    assert alike.exists()


def test_runs_on_another_host_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = leftover(tmp_path / "out", "partial", host="00000000")
    write(tmp_path / "out")
    assert f"{kept}: left by a run on another host" in caplog.text
    assert kept.exists()


def test_previous_folder_comes_back_only_where_the_target_is_missing(tmp_path: Path) -> None:
    for name in ("missing", "there"):
        target = tmp_path / name
        leftover(target, "previous", boot="00000000")
        leftover(target, "partial", boot="00000000")
    model(tmp_path / "there", "kept")
    for name in ("missing", "there"):
        check_target(tmp_path / name, overwrite=True)
        assert hidden(tmp_path / name) == []
    assert (tmp_path / "missing" / "config.json").read_text() == "previous"
    assert (tmp_path / "there" / "config.json").read_text() == "kept"


# ---- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_while_writing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    target, tensors, calls = model(tmp_path / "out"), some_tensors(), iter(range(100))
    pwrite = os.pwrite

    def fails_later(*call: object) -> int:
        if next(calls) > 2:
            raise OSError(code, os.strerror(code))
        return pwrite(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", fails_later)
    full = r"out: the disk is full \(.*\), nothing was written; free some space"
    with pytest.raises(QuantkitError, match=full), atomic_output(target, overwrite=True) as folder:
        fill(folder, tensors)
    assert (target / "config.json").read_text() == "old"
    assert hidden(target) == []


def test_disk_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(QuantkitError, match="out: the disk is full"), atomic_output(disk / "out") as folder:
            (folder / "x").write_bytes(bytes(300_000))
        assert os.listdir(disk) == []
        with pytest.raises(QuantkitError, match=r"0\.40 MB needed, 0\.26 MB free"):
            ShardWriter(disk, {"a": (torch.int8, (400_000,))})
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_size_limit(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from quantkit.errors import QuantkitError; from quantkit.output import atomic_output\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_output(sys.argv[1]) as folder: (folder / 'x').write_bytes(bytes(2000))\n"
        "except QuantkitError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "out: the disk is full (File too large), nothing was written" in result.stdout
    assert os.listdir(tmp_path) == []


# ---- shards -------------------------------------------------------------------------------------------------------

EVERY_DTYPE = {
    "b.weight": torch.randn(3, 5).bfloat16(),
    "a.weight": torch.randn(7),
    "z.qweight": torch.randint(-5, 5, (4, 2), dtype=torch.int32),
    "scalar": torch.tensor(3.0, dtype=torch.float16),
    "int8": torch.arange(-3, 2, dtype=torch.int8),
    "int64": torch.arange(3),
    "empty": torch.zeros(0, 4),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "größe": torch.randn(2).half(),
}


def fill(
    folder: Path, tensors: dict[str, torch.Tensor], limit: int = 10**9, order: list[str] | None = None
) -> list[str]:
    """Write tensors with a ShardWriter, added in another order than declared if `order` says so."""
    with ShardWriter(folder, {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, limit) as writer:
        for name in order or tensors:
            writer.add(name, tensors[name])
        return writer.finish()


@pytest.mark.parametrize("backwards", [False, True])
def test_same_bytes_as_safetensors(tmp_path: Path, backwards: bool) -> None:
    names = sorted(EVERY_DTYPE, reverse=backwards)
    assert fill(tmp_path, EVERY_DTYPE, order=names) == ["model.safetensors", "SHA256SUMS"]
    save_file(EVERY_DTYPE, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()


def test_spellings_and_layouts_of_tensors(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4)
    with ShardWriter(tmp_path, {"t": ("F32", (4, 3)), "s": ("BF16", (2,)), "g": ("float16", (1,))}) as writer:
        writer.add("t", tensor.t())  # not contiguous
        writer.add("s", tensor.bfloat16()[0, ::2])
        writer.add("g", torch.ones(1, dtype=torch.float16, requires_grad=True))
        writer.finish()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reader:
        assert torch.equal(reader.get_tensor("t"), tensor.t())
        assert reader.get_tensor("s").tolist() == [0.0, 2.0]
        assert reader.get_tensor("g").tolist() == [1.0]


def test_shards_and_index(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((4,), number, dtype=torch.int32) for number in range(5)}
    tensors["t2"] = torch.arange(100, dtype=torch.int32)  # larger than a shard may be
    assert output._cut({"large": ("I8", (9,)), "small": ("I8", (1,))}, 8) == [["large"], ["small"]]
    written = fill(tmp_path, tensors, limit=32)
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert written == [*shards, "model.safetensors.index.json", "SHA256SUMS"]
    assert sorted(written) == sorted(os.listdir(tmp_path))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * 16 + 400}
    expected = {"t0": 0, "t1": 0, "t2": 1, "t3": 2, "t4": 2}
    assert index["weight_map"] == {name: shards[number] for name, number in expected.items()}
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, framework="pt") as reader:
            assert torch.equal(reader.get_tensor(name), tensors[name])
            assert reader.metadata() == {"format": "pt"}


def test_own_files_open_and_carry_checksums(tmp_path: Path) -> None:
    write_side_files(tmp_path)
    written = fill(tmp_path, some_tensors(), limit=100)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}" for name in written[:-1]]
    checkpoint = open_checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in some_tensors().items())
    assert checkpoint.fingerprint() == open_checkpoint(write_checkpoint(tmp_path / "library")).fingerprint()
    content = bytearray((tmp_path / written[0]).read_bytes())
    content[-1] ^= 1
    (tmp_path / written[0]).write_bytes(content)
    with pytest.raises(QuantkitError, match=rf"{written[0]}: damaged or changed, its bytes do not match SHA256SUMS"):
        open_checkpoint(tmp_path)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write call never takes more than 2 GiB, and less on a disk that fills up."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:7], offset))
    fill(tmp_path, EVERY_DTYPE)
    save_file(EVERY_DTYPE, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()


def test_each_declared_tensor_exactly_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, {"a": (torch.float32, (2,)), "b": ("I8", (1,))}) as writer:
        with pytest.raises(ValueError, match="c was not declared"):
            writer.add("c", torch.zeros(2))
        for wrong in (torch.zeros(3), torch.zeros(2, 1), torch.zeros(2).half()):
            with pytest.raises(ValueError, match=r"a was declared as \('F32', \(2,\)\), but is"):
                writer.add("a", wrong)
        writer.add("a", torch.zeros(2))
        with pytest.raises(ValueError, match="a was added twice"):
            writer.add("a", torch.zeros(2))
        with pytest.raises(ValueError, match="1 declared tensors were never added, the first is b"):
            writer.finish()
    assert not (tmp_path / "SHA256SUMS").exists()


@pytest.mark.parametrize("specs", [{}, {"a": (torch.complex64, (1,))}])
def test_specs_that_no_file_can_hold(tmp_path: Path, specs: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    with pytest.raises(ValueError, match=r"no tensor declared|hold no dtype torch\.complex64"):
        ShardWriter(tmp_path, specs)
    assert os.listdir(tmp_path) == []


def test_files_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ShardWriter(tmp_path, {"a": ("I8", (1,)), "b": ("I8", (1,))}, 1):
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


STOPPED = """
import os, signal, sys
from pathlib import Path
from quantkit.output import atomic_file
with atomic_file(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_stopped_program_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mix.parquet").write_text("whole")
    done = subprocess.run([sys.executable, "-c", STOPPED, str(tmp_path / "mix.parquet")])
    assert done.returncode == 128 + signal.SIGTERM
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mix.parquet", "whole")]
